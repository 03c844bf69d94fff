//! How much room each host has left, side by side in memory, for placement to look through.
//!
//! Owns the sums that VMs take on each host and what follows from them and the host's own offer,
//! and which host is the best of those that fit.
//! Kept in step by the state alone; read by placement.

use dagger_payload::id::{HostId, OperatorId, VmId};
use dagger_payload::kind::Capacity;
use dagger_payload::object::{Host, HostDuty};

use super::digest_map::Digest;
use super::state::Usage;

/// Index of an operator among those who have declared hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OperatorIndex(usize);

/// One host.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) host: HostId,
    pub(crate) operator: OperatorIndex,
    pub(crate) used: Usage,
    offered: Capacity,
    pub(crate) duty: HostDuty,
    /// Addresses that no guest has.
    pub(crate) addresses_left: u32,
}

impl Room {
    /// Whether the host is open and has room and an address for one more VM of `size`.
    pub(crate) fn fits(&self, size: &Capacity) -> bool {
        self.duty == HostDuty::Open
            && self.addresses_left > 0
            && self.offered.covers(&self.used.capacity.plus(size))
    }

    /// Thousandths of the host's offered memory that stay free beside a VM of `size`.
    pub(crate) fn free_share(&self, size: &Capacity) -> u64 {
        self.free_thousand(size) / self.offered.memory_mib.max(1)
    }

    fn free_thousand(&self, size: &Capacity) -> u64 {
        let used = self.used.capacity.memory_mib.saturating_add(size.memory_mib);
        self.offered.memory_mib.saturating_sub(used).saturating_mul(1000)
    }

    fn standing(&self) -> Standing {
        let offered = self.offered.memory_mib;
        Standing {
            word: self.host.first_word(),
            offered: offered.max(1),
            free: offered.saturating_sub(self.used.capacity.memory_mib),
        }
    }
}

/// What tells how good a host is, apart from its room: a search looks at all of them, and few lines
/// of the cache hold them.
#[derive(Debug, Clone, Copy)]
struct Standing {
    /// Of its id.
    word: u64,
    /// Memory.
    offered: u64,
    free: u64,
}

/// Of less memory a thousandfold fits into a word.
const THOUSANDFOLD_BELOW: u64 = 1 << 54;

impl Standing {
    /// [`Room::free_share`] for a VM of so much memory, unless it is below `least`, which is one;
    /// hosts of a cluster that is evenly filled are mostly at `least`, which is told without a
    /// division, for that is slow.
    fn share_from(&self, memory: u64, least: u64) -> Option<u64> {
        let free = self.free.saturating_sub(memory);
        if self.offered >= THOUSANDFOLD_BELOW {
            return Some(free.saturating_mul(1000) / self.offered).filter(|share| *share >= least);
        }
        let above = (free * 1000).checked_sub(least * self.offered)?;
        Some(if above < self.offered { least } else { free * 1000 / self.offered })
    }
}

/// All hosts, by id.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    rooms: Vec<Room>,
    /// Of the rooms: a search through these alone stays near the processor.
    standings: Vec<Standing>,
    operators: Vec<OperatorId>,
}

impl Rooms {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Room> {
        self.rooms.iter()
    }

    pub(crate) fn get(&self, host: &HostId) -> Option<&Room> {
        let at = self.find(host).ok()?;
        self.rooms.get(at)
    }

    pub(crate) fn get_mut(&mut self, host: &HostId) -> Option<&mut Room> {
        let at = self.find(host).ok()?;
        self.rooms.get_mut(at)
    }

    /// Takes in what a host offers.
    pub(crate) fn declare(&mut self, host: &Host, addresses_left: u32) {
        let operator = self.index_of(&host.operator);
        let (offered, duty) = (host.offered(), host.duty);
        let room = |used| Room { host: host.id, operator, used, offered, duty, addresses_left };
        match self.find(&host.id) {
            Ok(at) => {
                self.rooms[at] = room(self.rooms[at].used);
                self.standings[at] = self.rooms[at].standing();
            }
            Err(at) => {
                let room = room(Usage::default());
                self.standings.insert(at, room.standing());
                self.rooms.insert(at, room);
            }
        }
    }

    /// Changes what VMs and volumes take on a host.
    pub(crate) fn change_used(&mut self, host: &HostId, change: impl FnOnce(&mut Usage)) {
        if let Ok(at) = self.find(host) {
            change(&mut self.rooms[at].used);
            self.standings[at] = self.rooms[at].standing();
        }
    }

    /// The room that `fits`, of which the greatest share of memory stays free beside a VM of so
    /// much; of equal ones the one with the greatest tie with the VM, then the last. How good a
    /// room is comes first: most fall behind the best one so far, and whether they fit need not be
    /// asked.
    pub(crate) fn best(
        &self,
        vm: &VmId,
        memory: u64,
        fits: impl Fn(&Room) -> bool,
    ) -> Option<&Room> {
        let (mut best, mut least, mut least_tie) = (None, 0, 0);
        let word = vm.first_word();
        for (at, standing) in self.standings.iter().enumerate() {
            let Some(share) = standing.share_from(memory, least) else { continue };
            let tie = mixed(word ^ standing.word);
            if (share > least || tie >= least_tie) && fits(&self.rooms[at]) {
                (best, least, least_tie) = (self.rooms.get(at), share, tie);
            }
        }
        best
    }

    /// A host that offers nothing any more.
    pub(crate) fn remove(&mut self, host: &HostId) {
        if let Ok(at) = self.find(host) {
            self.rooms.remove(at);
            self.standings.remove(at);
        }
    }

    /// For each operator with hosts, by index, whether he is one of `operators`.
    pub(crate) fn among(&self, operators: &[OperatorId]) -> Among {
        Among(self.operators.iter().map(|operator| operators.contains(operator)).collect())
    }

    /// Where a host's room is; else where it has to be put in.
    fn find(&self, host: &HostId) -> Result<usize, usize> {
        let word = host.first_word();
        let mut at = self.standings.partition_point(|standing| standing.word < word);
        // Ids share their first words by accident alone.
        while self.rooms.get(at).is_some_and(|room| room.host < *host) {
            at += 1;
        }
        match self.rooms.get(at) {
            Some(room) if room.host == *host => Ok(at),
            _ => Err(at),
        }
    }

    fn index_of(&mut self, operator: &OperatorId) -> OperatorIndex {
        let known = self.operators.iter().position(|other| other == operator);
        OperatorIndex(known.unwrap_or_else(|| {
            self.operators.push(*operator);
            self.operators.len() - 1
        }))
    }
}

/// Both ids are digests already: mixing a word of each is enough to spread ties evenly.
pub(crate) fn tie(vm: &VmId, host: &HostId) -> u64 {
    mixed(vm.first_word() ^ host.first_word())
}

/// The finaliser of SplitMix64.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// A set of operators.
pub(crate) struct Among(Vec<bool>);

impl Among {
    pub(crate) fn contains(&self, operator: OperatorIndex) -> bool {
        self.0.get(operator.0).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_from_some_least_one_on_is_the_share_unless_it_is_less() {
        let amounts =
            [0, 1, 7, 999, 1 << 20, 1 << 40, (1 << 54) - 1, 1 << 54, u64::MAX / 999, u64::MAX];
        let memory = |memory_mib| Capacity { cpus: 0, memory_mib, disk_gib: 0 };
        for (offered, used) in amounts.iter().flat_map(|one| amounts.map(|other| (*one, other))) {
            let room = Room {
                host: HostId::ZERO,
                operator: OperatorIndex(0),
                used: Usage { capacity: memory(used), vms: 0 },
                offered: memory(offered),
                duty: HostDuty::Open,
                addresses_left: 0,
            };
            for size in amounts {
                let share = room.free_share(&memory(size));
                for least in 0..=1000 {
                    let expected = Some(share).filter(|share| *share >= least);
                    assert_eq!(room.standing().share_from(size, least), expected);
                }
            }
        }
    }
}
