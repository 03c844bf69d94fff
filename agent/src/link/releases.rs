//! Follows the release stream: item by item through [`crate::verify`], into the model, for ever.
//!
//! Owns the stream's connection. It stands only while the processor's seal key is known, and is
//! renewed when that key changes. Called once by the daemon; the only writer of the model.

use std::path::PathBuf;
use std::sync::Arc;

use dagger_bus::ledger::{Consumed, Purpose, StreamItem};
use dagger_bus::{BusError, Connection, Receiver};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::ClusterId;
use dagger_payload::key::PublicKey;
use dagger_payload::release::CommitRelease;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::seal::SealState;
use super::{Pauses, requests};
use crate::limits::{
    DISK_FULL_WAIT_MAX, DISK_FULL_WAIT_MIN, OLD_VIEW_WAIT_MAX, RELEASE_WINDOW,
    RELEASES_WRITTEN_TOGETHER_BYTES_MAX, RELEASES_WRITTEN_TOGETHER_MAX,
};
use crate::model::{ArchiveError, Archives, Model, SharedModel};
use crate::verify::reader::{Distrust, Progress, Reader, Taken, Trust};

/// How the stream is, for health: `Ok` while items are taken in, else why not.
pub type StreamState = Result<(), String>;

/// What following the ledger needs.
pub struct Follower {
    /// The ledger's socket.
    pub path: PathBuf,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its founding document.
    pub genesis: Arc<Genesis>,
    /// The distrustful reader.
    pub reader: Reader,
    /// What is folded.
    pub model: SharedModel,
    /// Where the archive is begun anew with each reading.
    pub archives: Arc<Archives>,
    /// The processor's key.
    pub seal: watch::Receiver<SealState>,
    /// How the stream is.
    pub state: watch::Sender<StreamState>,
}

/// Why a stream was given up.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Distrust(#[from] Distrust),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the processor's seal key changed")]
    SealChanged,
    #[error("asking again for a view that is not too old")]
    OldView,
}

/// What was at hand of the stream.
#[derive(Default)]
struct Gathered {
    /// What is to be folded, in order.
    releases: Vec<Arc<CommitRelease>>,
    /// Why nothing more comes after them.
    end: Option<StreamEnd>,
}

impl Follower {
    /// Follows until `stop`.
    ///
    /// # Errors
    /// The archive cannot be written or read, other than for want of room: the daemon ends, and
    /// the next one builds it anew.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ArchiveError> {
        stop.run_until_cancelled(self.follow()).await.unwrap_or(Ok(()))
    }

    async fn follow(&mut self) -> Result<(), ArchiveError> {
        let mut pauses = Pauses::new();
        if !self.model.has_archive() {
            self.forget().await?;
        }
        loop {
            let Ok(seal) = self.seal.wait_for(Result::is_ok).await.map(|key| key.clone()) else {
                return Ok(());
            };
            let Ok(seal_key) = seal else { continue };
            let end = match self.stream(&seal_key, &mut pauses).await {
                Ok(never) => match never {},
                Err(StreamEnd::Archive(broken)) => return Err(broken),
                Err(end) => end,
            };
            self.report(&end).await?;
            let _ = self.state.send_replace(Err(end.to_string()));
            self.publish();
            tokio::time::sleep(pauses.next()).await;
        }
    }

    async fn report(&mut self, end: &StreamEnd) -> Result<(), ArchiveError> {
        match end {
            StreamEnd::Distrust(
                why @ (Distrust::Chain(_) | Distrust::Anchor(_) | Distrust::Hole { .. }),
            ) => {
                error!(%why, "ALARM: the ledger of this host shows a broken history; nothing will change");
                self.forget().await?;
            }
            StreamEnd::Distrust(why @ Distrust::Seal(_)) => {
                warn!(%why, "a release is not taken in; asking the processor for its key again");
            }
            StreamEnd::Bus(why) => warn!(%why, "the release stream ended"),
            StreamEnd::SealChanged | StreamEnd::OldView | StreamEnd::Archive(_) => {
                info!(why = %end, "renewing the release stream")
            }
        }
        Ok(())
    }

    /// The model is folded from nothing again.
    async fn forget(&mut self) -> Result<(), ArchiveError> {
        let fresh = Model::new(&self.genesis);
        self.patiently(move |model, archives| {
            let archive = archives.fresh()?;
            model.begin_anew(fresh.clone(), archive);
            Ok(())
        })
        .await
    }

    /// Does what needs room on the disk, again and again until there is some: what was folded is
    /// shown meanwhile, and nothing is lost, for the next release is taken only after these.
    async fn patiently<T: Send + 'static>(
        &self,
        work: impl Fn(&SharedModel, &Archives) -> Result<T, ArchiveError> + Send + Sync + 'static,
    ) -> Result<T, ArchiveError> {
        let work = Arc::new(work);
        let mut pauses = Pauses::between(DISK_FULL_WAIT_MIN, DISK_FULL_WAIT_MAX);
        let mut was_full = false;
        loop {
            let (model, archives) = (self.model.clone(), Arc::clone(&self.archives));
            let work = Arc::clone(&work);
            let done = tokio::task::spawn_blocking(move || work(&model, &archives)).await;
            match done.expect("a panic ends the daemon") {
                Err(ArchiveError::Full(why)) => {
                    let stands = "the history is not read on";
                    if !was_full {
                        error!(%why, "{stands}: make room on the disk of the agent's state directory");
                        let _ = self.state.send_replace(Err(format!("{stands}: {why}")));
                    }
                    was_full = true;
                    tokio::time::sleep(pauses.next()).await;
                }
                Ok(done) if was_full => {
                    info!("there is room on the disk again; the history is read on");
                    let _ = self.state.send_replace(Ok(()));
                    return Ok(done);
                }
                done => return done,
            }
        }
    }

    async fn stream(
        &mut self,
        seal_key: &PublicKey,
        pauses: &mut Pauses,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        if self.reader.is_unsealed() {
            // Its anchor went with the connection, and perhaps with its processor.
            self.reader.read_again();
            self.forget().await?;
        }
        let purpose = Purpose::Releases { after: self.reader.cursor(), window: RELEASE_WINDOW };
        let mut connection = requests::open(&self.path, self.cluster, purpose).await?;
        info!(after = %self.reader.cursor(), "following the ledger's releases");
        self.reader.connected();
        let _ = self.state.send_replace(Ok(()));
        self.publish();
        let mut old_since: Option<tokio::time::Instant> = None;
        loop {
            let too_old = self.has_old_view();
            let since = too_old.then(|| old_since.unwrap_or_else(tokio::time::Instant::now));
            old_since = since;
            let item = tokio::select! {
                item = connection.receiver.receive_sized::<StreamItem>() => item?,
                // A change to the same key again cannot be told apart from none, and need not be.
                _ = self.seal.wait_for(|now| now.as_ref() != Ok(seal_key)) => {
                    return Err(StreamEnd::SealChanged);
                }
                () = sleep_until_old(since) => return Err(StreamEnd::OldView),
            };
            self.take(item, seal_key, &mut connection).await?;
            pauses.reset();
        }
    }

    /// Takes in `first` and what is at hand behind it: it is written together, and told once it is.
    async fn take(
        &mut self,
        first: (StreamItem, usize),
        seal_key: &PublicKey,
        connection: &mut Connection,
    ) -> Result<(), StreamEnd> {
        let Gathered { releases, end } = self.gather(first, seal_key, &mut connection.receiver);
        let last = releases.last().map(|release| release.end.index);
        if last.is_some() {
            let taken = self.patiently(move |model, _| model.take_in(&releases)).await?;
            taken.map_err(|unknown| self.reader.refuse(unknown))?;
        }
        if let Some(end) = end {
            return Err(end);
        }
        self.publish();
        if let Some(commit) = last {
            connection.sender.send(&Consumed { commit }).await?;
        }
        Ok(())
    }

    fn gather(
        &mut self,
        first: (StreamItem, usize),
        seal_key: &PublicKey,
        receiver: &mut Receiver,
    ) -> Gathered {
        let mut gathered = Gathered::default();
        let (mut items, mut bytes) = (0, 0);
        let mut next = Some(Ok(first));
        while let Some(item) = next {
            match item.map_err(StreamEnd::from).and_then(|item| self.look_at(item, seal_key)) {
                Ok((release, size_bytes)) => {
                    gathered.releases.extend(release);
                    (items, bytes) = (items + 1, bytes + size_bytes);
                }
                Err(end) => {
                    gathered.end = Some(end);
                    break;
                }
            }
            let has_room = items < RELEASES_WRITTEN_TOGETHER_MAX
                && bytes < RELEASES_WRITTEN_TOGETHER_BYTES_MAX;
            next = has_room.then(|| receiver.receive_at_hand()).flatten();
        }
        gathered
    }

    /// The release, if it is one, and its size.
    fn look_at(
        &mut self,
        (item, size_bytes): (StreamItem, usize),
        seal_key: &PublicKey,
    ) -> Result<(Option<Arc<CommitRelease>>, usize), StreamEnd> {
        let release = match self.reader.take(item, seal_key)? {
            Taken::Release(release) => Some(release),
            Taken::Noted => None,
            Taken::Worthless(why) => {
                warn!(%why, "the ledger sent evidence that proves nothing");
                None
            }
        };
        Ok((release, size_bytes))
    }

    fn has_old_view(&mut self) -> bool {
        matches!(self.reader.progress().trust, Trust::Hold(_))
    }

    fn publish(&mut self) {
        let progress = self.reader.progress();
        let before = self.model.progress();
        tell_changes(&before, &progress);
        self.model.publish(progress);
    }
}

async fn sleep_until_old(since: Option<tokio::time::Instant>) {
    match since {
        Some(since) => tokio::time::sleep_until(since + OLD_VIEW_WAIT_MAX).await,
        None => std::future::pending().await,
    }
}

fn tell_changes(before: &Progress, now: &Progress) {
    if before.trust != now.trust {
        match &now.trust {
            Trust::Hold(why) => error!(%why, "ALARM: on hold; VMs run on, nothing changes"),
            Trust::CaughtUp => info!(attested = %now.attested, "caught up with the ledger"),
            Trust::Reading(what) => info!(%what, "reading the ledger's history"),
        }
    }
    if before.contradicting != now.contradicting && !now.contradicting.is_empty() {
        error!(members = ?now.contradicting, "ALARM: members attest another history");
    }
}
