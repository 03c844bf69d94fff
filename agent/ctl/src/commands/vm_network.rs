//! `daggerctl vm network`, and what `vm create` says of the same: how a VM's card is reached.
//!
//! Owns the words for rules and forwards. What is not named stays as it is: the request itself
//! replaces everything, so it is made from what the ledger shows now. Called by `commands::vm` and
//! `commands::payload`.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use dagger_payload::kind::VmNetworkChange;
use dagger_payload::network::{Allowed, Forward, Ipv4Prefix, PortRange, Protocol, VmNetwork};

use super::ChangeOptions;
use super::lookup::find;
use super::vm::ChangeWhat;
use super::vm_cards::Wish;
use crate::failure::Failure;
use crate::session::Session;

pub(super) const EXAMPLES: &str = "\
Examples:
  daggerctl vm network web-1 --allow tcp:22@198.51.100.0/24 \\
      --allow tcp:80-443 --allow icmp
  daggerctl vm network web-1 --forward tcp:22 --wait applied \\
      && daggerctl vm show web-1
  daggerctl vm network web-1 --allow-all --no-forwards
  daggerctl vm network db-1 --card 1 --allow tcp:5432@192.0.2.0/24

A rule lets somebody begin a conversation with the guest; without rules
everybody may, also other guests of its host. What the guest begins itself is
answered in any case, and by NAT its host always reaches it. What comes by a
forwarded port must be allowed too, as it arrives at the guest. Which port of
the host leads to the guest, `vm show` says: it follows from the guest's
address. Options that are not given leave things as they are. Conversations
that go on are not cut off.";

/// What may begin a conversation with a guest, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Allowed);

/// A forwarded port, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    protocol: Protocol,
    guest_port: u16,
}

/// How a card is reached, in options.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkWishes {
    /// What may begin a conversation with the guest, and nothing else may: tcp, udp, icmp or any,
    /// with ports, and from where; may be repeated
    #[arg(long, value_name = "PROTOCOL[:PORT[-PORT]][@NETWORK]")]
    pub(crate) allow: Vec<Rule>,
    /// Nothing may; by NAT its host still may
    #[arg(long, conflicts_with = "allow")]
    pub(crate) allow_none: bool,
    /// Let a port of its host lead to this port of the guest; may be repeated
    #[arg(long, value_name = "PROTOCOL:PORT")]
    pub(crate) forward: Vec<Port>,
}

/// What `vm network` names.
#[derive(Debug, Clone, Args)]
#[group(id = "change", required = true, multiple = true,
    args = ["allow", "allow_none", "allow_all", "forward", "no_forwards"])]
pub(crate) struct NetworkWhat {
    /// Which VM.
    #[command(flatten)]
    pub(crate) change: ChangeWhat,
    /// How it is reached.
    #[command(flatten)]
    pub(crate) wishes: NetworkWishes,
    /// Which of its network cards, from 0, as `vm show` numbers them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) card: u8,
    /// Everything may begin a conversation with the guest
    #[arg(long, conflicts_with_all = ["allow", "allow_none"])]
    pub(crate) allow_all: bool,
    /// No port of its host leads to the guest
    #[arg(long, conflicts_with = "forward")]
    pub(crate) no_forwards: bool,
}

/// Arguments of `vm network`.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArguments {
    /// Which VM, and how it is reached.
    #[command(flatten)]
    pub(crate) what: NetworkWhat,
    /// How far to wait.
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

impl NetworkWishes {
    /// What is wished for instead of `before`.
    fn instead_of(&self, before: VmNetwork) -> Result<VmNetwork, Failure> {
        let mut network = before;
        if self.allow_none || !self.allow.is_empty() {
            network.allow = Some(self.allow.iter().map(|rule| rule.0).collect());
        }
        if !self.forward.is_empty() {
            // A port that leads somewhere already goes on leading there.
            let is_wished = |forward: &Forward| {
                self.forward.iter().any(|port| (port.protocol, port.guest_port) == key(forward))
            };
            network.forwards.retain(is_wished);
            for Port { protocol, guest_port } in self.forward.iter().copied() {
                if network.forwards.iter().any(|forward| key(forward) == (protocol, guest_port)) {
                    continue;
                }
                let slot = network.free_slot().ok_or_else(|| {
                    let what = "a VM has at most 8 forwards";
                    Failure::usage(what, "Forward to a proxy in the guest, or use its address.")
                })?;
                network.forwards.push(Forward { slot, protocol, guest_port });
            }
        }
        Ok(network)
    }

    /// What a new VM with these cards asks for; nothing if nothing is named. Every card is reached
    /// alike, and ports of the host lead to the first one.
    pub(super) fn of_new(
        &self,
        cards: &[Wish],
    ) -> Result<(Option<VmNetwork>, Vec<VmNetwork>), Failure> {
        let mut cards = cards.iter().map(|card| card.0.clone());
        let first = VmNetwork { bridge: cards.next().flatten(), ..VmNetwork::default() };
        let first = self.instead_of(first)?;
        let more = cards.map(|bridge| VmNetwork {
            allow: first.allow.clone(),
            forwards: Vec::new(),
            bridge,
        });
        let more = more.collect();
        Ok((Some(first).filter(|network| *network != VmNetwork::default()), more))
    }
}

fn key(forward: &Forward) -> (Protocol, u16) {
    (forward.protocol, forward.guest_port)
}

impl NetworkWhat {
    /// The body of `vm.network`, meant for the version that it was made from.
    pub(crate) async fn body(&self, session: &Session) -> Result<VmNetworkChange, Failure> {
        let vm = find(session, &self.change.name.vm).await?.vm;
        let card = vm.cards().nth(self.card.into()).cloned();
        let mut before = card.ok_or_else(|| {
            let what = format!("{} has no card {}", vm.name, self.card);
            Failure::usage(what, format!("See `daggerctl vm show {}`.", vm.name))
        })?;
        if self.allow_all {
            before.allow = None;
        }
        if self.no_forwards {
            before.forwards.clear();
        }
        let asked = self.change.expected_generation.map(dagger_payload::id::Generation);
        Ok(VmNetworkChange {
            vm: vm.id,
            network: self.wishes.instead_of(before)?,
            expected_generation: Some(asked.unwrap_or(vm.generation)),
            card: self.card,
        })
    }
}

const RULE_FORM: &str = "write for example tcp:22, tcp:80-443@192.0.2.0/24, icmp or any@10.0.0.0/8";

fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Icmp].into_iter().find(|each| each.word() == word)
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no rule; {RULE_FORM}");
        let (what, from) = match text.split_once('@') {
            Some((what, from)) => (what, from.parse().map_err(|_| wrong())?),
            None => (text, Ipv4Prefix::ALL),
        };
        let (word, ports) = match what.split_once(':') {
            Some((word, ports)) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let number = |text: &str| text.parse().map_err(|_| wrong());
                (word, Some(PortRange { first: number(first)?, last: number(last)? }))
            }
            None => (what, None),
        };
        let protocol = match word {
            "any" => None,
            word => Some(protocol(word).ok_or_else(wrong)?),
        };
        let rule = Allowed { from, protocol, ports };
        let network = VmNetwork { allow: Some(vec![rule]), ..VmNetwork::default() };
        match network.broken_rule() {
            Some(rule) => Err(format!("{text:?}: {rule}; {RULE_FORM}")),
            None => Ok(Self(rule)),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Allowed { from, protocol, ports } = self.0;
        write!(formatter, "{}", protocol.map_or("any", Protocol::word))?;
        match ports {
            Some(PortRange { first, last }) if first == last => write!(formatter, ":{first}")?,
            Some(PortRange { first, last }) => write!(formatter, ":{first}-{last}")?,
            None => {}
        }
        if from == Ipv4Prefix::ALL { Ok(()) } else { write!(formatter, "@{from}") }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no port of a guest; write for example tcp:22 or udp:53");
        let (word, port) = text.split_once(':').ok_or_else(wrong)?;
        let protocol = protocol(word).filter(|each| *each != Protocol::Icmp).ok_or_else(wrong)?;
        let guest_port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        Ok(Self { protocol, guest_port })
    }
}

/// Who may begin a conversation, for people.
pub(super) fn allowed(network: &VmNetwork) -> String {
    match &network.allow {
        None => "everything".to_owned(),
        Some(rules) if rules.is_empty() && network.bridge.is_some() => "nothing".to_owned(),
        Some(rules) if rules.is_empty() => "nothing but its host".to_owned(),
        Some(rules) => {
            let rules: Vec<_> = rules.iter().map(|rule| Rule(*rule).to_string()).collect();
            rules.join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_are_shown() {
        for text in ["tcp:22", "udp:53-54@192.0.2.0/24", "icmp", "any@10.0.0.0/8", "any"] {
            assert_eq!(text.parse::<Rule>().expect("a rule").to_string(), text);
        }
        for text in ["tcp:", "icmp:1", "any:22", "tcp:9-8", "tcp:22@10.0.0.1/8", "", "ip"] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
        for text in ["22", "icmp:1", "tcp:0", "tcp:65536"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_leads_somewhere_keeps_its_place_when_others_come_and_go() {
        let wishes = |ports: &[&str]| NetworkWishes {
            allow: Vec::new(),
            allow_none: false,
            forward: ports.iter().map(|port| port.parse().expect("a port")).collect(),
        };
        let new = |ports: &[&str]| wishes(ports).of_new(&[]);
        let first = new(&["tcp:22", "tcp:80"]).expect("fits").0.expect("asks");
        let next = wishes(&["tcp:80", "udp:53"]).instead_of(first.clone()).expect("fits");
        let slots: Vec<_> = next.forwards.iter().map(|one| (one.slot, one.guest_port)).collect();
        assert_eq!(slots, [(1, 80), (0, 53)]);
        let kept = wishes(&[]).instead_of(first.clone()).expect("fits");
        assert_eq!(kept, first);
        let many: Vec<_> = (1..=9).map(|port| format!("tcp:{port}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(new(&many).is_err());
        assert_eq!(new(&[]).expect("fits"), (None, Vec::new()));
    }

    #[test]
    fn every_card_of_a_new_vm_is_reached_as_was_said() {
        let wishes = NetworkWishes { allow: Vec::new(), allow_none: true, forward: Vec::new() };
        let cards = ["nat", "bridge=lan"].map(|card| card.parse().expect("a card"));
        let (first, more) = wishes.of_new(&cards).expect("fits");
        let first = first.expect("asks");
        assert_eq!((first.allow, first.bridge), (Some(Vec::new()), None));
        let [second] = &more[..] else { panic!("{more:?}") };
        assert_eq!(second.allow, Some(Vec::new()));
        assert!(second.bridge.as_ref().is_some_and(|card| card.bridge.as_str() == "lan"));
    }
}
