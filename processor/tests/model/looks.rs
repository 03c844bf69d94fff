//! How many VMs are looked at with one commit, in the model: every look is written down.

use std::cell::RefCell;

use dagger_payload::id::AccountId;
use dagger_payload::object::Vm;
use dagger_payload::refusal::RefusalCode;
use dagger_processor::judge::LooksMax;

use super::state::Model;

/// The looks of one commit, each by the account for which it was.
#[derive(Default)]
pub(crate) struct Looked {
    pub(crate) max: LooksMax,
    at: RefCell<Vec<AccountId>>,
}

impl Looked {
    /// None yet.
    pub(crate) fn begin(&self) {
        self.at.borrow_mut().clear();
    }
}

/// Whether placing `vm` depends on where its account's other VMs are.
fn must_look(vm: &Vm) -> bool {
    let cards = [&vm.network].into_iter().chain(&vm.more_cards);
    let mut on_bridges = cards.filter_map(|card| card.bridge.as_ref());
    !vm.apart.is_empty() || on_bridges.any(|card| card.address.is_some())
}

/// Whether nobody looks any more, so that `vm` is not placed now.
pub(crate) fn waits(model: &Model, vm: &Vm) -> bool {
    let opener = |id| model.account(id).expect("it is one").opened_by;
    let at = model.looked.at.borrow();
    let own = at.iter().filter(|account| **account == vm.account).count();
    let together = at.iter().filter(|account| opener(**account) == opener(vm.account)).count();
    must_look(vm) && (own >= model.looked.max.account || together >= model.looked.max.together)
}

/// # Errors
/// `commit_full`.
pub(crate) fn require(model: &Model, vm: &Vm) -> Result<(), RefusalCode> {
    if waits(model, vm) { Err(RefusalCode::CommitFull) } else { Ok(()) }
}

/// Looks at each VM of the account.
pub(crate) fn look(model: &Model, vm: &Vm) {
    if must_look(vm) {
        let all = model.vms.iter().filter(|other| other.account == vm.account);
        model.looked.at.borrow_mut().extend(all.map(|other| other.account));
    }
}
