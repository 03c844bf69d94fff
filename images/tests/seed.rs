//! The seed, read back by other programs than those that wrote it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use dagger_images::{Addressing, Network, Seed, SeedCard};
use serde_json::Value;
use tempfile::TempDir;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBd0cmFuc3BhcmVudGx5IG5vdCBhIHJlYWwga2V5";

fn seed(comment: &str) -> Seed {
    Seed {
        instance_id: "c3c3".to_owned(),
        hostname: "web-1".parse().unwrap(),
        ssh_keys: vec![format!("{KEY} {comment}").parse().unwrap()],
        network: Network::Cards {
            cards: vec![SeedCard {
                mac: "52:54:00:AB:cd:01".parse().unwrap(),
                addressing: Addressing::Static {
                    address: "10.1.2.3".parse().unwrap(),
                    prefix_length: 24,
                    gateway: Some("10.1.2.1".parse().unwrap()),
                },
            }],
            nameservers: vec!["9.9.9.9".parse().unwrap()],
        },
        user_data: None,
    }
}

fn document(seed: &Seed, name: &str) -> String {
    let documents = seed.documents().unwrap();
    documents.into_iter().find(|(found, _)| *found == name).unwrap().1
}

fn json_document(seed: &Seed, name: &str) -> Value {
    let text = document(seed, name);
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap_or(&text)).unwrap()
}

#[test]
fn equal_contents_are_equal_bytes() {
    assert_eq!(seed("a").volume().unwrap(), seed("a").volume().unwrap());
    assert_ne!(seed("a").volume().unwrap(), seed("b").volume().unwrap());
}

#[test]
fn mtools_and_blkid_read_the_volume() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("seed");
    fs::write(&path, seed("a").volume().unwrap()).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = path.to_str().unwrap();
    for name in ["meta-data", "user-data", "vendor-data", "network-config"] {
        let there = run("mtype", &["-i", text, &format!("::{name}")]);
        assert_eq!(there, document(&seed("a"), name));
    }
    let label = run("/usr/sbin/blkid", &["-p", "-o", "value", "-s", "LABEL", text]);
    assert_eq!(label.trim(), "CIDATA");
}

#[test]
fn what_a_user_chose_stays_in_its_place() {
    let comment = r#"x"}], "runcmd": [["reboot"]], "a": [{": - &x !!python/object #"#;
    let seed = seed(comment);
    let key = format!("{KEY} {comment}");
    assert_eq!(json_document(&seed, "meta-data")["public-keys"], serde_json::json!([key]));
    assert_eq!(json_document(&seed, "user-data"), serde_json::json!({ "ssh_pwauth": false }));
}

/// Runs what cloud-init would run, with programs of ours in place of those that change the machine:
/// gives what the script wrote.
fn user_script_makes(seed: &Seed, directory: &Path) -> String {
    let home = directory.join("home");
    let script = document(seed, "vendor-data")
        .replace("/var/lib/cloud/instance", directory.to_str().unwrap())
        .replace("/etc/sudoers.d", directory.join("none").to_str().unwrap())
        .replace("$(eval echo \"~$user\")", home.to_str().unwrap());
    assert!(script.starts_with("#cloud-boothook\n#!/bin/sh\n"));
    let path = directory.join("script");
    fs::write(&path, script).unwrap();
    let said = Command::new("sh")
        .args(["-c", "id() { :; }; chown() { :; }; . \"$0\""])
        .arg(&path)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    fs::read_to_string(home.join(".ssh/authorized_keys")).unwrap()
}

#[test]
fn the_user_of_every_guest_is_made_once_whatever_keys_and_user_data_say() {
    let comment = "$(touch broken) `touch broken` END_OF_KEYS ' \" \\";
    let owners = Some("#cloud-config\nusers: []\n".to_owned());
    let seed = Seed { user_data: owners, ..seed(comment) };
    let directory = TempDir::new().unwrap();
    assert_eq!(user_script_makes(&seed, directory.path()), format!("{KEY} {comment}\n"));
    let own = directory.path().join("home/.ssh/authorized_keys");
    fs::write(&own, "what the owner changed later\n").unwrap();
    let kept = user_script_makes(&seed, directory.path());
    assert_eq!(kept, "what the owner changed later\n");
}

#[test]
fn a_card_is_found_by_its_address_and_gets_the_network_that_was_decided() {
    let network = json_document(&seed("a"), "network-config");
    let card = &network["ethernets"]["eth0"];
    assert_eq!(network["version"], 2);
    assert_eq!(card["match"]["macaddress"], "52:54:00:ab:cd:01");
    assert_eq!(card["addresses"][0], "10.1.2.3/24");
    assert_eq!(card["routes"][0]["via"], "10.1.2.1");
    assert_eq!(card["nameservers"]["addresses"][0], "9.9.9.9");
}

#[test]
fn of_several_cards_the_first_leads_out_and_each_has_its_own_address() {
    let card = |last: u8, addressing| SeedCard {
        mac: format!("52:54:00:00:00:{last:02x}").parse().unwrap(),
        addressing,
    };
    let chosen = Addressing::Static {
        address: "192.0.2.5".parse().unwrap(),
        prefix_length: 24,
        gateway: None,
    };
    let dhcp = Addressing::Dhcp;
    let cards = vec![card(1, dhcp), card(2, chosen), card(3, dhcp)];
    let nameservers = vec!["9.9.9.9".parse().unwrap()];
    let network = Network::Cards { cards, nameservers };
    let seed = Seed { network, ..seed("a") };
    let written = json_document(&seed, "network-config");
    let [first, second, third] = ["eth0", "eth1", "eth2"].map(|name| &written["ethernets"][name]);
    assert_eq!(
        (&first["dhcp4"], &first["match"]["macaddress"]),
        (&true.into(), &"52:54:00:00:00:01".into())
    );
    assert!(first.get("dhcp4-overrides").is_none(), "it leads out");
    assert_eq!(
        (&second["dhcp4"], &second["addresses"][0]),
        (&false.into(), &"192.0.2.5/24".into())
    );
    assert!(second.get("routes").is_none() && second.get("nameservers").is_none());
    assert_eq!(third["dhcp4-overrides"]["use-routes"], false);
    let lines = paths(&document(&seed, "network-config")).unwrap();
    assert!(lines.contains("ethernets/eth2/dhcp4\ttrue\n"), "{lines}");
    let Network::Cards { cards, .. } = &seed.network else { panic!("it has some") };
    let (cards, nameservers) = (vec![cards[0]; 5], Vec::new());
    let many = Seed { network: Network::Cards { cards, nameservers }, ..seed.clone() };
    assert!(many.documents().is_err());
}

#[test]
fn user_data_of_the_owner_is_carried_as_it_is() {
    let text = "#!/bin/sh\necho 'hällo' > /etc/motd\n";
    let seed = Seed { user_data: Some(text.to_owned()), ..seed("a") };
    assert_eq!(document(&seed, "user-data"), text);
}

#[test]
fn contents_over_their_limits_are_refused() {
    let good = seed("a");
    let bad = [
        Seed { instance_id: "a b".to_owned(), ..good.clone() },
        Seed { instance_id: String::new(), ..good.clone() },
        Seed { ssh_keys: vec![good.ssh_keys[0].clone(); 17], ..good.clone() },
        Seed { user_data: Some("x".repeat(32 * 1024 + 1)), ..good.clone() },
    ];
    for seed in bad {
        assert_eq!(seed.volume().unwrap_err().code(), "seed_invalid");
    }
    assert!("52:54:00:ab:cd".parse::<dagger_images::MacAddress>().is_err());
    assert!("52:54:00:ab:cd:+1".parse::<dagger_images::MacAddress>().is_err());
}

#[test]
fn the_largest_contents_fit() {
    let good = seed(&"c".repeat(1900));
    let seed = Seed {
        ssh_keys: vec![good.ssh_keys[0].clone(); 16],
        user_data: Some("x".repeat(32 * 1024)),
        ..good
    };
    assert!(seed.volume().is_ok());
}

/// The guest's own reader, run by the awk of the machine that tests.
fn paths(text: &str) -> Option<String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("document");
    fs::write(&path, text).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes/small/guest/root/usr/lib/dagger/json-paths.awk");
    let output = Command::new("awk").arg("-f").arg(script).arg(path).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_guests_reader_finds_every_value_in_what_we_write() {
    let comment = r#"a "quoted" \ name, {not: [json"#;
    let seed = seed(comment);
    let lines = paths(&document(&seed, "meta-data")).unwrap();
    assert!(lines.contains(&format!("public-keys/0\t{KEY} {comment}\n")), "{lines}");
    assert!(lines.contains("local-hostname\tweb-1\n"));
    let lines = paths(&document(&seed, "network-config")).unwrap();
    for line in [
        "ethernets/eth0/match/macaddress\t52:54:00:ab:cd:01",
        "ethernets/eth0/addresses/0\t10.1.2.3/24",
        "ethernets/eth0/routes/0/via\t10.1.2.1",
        "ethernets/eth0/nameservers/addresses/0\t9.9.9.9",
    ] {
        assert!(lines.lines().any(|found| found == line), "{line} in {lines}");
    }
}

#[test]
fn the_guests_reader_refuses_what_is_not_json() {
    for text in ["key: value\n", "{\"a\": 1", "{\"a\": [1}", "[1]]", "{\"a\" 1}", "\"a\""] {
        assert_eq!(paths(text), None, "{text}");
    }
}
