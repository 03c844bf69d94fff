//! How much is written anew with one commit, in the model: each VM that changed, by its length.

use dagger_payload::codec::encode;
use dagger_payload::id::OperatorId;
use dagger_payload::key::PublicKey;
use dagger_payload::object::Effect;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::Author;

use super::run::answered_for;
use super::state::Model;

/// What one commit wrote anew, and for whom.
pub(crate) struct Rewritten {
    pub(crate) bytes_max: usize,
    all: Vec<(OperatorId, usize)>,
}

impl Default for Rewritten {
    fn default() -> Self {
        Self { bytes_max: 128 << 20, all: Vec::new() }
    }
}

impl Rewritten {
    /// Nothing yet.
    pub(crate) fn begin(&mut self) {
        self.all.clear();
    }
}

/// Who answers for what `signer` signs.
fn answering(model: &Model, signer: &PublicKey) -> Option<OperatorId> {
    match model.author(signer)? {
        Author::Operator(operator) => Some(operator),
        other => answered_for(model, &other).map(|(_, operator)| operator),
    }
}

/// # Errors
/// `commit_full`.
pub(crate) fn require(model: &Model, signer: &PublicKey) -> Result<(), RefusalCode> {
    let Some(operator) = answering(model, signer) else { return Ok(()) };
    let own = model.rewritten.all.iter().filter(|(other, _)| *other == operator);
    let is_full = own.map(|(_, bytes)| bytes).sum::<usize>() >= model.rewritten.bytes_max;
    if is_full { Err(RefusalCode::CommitFull) } else { Ok(()) }
}

/// Counts VMs that there were before.
pub(crate) fn count(model: &mut Model, signer: &PublicKey, effects: &[Effect]) {
    let Some(operator) = answering(model, signer) else { return };
    for effect in effects {
        if let Effect::Vm(vm) = effect
            && model.vm(vm.id).is_some()
        {
            model.rewritten.all.push((operator, encode(&**vm).len()));
        }
    }
}
