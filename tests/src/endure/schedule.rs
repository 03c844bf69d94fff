//! Which fault happens when: drawn from a seed before the run.
//!
//! Owns the kinds of faults, how often and how long they happen, and that no host is hurt in two
//! ways at once that exclude each other. Knows no process and no network. Called by the run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::simulator::random::Random;

/// What happens to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and a start at the end.
    Kill {
        /// Whose ledger.
        host: u8,
    },
    /// The process stands still; its connections stay open.
    Pause {
        /// Whose ledger.
        host: u8,
    },
    /// The host's cable is pulled.
    Unplug {
        /// Which host.
        host: u8,
    },
    /// Nothing of one host reaches another.
    Mute {
        /// Who is not heard.
        from: u8,
        /// By whom.
        to: u8,
    },
    /// Two hosts do not hear each other.
    Part {
        /// One.
        one: u8,
        /// The other.
        other: u8,
    },
    /// Nobody of one half hears anybody of the other.
    Split {
        /// The hosts of one half, one bit each.
        half: u8,
    },
}

/// Kinds of faults, for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// [`Fault::Kill`]
    Kill,
    /// [`Fault::Pause`]
    Pause,
    /// [`Fault::Unplug`]
    Unplug,
    /// [`Fault::Mute`]
    Mute,
    /// [`Fault::Part`]
    Part,
    /// [`Fault::Split`]
    Split,
}

impl Kind {
    /// Those that need no network of its own.
    pub const OF_PROCESSES: [Self; 2] = [Self::Kill, Self::Pause];
    /// All.
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::Pause, Self::Unplug, Self::Mute, Self::Part, Self::Split];
}

impl Fault {
    /// Its kind.
    pub fn kind(self) -> Kind {
        match self {
            Self::Kill { .. } => Kind::Kill,
            Self::Pause { .. } => Kind::Pause,
            Self::Unplug { .. } => Kind::Unplug,
            Self::Mute { .. } => Kind::Mute,
            Self::Part { .. } => Kind::Part,
            Self::Split { .. } => Kind::Split,
        }
    }

    /// The host that it happens to as a whole.
    fn host(self) -> Option<u8> {
        match self {
            Self::Kill { host } | Self::Pause { host } | Self::Unplug { host } => Some(host),
            Self::Mute { .. } | Self::Part { .. } | Self::Split { .. } => None,
        }
    }

    /// Pairs (from, to) between which nothing passes while it lasts.
    pub fn muted(self, hosts: u8) -> Vec<(u8, u8)> {
        let all = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
        let is_muted = |&(from, to): &(u8, u8)| match self {
            Self::Mute { from: muted, to: deaf } => (from, to) == (muted, deaf),
            Self::Part { one, other } => (from, to) == (one, other) || (from, to) == (other, one),
            Self::Split { half } => ((half >> from) & 1) != ((half >> to) & 1),
            Self::Kill { .. } | Self::Pause { .. } | Self::Unplug { .. } => false,
        };
        all.filter(is_muted).collect()
    }
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The fault begins.
    Begin(Fault),
    /// It ends.
    End(Fault),
}

/// `count` faults of `kinds` spread over `span`, as acts in order of time, and how many there are
/// of each kind. All have ended by the end of `span`. There are fewer only when `span` is too short
/// for so many.
pub fn draw(
    seed: u64,
    hosts: u8,
    kinds: &[Kind],
    count: u32,
    span: Duration,
) -> (Vec<(Duration, Act)>, BTreeMap<Kind, u32>) {
    let mut random = Random::new(seed, "endurance");
    let mut acts = Vec::new();
    let mut drawn = BTreeMap::new();
    let mut busy_until = vec![Duration::ZERO; usize::from(hosts)];
    let slot = span / count.max(1);
    for number in 0..count {
        let begin = slot * number + slot.mul_f64(thousandths(random.below(500)));
        // Where everybody is hurt already, the next one waits until somebody is well.
        let well = busy_until.iter().min().copied().unwrap_or_default();
        let begin = begin.max(well);
        let rest = span.saturating_sub(begin);
        // Most are short, so that the cluster works in between; some outlast several others. A
        // single host is well for half of the time.
        let longest = if random.happens(150) { 6000 } else { 1500 };
        let alone = if hosts == 1 { slot / 2 } else { rest };
        let lasts = Duration::from_millis(random.within((150, longest))).min(rest).min(alone);
        if rest.is_zero() {
            break;
        }
        let Some(fault) = fitting(&mut random, hosts, kinds, &busy_until, begin) else {
            continue;
        };
        if let Some(host) = fault.host() {
            busy_until[usize::from(host)] = begin + lasts;
        }
        *drawn.entry(fault.kind()).or_default() += 1;
        acts.push((begin, Act::Begin(fault)));
        acts.push((begin + lasts, Act::End(fault)));
    }
    acts.sort_by_key(|(at, _)| *at);
    (acts, drawn)
}

/// A fault that can happen at `begin`; none when everybody is hurt already.
fn fitting(
    random: &mut Random,
    hosts: u8,
    kinds: &[Kind],
    busy_until: &[Duration],
    begin: Duration,
) -> Option<Fault> {
    let is_free = |host: u8| busy_until[usize::from(host)] <= begin;
    if !(0..hosts).any(is_free) {
        return None;
    }
    loop {
        let fault = one(random, hosts, kinds);
        if fault.host().is_none_or(is_free) {
            return Some(fault);
        }
    }
}

fn thousandths(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("below a thousand")) / 1000.0
}

fn one(random: &mut Random, hosts: u8, kinds: &[Kind]) -> Fault {
    let mut any = |from: u8| {
        u8::try_from(random.within((from.into(), u64::from(hosts) - 1))).expect("a host's number")
    };
    let host = any(0);
    let other = (host + any(1.min(hosts - 1))) % hosts;
    match random.choose(kinds) {
        Kind::Kill => Fault::Kill { host },
        Kind::Pause => Fault::Pause { host },
        Kind::Unplug => Fault::Unplug { host },
        Kind::Mute => Fault::Mute { from: host, to: other },
        Kind::Part => Fault::Part { one: host, other },
        Kind::Split => Fault::Split { half: (1 << host) | (1 << other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_host_is_killed_as_often_as_was_asked_and_is_up_for_half_of_the_time() {
        for seed in 0..20 {
            let span = Duration::from_secs(8);
            let (acts, drawn) = draw(seed, 1, &[Kind::Kill], 8, span);
            assert_eq!(drawn[&Kind::Kill], 8);
            let down = acts.chunks(2).map(|pair| pair[1].0 - pair[0].0);
            assert!(down.sum::<Duration>() <= span / 2);
        }
    }

    #[test]
    fn a_schedule_follows_from_its_seed_hits_every_kind_and_ends_in_time() {
        let span = Duration::from_secs(120);
        for seed in 0..20 {
            let (acts, drawn) = draw(seed, 4, &Kind::ALL, 120, span);
            assert_eq!(acts, draw(seed, 4, &Kind::ALL, 120, span).0);
            assert_eq!(drawn.len(), Kind::ALL.len(), "{drawn:?}");
            let count: u32 = drawn.values().sum();
            assert_eq!(count, 120);
            assert_eq!(acts.len(), usize::try_from(count).expect("few") * 2);
            let mut killed = [false; 4];
            for (at, act) in acts {
                assert!(at <= span);
                match act {
                    Act::Begin(Fault::Kill { host }) => {
                        assert!(!killed[usize::from(host)]);
                        killed[usize::from(host)] = true;
                    }
                    Act::End(Fault::Kill { host }) => killed[usize::from(host)] = false,
                    Act::Begin(Fault::Pause { host } | Fault::Unplug { host }) => {
                        assert!(!killed[usize::from(host)]);
                    }
                    _ => {}
                }
            }
            assert_eq!(killed, [false; 4]);
        }
    }
}
