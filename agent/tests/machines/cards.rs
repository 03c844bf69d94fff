//! Network cards of the fake host: who has one, how it is reached, and that nobody runs without.

use std::collections::BTreeSet;

use dagger_agent::controller::proof::DeleteProof;
use dagger_agent::controller::{Action, Outcome, Output, Step};
use dagger_agent::hypervisor::Power;
use dagger_agent::network::{NetworkError, Networks};
use dagger_net::request::Card;
use dagger_payload::id::VmId;
use dagger_payload::kind::ReportPhase;
use dagger_payload::network::VmNetwork;
use dagger_payload::object::Wanted;

use super::desk::{Desk, phases, reason, steps};
use super::support::{FakeHost, VM, accepted, after, ours, wants};

fn died() -> NetworkError {
    NetworkError::Failed("network_failed: the agent is dead".to_owned())
}

impl Networks for FakeHost {
    fn ensure(&self, card: Card) -> Result<(), NetworkError> {
        self.change(died, |state| {
            state.cards.insert(card.vm, card.network);
            Ok(())
        })
    }

    fn remove(&self, proof: &DeleteProof) -> Result<(), NetworkError> {
        self.change(died, |state| {
            let runs = state.machines.contains_key(&proof.vm());
            assert!(!runs, "a machine lost its card before it was gone");
            state.cards.remove(&proof.vm());
            Ok(())
        })
    }

    fn list(&self) -> Result<BTreeSet<VmId>, NetworkError> {
        Ok(self.state().cards.keys().copied().collect())
    }
}

fn closed() -> VmNetwork {
    VmNetwork { allow: Some(Vec::new()), forwards: Vec::new() }
}

#[test]
fn a_running_guest_is_reached_as_asked_before_its_host_says_so() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    desk.connects = false;
    let shut = after(&wants(&accepted(), Wanted::Running), |vm| vm.network = closed());
    let outputs = desk.vm(&shut);
    let [Output::Act(job)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(job.action, Action::Network(_)) && job.vm.network == closed());
    let failed = Outcome::Retryable("network_failed: nft: no".to_owned());
    let outputs = desk.finish(Step::Network, failed, None);
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![], vec![]));
    assert_eq!(steps(&desk.wait(60)), [Step::Network]);
    assert_eq!(steps(&desk.done(Step::Network, None)), [Step::Tag]);
    let outputs = desk.done(Step::Tag, Some(ours(Power::Running, 2)));
    assert_eq!(phases(&outputs), [ReportPhase::Running]);
}

#[test]
fn a_running_guests_filters_are_made_sure_of_when_the_agent_starts_and_not_again() {
    let mut desk = Desk::new();
    desk.connects = false;
    let outputs = desk.go_live(&[accepted()], Some(ours(Power::Running, 1)));
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![Step::Network], vec![]));
    assert_eq!(phases(&desk.done(Step::Network, None)), [ReportPhase::Running]);
    assert_eq!(desk.see(ours(Power::Running, 1)), []);
}

#[test]
fn a_wish_that_the_host_cannot_carry_out_is_told_and_the_guest_runs_on() {
    let (mut desk, _) = Desk::live(&[accepted()], Some(ours(Power::Running, 1)));
    desk.connects = false;
    desk.vm(&wants(&accepted(), Wanted::Running));
    let never = Outcome::Terminal("network_unsupported: no card".to_owned());
    let outputs = desk.finish(Step::Network, never, None);
    assert_eq!((steps(&outputs), phases(&outputs)), (vec![], vec![ReportPhase::Degraded]));
    assert!(reason(&outputs).starts_with("network_unsupported:"));
}

#[test]
fn a_card_is_taken_away_only_once_its_machine_is_gone() {
    let (mut desk, outputs) =
        Desk::live(&[wants(&accepted(), Wanted::Deleted)], Some(ours(Power::Running, 2)));
    assert_eq!(steps(&outputs), [Step::Destroy]);
    assert_eq!(steps(&desk.done(Step::Destroy, None)), [Step::Undefine]);
    let outputs = desk.done(Step::Undefine, None);
    let [Output::Act(job)] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(&job.action, Action::Disconnect(proof) if proof.vm() == VM));
    let failed = Outcome::Retryable("network_failed: busy".to_owned());
    assert_eq!(phases(&desk.finish(Step::Disconnect, failed, None)), []);
}
