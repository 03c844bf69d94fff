//! Images that a host fetches: from another host of its cluster, and from an https source that
//! stops, lies, or leads elsewhere. Machines on paper, everything else real.

mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_tests::cluster::{Cluster, Role};
use serde_json::Value;

use source::{LENGTH, Source, raw_image};

/// Registers a file, and lets only these hosts take it in.
fn register(cluster: &Cluster, file: &Path, name: &str, sources: &[String], taken_by: &[usize]) {
    let apis: Vec<String> = match taken_by {
        // Over TCP nothing is taken in.
        [] => vec![cluster.http()],
        hosts => hosts.iter().map(|host| format!("unix:{}", cluster.api(*host))).collect(),
    };
    let key = cluster.file("keys/op1");
    let mut command: Command = cluster.command_from(1, &["image", "register"]);
    command.arg(file).args(["--name", name, "--format", "raw", "--key", &key]);
    for source in sources {
        command.args(["--source", source]);
    }
    let output = command.env("DAGGER_API", apis.join(",")).output().expect("daggerctl starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn create(cluster: &Cluster, name: &str, image: &str, host: usize, wait: &str) -> String {
    let (key, host_name) = (cluster.file("keys/developer.pub"), format!("host{host}"));
    // It was registered at another host: this one hears of it when it is attested here.
    cluster.until("the image is known there", || {
        let images = cluster.json_from(host, &["image", "ls"]);
        let mut views = images.as_array()?.iter();
        views.find(|view| view["image"]["name"] == image).map(|_| ())
    });
    let output = cluster.ctl_from(
        host,
        &[
            &["vm", "create", name, "--image", image, "--cpus", "1", "--memory", "64MiB"][..],
            &["--disk", "1GiB", "--ssh-key", &key, "--host", &host_name, "--wait", wait],
        ]
        .concat(),
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Whether a host holds an image's file.
fn held(cluster: &Cluster, host: usize, name: &str) -> bool {
    let images = cluster.json_from(host, &["image", "ls"]);
    let images = images.as_array().expect("a list");
    let view = images.iter().find(|view| view["image"]["name"] == name).expect("registered");
    view["held"] == "yes"
}

/// Waits until so much of a VM's image has come.
fn until_fetched(cluster: &Cluster, host: usize, name: &str, bytes: u64) {
    cluster.until("some of the image has come", || {
        let output = cluster.ctl_from(host, &["vm", "show", name, "--json"]);
        let vm: Value = serde_json::from_slice(&output.stdout).ok()?;
        (vm["image_download"]["bytes_done"] == bytes).then_some(())
    });
}

/// Files that a host has begun to fetch.
fn begun(cluster: &Cluster, host: usize) -> Vec<PathBuf> {
    let directory = cluster.path().join(format!("hosts/host{host}/storage/images"));
    let entries = std::fs::read_dir(directory).expect("the store");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_begun = |path: &PathBuf| path.to_string_lossy().contains("/.fetching-");
    paths.filter(is_begun).collect()
}

fn from_another_host(cluster: &Cluster, file: &Path) {
    register(cluster, file, "op1/first", &[], &[1]);
    assert!(held(cluster, 1, "op1/first") && !held(cluster, 3, "op1/first"));
    create(cluster, "first", "op1/first", 3, "running");
    assert!(held(cluster, 3, "op1/first"));
    assert!(!held(cluster, 2, "op1/first") && !held(cluster, 4, "op1/first"));
    assert_eq!(begun(cluster, 3), Vec::<PathBuf>::new());
}

fn goes_on_after_the_agents_death(cluster: &Cluster, source: &Source) {
    source.serve_variant(1);
    let url = source.url("half/second");
    register(cluster, &source.variant(1), "op1/second", &[url], &[]);
    create(cluster, "second", "op1/second", 4, "ordered");
    until_fetched(cluster, 4, "second", LENGTH / 2);
    cluster.kill(Role::Agent, 4);
    cluster.until("the helper has gone with the agent", || {
        source.asked().iter().any(|line| line == "/half/second left").then_some(())
    });
    let files = begun(cluster, 4);
    assert_eq!(files.len(), 1);
    assert_eq!(std::fs::metadata(&files[0]).expect("kept").len(), LENGTH / 2);
    cluster.restart(Role::Agent, 4);
    cluster.until_state(4, "second", "running");
    let rest = format!("/half/second bytes={}-", LENGTH / 2);
    assert_eq!(source.asked(), ["/half/second None", "/half/second left", &rest]);
    assert_eq!(begun(cluster, 4), Vec::<PathBuf>::new());
}

fn is_deleted_while_its_image_comes(cluster: &Cluster, source: &Source) {
    source.serve_variant(2);
    let url = source.url("half/third");
    register(cluster, &source.variant(2), "op1/third", &[url], &[]);
    create(cluster, "third", "op1/third", 2, "ordered");
    until_fetched(cluster, 2, "third", LENGTH / 2);
    cluster.must(&["vm", "delete", "third", "--wait", "applied"]);
    cluster.until("the helper was stopped", || {
        source.asked().iter().any(|line| line == "/half/third left").then_some(())
    });
    cluster.until("what had come is gone", || begun(cluster, 2).is_empty().then_some(()));
}

fn fifty_share_one_download(cluster: &Cluster, source: &Source) {
    source.serve_variant(3);
    let url = source.url("half/many");
    register(cluster, &source.variant(3), "op1/many", &[url], &[]);
    std::thread::scope(|scope| {
        for number in 0..50 {
            scope.spawn(move || create(cluster, &format!("m{number}"), "op1/many", 2, "ordered"));
        }
    });
    for number in 0..50 {
        until_fetched(cluster, 2, &format!("m{number}"), LENGTH / 2);
    }
    source.go_on();
    for number in 0..50 {
        cluster.until_state(2, &format!("m{number}"), "running");
    }
    assert_eq!(source.asked(), ["/half/many None"]);
}

fn lies_and_detours_are_refused(cluster: &Cluster, source: &Source) {
    source.serve_variant(4);
    let urls = [source.url("wrong/liar"), source.url("inner/detour")];
    register(cluster, &source.variant(4), "op1/liar", &urls, &[]);
    create(cluster, "liar", "op1/liar", 1, "ordered");
    let vm = cluster.until_state(1, "liar", "degraded");
    let reason = vm["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("image_refused: "), "{reason}");
    assert_eq!(source.asked(), ["/wrong/liar None", "/inner/detour None"]);
    register(cluster, &source.variant(5), "op1/detour", &[source.url("inner/alone")], &[]);
    create(cluster, "detour", "op1/detour", 1, "ordered");
    let vm = cluster.until_state(1, "detour", "degraded");
    let reason = vm["reason"].as_str().expect("a reason");
    // The report is public: where the name led is not.
    assert!(reason.contains("address_refused") && !reason.contains("10.0.0.1"), "{reason}");
}

#[test]
fn hosts_fetch_images_from_each_other_and_from_sources_that_they_do_not_trust() {
    let source = Source::start();
    let environment = [("SSL_CERT_FILE", source.certificate())];
    let cluster = Cluster::start_with(4, &["test", "--host-cpus", "64"], &environment);
    let key = cluster.file("keys/developer.pub");
    let operators: Vec<_> = (1..5).map(|host| cluster.file(&format!("keys/op{host}"))).collect();
    let operators = operators.join(",");
    cluster.must(
        &[
            &["account", "grant", &key, "--operator-key", &operators, "--cpus", "64"][..],
            &["--memory", "8GiB", "--disk", "100GiB", "--vms", "64"],
        ]
        .concat(),
    );
    from_another_host(&cluster, &raw_image(source.path(), 0));
    goes_on_after_the_agents_death(&cluster, &source);
    is_deleted_while_its_image_comes(&cluster, &source);
    fifty_share_one_download(&cluster, &source);
    lies_and_detours_are_refused(&cluster, &source);
}
