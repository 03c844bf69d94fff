//! A bridge of this machine, as a host has one, and somebody else who is on it.
//!
//! Owns the bridge, and a network namespace whose only way out is a port of it; both go with the
//! value. This machine has no address there, so that whoever answers on it answers over the bridge.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

use dagger_tests::built::programs;
use dagger_tests::cluster::{Cluster, Role};
use serde_json::Value;

/// The name under which it is offered.
const NAME: &str = "lan";
/// The address of whoever is there already.
pub(crate) const OUTSIDE: &str = "192.0.2.1";
/// How long somebody who is not let in is waited for.
const CONNECT_WAIT_MAX_SECONDS: &str = "3";

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().expect("ip runs").success()
}

pub(crate) struct Lan {
    bridge: String,
    outside: String,
}

impl Lan {
    pub(crate) fn new() -> Self {
        // Such names are the whole machine's: no other run has these.
        let mark = std::process::id();
        let lan = Self { bridge: format!("lanbr{mark}"), outside: format!("lan-{mark}") };
        let (bridge, outside, port) = (&lan.bridge, &lan.outside, format!("lanp{mark}"));
        for words in [
            format!("netns add {outside}"),
            format!("link add {bridge} type bridge"),
            format!("link add {port} type veth peer name wire netns {outside}"),
            format!("link set {port} master {bridge} up"),
            format!("link set {bridge} up"),
            format!("-n {outside} address add {OUTSIDE}/24 dev wire"),
            format!("-n {outside} link set wire up"),
        ] {
            assert!(ip(&words), "ip {words}");
        }
        lan
    }

    /// The first host's operator lets guests onto it, at the host and in the ledger.
    pub(crate) fn offer(&self, cluster: &Cluster) {
        self.list(cluster);
        cluster.kill(Role::Agent, 1);
        cluster.restart(Role::Agent, 1);
        let hosts = cluster.json(&["host", "ls"]);
        let declared = &hosts[0]["host"];
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let of = |name: &str, unit: &str| text(&declared["capacity"][name]) + unit;
        let subnet = &declared["guest_subnet"];
        let key = |name: &str| cluster.file(&format!("keys/{name}"));
        let arguments = [
            ("--region", text(&declared["region"])),
            ("--cpus", of("cpus", "")),
            ("--memory", of("memory_mib", "MiB")),
            ("--disk", of("disk_gib", "GiB")),
            ("--guest-subnet", text(&subnet["network"]) + "/" + &text(&subnet["prefix_length"])),
            ("--forward-ports-first", text(&declared["forward_ports_first"])),
            ("--bridge", NAME.to_owned()),
            ("--ledger-key", key("host1-ledger.pub")),
            ("--agent-key", key("host1-agent.pub")),
            ("--key", key("op1")),
        ];
        let pairs = arguments.iter().flat_map(|(option, value)| [*option, value.as_str()]);
        let words: Vec<_> = ["host", "join", "host1"].into_iter().chain(pairs).collect();
        cluster.must(&words);
        cluster.until("the host offers it", || {
            let hosts = cluster.json(&["host", "ls"]);
            (hosts[0]["host"]["bridges"] == serde_json::json!([NAME])).then_some(())
        });
    }

    /// The list on the host, which the helper reads: a list of this test's own, for that of the
    /// machine is its operator's.
    fn list(&self, cluster: &Cluster) {
        let (list, own) = (cluster.path().join("bridges"), cluster.path().join("programs"));
        let built = programs().expect("built before");
        fs::write(&list, format!("{NAME} {} 192.0.2.0/24\n", self.bridge)).expect("written");
        fs::set_permissions(&list, fs::Permissions::from_mode(0o644)).expect("set");
        fs::create_dir(&own).expect("made");
        for name in ["dagger-dhcp", "dagger-fetch"] {
            symlink(built.join(name), own.join(name)).expect("linked");
        }
        let (program, helper) = (built.join("dagger-net"), own.join("dagger-net"));
        let script =
            format!("#!/bin/sh\nexec {} --bridges {}\n", program.display(), list.display());
        fs::write(&helper, script).expect("written");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("set");
        let file = cluster.path().join("hosts/host1/agent.toml");
        let text = fs::read_to_string(&file).expect("it has one");
        let mut table: toml::Table = text.parse().expect("it reads");
        let helpers = table["helpers"].as_table_mut().expect("a table");
        helpers.insert("programs".to_owned(), own.to_str().expect("plain names").into());
        fs::write(&file, table.to_string()).expect("written");
    }

    /// Runs a line of bash as whoever is there already.
    fn outside(&self, line: &str) -> Output {
        let words = ["netns", "exec", &self.outside, "timeout", CONNECT_WAIT_MAX_SECONDS];
        Command::new("ip").args(words).args(["bash", "-c", line]).output().expect("ip runs")
    }

    /// What the server at that place says first to whoever is there; nothing if nobody is let in.
    pub(crate) fn greeting(&self, address: &str, port: u16) -> String {
        let line = format!("exec 3<>/dev/tcp/{address}/{port} && head -n 1 <&3");
        String::from_utf8_lossy(&self.outside(&line).stdout).into_owned()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.outside));
        ip(&format!("link delete {}", self.bridge));
    }
}
