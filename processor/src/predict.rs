//! Dry runs: what the rules would make of a request now.
//!
//! Owns how a prediction is put together. Has no rule of its own: it asks those that judge, so that
//! it can be wrong only about what will be ordered before the request. Nobody signs a dry run: a
//! signed document could be ordered by whoever sees it. Called by the daemon.

use dagger_payload::id::{LedgerTime, PayloadDigest};
use dagger_payload::limits::PREDICTION_HOSTS_MAX;
use dagger_payload::payload::Payload;
use dagger_payload::prediction::Prediction;

use crate::judge::Judge;

impl Judge {
    /// What would come of these bytes if their signer signed them. `now` is the later of ledger
    /// time and the host's clock.
    pub fn predict(&self, document: &[u8], now: LedgerTime) -> Prediction {
        let now = now.max(self.ledger_time());
        let digest = PayloadDigest::of(document);
        let read = Payload::read(document);
        let mut hosts = match &read {
            Ok(payload) => self.outlook(&digest, payload, now),
            Err(_) => Vec::new(),
        };
        let left_out = hosts.len().saturating_sub(PREDICTION_HOSTS_MAX);
        hosts.truncate(PREDICTION_HOSTS_MAX);
        let ruling = read.and_then(|payload| self.rule(&digest, &payload, now));
        let (refusal, effects) = match ruling {
            Ok(effects) => (None, effects),
            Err(refusal) => (Some(refusal), Vec::new()),
        };
        let hosts_left_out = u64::try_from(left_out).unwrap_or(u64::MAX);
        Prediction { refusal, effects, hosts, hosts_left_out }
    }
}
