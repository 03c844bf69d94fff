//! Four hosts as real processes, with machines on paper, and what must hold when they are broken.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dagger_tests::cluster::{Cluster, Machines, Role};
use serde_json::Value;

fn furnished() -> Cluster {
    let cluster = Cluster::start(4, Machines::Paper);
    cluster.grant(20);
    cluster.register_paper_image();
    cluster
}

fn positions(cluster: &Cluster) -> u64 {
    cluster.json(&["ledger", "status"])["position"].as_u64().expect("a number")
}

#[test]
fn a_ledger_killed_in_the_middle_of_a_request_neither_loses_nor_doubles_it() {
    let cluster = furnished();
    for host in 1..=4 {
        let name = format!("web-{host}");
        let created = cluster.create(host, &name, "received", &[]);
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        cluster.kill(Role::Ledger, host);
        // The other three go on meanwhile.
        let other = host % 4 + 1;
        let meanwhile = cluster.create(other, &format!("other-{host}"), "running", &[]);
        assert!(meanwhile.status.success(), "{}", String::from_utf8_lossy(&meanwhile.stderr));
        cluster.restart(Role::Ledger, host);
        cluster.until_linked();
        cluster.until_state(other, &name, "running");
    }
    for host in 1..=4 {
        let vms = cluster.until("all hosts show all VMs", || {
            let vms = cluster.json_from(host, &["vm", "ls"]);
            (vms.as_array().map(Vec::len) == Some(8)).then_some(vms)
        });
        let running = vms.as_array().into_iter().flatten().filter(|vm| vm["state"] == "running");
        assert_eq!(running.count(), 8);
    }
}

#[test]
fn without_a_quorum_changes_are_refused_by_name_and_one_restart_resumes() {
    let cluster = furnished();
    let created = cluster.create(1, "web", "running", &["--host", "host1"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    cluster.kill(Role::Ledger, 3);
    cluster.kill(Role::Ledger, 4);
    let said = cluster.until("the loss is noticed", || {
        let output = cluster.ctl(&["vm", "stop", "web", "--timeout", "2s"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("no quorum: have 2, need 3, missing host3, host4").then_some(said)
    });
    assert!(said.contains("no_quorum"), "{said}");
    assert_eq!(cluster.vm(1, "web")["sight"], "running");
    cluster.restart(Role::Ledger, 3);
    cluster.until("changes are possible again", || {
        cluster.ctl(&["vm", "stop", "web", "--wait", "applied"]).status.success().then_some(())
    });
    cluster.until_state(1, "web", "stopped");
    cluster.restart(Role::Ledger, 4);
}

#[test]
fn an_operator_stops_a_machine_by_hand_without_a_quorum_and_everybody_reads_it_afterwards() {
    let cluster = furnished();
    let created = cluster.create(1, "web", "running", &["--host", "host1"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    cluster.kill(Role::Ledger, 3);
    cluster.kill(Role::Ledger, 4);
    cluster.must(&["host", "stop-vm", "web", "--reason", "it mines coins", "--force"]);
    assert_eq!(cluster.vm(1, "web")["sight"], "stopped");
    // Not even this host's own ledger, and no history, is needed for the second time.
    cluster.kill(Role::Ledger, 1);
    cluster.kill(Role::Agent, 1);
    cluster.restart(Role::Agent, 1);
    let (code, said) = cluster.refused(&["host", "stop-vm", "elsewhere", "--reason", "x"]);
    assert_eq!(code, Some(1), "{said}");
    cluster.restart(Role::Ledger, 1);
    cluster.restart(Role::Ledger, 3);
    cluster.restart(Role::Ledger, 4);
    for host in 1..=4 {
        let vm = cluster.until_state(host, "web", "stopped");
        assert_eq!(vm["vm"]["reported"]["reason"], "local_stop: it mines coins", "{vm}");
        assert_eq!(vm["vm"]["wanted"], "running", "{vm}");
    }
    cluster.must(&["vm", "start", "web", "--wait", "applied"]);
    cluster.until_state(1, "web", "running");
}

#[test]
fn a_vm_offered_to_a_dead_host_goes_elsewhere_once() {
    let cluster = furnished();
    cluster.kill(Role::Agent, 2);
    cluster.kill(Role::Agent, 3);
    // Equal hosts are filled evenly, so the dead ones are offered some of six.
    for number in 0..6 {
        let created = cluster.create(1, &format!("web-{number}"), "ordered", &[]);
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    }
    let mut moved = 0;
    for number in 0..6 {
        let vm = cluster.until_state(1, &format!("web-{number}"), "running");
        let host = vm["host_name"].as_str().expect("placed");
        assert!(["host1", "host4"].contains(&host), "{vm}");
        let tried = vm["vm"]["tried"].as_array().expect("a list");
        moved += usize::from(!tried.is_empty());
        assert!(!tried.contains(&vm["vm"]["placement"]["host"]), "{vm}");
    }
    assert!(moved > 0, "no dead host was ever offered a VM");
}

#[test]
fn what_a_host_out_of_sight_last_said_is_shown_as_unproven_until_it_is_back() {
    let cluster = furnished();
    for host in ["host1", "host2"] {
        let created = cluster.create(1, &format!("on-{host}"), "running", &["--host", host]);
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    }
    assert!(!cluster.must(&["vm", "ls"]).contains('?'));
    for role in [Role::Agent, Role::Ledger, Role::Processor] {
        cluster.kill(role, 2);
    }
    let vm = cluster.until("the silence is shown", || {
        let vm = cluster.vm(1, "on-host2");
        vm.get("unproven").is_some().then_some(vm)
    });
    assert_eq!((&vm["state"], &vm["unproven"]["link"]), (&"running".into(), &"missing".into()));
    assert!(vm["unproven"]["reported_at"].is_u64(), "{vm}");
    assert!(cluster.vm(1, "on-host1").get("unproven").is_none());
    let list = cluster.must(&["vm", "ls"]);
    let of = |name: &str| list.lines().find(|line| line.starts_with(name)).expect("listed");
    assert!(of("on-host2").contains(" running? "), "{list}");
    assert!(of("on-host1").contains(" running "), "{list}");
    assert!(list.contains("? nothing proves it any more"), "{list}");
    let why = "host2 cannot be reached by the host that answers; its last report is of 2";
    assert!(cluster.must(&["vm", "show", "on-host2"]).contains(why));
    assert!(cluster.must(&["vm", "why", "on-host2"]).contains(why));

    // Nor does a host whose own ledger says nothing claim to know.
    cluster.kill(Role::Ledger, 3);
    cluster.until("host3 says that it cannot tell", || {
        (cluster.vm(3, "on-host1")["unproven"]["link"] == "unknown").then_some(())
    });
    cluster.restart(Role::Ledger, 3);
    for role in [Role::Processor, Role::Ledger, Role::Agent] {
        cluster.restart(role, 2);
    }
    cluster.until("it is proven again", || {
        cluster.vm(1, "on-host2").get("unproven").is_none().then_some(())
    });
    cluster.until("host3 knows again", || {
        cluster.vm(3, "on-host1").get("unproven").is_none().then_some(())
    });
}

#[test]
fn a_processor_that_dies_stops_changes_and_nothing_else() {
    let cluster = furnished();
    let created = cluster.create(1, "web", "running", &["--host", "host1"]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    for host in 1..=4 {
        // What it has not judged by now it will not show before its processor is back.
        cluster.until_state(host, "web", "running");
    }
    for host in 1..=4 {
        cluster.kill(Role::Processor, host);
    }
    let said = cluster.until("the loss is noticed", || {
        let output = cluster.ctl(&["vm", "stop", "web", "--timeout", "2s"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("processor_unavailable").then_some(said)
    });
    assert!(said.contains("payload processor"), "{said}");
    for host in 1..=4 {
        assert_eq!(cluster.vm(host, "web")["state"], "running");
        assert!(cluster.json_from(host, &["ledger", "status"])["position"].is_u64());
    }
    assert_eq!(cluster.vm(1, "web")["sight"], "running");
    for host in 1..=4 {
        cluster.restart(Role::Processor, host);
    }
    cluster.until("changes are possible again", || {
        cluster.ctl(&["vm", "stop", "web", "--wait", "applied"]).status.success().then_some(())
    });
    for host in 1..=4 {
        cluster.until_state(host, "web", "stopped");
    }
}

/// Sends a payload by curl; returns the HTTP status and the answer.
fn send(cluster: &Cluster, host: usize, file: &str, signature: &str) -> (u64, Value) {
    let output = Command::new("curl")
        .args(["-s", "-w", "\n%{http_code}", "--unix-socket", &cluster.api(host)])
        .args(["-H", &format!("dagger-signature: {signature}"), "--data-binary"])
        .args([&format!("@{file}"), "http://localhost/v1/payloads"])
        .output()
        .expect("curl is there");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, status) = text.trim_end().rsplit_once('\n').expect("a status");
    let answer = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    (status.parse().expect("a number"), answer)
}

/// Writes and signs a document as a user with nothing but ssh-keygen would.
fn sign(cluster: &Cluster, name: &str, document: &str) -> (String, String) {
    let file = cluster.file(name);
    std::fs::write(&file, document).expect("written");
    let _ = std::fs::remove_file(format!("{file}.sig"));
    let key = cluster.file("keys/developer");
    let signed = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", "dagger", "-f", &key, &file])
        .output()
        .expect("ssh-keygen is there");
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let armor = std::fs::read_to_string(format!("{file}.sig")).expect("a signature");
    let line = armor.lines().filter(|line| !line.starts_with('-')).collect();
    (file, line)
}

fn document(cluster: &Cluster, name: &str) -> Value {
    let output = Command::new("curl")
        .args(["-s", "--unix-socket", &cluster.api(1), "http://localhost/v1/cluster"])
        .output()
        .expect("curl is there");
    let view: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let images = cluster.json(&["image", "ls"]);
    let image = &images[0]["image"];
    let key = std::fs::read_to_string(cluster.file("keys/developer.pub")).expect("a key");
    let key = key.split(' ').take(2).collect::<Vec<_>>().join(" ");
    serde_json::json!({
        "dagger": 1,
        "cluster": view["cluster"],
        "signer": key.trim(),
        "kind": "vm.create",
        "not_after_ms": view["ledger_time"].as_u64().expect("a number") + 600_000,
        "body": {
            "name": name,
            "image": {
                "digest": image["digest"],
                "format": image["format"],
                "virtual_size_bytes": image["virtual_size_bytes"],
            },
            "cpus": 1,
            "memory_mib": 256,
            "disk_gib": 1,
            "ssh_keys": [],
        },
    })
}

#[test]
fn the_same_bytes_at_two_agents_make_one_vm_and_give_the_same_answer() {
    let cluster = furnished();
    let (file, signature) = sign(&cluster, "request.json", &document(&cluster, "web").to_string());
    let (first, answer) = send(&cluster, 1, &file, &signature);
    assert!([200, 202].contains(&first), "{answer}");
    let (second, again) = send(&cluster, 2, &file, &signature);
    assert!([200, 202].contains(&second), "{again}");
    assert_eq!((&answer["digest"], &answer["vm"]), (&again["digest"], &again["vm"]));
    cluster.until_state(3, "web", "running");
    let mut answers = (1..=4).map(|host| send(&cluster, host, &file, &signature));
    let (status, first) = answers.next().expect("four hosts");
    assert_eq!((status, &first["state"]), (200, &Value::from("accepted")));
    for (status, answer) in answers {
        assert_eq!((status, &answer["position"]), (200, &first["position"]), "{answer}");
        assert_eq!(answer["state"], "accepted");
    }
    assert_eq!(cluster.json(&["vm", "ls"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn bad_requests_are_refused_with_a_code_and_nothing_of_them_is_ordered() {
    let cluster = furnished();
    let before = positions(&cluster);
    let good = document(&cluster, "web");
    let changed = |path: &str, value: Value| {
        let mut document = good.clone();
        *document.pointer_mut(path).expect("it is there") = value;
        document.to_string()
    };
    let far = good["not_after_ms"].as_u64().expect("a number") + 100 * 24 * 3_600_000;
    let mut unknown = good.clone();
    unknown["colour"] = Value::from("red");
    let cases = [
        ("payload_malformed", 422, unknown.to_string()),
        ("payload_malformed", 422, format!("{}{}", "[".repeat(40), "]".repeat(40))),
        ("cluster_wrong", 422, changed("/cluster", Value::from("0".repeat(64)))),
        ("expired", 422, changed("/not_after_ms", Value::from(1_000))),
        ("not_after_too_far", 422, changed("/not_after_ms", Value::from(far))),
        ("grant_exceeded", 422, changed("/body/cpus", Value::from(200))),
        ("limit_exceeded", 422, changed("/body/cpus", Value::from(0))),
        ("kind_unknown", 422, changed("/kind", Value::from("vm.explode"))),
        ("payload_too_large", 413, good.to_string() + &" ".repeat(70_000)),
    ];
    for (code, wanted, text) in cases {
        let (file, signature) = sign(&cluster, "bad.json", &text);
        let (status, problem) = send(&cluster, 1, &file, &signature);
        assert_eq!((problem["code"].as_str(), status), (Some(code), wanted), "{problem}");
        assert!(problem["advice"].as_str().is_some_and(|advice| advice.len() > 10), "{problem}");
    }
    let (file, signature) = sign(&cluster, "bad.json", &good.to_string());
    std::fs::write(&file, changed("/body/cpus", Value::from(2))).expect("written");
    let (status, problem) = send(&cluster, 1, &file, &signature);
    assert_eq!((problem["code"].as_str(), status), (Some("signature_invalid"), 403), "{problem}");
    assert_eq!(positions(&cluster), before);
    assert_eq!(cluster.json(&["vm", "ls"]).as_array().map(Vec::len), Some(0));
}

/// What all daemons have cost.
#[derive(Default)]
struct Cost {
    /// How often their threads went to sleep (proc(5)): with that many wake-ups they cost what they
    /// cost, however busy the machine is otherwise.
    wake_ups: u64,
    /// Their CPU time, in clock ticks of 10 ms.
    ticks: u64,
    /// Bytes of all stores.
    bytes: u64,
}

fn cost(cluster: &Cluster) -> Cost {
    let mut cost = Cost::default();
    for host in 1..=4 {
        for role in [Role::Agent, Role::Ledger, Role::Processor] {
            let process = PathBuf::from(format!("/proc/{}", cluster.pid(role, host)));
            let stat = std::fs::read_to_string(process.join("stat")).expect("it runs");
            let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split(' ').collect();
            let tick = |at: usize| fields[at].parse::<u64>().expect("a number");
            cost.ticks += tick(12) + tick(13);
            for task in std::fs::read_dir(process.join("task")).expect("it runs").flatten() {
                // A thread that is gone by now has no more to say.
                let status = std::fs::read_to_string(task.path().join("status"));
                let status = status.unwrap_or_default();
                let mut lines = status.lines();
                let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                cost.wake_ups += count.map_or(0, |count| count.trim().parse().expect("a number"));
            }
        }
        let store = cluster.path().join(format!("hosts/host{host}/ledger/store/data.mdb"));
        cost.bytes += std::fs::metadata(store).expect("a store").len();
    }
    cost
}

#[test]
fn an_idle_cluster_costs_next_to_nothing_and_writes_nothing() {
    let cluster = furnished();
    let created = cluster.create(1, "web", "running", &[]);
    assert!(created.status.success());
    let settled = |cluster: &Cluster| {
        let status = cluster.json(&["ledger", "status"]);
        (status["round"].clone(), status["position"].clone())
    };
    // Two looks two seconds apart that show the same round: the last closing events are made.
    let mut seen = settled(&cluster);
    cluster.until("the cluster is silent", || {
        std::thread::sleep(Duration::from_secs(2));
        let now = settled(&cluster);
        (std::mem::replace(&mut seen, now.clone()) == now).then_some(())
    });
    let before = cost(&cluster);
    std::thread::sleep(Duration::from_secs(35)); // longer than the exchange of every 30 s
    let after = cost(&cluster);
    assert_eq!(after.bytes, before.bytes, "the stores grew");
    let wake_ups = after.wake_ups.saturating_sub(before.wake_ups);
    let ticks = after.ticks - before.ticks;
    eprintln!("twelve idle daemons in 35 seconds: {wake_ups} wake-ups, {ticks} ticks");
    assert!(wake_ups < 12_000, "{wake_ups} wake-ups");
    // What never sleeps wakes up seldom, and takes a whole core: 3,500 ticks.
    assert!(ticks < 900, "{ticks} ticks");
    assert_eq!(settled(&cluster), seen);
}

/// `daggerctl ledger verify`, which asks nobody: no agent could be reached.
fn verify(cluster: &Cluster, proof: &str, genesis: &str) -> std::process::Output {
    let arguments = ["ledger", "verify", proof, "--genesis", genesis, "--api", "unix:/nowhere"];
    let mut command = cluster.command_from(1, &arguments);
    command.env_remove("DAGGER_KEY").env_remove("DAGGER_DIRECTORY");
    command.output().expect("daggerctl starts")
}

/// What host `host` proves of `subject`, written to a file.
fn prove(cluster: &Cluster, host: usize, subject: &[&str]) -> String {
    let output = cluster.ctl_from(host, &[&["ledger", "proof"], subject].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = cluster.file(&format!("{}.proof.json", subject.concat().replace('/', "-")));
    std::fs::write(&file, output.stdout).expect("written");
    file
}

#[test]
fn what_one_host_proves_a_stranger_checks_offline_with_the_genesis_that_another_gave_him() {
    let cluster = furnished();
    let created = cluster.create(1, "web", "running", &[]);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    // Another operator's copy of the founding document.
    let genesis = cluster.file("genesis-from-op2.json");
    for (from, to) in [("genesis.json", &genesis), ("genesis.json.sig", &format!("{genesis}.sig"))]
    {
        std::fs::copy(cluster.file(from), to).expect("copied");
    }
    let vm = cluster.vm(1, "web");
    let id = vm["vm"]["id"].as_str().expect("an id");
    let digest = vm["vm"]["created"]["digest"].as_str().expect("a digest");
    let account = vm["vm"]["account"].as_str().expect("an account");
    for (host, subject, shown) in [
        (3, &["vm", "web"][..], "\"name\": \"web\""),
        (2, &["account"][..], account),
        (4, &["host", "host1"][..], "\"name\": \"host1\""),
        (1, &["image", "op1/small"][..], "image.register signed by ssh-ed25519"),
        (2, &["payload", digest][..], "vm.create signed by ssh-ed25519"),
    ] {
        let checked = verify(&cluster, &prove(&cluster, host, subject), &genesis);
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{subject:?}: {checked:?}");
        assert!(said.contains("PROVEN") && said.contains(shown), "{subject:?}: {said}");
        assert!(said.contains("of 4 members of epoch 0; it takes 3"), "{said}");
    }
    // Nor is this program needed for it.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let by_another = Command::new("python3")
        .arg(root.join("processor/payload/vectors/check_proof.py"))
        .args([prove(&cluster, 2, &["vm", "web"]), genesis.clone(), format!("{genesis}.sig")])
        .output()
        .expect("python3 is there");
    let said = String::from_utf8_lossy(&by_another.stdout);
    assert!(said.contains(&format!("PROVEN: vm {id} is there")), "{by_another:?}");

    // Whatever is changed in it, nobody has to believe any of it.
    let file = prove(&cluster, 3, &["vm", "web"]);
    let text = std::fs::read_to_string(&file).expect("a proof");
    assert!(text.len() < 16 * 1024, "{} bytes", text.len());
    let proof: Value = serde_json::from_str(&text).expect("JSON");
    let flipped = |pointer: &str| {
        let mut proof = proof.clone();
        let part = proof.pointer_mut(pointer).expect("there");
        let mut digits = part.as_str().expect("hex").to_owned().into_bytes();
        let middle = digits.len() / 2;
        digits[middle] = if digits[middle] == b'0' { b'1' } else { b'0' };
        *part = String::from_utf8(digits).expect("hex").into();
        proof
    };
    let parts = ["/state", "/headers/0/header", "/headers/2/signature", "/end/state_root"];
    for pointer in parts {
        std::fs::write(&file, flipped(pointer).to_string()).expect("written");
        let checked = verify(&cluster, &file, &genesis);
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(checked.status.code(), Some(1), "{pointer}: {checked:?}");
        assert!(said.contains("NOT PROVEN") && checked.stdout.is_empty(), "{pointer}: {said}");
    }

    // A VM that is gone is proven to be gone, and its proof from before says when it was there.
    cluster.must(&["vm", "delete", "web", "--wait", "applied"]);
    cluster.until_state(4, id, "deleted");
    let gone = verify(&cluster, &prove(&cluster, 4, &["vm", id]), &genesis);
    let said = String::from_utf8_lossy(&gone.stdout);
    assert!(said.contains(&format!("PROVEN: there is no VM {id}")), "{gone:?}");
    std::fs::write(&file, text).expect("written");
    assert!(verify(&cluster, &file, &genesis).status.success());

    // Every position of the log is there, with a name for whoever signed it.
    let log = cluster.must(&["--key", &cluster.file("keys/op1"), "ledger", "log", "--from", "1"]);
    assert!(log.contains("vm.create") && log.contains("operator op1"), "{log}");
    let log = cluster.must(&["ledger", "log", "--from", "1", "--limit", "5000", "--json"]);
    let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let logged: Vec<u64> = entries.map(|each| each["position"].as_u64().expect("one")).collect();
    assert!(logged.len() > 10 && logged.iter().copied().eq(1..=logged.len() as u64), "{logged:?}");
}
