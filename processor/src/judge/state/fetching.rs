//! What judging the next payloads will look at, fetched into the processor's cache.
//!
//! Owns that they do not wait for memory one after another: the state is larger than any cache, and
//! each payload is another account's. Everything here is read for nothing but its being near
//! afterwards. Called by the judge for some payloads at a time.

use std::hint::black_box;

use dagger_payload::kind::Body;

use super::State;
use crate::verify::Verified;

impl State {
    /// Level by level: where something stands is known once what leads there has been read, and
    /// nothing within a level waits for the other.
    pub(crate) fn fetch(&self, coming: &[Verified]) {
        if coming.len() < 2 {
            return; // it waits in any case
        }
        let mut read = 0;
        let documents = coming.iter().filter_map(|verified| verified.outcome.as_ref().ok());
        for verified in coming {
            read ^= self.memory.fetch(&verified.digest);
            let newborn = verified.newborn.as_ref();
            read ^= newborn.map_or(0, |newborn| self.vms.fetch(&newborn.id));
        }
        for payload in documents.clone() {
            read ^= self.accounts.fetch_key(&payload.signer);
            if let Body::VmCreate(body) = &payload.body {
                read ^= body.memory_mib;
            }
        }
        let accounts = documents.filter_map(|payload| self.account_id(&payload.signer));
        let accounts: Vec<_> = accounts.collect();
        for account in &accounts {
            read ^= self.accounts.fetch(account);
        }
        for account in &accounts {
            let means = self.means(account);
            read ^= means.grants.iter().fold(0, |sum, grant| sum ^ grant.until.0);
            read ^= means.estate.map_or(0, |estate| estate.fetch());
        }
        black_box(read);
    }
}
