//! A volume's snapshots with a real QEMU guest that writes: taken beside it, while it is off and
//! while it does not have the volume; what was on the volume comes back, and begins another volume.

use dagger_tests::built::image;
use dagger_tests::cluster::{Cluster, Machines, Role};

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

/// What the snapshot `name` of the volume holds is read from a clone of it, which then goes.
fn first_line_of(cluster: &Cluster, name: &str) -> String {
    ask(cluster, &format!("volume clone data {name} look"));
    ask(cluster, "volume attach look web-1");
    let line = first_line(cluster, COPY);
    ask(cluster, "volume detach look");
    ask(cluster, "volume delete look");
    ask(cluster, &format!("volume delete-snapshot data {name}"));
    line
}

/// Waits until the volume's only snapshot is in this state; tells why it is, if there is a reason.
fn until_kept(cluster: &Cluster, state: &str) -> String {
    cluster.until("the snapshot is as it should be", || {
        let shown = cluster.ctl(&["volume", "show", "data", "--json"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
        let snapshot = &shown["snapshots"][0];
        (snapshot["state"] == state).then(|| snapshot["reason"].to_string())
    })
}

/// Somebody else's backup of the machine is left alone, and waited for.
fn assert_another_backup_is_left_alone(cluster: &Cluster) {
    let (domain, _) = cluster.domains().remove(0);
    let (socket, scratch) = (cluster.file("run/nbd.sock"), cluster.file("run/scratch"));
    let backup = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>\
         <disk name='vdc' backup='yes' type='file'><scratch file='{scratch}'/></disk>\
         </disks></domainbackup>"
    );
    let file = cluster.file("run/backup.xml");
    std::fs::write(&file, backup).expect("written");
    let virsh = |arguments: &[&str]| {
        let output = cluster.virsh(arguments);
        assert!(output.status.success(), "{output:?}");
    };
    virsh(&["backup-begin", &domain, "--backupxml", &file]);
    cluster.must(&["volume", "snapshot", "data", "busy"]);
    let why = until_kept(cluster, "degraded");
    assert!(why.contains("backup_busy"), "{why}");
    virsh(&["domjobabort", &domain]);
    until_kept(cluster, "ready");
    assert_eq!(first_line_of(cluster, "busy"), "latest");
}

/// While the guest writes: what it had synced before is in the copy, what comes later is not, and
/// the guest loses nothing. An agent that dies in the middle leaves one whole snapshot.
fn assert_what_a_guest_has_is_kept_beside_it(cluster: &Cluster) {
    let checksum = "head -c 67108864 /dev/vdc | md5sum";
    inside(cluster, "head -c 67108864 /dev/urandom > /dev/vdc; sync");
    write(cluster, "live");
    let before = inside(cluster, checksum);
    cluster.must(&["volume", "snapshot", "data", "live"]);
    cluster.kill(Role::Agent, 1);
    cluster.restart(Role::Agent, 1);
    until_kept(cluster, "ready");
    assert_eq!(inside(cluster, checksum), before, "the guest reads something else");
    write(cluster, "later");
    assert_eq!(first_line_of(cluster, "live"), "live");
    assert_eq!(first_line(cluster, DATA), "later");
    // Again without a death, and while the guest is halted.
    ask(cluster, "volume snapshot data again");
    cluster.must(&["vm", "pause", "web-1", "--wait", "applied"]);
    ask(cluster, "volume snapshot data halted");
    cluster.must(&["vm", "resume", "web-1", "--wait", "applied"]);
    write(cluster, "latest");
    for name in ["again", "halted"] {
        assert_eq!(first_line_of(cluster, name), "later");
    }
    assert_another_backup_is_left_alone(cluster);
    fsck(cluster);
}

fn assert_what_a_vm_that_is_off_has_is_kept(cluster: &Cluster) {
    cluster.must(&["vm", "stop", "web-1", "--wait", "applied"]);
    cluster.must(&["volume", "snapshot", "data", "off"]);
    // It waits for the copy, if that is not there yet.
    cluster.must(&["vm", "start", "web-1", "--wait", "applied"]);
    cluster.until("the guest answers", || {
        cluster.ctl(&["ssh", "web-1", "--", "true"]).status.success().then_some(())
    });
    write(cluster, "on again");
    assert_eq!(first_line_of(cluster, "off"), "latest");
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
    let (_, said) = cluster.refused(&["volume", "restore", "data", "monday"]);
    assert!(said.contains("has no snapshot monday"), "{said}");
    assert_what_a_guest_has_is_kept_beside_it(&cluster);
    assert_what_a_vm_that_is_off_has_is_kept(&cluster);
    write(&cluster, "first");
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
