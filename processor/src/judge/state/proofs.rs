//! What stands under a subject of the state, with the way to it from the root.
//!
//! Owns which object's bytes a subject's leaf has. Changes nothing. Called by the judge.

use dagger_payload::codec::encode;
use dagger_payload::proof::StateProof;
use dagger_payload::state_tree::Subject;

use super::State;

impl State {
    /// A proof against the root after the last commit.
    pub(crate) fn prove(&mut self, subject: &Subject) -> StateProof {
        let mut tree = std::mem::take(&mut self.tree);
        let proof = tree.prove(&subject.key(), || {
            self.value(subject).expect("what has a leaf is an object of the state")
        });
        self.tree = tree;
        proof
    }

    /// The canonical bytes of the leaf of `subject`, if it has one.
    fn value(&self, subject: &Subject) -> Option<Vec<u8>> {
        match subject {
            Subject::Host(id) => self.hosts.get(id).map(encode),
            Subject::Account(id) => self.accounts.get(id).map(encode),
            Subject::Image(name) => self.images.get(name).map(encode),
            Subject::Vm(id) => self.vms.get(id).map(|vm| vm.bytes().to_vec()),
            Subject::Volume(id) => self.volumes.get(id).map(encode),
            Subject::Usage(account, host) => self.past_usage.get(&(*account, *host)).map(encode),
            Subject::Payload(digest) => self.memory.get(digest).map(encode),
            Subject::Seat(index) => self.roster.seat(*index).map(encode),
            Subject::Epoch(epoch) => self.epochs.get(epoch).map(encode),
            Subject::Operator(id) => self.operators.get(id).map(encode),
            Subject::Proposal(id) => self.proposals.get(id).map(encode),
            Subject::Order => self.order.as_ref().map(encode),
        }
    }
}
