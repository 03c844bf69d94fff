//! The network cards of real QEMU guests: they have the address that the ledger gave them, are
//! reached as their owner says, also by a port of their host and on a bridge of it, and leave
//! nothing behind.

mod lan;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines, Role};
use serde_json::Value;

use self::lan::{Lan, OUTSIDE};

/// How long somebody who is not let in is waited for.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(3);

/// By NAT, and on the bridge.
const TWO_CARDS: [&str; 4] = ["--network", "nat", "--network", "bridge=lan,address=192.0.2.5/24"];

fn create(cluster: &Cluster, name: &str, more: &[&str]) -> Value {
    let options = [&["--host", "host1"], more].concat();
    let made = cluster.create(1, name, "applied", &options);
    assert!(made.status.success(), "{made:?}");
    cluster.until("the guest answers", || {
        cluster.ctl(&["ssh", name, "--", "true"]).status.success().then_some(())
    });
    cluster.json(&["vm", "show", name])
}

fn address(view: &Value) -> String {
    view["vm"]["placement"]["address"].as_str().expect("an address").to_owned()
}

/// What the server at that place says first; nothing if nobody lets us in.
fn greeting(address: &str, port: u64) -> Option<String> {
    let place: SocketAddr = format!("{address}:{port}").parse().expect("a place");
    let stream = TcpStream::connect_timeout(&place, CONNECT_WAIT_MAX).ok()?;
    stream.set_read_timeout(Some(CONNECT_WAIT_MAX)).expect("a time");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    (!line.is_empty()).then_some(line)
}

/// What stands on this machine of a VM's card: its tap and its tables.
fn remains(vm: &Value) -> String {
    let id = vm["vm"]["id"].as_str().expect("an id");
    let said = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all = said("ip", &["-details", "link"]) + &said("nft", &["list", "tables"]);
    all.lines().filter(|line| line.contains(id)).map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn real_guests_are_reached_as_their_owner_says_and_leave_nothing_behind() {
    // Outlives the cluster, whose guests are on it.
    let lan = Lan::new();
    let cluster = Cluster::start(1, Machines::Qemu);
    cluster.grant(2);
    cluster.register(&image("small"));
    let told = cluster.would_create(1, "web-2", &TWO_CARDS);
    assert!(!told.status.success(), "no host offers the bridge: {told:?}");
    lan.offer(&cluster);
    let web = create(&cluster, "web-1", &["--forward", "tcp:22"]);
    let inside = |name: &str, script: &str| cluster.ctl(&["ssh", name, "--", script]);

    // Its address is the one in the ledger.
    let own = address(&web);
    let seen = String::from_utf8(inside("web-1", "ip -4 address show").stdout).expect("text");
    assert!(seen.contains(&format!("inet {own}/24")), "{seen}");

    // A port of the host leads to it: the host's address towards its guests is one of the host's.
    let gateway = own.rsplit_once('.').map(|(network, _)| format!("{network}.1")).expect("four");
    let port = web["forwards"][0]["host_port"].as_u64().expect("a port");
    let said = greeting(&gateway, port).expect("the guest's SSH server");
    assert!(said.starts_with("SSH-2.0-"), "{said}");

    // Another guest of the same host comes in until it is not allowed any more.
    let other = create(&cluster, "web-2", &TWO_CARDS);
    let knock = format!("nc -w 3 {own} 22 </dev/null | head -n 1");
    let knocked = || String::from_utf8(inside("web-2", &knock).stdout).expect("text");
    assert!(knocked().starts_with("SSH-2.0-"));
    cluster.must(&["vm", "network", "web-1", "--allow", "tcp:80", "--wait", "applied"]);
    assert_eq!(knocked(), "");
    let rule = format!("tcp:22@{}", address(&other));
    cluster.must(&["vm", "network", "web-1", "--allow", &rule, "--wait", "applied"]);
    assert!(knocked().starts_with("SSH-2.0-"));
    let shown = cluster.must(&["vm", "show", "web-1"]);
    assert!(shown.contains(&rule) && shown.contains(&format!(":{port} to tcp:22")), "{shown}");

    // Nobody sends under another's address: what it says under its own arrives.
    let root = |script: &str| cluster.must(&["ssh", "--user", "root", "web-2", "--", script]);
    let ping =
        |from: &str| format!("ping -c 1 -W 3 -I {from} {gateway} >/dev/null && echo heard; true");
    root("ip address add 10.255.255.9/32 dev eth0");
    assert_eq!(root(&ping("10.255.255.9")), "");
    assert_eq!(root(&ping(&address(&other))).trim(), "heard");

    a_guest_on_a_bridge_is_who_the_ledger_says(&cluster, &lan, &other);
    a_guest_that_reads_no_seed_asks_for_its_address(&cluster, &own, &gateway);

    // Filters that somebody took away are there again once the agent has started.
    let before = remains(&web);
    let table = before.lines().find_map(|line| line.strip_prefix("table netdev "));
    let gone = ["delete", "table", "netdev", table.expect("a table")];
    assert!(Command::new("nft").args(gone).status().expect("nft runs").success());
    assert_ne!(remains(&web), before);
    cluster.kill(Role::Agent, 1);
    cluster.restart(Role::Agent, 1);
    cluster.until("the filters are back", || (remains(&web) == before).then_some(()));

    // A port leads nowhere once nobody asks for it, and what is deleted is gone.
    cluster.must(&["vm", "network", "web-1", "--no-forwards", "--wait", "applied"]);
    assert_eq!(greeting(&gateway, port), None);
    for (name, vm) in [("web-1", &web), ("web-2", &other)] {
        assert_ne!(remains(vm), "");
        cluster.must(&["vm", "delete", name, "--wait", "applied"]);
        assert_eq!(remains(vm), "");
    }
    let found = cluster.ctl_from(1, &["host", "fsck"]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
    stopping_the_cluster_ends_also_what_a_host_that_joined_has_made(&cluster);
}

/// The second card of `web-2`: somebody outside reaches it where the order says and as far as its
/// list goes, and it sends under no other address.
fn a_guest_on_a_bridge_is_who_the_ledger_says(cluster: &Cluster, lan: &Lan, vm: &Value) {
    let own = vm["vm"]["more_cards"][0]["bridge"]["address"]["address"].as_str();
    let own = own.expect("an address");
    let root = |script: &str| cluster.must(&["ssh", "--user", "root", "web-2", "--", script]);
    let seen = root("ip -4 -o address show");
    let line = seen.lines().find(|line| line.contains(&format!("inet {own}/24")));
    let interface = line.and_then(|line| line.split_whitespace().nth(1)).expect(&seen);

    let list = |allow: &[&str]| {
        let words = ["vm", "network", "web-2", "--card", "1", "--wait", "applied"];
        cluster.must(&[&words[..], allow].concat());
    };
    assert!(lan.greeting(own, 22).starts_with("SSH-2.0-"));
    list(&["--allow-none"]);
    assert_eq!(lan.greeting(own, 22), "");
    list(&["--allow", &format!("tcp:22@{OUTSIDE}")]);
    assert!(lan.greeting(own, 22).starts_with("SSH-2.0-"));

    let spoofed = "192.0.2.9";
    root(&format!("ip address add {spoofed}/32 dev {interface}"));
    let ping = |from: &str| {
        root(&format!("ping -c 1 -W 3 -I {from} {OUTSIDE} >/dev/null && echo heard; true"))
    };
    assert_eq!(ping(own).trim(), "heard");
    assert_eq!(ping(spoofed), "");
    // Without the filter it would be heard.
    let left = remains(vm);
    let mut tables = left.lines().filter_map(|line| line.strip_prefix("table netdev "));
    let table = tables.find(|table| table.ends_with("-1")).expect("a table of the card");
    let gone = ["delete", "table", "netdev", table];
    assert!(Command::new("nft").args(gone).status().expect("nft runs").success());
    list(&["--allow-all"]);
    assert_eq!(ping(spoofed), "", "a change of the VM brings the filter back");
    assert!(Command::new("nft").args(gone).status().expect("nft runs").success());
    assert_eq!(ping(spoofed).trim(), "heard");
}

/// `web-1`, started again without what its seed says of its network: then it asks by all its cards.
fn a_guest_that_reads_no_seed_asks_for_its_address(cluster: &Cluster, own: &str, gateway: &str) {
    let root = |script: &str| cluster.ctl(&["ssh", "--user", "root", "web-1", "--", script]);
    let network = "ip -4 -o address show scope global | grep -o 'inet [^ ]*'; \
        ip route; cat /etc/resolv.conf";
    let from_seed = String::from_utf8(root(network).stdout).expect("text");
    let asked = "cat /run/udhcpc.log";
    assert!(!root(asked).status.success(), "it did not ask");
    let forget = "sed -i s,/run/seed/network-config,/run/seed/none, /usr/lib/dagger/boot && sync";
    assert!(root(forget).status.success());
    cluster.must(&["vm", "reboot", "web-1", "--wait", "applied"]);
    cluster.until("the guest has asked", || root(asked).status.success().then_some(()));
    let by_dhcp = String::from_utf8(root(network).stdout).expect("text");
    assert_eq!(by_dhcp, from_seed);
    assert!(by_dhcp.contains(&format!("inet {own}/24")), "{by_dhcp}");
    assert!(by_dhcp.contains(&format!("default via {gateway} ")), "{by_dhcp}");
    let told = String::from_utf8(root(asked).stdout).expect("text");
    assert!(told.contains(&format!("{own} obtained from {gateway}")), "{told}");
}

/// A second operator brings a host; a guest of it has a card when the cluster is stopped.
fn stopping_the_cluster_ends_also_what_a_host_that_joined_has_made(cluster: &Cluster) {
    cluster.must(&["cluster", "add-host", "--name", "host2", "--admit"]);
    let (second, developer) = (cluster.file("keys/op2"), cluster.file("keys/developer.pub"));
    let granted = ["--cpus", "2", "--memory", "1GiB", "--disk", "4GiB", "--vms", "2"];
    let grant = ["account", "grant", &developer, "--key", &second];
    cluster.must(&[&grant[..], &granted].concat());
    // Registered already: the new host gets the file.
    let (first, file, api) =
        (cluster.file("keys/op1"), image("small"), format!("unix:{}", cluster.api(2)));
    let file = file.to_str().expect("plain names");
    let register = ["image", "register", file, "--name", "op1/small", "--key", &first];
    cluster.must(&[&["--api", &api][..], &register].concat());
    let made = cluster.create(1, "web-3", "running", &["--host", "host2"]);
    assert!(made.status.success(), "{made:?}");
    let vm = cluster.vm(1, "web-3");
    assert_eq!(vm["host_name"], "host2");
    assert_ne!(remains(&vm), "");
    cluster.must(&["cluster", "stop"]);
    assert_eq!(remains(&vm), "");
}
