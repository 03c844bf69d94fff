//! A network of its own for each host: namespaces, joined by cables to a switch in one more.
//!
//! Owns them: they are made with the process's number in their names and go with this. Cables are
//! pulled at the switch, so the hosts' own ends stay up and nobody is told; single directions are
//! cut by a packet filter at the hearing end, which drops without a word. Needs root, ip(8) and
//! nft(8). Called by the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::ledgers::Place;

/// Where the ledgers listen in their networks.
const PORT: u16 = 4710;

/// Runs a program and wants it to succeed; `input` is what it reads.
fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}: install iproute2 and nftables"))?;
    child.stdin.take().context("it was piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{program} {} failed: {}", arguments.join(" "), said.trim_end())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    run("ip", &words, "")
}

/// The networks of a cluster.
pub(super) struct Namespaces {
    prefix: String,
    hosts: u8,
    /// How many faults want a pair mute now.
    muted: BTreeMap<(u8, u8), u32>,
}

impl Namespaces {
    /// Makes networks for `hosts` hosts.
    pub(super) fn make(hosts: u8) -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "networks of one's own need root");
        let prefix = format!("endure{}", std::process::id());
        // From here on, whatever was made goes when this is dropped.
        let made = Self { prefix, hosts, muted: BTreeMap::new() };
        let switch = made.switch();
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add switch type bridge"))?;
        ip(&format!("-n {switch} link set switch up"))?;
        for host in 0..hosts {
            made.join(host)?;
        }
        Ok(made)
    }

    fn switch(&self) -> String {
        format!("{}s", self.prefix)
    }

    fn host(&self, host: u8) -> String {
        format!("{}h{host}", self.prefix)
    }

    fn join(&self, host: u8) -> anyhow::Result<()> {
        let (switch, own) = (self.switch(), self.host(host));
        ip(&format!("netns add {own}"))?;
        ip(&format!("-n {own} link add cable type veth peer name port{host} netns {switch}"))?;
        ip(&format!("-n {own} address add 10.77.0.{}/24 dev cable", host + 1))?;
        ip(&format!("-n {own} link set cable up"))?;
        ip(&format!("-n {own} link set lo up"))?;
        ip(&format!("-n {switch} link set port{host} master switch up"))?;
        let filter = "table ip endure {
            set muted { type ipv4_addr; }
            chain heard { type filter hook input priority 0; ip saddr @muted drop; }
        }";
        run("ip", &["netns", "exec", &own, "nft", "-f", "-"], filter)
    }

    /// Where the ledgers run.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |host: u8| Place {
            address: SocketAddr::from(([10, 77, 0, host + 1], PORT)),
            enter: ["ip", "netns", "exec", &self.host(host)].map(str::to_owned).into(),
        };
        (0..self.hosts).map(place).collect()
    }

    /// Pulls a host's cable, or puts it back.
    pub(super) fn set_cable(&self, host: u8, state: Cable) -> anyhow::Result<()> {
        let word = match state {
            Cable::Out => "down",
            Cable::In => "up",
        };
        ip(&format!("-n {} link set port{host} {word}", self.switch()))
    }

    /// Nothing passes between these pairs (from, to) any more.
    pub(super) fn mute(&mut self, pairs: &[(u8, u8)]) -> anyhow::Result<()> {
        for pair in pairs {
            let count = self.muted.entry(*pair).or_default();
            *count += 1;
            if *count == 1 {
                self.filter("add", *pair)?;
            }
        }
        Ok(())
    }

    /// One fault less keeps these pairs mute.
    pub(super) fn unmute(&mut self, pairs: &[(u8, u8)]) -> anyhow::Result<()> {
        for pair in pairs {
            let count = self.muted.get_mut(pair).context("only what is mute is unmuted")?;
            *count -= 1;
            if *count == 0 {
                self.filter("delete", *pair)?;
            }
        }
        Ok(())
    }

    fn filter(&self, change: &str, (from, to): (u8, u8)) -> anyhow::Result<()> {
        let rule = format!("{change} element ip endure muted {{ 10.77.0.{} }}", from + 1);
        run("ip", &["netns", "exec", &self.host(to), "nft", "-f", "-"], &rule)
    }
}

/// Whether a host's cable is in the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cable {
    /// It is pulled.
    Out,
    /// It is in place.
    In,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let hosts = (0..self.hosts).map(|host| self.host(host));
        for name in hosts.chain([self.switch()]) {
            // Those that were never made cannot be removed; there is nobody to tell.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}
