//! The users of a run: what they submit, and how often.
//!
//! Owns the payloads' bytes. Never knows hosts. Called by the world.

use dagger_payload::committee::Committee;
use dagger_payload::key::Signature;
use dagger_payload::payload::{SignatureKind, SignedPayload};

use super::judge::{DEADLINE_PREFIX, write_change};
use super::random::Random;
use super::settings::Settings;

/// Payloads in a burst, from and to.
const BURST: (u64, u64) = (2, 30);
/// One payload of this many thousandths is large.
const LARGE_PERMILLE: u64 = 10;
/// Size of a large payload, in bytes.
const LARGE_BYTES: usize = 60_000;

/// See the module.
pub(crate) struct Users {
    random: Random,
    gap_us: (u64, u64),
    burst_permille: u64,
    deadline_permille: u64,
    left: u64,
    burst_left: u64,
    made: u64,
    /// Payloads that a host reported received.
    pub(crate) received: u64,
}

impl Users {
    /// Users as drawn.
    pub(crate) fn new(random: Random, settings: &Settings) -> Self {
        Self {
            random,
            gap_us: settings.submit_gap_us,
            burst_permille: settings.burst_permille,
            deadline_permille: settings.deadline_permille,
            left: settings.payloads,
            burst_left: 0,
            made: 0,
            received: 0,
        }
    }

    /// A new payload.
    pub(crate) fn payload(&mut self) -> SignedPayload {
        self.made += 1;
        let prefix =
            if self.random.happens(self.deadline_permille) { DEADLINE_PREFIX } else { b"payload" };
        let mut bytes = prefix.to_vec();
        bytes.extend_from_slice(&self.made.to_be_bytes());
        let length = if self.random.happens(LARGE_PERMILLE) {
            LARGE_BYTES
        } else {
            32 + self.random.index(400)
        };
        bytes.resize(length, 0);
        signed(bytes)
    }

    /// The operators' word that these hosts shall vote.
    pub(crate) fn change(&mut self, committee: Committee) -> SignedPayload {
        self.made += 1;
        signed(write_change(self.made, committee))
    }

    /// The next payload and the time until the one after it, while users still have something to
    /// ask.
    pub(crate) fn submit(&mut self) -> Option<(SignedPayload, u64)> {
        self.left = self.left.checked_sub(1)?;
        let gap_us = if self.burst_left > 0 {
            self.burst_left -= 1;
            0
        } else {
            if self.random.happens(self.burst_permille) {
                self.burst_left = self.random.within(BURST);
            }
            self.random.within(self.gap_us)
        };
        Some((self.payload(), gap_us))
    }
}

fn signed(bytes: Vec<u8>) -> SignedPayload {
    SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([0; 64]),
        bytes: bytes.into(),
    }
}
