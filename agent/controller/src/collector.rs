//! What may be removed for ever, and when: the remains of what its owner has deleted, and images
//! that nothing uses.
//!
//! Owns the proofs' keeping and the clock, which is ledger time: no jump of this host's own clock
//! removes anything. Says one removal at a time; one that fails is passed over until the next look,
//! and holds up no other. Without a retention time, which is the default, it says none. Called by
//! the controller only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dagger_payload::id::{HostId, ImageDigest, LedgerTime, VmId};
use dagger_payload::kind::VmBoot;
use serde::{Deserialize, Serialize};

use super::limits::{COLLECT_LOOK_EVERY, COLLECTIONS_WAITING_MAX};
use super::proof::{RemainsProof, Remnant, UnusedProof};
use super::{Controller, Mode, Monotonic, Output};
use crate::order::{AttestedVm, AttestedVolume};

/// How long this host keeps what nobody needs any more, in hours of ledger time.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Disks, volumes and consoles of what was deleted; not given: until the operator removes them.
    #[serde(default)]
    pub quarantine_hours: Option<u64>,
    /// Image files that no VM, disk or quarantined disk needs; not given: for ever.
    #[serde(default)]
    pub unused_image_hours: Option<u64>,
}

/// What lies in this host's stores.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Of whom something is in quarantine.
    pub remains: BTreeSet<Remnant>,
    /// Image files.
    pub images: BTreeSet<ImageDigest>,
    /// What disks lie over, in quarantine or not.
    pub overlays: Vec<StoredOverlay>,
}

/// A disk and the image that it lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredOverlay {
    /// Whose disk.
    pub vm: VmId,
    /// The image; unknown where the disk cannot be read, as while a hypervisor has it.
    pub image: Option<ImageDigest>,
}

/// One thing to be removed for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collection {
    /// What is in quarantine of a VM or volume.
    Remains(RemainsProof),
    /// An image file.
    Image(UnusedProof),
}

/// Something that was deleted.
#[derive(Debug, Clone)]
struct Grave {
    proof: RemainsProof,
    /// When, as soon as that is told: ledger time follows what happened in a commit.
    since: Option<LedgerTime>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Collector {
    retention: Retention,
    graves: BTreeMap<Remnant, Grave>,
    /// Graves whose time is not told yet.
    fresh: Vec<Remnant>,
    /// Since when an image is seen to be unused.
    unused: BTreeMap<ImageDigest, LedgerTime>,
    waiting: VecDeque<Collection>,
    is_busy: bool,
    pub(super) wake: Option<Monotonic>,
}

impl Collector {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, ..Self::default() }
    }

    fn is_needed(&self) -> bool {
        self.retention.quarantine_hours.is_some() || self.retention.unused_image_hours.is_some()
    }

    fn bury(&mut self, proof: RemainsProof) {
        let subject = proof.subject();
        if self.retention.quarantine_hours.is_some() && !self.graves.contains_key(&subject) {
            self.graves.insert(subject, Grave { proof, since: None });
            self.fresh.push(subject);
        }
    }

    /// Takes an attested version of a VM: perhaps its last.
    pub(super) fn take_vm(&mut self, attested: &AttestedVm, here: HostId) {
        RemainsProof::of_vm(attested, here).into_iter().for_each(|proof| self.bury(proof));
    }

    /// The same of a volume, of which `known` was the version before.
    pub(super) fn take_volume(
        &mut self,
        known: Option<&AttestedVolume>,
        attested: &AttestedVolume,
        here: HostId,
    ) {
        RemainsProof::of_volume(attested, here).into_iter().for_each(|proof| self.bury(proof));
        let between = known.map(|known| RemainsProof::between(known, attested, here));
        between.into_iter().flatten().for_each(|proof| self.bury(proof));
    }

    /// Ledger time has come to `time`.
    pub(super) fn take_time(&mut self, time: LedgerTime) {
        for subject in self.fresh.drain(..) {
            if let Some(grave) = self.graves.get_mut(&subject) {
                grave.since.get_or_insert(time);
            }
        }
    }

    /// Queues what is due at `time`.
    fn take_stored(&mut self, stored: &Stored, used: &Used, time: LedgerTime) {
        if !self.waiting.is_empty() || self.is_busy {
            return;
        }
        if let Some(hours) = self.retention.quarantine_hours {
            let is_due = |grave: &&Grave| grave.since.is_some_and(|at| is_past(at, hours, time));
            let graves = stored.remains.iter().filter_map(|subject| self.graves.get(subject));
            let due = graves.filter(is_due).map(|grave| Collection::Remains(grave.proof.clone()));
            self.waiting.extend(due.take(COLLECTIONS_WAITING_MAX));
            // Of what left nothing, or of which nothing is left, nothing has to be known.
            self.graves.retain(|subject, grave| {
                let is_due = grave.since.is_some_and(|at| is_past(at, hours, time));
                !is_due || stored.remains.contains(subject)
            });
        }
        if let Some(hours) = self.retention.unused_image_hours {
            self.unused.retain(|image, _| stored.images.contains(image));
            for image in &stored.images {
                if used.is_used(stored, image) {
                    self.unused.remove(image);
                    continue;
                }
                let since = *self.unused.entry(*image).or_insert(time);
                if is_past(since, hours, time) && self.waiting.len() < COLLECTIONS_WAITING_MAX {
                    self.waiting.push_back(Collection::Image(UnusedProof::of(*image)));
                }
            }
        }
    }

    /// The next removal, if none is under way; an image that `is_needed` by now stays.
    fn next(&mut self, is_needed: impl Fn(&ImageDigest) -> bool) -> Option<Output> {
        if self.is_busy {
            return None;
        }
        while let Some(next) = self.waiting.pop_front() {
            if let Collection::Image(proof) = &next
                && is_needed(&proof.image())
            {
                self.unused.remove(&proof.image());
                continue;
            }
            self.is_busy = true;
            return Some(Output::Collect(Box::new(next)));
        }
        None
    }
}

/// Whether `hours` of ledger time have passed since `at`.
fn is_past(at: LedgerTime, hours: u64, now: LedgerTime) -> bool {
    at.plus_ms(hours.saturating_mul(3_600_000)) <= now || planted!(RetentionIgnored)
}

/// The images that this host's VMs need.
struct Used {
    /// Those below their disks.
    below: BTreeMap<VmId, ImageDigest>,
    /// All others: kernels and initial RAM disks.
    booted: BTreeSet<ImageDigest>,
}

impl Used {
    /// Whether something may need the image; a disk that nobody can read, of a VM that nobody
    /// knows, may need any.
    fn is_used(&self, stored: &Stored, image: &ImageDigest) -> bool {
        let by_disk = |disk: &StoredOverlay| match disk.image.or(self.below.get(&disk.vm).copied())
        {
            Some(below) => below == *image,
            None => true,
        };
        self.booted.contains(image)
            || self.below.values().any(|used| used == image)
            || stored.overlays.iter().any(by_disk)
    }
}

impl Controller {
    /// From time to time it is looked what lies in the stores, once what is told is now.
    pub(super) fn look_at_stores(&mut self, now: Monotonic, outputs: &mut Vec<Output>) {
        if self.collector.is_needed() && self.mode == Mode::Live {
            self.collector.wake = Some(now.plus(COLLECT_LOOK_EVERY));
            outputs.push(Output::LookAtStores);
        }
    }

    /// Takes what lies in the stores.
    pub(super) fn take_stored(&mut self, stored: &Stored, outputs: &mut Vec<Output>) {
        if self.mode != Mode::Live {
            return;
        }
        let wanted = self.entries.values().filter_map(|entry| Some(&entry.wanted.as_ref()?.vm));
        let below = wanted.clone().map(|vm| (vm.id, vm.image.digest)).collect();
        let booted = wanted.filter_map(|vm| vm.boot.as_ref());
        let booted = booted.flat_map(VmBoot::images).map(|image| image.digest).collect();
        self.collector.take_stored(stored, &Used { below, booted }, self.ledger_time);
        self.collect_next(outputs);
    }

    fn collect_next(&mut self, outputs: &mut Vec<Output>) {
        let entries = &self.entries;
        let is_needed = |image: &ImageDigest| {
            let mut wanted = entries.values().filter_map(|entry| entry.wanted.as_ref());
            wanted.any(|wanted| wanted.vm.images().any(|used| used.digest == *image))
        };
        outputs.extend(self.collector.next(is_needed));
    }

    /// A removal ended; a failed one is tried again after the next look.
    pub(super) fn take_collected(&mut self, outputs: &mut Vec<Output>) {
        self.collector.is_busy = false;
        if self.mode == Mode::Live {
            self.collect_next(outputs);
        } else {
            self.collector.waiting.clear();
        }
    }
}
