//! What guests get to by NAT, where they are seen as their host.
//!
//! Owns which addresses are closed to them unless the operator opens them: those of inner networks,
//! whose members take the host for one of them. And which are never open: link-local ones and those
//! of providers, where a host is told its own secrets. The host itself, other guests of it and the
//! name servers that guests are told of are no part of this. Pure; the operator's list says what
//! is otherwise, [`crate::rules`] makes filters of it.

use std::net::Ipv4Addr;

use dagger_payload::network::Ipv4Prefix;

use crate::limits::OUTWARD_WORDS_MAX;

/// Never open: link-local, and Azure's wire server.
const NEVER: [Ipv4Prefix; 2] = [network([169, 254, 0, 0], 16), network([168, 63, 129, 16], 32)];

/// Closed unless opened: private networks, those between providers and their customers, and those
/// of protocols themselves (at one of which Oracle's metadata was).
const PRIVATE: [Ipv4Prefix; 5] = [
    network([10, 0, 0, 0], 8),
    network([172, 16, 0, 0], 12),
    network([192, 168, 0, 0], 16),
    network([100, 64, 0, 0], 10),
    network([192, 0, 0, 0], 24),
];

const fn network([a, b, c, d]: [u8; 4], prefix_length: u8) -> Ipv4Prefix {
    Ipv4Prefix { network: Ipv4Addr::new(a, b, c, d), prefix_length }
}

/// Whether guests get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// They do not.
    Closed,
    /// They do.
    Open,
}

/// What the operator said besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outward(Vec<(Ipv4Prefix, Way)>);

impl Outward {
    /// Guests get there.
    ///
    /// # Errors
    /// They never do, or too much was said.
    pub fn open(&mut self, network: Ipv4Prefix) -> Result<(), String> {
        match NEVER.iter().find(|never| overlap(never, &network)) {
            Some(never) => Err(format!("{never} is never open")),
            None => self.say(network, Way::Open),
        }
    }

    /// Guests do not get there.
    ///
    /// # Errors
    /// Too much was said.
    pub fn close(&mut self, network: Ipv4Prefix) -> Result<(), String> {
        self.say(network, Way::Closed)
    }

    fn say(&mut self, network: Ipv4Prefix, way: Way) -> Result<(), String> {
        if self.0.len() == OUTWARD_WORDS_MAX {
            return Err(format!("more than {OUTWARD_WORDS_MAX} networks are opened or closed"));
        }
        self.0.push((network, way));
        Ok(())
    }

    /// In the order in which the first that fits decides: the smaller network before the larger
    /// one. What fits none is open.
    pub fn decisions(&self) -> Vec<(Ipv4Prefix, Way)> {
        let closed = |network: &Ipv4Prefix| (*network, Way::Closed);
        let mut said: Vec<_> = self.0.iter().copied().chain(PRIVATE.iter().map(closed)).collect();
        // Of one network what the operator said comes first, and of that what closes.
        said.sort_by_key(|(network, way)| {
            let is_ours = PRIVATE.contains(network) && !self.0.contains(&(*network, *way));
            (std::cmp::Reverse(network.prefix_length), is_ours, *way)
        });
        NEVER.iter().map(closed).chain(said).collect()
    }
}

fn overlap(one: &Ipv4Prefix, other: &Ipv4Prefix) -> bool {
    one.contains(other.network) || other.contains(one.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(outward: &Outward, address: [u8; 4]) -> Way {
        let decisions = outward.decisions();
        let found = decisions.iter().find(|(network, _)| network.contains(address.into()));
        found.map_or(Way::Open, |(_, way)| *way)
    }

    #[test]
    fn unless_the_operator_says_otherwise_private_networks_are_closed_and_others_open() {
        let outward = Outward::default();
        for closed in [
            [169, 254, 169, 254],
            [168, 63, 129, 16],
            [10, 1, 2, 3],
            [172, 31, 255, 255],
            [192, 168, 0, 1],
            [100, 100, 100, 200],
            [192, 0, 0, 192],
        ] {
            assert_eq!(way(&outward, closed), Way::Closed, "{closed:?}");
        }
        for open in [[9, 9, 9, 9], [172, 32, 0, 0], [192, 0, 2, 1], [100, 128, 0, 0]] {
            assert_eq!(way(&outward, open), Way::Open, "{open:?}");
        }
    }

    #[test]
    fn the_smaller_network_decides_and_some_are_never_open() {
        let mut outward = Outward::default();
        let say = |text: &str| text.parse().expect("a network");
        outward.open(say("10.0.0.0/8")).expect("taken");
        outward.close(say("10.20.0.0/16")).expect("taken");
        outward.open(say("10.20.30.0/24")).expect("taken");
        outward.close(say("203.0.113.0/24")).expect("taken");
        for (address, expected) in [
            ([10, 1, 1, 1], Way::Open),
            ([10, 20, 1, 1], Way::Closed),
            ([10, 20, 30, 1], Way::Open),
            ([203, 0, 113, 1], Way::Closed),
            ([192, 168, 1, 1], Way::Closed),
        ] {
            assert_eq!(way(&outward, address), expected, "{address:?}");
        }
        for never in ["169.254.169.254", "169.254.0.0/16", "168.0.0.0/8", "0.0.0.0/0"] {
            assert!(outward.open(say(never)).is_err(), "{never}");
        }
    }
}
