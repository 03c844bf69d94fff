//! Payloads of this host's users that are durable and in no event yet.
//!
//! They stand in the order of their arrival, so that those that come together share a page when
//! they are written and again when they go: by digest each of them would dirty a page of its own,
//! twice. Owns the numbers under which they stand, which only this process knows by digest. Never
//! decides what comes and goes. Called by the recorder, by delivery and at a start.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard};

use dagger_payload::id::PayloadDigest;
use dagger_payload::payload::SignedPayload;

use super::records::{Records, damaged, open_encoded, put};
use super::{Change, Direction, StoreError, Table};
use crate::limits::STORE_PAGE_RECORDS;

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    of: HashMap<PayloadDigest, u64>,
}

/// Under which number each payload stands. Clones are the same pool.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<Numbers>>);

fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

impl Pool {
    /// What the store has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restore(records: &Records) -> Result<Self, StoreError> {
        let mut numbers = Numbers::default();
        records.read_pool(|number, payload| {
            numbers.of.insert(payload.digest(), number);
            numbers.next = number + 1;
        })?;
        Ok(Self(Arc::new(Mutex::new(numbers))))
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Keeps a payload.
    pub fn entry(&self, digest: &PayloadDigest, payload: &SignedPayload) -> Change {
        let mut numbers = self.numbers();
        let next = numbers.next;
        let number = match numbers.of.entry(*digest) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                place.insert(next);
                numbers.next += 1;
                next
            }
        };
        put(Table::Pool, key(number), payload.to_record())
    }

    /// Forgets a payload that is here: it is in an event, somebody else had it ordered, or nobody
    /// ever will.
    pub fn removal(&self, digest: &PayloadDigest) -> Option<Change> {
        let number = self.numbers().of.remove(digest)?;
        Some(Change::Delete { table: Table::Pool, key: key(number) })
    }
}

impl Records {
    /// All payloads in the pool, in the order of their arrival.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pool(&self) -> Result<Vec<SignedPayload>, StoreError> {
        let mut payloads = Vec::new();
        self.read_pool(|_, payload| payloads.push(payload))?;
        Ok(payloads)
    }

    fn read_pool(&self, mut take: impl FnMut(u64, SignedPayload)) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let page =
                self.store.page(Table::Pool, &from, Direction::Forward, STORE_PAGE_RECORDS)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = [&last[..], &[0]].concat();
            for (key, value) in page {
                let payload = open_encoded(Table::Pool, &key, value)?;
                let number = key[..].try_into().map_err(|_| damaged(Table::Pool, &key))?;
                take(u64::from_be_bytes(number), payload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::key::Signature;
    use dagger_payload::payload::SignatureKind;

    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    fn payload(text: &'static str) -> SignedPayload {
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        SignedPayload { signature_kind, signature, bytes: text.as_bytes().into() }
    }

    #[test]
    fn payloads_keep_their_order_and_are_known_by_digest_after_a_restart_too() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        let (zebra, ant, bee) = (payload("zebra"), payload("ant"), payload("bee"));
        let put = |pool: &Pool, each: &SignedPayload| {
            store.commit(&[pool.entry(&each.digest(), each)]).expect("commits");
        };
        let pool = Pool::restore(&records).expect("reads");
        for each in [&zebra, &ant, &zebra] {
            put(&pool, each);
        }
        assert_eq!(records.pool().expect("reads"), [zebra.clone(), ant.clone()], "a copy is one");

        let pool = Pool::restore(&records).expect("reads");
        put(&pool, &bee);
        let removal = pool.removal(&zebra.digest()).expect("it is known");
        store.commit(&[removal]).expect("commits");
        assert_eq!(pool.removal(&zebra.digest()), None);
        assert_eq!(records.pool().expect("reads"), [ant, bee], "a new one overwrites none");
    }
}
