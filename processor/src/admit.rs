//! Admission: whether a host may pack a payload of its own users.
//!
//! Owns the door's rule: everything that the judge would refuse now is refused here, with the same
//! code, so that it is never ordered. A prediction only; what counts is the judgement after order.
//! Called by the daemon for each submission.

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::id::LedgerTime;

use crate::judge::Judge;
use crate::verify::Verified;

impl Judge {
    /// May this payload be packed? `now` is the later of ledger time and the host's clock.
    pub fn admit(&self, verified: &Verified, now: LedgerTime) -> AdmissionOutcome {
        let digest = verified.digest;
        let payload = match &verified.outcome {
            Ok(payload) => payload,
            Err(refusal) => return AdmissionOutcome::Refused { refusal: refusal.clone() },
        };
        if self.remembers(&digest) {
            return AdmissionOutcome::Known { digest };
        }
        match self.rule(&digest, payload, now.max(self.ledger_time())) {
            Ok(_) => AdmissionOutcome::Admitted { digest, account: self.account_of(payload) },
            Err(refusal) => AdmissionOutcome::Refused { refusal },
        }
    }
}
