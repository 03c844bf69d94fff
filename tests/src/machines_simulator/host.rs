//! One host: what lies on it, and the agent that works there while it lives.
//!
//! Owns what survives a crash and what does not. Never decides: the world calls the controller.

use std::collections::{BTreeMap, BTreeSet};

use dagger_controller::order::ReportSubject;
use dagger_controller::record::Record;
use dagger_controller::selection::Selection;
use dagger_controller::{Controller, LocalPolicy, Retention};
use dagger_payload::id::{HostId, ImageDigest, VmId, VolumeId};
use dagger_payload::kind::Body;

use super::metal::Metal;

/// What the controller was told last about the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    CaughtUp,
    Hold,
}

/// A life of the agent.
pub(super) struct Agent {
    pub(super) controller: Controller,
    pub(super) tickets: u64,
    /// Up to which commit the controller was told, in this reading of the history.
    pub(super) told: u64,
    pub(super) selection: Selection,
    pub(super) state: Told,
    /// Orders arrive in order.
    pub(super) orders_at_ms: u64,
    pub(super) outbox: BTreeMap<ReportSubject, Body>,
    pub(super) is_submitting: bool,
    /// Who has a worker, or had one whose call has not returned.
    pub(super) turns: BTreeSet<ReportSubject>,
    /// Steps whose end is waited for.
    pub(super) awaited: BTreeSet<u64>,
    /// Downloads under way.
    pub(super) fetching: BTreeMap<ImageDigest, u64>,
    pub(super) tick_at_ms: Option<u64>,
}

impl Agent {
    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

/// See the module.
pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) policy: LocalPolicy,
    pub(super) retention: Retention,
    pub(super) metal: Metal,
    /// The journal's files.
    pub(super) journal: BTreeMap<VmId, Vec<u8>>,
    /// The newest commit that was acted on; as durable as the journal.
    pub(super) mark: u64,
    /// What its ledger has and shows, attested.
    pub(super) newest: u64,
    pub(super) shown: u64,
    pub(super) stalled_until_ms: u64,
    pub(super) older_until_ms: u64,
    pub(super) deaf_until_ms: u64,
    pub(super) hangs_until_ms: u64,
    /// Volumes whose disk went while this agent lived: it need not look before it uses them.
    pub(super) lost: BTreeSet<VolumeId>,
    pub(super) agent: Option<Agent>,
    /// Which life this is: what was begun in another one ends nowhere.
    pub(super) life: u64,
}

impl Host {
    pub(super) fn new(id: HostId, policy: LocalPolicy, retention: Retention) -> Self {
        Self {
            id,
            policy,
            retention,
            metal: Metal::default(),
            journal: BTreeMap::new(),
            mark: 0,
            newest: 0,
            shown: 0,
            stalled_until_ms: 0,
            older_until_ms: 0,
            deaf_until_ms: 0,
            hangs_until_ms: 0,
            lost: BTreeSet::new(),
            agent: None,
            life: 0,
        }
    }

    /// Whether the hypervisor tells nobody anything at this time.
    pub(super) fn is_deaf(&self, now_ms: u64) -> bool {
        now_ms < self.deaf_until_ms.max(self.hangs_until_ms)
    }

    /// What the journal says of a VM, in the bytes that a restart would read.
    pub(super) fn record(&self, vm: VmId) -> Option<Record> {
        self.journal.get(&vm).map(|bytes| serde_json::from_slice(bytes).expect("a whole record"))
    }

    /// Makes a record durable, by the journal's own rule about what an older one may not take away.
    pub(super) fn write(&mut self, record: &Record) {
        let mut record = record.clone();
        if let Some(there) = self.record(record.vm) {
            record.keep_words_of(&there);
        }
        let bytes = serde_json::to_vec(&record).expect("a record is JSON");
        self.journal.insert(record.vm, bytes);
    }
}
