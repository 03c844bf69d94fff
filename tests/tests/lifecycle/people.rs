//! The scenarios about people at the host: its operator's hand, and a console.

use dagger_agent::handover::ConsoleProblem;
use dagger_api::Sight;
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::Wanted;

use super::half::reported;
use super::scenarios::{NotOffered, ask, code_of, until};
use super::setting::Setting;

/// Without the ledger, and against what it shows: until that shows something newer.
pub(super) async fn stopped_by_hand(setting: &Setting) {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    let on = setting.version(vm, Wanted::Running, 1);
    ask(&mut half, &on, ReportPhase::Running).await;
    half.vm(&reported(&on, ReportPhase::Running)).await;
    assert_eq!(half.stop_by_hand(vm, "it mines coins").await, on.vm.generation);
    let report = half.report().await;
    assert_eq!(report.phase, ReportPhase::Stopped, "{report:?}");
    assert_eq!(report.reason.as_deref(), Some("local_stop: it mines coins"));
    assert_eq!(setting.start_of(vm), None);
    // The next agent knows of it too.
    half.end().await;
    let mut half = setting.agent(std::slice::from_ref(&on)).await;
    let report = half.report().await;
    assert_eq!(report.phase, ReportPhase::Stopped, "{report:?}");
    until("it is seen", || half.sight(vm) == Some(Sight::Stopped)).await;
    assert_eq!(setting.start_of(vm), None);
    ask(&mut half, &setting.version(vm, Wanted::Running, 2), ReportPhase::Running).await;
    assert!(setting.start_of(vm).is_some());
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 3), ReportPhase::Deleted).await;
    half.end().await;
}

pub(super) async fn console(setting: &Setting) -> Result<(), NotOffered> {
    let (vm, mut half) = (setting.vm(0), setting.agent(&[]).await);
    ask(&mut half, &setting.version(vm, Wanted::Running, 1), ReportPhase::Running).await;
    let offered = match half.console(vm).await {
        Ok(typing) => {
            until("the guest's words are kept", || setting.said(vm).contains("UP")).await;
            let heard = setting.said(vm).len();
            typing.send(b"xyz".as_slice().into()).await.unwrap();
            if setting.guest_echoes() {
                until("it is heard", || setting.said(vm)[heard..].contains("xyz")).await;
            }
            assert!(!typing.is_closed(), "the console takes nothing");
            Ok(())
        }
        Err(ConsoleProblem::Unavailable(why)) => Err(NotOffered(code_of(Some(why)))),
        Err(ConsoleProblem::NotRunning) => panic!("it runs"),
    };
    ask(&mut half, &setting.version(vm, Wanted::Deleted, 2), ReportPhase::Deleted).await;
    assert_eq!(half.console(vm).await.err(), Some(ConsoleProblem::NotRunning));
    half.end().await;
    offered
}
