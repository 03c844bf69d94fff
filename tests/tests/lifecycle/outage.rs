//! A libvirtd that hangs, dies and comes back, under a machine that runs.
//!
//! Setting: QEMU (TCG) under a libvirtd of this test's own, which is paused and killed.
//! Pinned: while it cannot be asked the agent says so and knows nothing; nothing is told of the
//! machine and nothing done to it; what was ordered meanwhile is done once, when it can be asked.

use dagger_api::Sight;
use dagger_payload::id::VmId;
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::Wanted;
use dagger_tests::libvirtd::Libvirtd;

use super::half::Half;
use super::scenarios::{Scenario, ask, forced, until};
use super::setting::{Backend, Setting};

/// The agent says that libvirt cannot be asked, and claims to know nothing of the machine.
async fn until_nothing_is_known(half: &Half, vm: VmId) {
    until("the trouble is shown", || {
        half.trouble().is_some() && half.sight(vm) == Some(Sight::Unknown)
    })
    .await;
}

async fn until_it_is_seen_running(half: &Half, vm: VmId) {
    until("it is seen again", || {
        half.trouble().is_none() && half.sight(vm) == Some(Sight::Running)
    })
    .await;
}

/// Switches it off, and on again as another start of the same disk.
async fn off_and_on(setting: &Setting, half: &mut Half, vm: VmId, generation: u64) {
    let off = forced(setting.version(vm, Wanted::Stopped, generation));
    ask(half, &off, ReportPhase::Stopped).await;
    assert_eq!(setting.process_start(vm), None);
    let on = setting.version(vm, Wanted::Running, generation + 1);
    ask(half, &on, ReportPhase::Running).await;
    assert!(setting.process_start(vm).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_outlives_a_libvirtd_that_hangs_and_one_that_is_killed_and_obeys_the_next() {
    let base = tempfile::Builder::new().prefix("dl").tempdir().unwrap();
    let mut libvirtd = Libvirtd::start(base.path()).unwrap();
    let setting = Setting::new(Backend::Qemu(libvirtd.uri()), Scenario::Created, 0);
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    until_it_is_seen_running(&half, vm).await;
    let first = setting.process_start(vm).expect("it runs");

    libvirtd.pause();
    until_nothing_is_known(&half, vm).await;
    assert_eq!(setting.process_start(vm).as_ref(), Some(&first));
    libvirtd.resume();
    until_it_is_seen_running(&half, vm).await;
    assert_eq!(setting.process_start(vm).as_ref(), Some(&first), "it was started again");
    assert!(!half.has_said_more(), "something was told of an outage");
    off_and_on(&setting, &mut half, vm, 2).await;

    // What is ordered of one that hangs waits for it, and is done once.
    let second = setting.process_start(vm).expect("it runs");
    libvirtd.pause();
    half.vm(&forced(setting.version(vm, Wanted::Stopped, 4))).await;
    until_nothing_is_known(&half, vm).await;
    assert_eq!(setting.process_start(vm), Some(second));
    assert!(!half.has_said_more(), "something was told of what nobody did");
    libvirtd.resume();
    let report = half.report().await;
    assert_eq!((report.generation.0, report.phase), (4, ReportPhase::Stopped), "{report:?}");
    assert_eq!(setting.process_start(vm), None);
    ask(&mut half, &setting.version(vm, Wanted::Running, 5), ReportPhase::Running).await;

    let third = setting.process_start(vm).expect("it runs");
    libvirtd.kill();
    until_nothing_is_known(&half, vm).await;
    assert_eq!(setting.process_start(vm).as_ref(), Some(&third), "it ended with libvirtd");
    libvirtd.start_again().unwrap();
    until_it_is_seen_running(&half, vm).await;
    assert_eq!(setting.process_start(vm), Some(third), "it was started again");
    assert!(!half.has_said_more(), "something was told of an outage");
    off_and_on(&setting, &mut half, vm, 6).await;
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 8), ReportPhase::Deleted).await;
    assert_eq!(setting.process_start(vm), None);
    half.end().await;
    drop(libvirtd);
}
