//! Heals: when faults have stopped and some time has passed, all honest hosts hold the same judged
//! order of payloads, nothing waits, and no core has stopped.

use dagger_payload::event::CommitEnd;
use dagger_payload::id::AuthorIndex;

use super::{End, Observed, Promise, Setting};

/// See the module.
pub(super) struct Heals {
    founding: CommitEnd,
}

impl Heals {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { founding: setting.founding }
    }
}

impl Promise for Heals {
    fn name(&self) -> &'static str {
        "heals"
    }

    fn check(&mut self, _: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Halted { reason } => Err(format!("halted: {reason}")),
            _ => Ok(()),
        }
    }

    fn check_end(&mut self, end: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        let furthest = end.hosts.iter().map(|host| host.judged.position).max();
        let furthest = furthest.unwrap_or(self.founding.position);
        let reference = end.hosts.iter().find(|host| host.judged.position == furthest);
        for host in &end.hosts {
            if host.waiting > 0 {
                return Err((host.host, format!("{} payloads still wait", host.waiting)));
            }
            let judged = host.judged;
            let same = reference.is_some_and(|reference| {
                let other = reference.judged;
                (other.position, other.prefix_hash, other.state_root)
                    == (judged.position, judged.prefix_hash, judged.state_root)
            });
            if !same {
                let detail =
                    format!("is at position {}, another host at {furthest}", judged.position);
                return Err((host.host, detail));
            }
        }
        Ok(())
    }
}
