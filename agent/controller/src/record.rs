//! What is written down about one VM.
//!
//! Owns the record's shape and nothing else. Made by the controller,
//! kept by the agent's journal.

use std::collections::BTreeSet;

use dagger_payload::id::{CommitIndex, Generation, HostId, PayloadDigest, VmId};
use dagger_payload::kind::StopManner;
use serde::{Deserialize, Serialize};

use crate::limits::EVIDENCE_MAX;
use crate::step::Step;

/// One VM in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The host that wrote it: a record that was copied from another host is no record.
    pub host: HostId,
    /// Which VM.
    pub vm: VmId,
    /// The highest generation that this host worked on.
    pub generation: Generation,
    /// The payload that made it.
    pub payload: PayloadDigest,
    /// The step that was begun and whose end is not written down.
    pub step: Option<Step>,
    /// How often that step was begun.
    pub attempts: u32,
    /// Steps that ended well in this generation. A start does them again, since each only ensures.
    pub done: BTreeSet<Step>,
    /// Whether the VM's disk was made: then a disk that is missing is a loss to be told, never to
    /// be made anew.
    pub disk: DiskMark,
    /// The generation that was carried out last.
    pub applied: Option<Generation>,
    /// Other payloads that claimed a generation that this host knew already.
    pub evidence: Vec<Evidence>,
    /// This host's operator switched it off by hand: it stays off until its owner asks for
    /// something newer.
    #[serde(default)]
    pub halted_at: Option<Halt>,
}

/// A stop by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    /// The highest generation that this host knew then: a higher one ends it.
    pub generation: Generation,
    /// How.
    pub manner: StopManner,
    /// Why, in the operator's words; it becomes public.
    pub reason: String,
}

/// Whether a disk was ever made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskMark {
    /// Not yet: it may be made.
    NotMade,
    /// It was: it may only be found.
    Made,
}

/// A second payload for a generation that was known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Which generation.
    pub generation: Generation,
    /// The payload known before.
    pub known: PayloadDigest,
    /// The payload told later.
    pub told: PayloadDigest,
    /// The commit with which it was told.
    pub commit: CommitIndex,
}

impl Record {
    /// A first record, before anything was done.
    pub fn new(host: HostId, vm: VmId, generation: Generation, payload: PayloadDigest) -> Self {
        Self {
            host,
            vm,
            generation,
            payload,
            step: None,
            attempts: 0,
            done: BTreeSet::new(),
            disk: DiskMark::NotMade,
            applied: None,
            evidence: Vec::new(),
            halted_at: None,
        }
    }

    /// Takes up a new generation: what was done for the older one counts no more.
    pub fn take_up(&mut self, generation: Generation, payload: PayloadDigest) {
        if (self.generation, self.payload) != (generation, payload) {
            self.generation = generation;
            self.payload = payload;
            self.step = None;
            self.attempts = 0;
            self.done.clear();
            self.halted_at.take_if(|halt| halt.generation < generation);
        }
    }

    /// Keeps what `there`, the record that this one replaces, says once and for all, if this one
    /// was made before that.
    pub fn keep_words_of(&mut self, there: &Self) {
        let mine = self.halted_at.as_ref().map(|halt| halt.generation);
        let counts =
            |halt: &&Halt| halt.generation >= self.generation && Some(halt.generation) > mine;
        if let Some(halt) = there.halted_at.as_ref().filter(counts) {
            self.halted_at = Some(halt.clone());
        }
        for evidence in &there.evidence {
            self.keep(evidence.clone());
        }
    }

    /// Keeps `evidence`, unless it is known or there is enough.
    pub fn keep(&mut self, evidence: Evidence) {
        let known = self.evidence.iter().any(|kept| kept.told == evidence.told);
        if !known && self.evidence.len() < EVIDENCE_MAX {
            self.evidence.push(evidence);
        }
    }
}
