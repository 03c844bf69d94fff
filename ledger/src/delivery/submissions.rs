//! Payloads of this host's users between their receipt and their place in the order.
//!
//! Owns the bounds on unordered bytes, per account, per signer and in all, and the answer to a
//! repeated submission. What is listed here is durable in the store's pool or in an own event. Of a
//! payload it reads nothing but who signs. Never asks the processor (`requests` does). Filled by
//! requests and at start, emptied by judging.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use dagger_payload::id::{AccountId, PayloadDigest};
use dagger_payload::limits::{
    UNORDERED_BYTES_MAX, UNORDERED_BYTES_PER_ACCOUNT_MAX, UNORDERED_BYTES_PER_SIGNER_MAX,
};
use dagger_payload::payload::SignedPayload;

use crate::limits::{UNORDERED_BYTES_WHEN_LATE_MAX, UNORDERED_WAIT_MAX};

/// A key, by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Signer([u8; 32]);

/// Whom a payload is counted for: its key, and its account once the processor has named that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    account: Option<AccountId>,
    signer: Option<Signer>,
}

impl Owner {
    /// Of `payload`, which the processor counts to `account`.
    pub fn of(payload: &SignedPayload, account: Option<AccountId>) -> Self {
        Self { account, signer: payload.claimed_signer().map(Signer) }
    }
}

struct Waiting {
    owner: Owner,
    bytes: usize,
    /// Counts arrivals.
    arrival: u64,
}

/// Sums by somebody; nobody stands in it for nothing.
struct Sums<K>(BTreeMap<K, usize>);

impl<K: Ord> Default for Sums<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Sums<K> {
    fn of(&self, key: Option<&K>) -> usize {
        key.and_then(|key| self.0.get(key)).copied().unwrap_or(0)
    }

    fn add(&mut self, key: Option<K>, bytes: usize) {
        if let Some(key) = key {
            *self.0.entry(key).or_insert(0) += bytes;
        }
    }

    fn remove(&mut self, key: Option<K>, bytes: usize) {
        if let Some(key) = key
            && let Some(sum) = self.0.get_mut(&key)
        {
            *sum -= bytes;
            if *sum == 0 {
                self.0.remove(&key);
            }
        }
    }
}

#[derive(Default)]
struct State {
    waiting: HashMap<PayloadDigest, Waiting>,
    /// When each of them came.
    arrivals: BTreeMap<u64, Instant>,
    arrived: u64,
    bytes: usize,
    accounts: Sums<AccountId>,
    signers: Sums<Signer>,
}

/// The unordered payloads of this host.
#[derive(Default)]
pub struct Submissions {
    state: Mutex<State>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Too much of this account waits.
    OfAccount,
    /// Too much of this key waits.
    OfSigner,
    /// Too much waits in all, or too much for too long.
    InAll,
}

/// Room that was found for a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is new here.
    New,
    /// It waits already.
    Known,
}

impl Submissions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Lists what the store already had. It counts against its signers; their accounts only the
    /// processor knows.
    pub fn restore<'p>(&self, payloads: impl IntoIterator<Item = &'p SignedPayload>) {
        let now = Instant::now();
        for payload in payloads {
            let waiting = (Owner::of(payload, None), payload.bytes.len());
            self.state().add(payload.digest(), waiting, now);
        }
    }

    /// Whether `digest` waits here.
    pub fn contains(&self, digest: &PayloadDigest) -> bool {
        self.state().waiting.contains_key(digest)
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.state().waiting.len()
    }

    /// Takes room at `now` for a payload, before it is made durable.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn reserve(
        &self,
        digest: PayloadDigest,
        owner: Owner,
        bytes: usize,
        now: Instant,
    ) -> Result<Reserved, NoRoom> {
        let mut state = self.state();
        if state.waiting.contains_key(&digest) {
            return Ok(Reserved::Known);
        }
        let of_account = state.accounts.of(owner.account.as_ref());
        if of_account + bytes > UNORDERED_BYTES_PER_ACCOUNT_MAX {
            return Err(NoRoom::OfAccount);
        }
        let of_signer = state.signers.of(owner.signer.as_ref());
        if of_signer + bytes > UNORDERED_BYTES_PER_SIGNER_MAX {
            return Err(NoRoom::OfSigner);
        }
        if state.bytes + bytes > state.bytes_max(now) {
            return Err(NoRoom::InAll);
        }
        state.add(digest, (owner, bytes), now);
        Ok(Reserved::New)
    }

    /// Gives room back: the payload could not be made durable.
    pub fn forget(&self, digest: &PayloadDigest) {
        self.state().remove(digest);
    }

    /// Payloads were ordered and judged, and these are their places for ever.
    pub(super) fn ordered(&self, digests: impl IntoIterator<Item = PayloadDigest>) {
        let mut state = self.state();
        for digest in digests {
            state.remove(&digest);
        }
    }
}

impl State {
    /// How much may wait: less while something has waited for long. More would wait even longer,
    /// and what is turned away can go to another host.
    fn bytes_max(&self, now: Instant) -> usize {
        let oldest = self.arrivals.first_key_value().map(|(_, came)| *came);
        let late = |came| now.saturating_duration_since(came) > UNORDERED_WAIT_MAX;
        if oldest.is_some_and(late) { UNORDERED_BYTES_WHEN_LATE_MAX } else { UNORDERED_BYTES_MAX }
    }

    fn add(&mut self, digest: PayloadDigest, (owner, bytes): (Owner, usize), now: Instant) {
        if self.waiting.contains_key(&digest) {
            return;
        }
        self.arrived += 1;
        let arrival = self.arrived;
        self.waiting.insert(digest, Waiting { owner, bytes, arrival });
        self.arrivals.insert(arrival, now);
        self.bytes += bytes;
        self.accounts.add(owner.account, bytes);
        self.signers.add(owner.signer, bytes);
    }

    fn remove(&mut self, digest: &PayloadDigest) {
        let Some(Waiting { owner, bytes, arrival }) = self.waiting.remove(digest) else {
            return;
        };
        self.arrivals.remove(&arrival);
        self.bytes -= bytes;
        self.accounts.remove(owner.account, bytes);
        self.signers.remove(owner.signer, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dagger_payload::key::{SecretKey, Signature};
    use dagger_payload::payload::SignatureKind;
    use std::time::Duration;

    const LARGE: usize = 60 * 1024;
    const FIT: usize = UNORDERED_BYTES_PER_SIGNER_MAX / LARGE;

    /// Something large that the key of number `signer` claims to sign.
    fn payload(signer: u8, number: usize) -> SignedPayload {
        let key = SecretKey::from_seed(&[signer; 32].into()).public_key();
        let mut text = format!("{{\"signer\":\"{key} c{number}\",\"number\":{number}}}");
        text.extend(std::iter::repeat_n(' ', LARGE - text.len()));
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([0; 64]));
        SignedPayload { signature_kind, signature, bytes: text.into() }
    }

    fn reserve(
        submissions: &Submissions,
        payload: &SignedPayload,
        account: Option<AccountId>,
    ) -> Result<Reserved, NoRoom> {
        let owner = Owner::of(payload, account);
        submissions.reserve(payload.digest(), owner, payload.bytes.len(), Instant::now())
    }

    #[test]
    fn a_signer_without_an_account_has_a_bound_of_his_own_and_takes_no_room_of_others() {
        let submissions = Submissions::default();
        for number in 0..FIT {
            assert_eq!(reserve(&submissions, &payload(1, number), None), Ok(Reserved::New));
        }
        // Another comment behind the same key makes no other signer.
        assert_eq!(reserve(&submissions, &payload(1, FIT), None), Err(NoRoom::OfSigner));
        assert_eq!(reserve(&submissions, &payload(1, 0), None), Ok(Reserved::Known));
        assert_eq!(reserve(&submissions, &payload(2, 0), None), Ok(Reserved::New));
        submissions.ordered([payload(1, 0).digest()]);
        assert_eq!(reserve(&submissions, &payload(1, FIT), None), Ok(Reserved::New));
    }

    #[test]
    fn little_more_is_taken_in_while_something_has_waited_for_long() {
        let submissions = Submissions::default();
        let begin = Instant::now();
        let reserve = |number: usize, now| {
            let payload = payload(u8::try_from(number / FIT).expect("few"), number);
            let owner = Owner::of(&payload, None);
            submissions.reserve(payload.digest(), owner, payload.bytes.len(), now)
        };
        let late = begin + UNORDERED_WAIT_MAX + Duration::from_millis(1);
        let fit = UNORDERED_BYTES_WHEN_LATE_MAX / LARGE;
        for number in 0..fit {
            assert_eq!(reserve(number, begin), Ok(Reserved::New));
        }
        assert_eq!(reserve(fit, begin + UNORDERED_WAIT_MAX), Ok(Reserved::New), "not yet late");
        assert_eq!(reserve(fit + 1, late), Err(NoRoom::InAll));
        assert_eq!(reserve(0, late), Ok(Reserved::Known));
        let early =
            (0..fit).map(|number| payload(u8::try_from(number / FIT).expect("few"), number));
        submissions.ordered(early.map(|payload| payload.digest()));
        assert_eq!(reserve(fit + 1, late), Ok(Reserved::New), "the oldest has just come");
    }

    #[test]
    fn all_keys_of_an_account_share_its_bound() {
        let submissions = Submissions::default();
        let account = Some(AccountId([7; 16]));
        for number in 0..FIT {
            let signer = u8::try_from(number % 4).expect("four") + 1;
            assert_eq!(reserve(&submissions, &payload(signer, number), account), Ok(Reserved::New));
        }
        assert_eq!(reserve(&submissions, &payload(9, 0), account), Err(NoRoom::OfAccount));
        let other = Some(AccountId([8; 16]));
        assert_eq!(reserve(&submissions, &payload(9, 0), other), Ok(Reserved::New));
    }

    #[test]
    fn what_waits_since_before_a_restart_counts_too() {
        let submissions = Submissions::default();
        let restored: Vec<_> = (0..FIT).map(|number| payload(1, number)).collect();
        submissions.restore(&restored);
        assert_eq!(reserve(&submissions, &payload(1, FIT), None), Err(NoRoom::OfSigner));
        let account = Some(AccountId([7; 16]));
        assert_eq!(reserve(&submissions, &payload(1, FIT), account), Err(NoRoom::OfSigner));
        assert_eq!(reserve(&submissions, &payload(2, FIT), account), Ok(Reserved::New));
    }
}
