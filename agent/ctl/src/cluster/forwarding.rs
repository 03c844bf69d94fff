//! Whether this machine forwards packets: switched on for guests, and what it was once no cluster
//! needs it any more.
//!
//! Owns the notes of what it was before, outside of the clusters' directories, since clusters of
//! one machine come and go in any order. Never switches it on: whoever makes a guest's card does.
//! Called by `cluster::dev` and `cluster::stop`.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::record::Record;

/// Whether any guest's card or network of libvirt's is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    /// At least one is.
    There,
    /// None is.
    Gone,
}

/// The machine's setting, and the notes of what it was, one of each cluster.
pub(crate) struct Forwarding {
    setting: PathBuf,
    notes: PathBuf,
    own: PathBuf,
}

impl Forwarding {
    /// That of the network namespace of this process, which root alone can change.
    pub(crate) fn of_this_machine(record: &Record) -> Self {
        let namespace = std::fs::metadata("/proc/self/ns/net").map_or(0, |space| space.ino());
        let notes = PathBuf::from(format!("/run/dagger-dev-ip_forward-{namespace}"));
        let own = notes.join(&record.tag);
        Self { setting: "/proc/sys/net/ipv4/ip_forward".into(), notes, own }
    }

    /// Notes what is set now, before guests come. While guests are there already, what another
    /// cluster has noted is what was before.
    pub(crate) fn note(&self, guests: Guests) {
        let before = match guests {
            Guests::There => self.noted_by_another(),
            Guests::Gone => None,
        };
        let before = before.or_else(|| std::fs::read_to_string(&self.setting).ok());
        if let Some(before) = before {
            // Without the note forwarding stays on, as it does after libvirt itself.
            let _ = std::fs::create_dir(&self.notes);
            let _ = std::fs::write(&self.own, before);
        }
    }

    fn noted_by_another(&self) -> Option<String> {
        let mut notes = std::fs::read_dir(&self.notes).into_iter().flatten().flatten();
        notes.find_map(|note| std::fs::read_to_string(note.path()).ok())
    }

    /// Sets what was noted, unless guests still need it: then whoever ends last does.
    pub(crate) fn restore(&self, guests: Guests) {
        let was_off = std::fs::read_to_string(&self.own).is_ok_and(|before| before.trim() == "0");
        if was_off && guests == Guests::Gone {
            let _ = std::fs::write(&self.setting, "0\n");
        }
        let _ = std::fs::remove_file(&self.own);
        // Succeeds for the last cluster's only.
        let _ = std::fs::remove_dir(&self.notes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(root: &tempfile::TempDir, cluster: &str) -> Forwarding {
        let notes = root.path().join("notes");
        let own = notes.join(cluster);
        Forwarding { setting: root.path().join("setting"), notes, own }
    }

    fn set(machine: &Forwarding) -> String {
        std::fs::read_to_string(&machine.setting).expect("set")
    }

    #[test]
    fn forwarding_is_what_it_was_once_the_last_cluster_has_ended_in_whatever_order() {
        for first_ends_first in [true, false] {
            let root = tempfile::tempdir().expect("a directory");
            let (one, other) = (machine(&root, "one"), machine(&root, "other"));
            std::fs::write(&one.setting, "0\n").expect("written");
            one.note(Guests::Gone);
            std::fs::write(&one.setting, "1\n").expect("a guest's card comes");
            other.note(Guests::There);
            let (ends, stays) = if first_ends_first { (&one, &other) } else { (&other, &one) };
            ends.restore(Guests::There);
            assert_eq!(set(&one), "1\n");
            stays.restore(Guests::Gone);
            assert_eq!(set(&one), "0\n");
            assert!(!one.notes.exists());
        }
    }

    #[test]
    fn what_somebody_else_had_switched_on_stays_on() {
        let root = tempfile::tempdir().expect("a directory");
        let (one, other) = (machine(&root, "one"), machine(&root, "other"));
        std::fs::write(&one.setting, "0\n").expect("written");
        // A cluster that never ended in order.
        other.note(Guests::Gone);
        std::fs::write(&one.setting, "1\n").expect("written");
        one.note(Guests::Gone);
        one.restore(Guests::Gone);
        assert_eq!(set(&one), "1\n");
        // Nothing was noted: nothing is changed.
        one.restore(Guests::Gone);
        assert_eq!(set(&one), "1\n");
    }
}
