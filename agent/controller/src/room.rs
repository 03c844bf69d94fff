//! What this host has free, and whether a VM that is offered can be held.
//!
//! Owns the comparison only. The figures are the kernel's, told by whoever may look. What could not
//! be seen is not full. Called by the controller when a VM is offered.

use dagger_payload::id::{Generation, VmId};
use dagger_payload::kind::Capacity;

use super::entry::Entry;
use super::limits::{MEMORY_RESERVE_MIB, STORAGE_RESERVE_MIB};
use super::step::Seen;
use super::{Controller, Monotonic, Output};
use crate::machine::{Machine, Power};
use crate::record::DiskMark;

/// What is free now, as far as it could be seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Memory that can be had without swapping, in MiB.
    pub memory_mib: Option<u64>,
    /// Room where the disks are, in MiB.
    pub storage_mib: Option<u64>,
    /// What the account of the VM has in quarantine.
    pub quarantine: QuarantineRoom,
}

/// How much of what an account may have in quarantine it has there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineRoom {
    /// That could not be seen.
    #[default]
    Unknown,
    /// Less.
    Left,
    /// All of it: nothing more is made for it, or more of it would come there.
    Full,
}

/// What is known of the room for an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoomLook {
    Asked,
    Told(Room),
}

impl Room {
    /// Whether a VM of `size` can be held beside what is `promised` to others and not taken yet.
    /// The reason names no figures: it is public, and how full a host is, is its operator's.
    ///
    /// # Errors
    /// The reason for the refusal, in one sentence.
    pub(super) fn admit(&self, size: &Capacity, promised: &Capacity) -> Result<(), String> {
        if self.quarantine == QuarantineRoom::Full {
            return Err("quarantine_full: what this account has deleted takes more of this host \
                        than it may, until the host's operator removes some of that"
                .into());
        }
        let wanted = size.plus(promised);
        let lacks = |free: Option<u64>, mib: u64| free.is_some_and(|free| free < mib);
        if lacks(self.memory_mib, wanted.memory_mib.saturating_add(MEMORY_RESERVE_MIB)) {
            return Err("memory_full: this host has less memory free now than this VM needs".into());
        }
        let disk_mib = wanted.disk_gib.saturating_mul(1024);
        if lacks(self.storage_mib, disk_mib.saturating_add(STORAGE_RESERVE_MIB)) {
            return Err(
                "disk_full: this host has less room now than this VM's disk may need".into()
            );
        }
        Ok(())
    }
}

impl Controller {
    /// A look for an offer has ended.
    pub(super) fn take_room(
        &mut self,
        now: Monotonic,
        (vm, room): (VmId, Room),
        outputs: &mut Vec<Output>,
    ) {
        if let Some(entry) = self.entries.get_mut(&vm)
            && let Some((_, look @ RoomLook::Asked)) = &mut entry.room
        {
            *look = RoomLook::Told(room);
        }
        self.advance(now, vm, outputs);
    }

    /// What was promised to VMs and is not taken yet: memory of those whose guest is not in it, and
    /// disks that were not made.
    pub(super) fn promised(&self) -> Capacity {
        let carried = self.entries.values().filter(|entry| self.carries(entry));
        carried.fold(Capacity::default(), |sum, entry| sum.plus(&entry.not_taken()))
    }
}

impl Entry {
    /// What is known of the room for the offer of this generation; one look is asked for.
    pub(super) fn room_for(
        &mut self,
        generation: Generation,
        outputs: &mut Vec<Output>,
    ) -> Option<Room> {
        match self.room {
            Some((of, RoomLook::Told(room))) if of == generation => Some(room),
            Some((of, RoomLook::Asked)) if of == generation => None,
            _ => {
                self.room = Some((generation, RoomLook::Asked));
                let account = self.wanted.as_ref().map(|wanted| wanted.vm.account);
                outputs.extend(account.map(|account| Output::LookAtRoom(self.vm, account)));
                None
            }
        }
    }

    fn not_taken(&self) -> Capacity {
        let Some(wanted) = &self.wanted else { return Capacity::default() };
        let size = wanted.vm.size;
        let is_off = match &self.sighting.seen {
            Seen::Absent | Seen::Present(Machine::Ours { power: Power::Stopped, .. }) => true,
            Seen::Unknown | Seen::Present(_) => false,
        };
        let is_made = self.record.as_ref().is_some_and(|record| record.disk == DiskMark::Made);
        Capacity {
            cpus: 0,
            memory_mib: if is_off { size.memory_mib } else { 0 },
            disk_gib: if is_made { 0 } else { size.disk_gib },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Capacity = Capacity { cpus: 1, memory_mib: 512, disk_gib: 2 };

    fn code(memory_mib: Option<u64>, storage_mib: Option<u64>, promised: &Capacity) -> String {
        let quarantine = QuarantineRoom::Unknown;
        match (Room { memory_mib, storage_mib, quarantine }).admit(&SIZE, promised) {
            Ok(()) => String::new(),
            Err(reason) => reason.split(':').next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn a_vm_is_admitted_up_to_the_last_mib_and_what_is_unknown_is_not_full() {
        let nobody = Capacity::default();
        let (memory, storage) = (512 + MEMORY_RESERVE_MIB, 2048 + STORAGE_RESERVE_MIB);
        assert_eq!(code(Some(memory), Some(storage), &nobody), "");
        assert_eq!(code(Some(memory - 1), Some(storage), &nobody), "memory_full");
        assert_eq!(code(Some(memory), Some(storage - 1), &nobody), "disk_full");
        assert_eq!(code(None, None, &nobody), "");
        assert_eq!(code(None, Some(0), &nobody), "disk_full");
    }

    #[test]
    fn whose_quarantine_is_full_gets_no_more_here_and_what_is_unknown_is_not_full() {
        let admits = |quarantine| {
            let room = Room { quarantine, ..Room::default() };
            room.admit(&SIZE, &Capacity::default()).is_ok()
        };
        let told = [QuarantineRoom::Unknown, QuarantineRoom::Left, QuarantineRoom::Full];
        assert_eq!(told.map(admits), [true, true, false]);
    }

    #[test]
    fn what_was_promised_to_others_is_not_given_twice() {
        let (memory, storage) = (1024 + MEMORY_RESERVE_MIB, 4096 + STORAGE_RESERVE_MIB);
        assert_eq!(code(Some(memory), Some(storage), &SIZE), "");
        assert_eq!(code(Some(memory - 1), Some(storage), &SIZE), "memory_full");
        assert_eq!(code(Some(memory), Some(storage - 1), &SIZE), "disk_full");
        let much = Capacity { cpus: 0, memory_mib: u64::MAX, disk_gib: u64::MAX };
        assert_eq!(code(Some(memory), Some(storage), &much), "memory_full");
    }
}
