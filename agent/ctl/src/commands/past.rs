//! The whole history as a file: `daggerctl ledger export` writes it, and a bill is computed from it
//! without asking anybody.
//!
//! Owns how a history is written, read and believed: every release of it is added up, and what they
//! come to must be what a quorum attests. Counts nothing itself: [`dagger_api::bill`] does. Called
//! by `commands::ledger` and `commands::usage`.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use dagger_api::UsageView;
use dagger_api::bill::Bill;
use dagger_payload::genesis::Genesis;
use dagger_payload::history::{self, Chains, HISTORY_MAGIC, LENGTH_BYTES};
use dagger_payload::id::{AccountId, ClusterId, CommitIndex, HostId};
use dagger_payload::name::Name;
use dagger_payload::object::Effect;
use dagger_payload::release::CommitRelease;
use dagger_payload::roster::Roster;
use http_body_util::BodyExt;

use super::ledger::verify;
use crate::failure::Failure;
use crate::limits::HISTORY_PIECE_WAIT_MAX;
use crate::session::Session;

pub(super) const EXAMPLES: &str = "\
Example (over a host's Unix socket, or with an operator's key):
  daggerctl ledger export > history
  daggerctl ledger proof order > order.json

Holds every payload as it was signed, what was decided, and every version of
every object, of all accounts: operators decide to whom they give it. With a
proof of the order nobody has to believe whoever wrote it: `daggerctl account
usage --from-log`.";

/// From what a bill is computed.
pub(super) struct Sources<'a> {
    /// The exported history.
    pub(super) history: &'a Path,
    /// A proof of the order: of its end, or of a commit on the way there.
    pub(super) proof: &'a Path,
    /// What founded the cluster.
    pub(super) genesis: &'a Path,
    /// Its signatures, if they stand elsewhere than beside it.
    pub(super) signatures: Option<&'a Path>,
}

/// Writes the history as a host tells it.
pub(super) async fn export(session: &Session) -> Result<(), Failure> {
    let mut body = session.client.stream("/v1/history").await?;
    let stopped = |why: &str| {
        let what = format!("the history stopped half-way: {why}");
        Failure::unavailable("export_torn", what, "Try again.")
    };
    loop {
        let next = tokio::time::timeout(HISTORY_PIECE_WAIT_MAX, body.frame()).await;
        match next {
            Ok(Some(Ok(frame))) => {
                if let Ok(piece) = frame.into_data() {
                    session.output.bytes(&piece)?;
                }
            }
            Ok(Some(Err(error))) => return Err(stopped(&error.to_string())),
            Ok(None) => return Ok(()),
            Err(_) => return Err(stopped("nothing came any more")),
        }
    }
}

/// What `account` has used up to `commit`, or up to the commit that the proof is of: computed from
/// the history, once that is shown to be the one that a quorum attests.
pub(super) fn bill(
    sources: &Sources<'_>,
    account: AccountId,
    commit: Option<CommitIndex>,
) -> Result<UsageView, Failure> {
    let (genesis, cluster) = verify::founded(sources.genesis, sources.signatures)?;
    let (end, ordered) = verify::order(sources.proof, cluster, &genesis)?;
    let until = commit.unwrap_or(end.index);
    if until > end.index {
        let what = format!("the proof is of commit {}, and shows nothing of {until}", end.index);
        return Err(Failure::refused("proof_too_old", what, "Ask a host for a new one."));
    }
    let mut past = Past::open(sources.history, cluster, &genesis)?;
    let mut bill = Bill::new(account);
    while past.chains.at < end.index {
        let Some(release) = past.next()? else {
            let at = past.chains.at;
            let what = format!("the history ends with commit {at}, the proof is of {}", end.index);
            return Err(Failure::refused("history_too_short", what, "Have it exported again."));
        };
        if release.end.index <= until {
            bill.take(&release).map_err(|error| past.is_false(&error.to_string()))?;
        }
    }
    // Nothing that was read counts before this.
    if !past.chains.lead_to(&end, &ordered) {
        let why = format!("it does not lead to what the cluster attests of commit {}", end.index);
        return Err(past.is_false(&why));
    }
    Ok(bill.read(|host| past.name(host).cloned()))
}

/// A history that is read, one release after another.
struct Past<'a> {
    path: &'a Path,
    file: BufReader<File>,
    chains: Chains,
    roster: Roster,
}

impl<'a> Past<'a> {
    fn open(path: &'a Path, cluster: ClusterId, genesis: &Genesis) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| Failure::file(path, &error))?;
        let (chains, roster) = (Chains::founding(&cluster), Roster::founding(genesis));
        let mut past = Self { path, file: BufReader::new(file), chains, roster };
        let mut magic = [0; HISTORY_MAGIC.len()];
        match past.file.read_exact(&mut magic) {
            Ok(()) if magic == HISTORY_MAGIC => Ok(past),
            Ok(()) => Err(past.is_false("it is no exported history")),
            Err(error) => Err(past.failed(&error)),
        }
    }

    /// The next release; none at the end.
    fn next(&mut self) -> Result<Option<CommitRelease>, Failure> {
        let left = self.file.fill_buf().map(<[u8]>::len);
        if left.map_err(|error| self.failed(&error))? == 0 {
            return Ok(None);
        }
        let mut head = [0; LENGTH_BYTES];
        self.file.read_exact(&mut head).map_err(|error| self.failed(&error))?;
        let after = self.chains.at;
        let length = history::length(head).ok_or_else(|| {
            self.is_false(&format!("after commit {after}: no release is so long"))
        })?;
        // Memory is taken as bytes come, whatever the file says of their number.
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(length as u64).read_to_end(&mut bytes);
        match read {
            Ok(count) if count == length => {}
            Ok(_) => return Err(self.failed(&ErrorKind::UnexpectedEof.into())),
            Err(error) => return Err(self.failed(&error)),
        }
        let release =
            self.chains.take(&bytes).map_err(|error| self.is_false(&error.to_string()))?;
        for effect in release.effects() {
            if let Effect::Seat(seat) = effect {
                let index = seat.index;
                let placed = self.roster.put(seat);
                placed.map_err(|_| self.is_false(&format!("seat {index} follows from nothing")))?;
            }
        }
        Ok(Some(release))
    }

    /// What a host is or was called.
    fn name(&self, host: &HostId) -> Option<&Name> {
        let mut seats = self.roster.seats().iter();
        seats.find(|seat| seat.host == *host).map(|seat| &seat.name)
    }

    fn is_false(&self, why: &str) -> Failure {
        let what = format!("NOT PROVEN: {}: {why}", self.path.display());
        let advice = "Believe nothing of it. Have it exported by another host.";
        Failure::refused("history_false", what, advice)
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        match error.kind() {
            ErrorKind::UnexpectedEof => self.is_false("it ends in the middle of something"),
            _ => Failure::file(self.path, error),
        }
    }
}

#[cfg(test)]
mod tests;
