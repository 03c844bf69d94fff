//! A volume's snapshots with a real QEMU guest that writes: what was on the volume comes back, and
//! begins another volume.

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines};

const DATA: &str = "/dev/vdc";
const COPY: &str = "/dev/vdd";

fn ask(cluster: &Cluster, words: &str) {
    let words: Vec<&str> = words.split(' ').chain(["--wait", "applied"]).collect();
    cluster.must(&words);
}

fn inside(cluster: &Cluster, script: &str) -> String {
    cluster.must(&["ssh", "--user", "root", "web-1", "--", script])
}

fn until_there(cluster: &Cluster, disk: &str) {
    cluster.until("the guest sees the disk", || {
        let seen = cluster.ctl(&["ssh", "web-1", "--", &format!("test -b {disk}")]);
        seen.status.success().then_some(())
    });
}

/// The first line on a disk that the guest is to have; an empty one is not read to its end.
fn first_line(cluster: &Cluster, disk: &str) -> String {
    until_there(cluster, disk);
    inside(cluster, &format!("head -c 512 {disk} | head -n 1")).trim().to_owned()
}

fn write(cluster: &Cluster, text: &str) {
    until_there(cluster, DATA);
    inside(cluster, &format!("echo {text} > {DATA}; sync"));
}

fn fsck(cluster: &Cluster) {
    let found = cluster.ctl_from(1, &["host", "fsck"]);
    let said = String::from_utf8_lossy(&found.stdout);
    assert!(found.status.success(), "{said}");
}

#[test]
fn what_a_guest_wrote_before_a_snapshot_comes_back_and_begins_another_volume() {
    let cluster = Cluster::start(1, Machines::Qemu);
    cluster.grant(2);
    cluster.register(&image("small"));
    let made = cluster.create(1, "web-1", "applied", &["--host", "host1"]);
    assert!(made.status.success(), "{made:?}");
    cluster.until("the guest answers", || {
        cluster.ctl(&["ssh", "web-1", "--", "true"]).status.success().then_some(())
    });
    ask(&cluster, "volume create data --size 1GiB --vm web-1");
    ask(&cluster, "volume attach data web-1");
    write(&cluster, "first");
    for torn in ["snapshot", "restore"] {
        let (_, said) = cluster.refused(&["volume", torn, "data", "monday"]);
        let expected = ["detach it first", "has no snapshot monday"];
        assert!(expected.iter().any(|words| said.contains(words)), "{said}");
    }
    ask(&cluster, "volume detach data");
    ask(&cluster, "volume snapshot data monday");
    let shown = cluster.must(&["volume", "show", "data"]);
    assert!(shown.contains("monday") && shown.contains("2 GiB"), "{shown}");

    ask(&cluster, "volume attach data web-1");
    write(&cluster, "second");
    let (_, said) = cluster.refused(&["volume", "restore", "data", "monday"]);
    assert!(said.contains("detach it first"), "{said}");
    ask(&cluster, "volume detach data");
    ask(&cluster, "volume restore data monday");
    ask(&cluster, "volume attach data web-1");
    assert_eq!(first_line(&cluster, DATA), "first");

    // From the snapshot of a volume that a guest writes to meanwhile.
    write(&cluster, "third");
    ask(&cluster, "volume clone data monday copy --size 2GiB");
    ask(&cluster, "volume attach copy web-1");
    assert_eq!(first_line(&cluster, COPY), "first");
    let sectors = inside(&cluster, "cat /sys/class/block/vdd/size");
    assert_eq!(sectors.trim(), (2_u64 << 30 >> 9).to_string());
    fsck(&cluster);

    // It goes while both volumes are in use, and neither notices.
    let (_, said) = cluster.refused(&["volume", "delete", "data"]);
    assert!(said.contains("detach it first"), "{said}");
    ask(&cluster, "volume delete-snapshot data monday");
    assert_eq!(first_line(&cluster, DATA), "third");
    assert_eq!(first_line(&cluster, COPY), "first");
    for volume in ["data", "copy"] {
        ask(&cluster, &format!("volume detach {volume}"));
        ask(&cluster, &format!("volume delete {volume}"));
    }
    fsck(&cluster);
    cluster.must(&["vm", "delete", "web-1", "--wait", "applied"]);
}
