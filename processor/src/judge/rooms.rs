//! How much room each host has left, side by side in memory, for placement to look through.
//!
//! Owns the sums that VMs take on each host and what follows from them and the host's own offer.
//! Kept in step by the state alone; read by placement.

use dagger_payload::id::{HostId, OperatorId};
use dagger_payload::kind::Capacity;
use dagger_payload::object::{Host, HostDuty};

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

    /// [`Self::free_share`], unless it is below `least`; hosts of a cluster that is evenly filled
    /// are mostly at `least`, which is told without a division, for that is slow.
    pub(crate) fn free_share_from(&self, size: &Capacity, least: u64) -> Option<u64> {
        let free = u128::from(self.free_thousand(size));
        let offered = u128::from(self.offered.memory_mib.max(1));
        let bound = u128::from(least) * offered;
        if free < bound {
            None
        } else if free < bound + offered {
            Some(least)
        } else {
            Some(self.free_share(size))
        }
    }

    fn free_thousand(&self, size: &Capacity) -> u64 {
        let used = self.used.capacity.memory_mib.saturating_add(size.memory_mib);
        self.offered.memory_mib.saturating_sub(used).saturating_mul(1000)
    }
}

/// All hosts, by id.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    /// Of the rooms: a search through these alone stays near the processor.
    ids: Vec<HostId>,
    rooms: Vec<Room>,
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
        match self.find(&host.id) {
            Ok(at) => {
                let used = self.rooms[at].used;
                self.rooms[at] =
                    Room { host: host.id, operator, used, offered, duty, addresses_left };
            }
            Err(at) => {
                let used = Usage::default();
                let room = Room { host: host.id, operator, used, offered, duty, addresses_left };
                self.rooms.insert(at, room);
                self.ids.insert(at, host.id);
            }
        }
    }

    /// A host that offers nothing any more.
    pub(crate) fn remove(&mut self, host: &HostId) {
        if let Ok(at) = self.find(host) {
            self.rooms.remove(at);
            self.ids.remove(at);
        }
    }

    /// For each operator with hosts, by index, whether he is one of `operators`.
    pub(crate) fn among(&self, operators: &[OperatorId]) -> Among {
        Among(self.operators.iter().map(|operator| operators.contains(operator)).collect())
    }

    fn find(&self, host: &HostId) -> Result<usize, usize> {
        self.ids.binary_search(host)
    }

    fn index_of(&mut self, operator: &OperatorId) -> OperatorIndex {
        let known = self.operators.iter().position(|other| other == operator);
        OperatorIndex(known.unwrap_or_else(|| {
            self.operators.push(*operator);
            self.operators.len() - 1
        }))
    }
}

/// A set of operators.
pub(crate) struct Among(Vec<bool>);

impl Among {
    pub(crate) fn contains(&self, operator: OperatorIndex) -> bool {
        self.0.get(operator.0).copied().unwrap_or(false)
    }
}
