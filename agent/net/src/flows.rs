//! How many conversations one guest may have at a time, and begin.
//!
//! Owns the numbers and the rules that hold a guest to them. The kernel keeps what it tracks of all
//! conversations of the host in one table: a guest that filled it would keep everybody else from
//! beginning one, the host included. What a guest has outlives its filters, which are made anew
//! with each change, so it is counted in a table that is not. Pure but for the look at the
//! kernel's table; called by [`crate::apply`].

use dagger_payload::id::HostId;

use crate::limits::{BEGUN_AT_ONCE_MAX, BEGUN_PER_SECOND_MAX};
use crate::names;
use crate::request::Card;

/// Where the kernel says how many conversations it tracks at most.
const TRACKED_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// What is taken for it where it does not say, as where nothing is tracked yet.
const TRACKED_MAX_UNSAID: u32 = 65_536;
/// The part of them that one guest begins, and the part that others begin with it.
const BEGUN_PART: u32 = 32;
const MET_PART: u32 = 16;
/// The least and the most of each: what is counted is looked through, so it must not be too much.
const BEGUN: (u32, u32) = (1024, 8192);
const MET: (u32, u32) = (2048, 16_384);

/// How many conversations one guest may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// That it began.
    pub begun: u32,
    /// That others began.
    pub met: u32,
}

impl FlowLimits {
    /// On this host, as its kernel is set.
    pub fn of_host() -> Self {
        let said = std::fs::read_to_string(TRACKED_MAX).ok();
        Self::of(said.and_then(|said| said.trim().parse().ok()).unwrap_or(TRACKED_MAX_UNSAID))
    }

    /// Where so many are tracked at most.
    pub fn of(tracked_max: u32) -> Self {
        let part = |of: u32, (min, max): (u32, u32)| (tracked_max / of).clamp(min, max);
        Self { begun: part(BEGUN_PART, BEGUN), met: part(MET_PART, MET) }
    }
}

/// The transaction after which the guest is held to these numbers; what it has counts on.
///
/// The number of a guest that is counted already stays as it was.
pub fn ensure(host: HostId, card: &Card, limits: FlowLimits) -> String {
    let table = names::table(host, card.vm, 0);
    let interface = names::interface(host, card.vm, 0);
    let (address, FlowLimits { begun, met }) = (card.address, limits);
    let rate =
        format!("limit rate over {BEGUN_PER_SECOND_MAX}/second burst {BEGUN_AT_ONCE_MAX} packets");
    format!(
        "add table inet {table}
flush table inet {table}
table inet {table} {{
  set begun {{
    type ipv4_addr
    size 4
    flags dynamic
  }}
  set met {{
    type ipv4_addr
    size 4
    flags dynamic
  }}
  chain prerouting {{
    type filter hook prerouting priority -50; policy accept;
    ct state != new return
    iifname \"{interface}\" {rate} drop
    iifname \"{interface}\" add @begun {{ ip saddr ct count over {begun} }} drop
    ip daddr {address} {rate} drop
    ip daddr {address} add @met {{ ip daddr ct count over {met} }} drop
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_guests_together_leave_the_host_room_however_much_it_tracks() {
        for tracked_max in [65_536, 262_144, 1 << 20, u32::MAX] {
            let FlowLimits { begun, met } = FlowLimits::of(tracked_max);
            assert!(begun * 32 <= tracked_max && met * 16 <= tracked_max, "{tracked_max}");
        }
        assert_eq!(FlowLimits::of(8192), FlowLimits { begun: 1024, met: 2048 });
    }
}
