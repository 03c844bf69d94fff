//! Fetching another ledger's snapshot, part by part.
//!
//! Owns whom to ask, what is checked before it is believed, and that an interrupted transfer goes
//! on where it was. A peer whose parts are false, missing or late is left for another, and said by
//! name. Never hands anything to the judge itself. Runs as one task, beside a core that has
//! nothing to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dagger_ledger_core::Frontier;
use dagger_payload::codec;
use dagger_payload::event::SignedHeader;
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, CommitIndex};
use dagger_payload::key::PublicKey;
use dagger_payload::limits::{SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_CHUNKS_MAX};
use dagger_payload::peer::{Part, PeerMessage};
use dagger_payload::snapshot::{PastReleases, SnapshotHead, SnapshotOffer};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Fetched, Heard, Outcome, PastPiece};
use crate::delivery::{Delivery, DeliveryError};
use crate::limits::{
    OFFERS_WAIT_MAX, PART_WAIT_MAX, PAST_PAGE_BYTES_MAX, SNAPSHOT_WRITE_BYTES, TRANSFER_REST,
};
use crate::link::Links;
use crate::store::{StoreError, records, snapshots};

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
enum TransferError {
    /// It is not ahead of what is here.
    #[error("it is not ahead")]
    NotAhead,
    /// No answer in time.
    #[error("no answer")]
    Silent,
    /// It has this no more.
    #[error("it has not all parts any more")]
    Gone,
    /// Not what was asked for.
    #[error("a part is malformed")]
    Malformed,
    /// The headers do not show it.
    #[error("no quorum attests its state")]
    NotAttested,
    /// Too few members name the same frontier now.
    #[error("too few members say the same of its commit")]
    NotAgreed,
    /// The connection to the processor ended in between.
    #[error("no processor takes it now")]
    NotTaken,
    /// The processor found it false.
    #[error("its chunks do not lead to the attested state")]
    FalseSnapshot,
    /// Its releases are not that state's history.
    #[error("its releases are not the history of the attested state")]
    FalsePast,
    /// The daemon stops.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> Self {
        Self::Delivery(error.into())
    }
}

impl From<crate::store::writer::WriterGone> for TransferError {
    fn from(error: crate::store::writer::WriterGone) -> Self {
        Self::Delivery(error.into())
    }
}

/// The one who asks.
pub struct Client {
    /// Store, keys and state.
    pub delivery: Arc<Delivery>,
    /// The way to the peers.
    pub links: Links,
    /// What they send.
    pub heard: mpsc::Receiver<Heard>,
    /// The way to the judge.
    pub fetched: mpsc::Sender<Fetched>,
}

impl Client {
    /// Waits for offers until the daemon stops.
    pub async fn run(mut self) {
        let mut failures: BTreeMap<AuthorIndex, u32> = BTreeMap::new();
        while let Some(mut offers) = self.offers().await {
            // Who failed least; of those the first.
            let failed = |peer: &AuthorIndex| failures.get(peer).copied().unwrap_or_default();
            let Some(peer) = offers.keys().copied().min_by_key(|peer| (failed(peer), *peer)) else {
                continue;
            };
            let bytes = offers.remove(&peer).unwrap_or_default();
            let name = self.name(peer);
            match self.begin_from(peer, &bytes).await {
                Ok(commit) => tracing::info!(%name, %commit, "begun from a peer's snapshot"),
                Err(TransferError::NotAhead) => {}
                Err(TransferError::Delivery(error)) => {
                    if self.delivery.is_fatal(error).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if !matches!(error, TransferError::NotAgreed | TransferError::NotTaken) {
                        *failures.entry(peer).or_default() += 1;
                    }
                    tracing::warn!(%name, %error, "a peer's snapshot is not used; others are asked");
                    sleep(TRANSFER_REST).await;
                    self.ask_for_offers();
                }
            }
        }
    }

    fn name(&self, peer: AuthorIndex) -> String {
        let host = self.delivery.genesis.host(peer);
        host.map_or_else(|| format!("host {}", peer.0), |host| host.name.to_string())
    }

    fn ask_for_offers(&self) {
        let ask = PeerMessage::AskPart { part: Part::Offer };
        self.links.broadcast(&ask.to_bytes().into());
    }

    /// Offers of all who answer soon after the first; none when the daemon stops.
    async fn offers(&mut self) -> Option<BTreeMap<AuthorIndex, Bytes>> {
        let mut offers = BTreeMap::new();
        while offers.is_empty() {
            let heard = self.heard.recv().await?;
            if let Some(offer) = read_offer(&heard)
                && self.is_ahead(&offer.head)
            {
                offers.insert(heard.from, heard.bytes);
            }
        }
        self.ask_for_offers();
        let gathering = async {
            while let Some(heard) = self.heard.recv().await {
                if read_offer(&heard).is_some_and(|offer| self.is_ahead(&offer.head)) {
                    offers.insert(heard.from, heard.bytes);
                }
            }
        };
        // Until it is over: more always come in time or not at all.
        let _ = timeout(OFFERS_WAIT_MAX, gathering).await;
        Some(offers)
    }

    fn is_ahead(&self, head: &SnapshotHead) -> bool {
        head.end.index > *self.delivery.commits.newest().borrow()
    }

    async fn begin_from(
        &mut self,
        peer: AuthorIndex,
        offer: &Bytes,
    ) -> Result<CommitIndex, TransferError> {
        let offer: SnapshotOffer = codec::decode(offer).map_err(|_| TransferError::Malformed)?;
        let head = offer.head.clone();
        if !self.is_ahead(&head) {
            return Err(TransferError::NotAhead);
        }
        let name = self.name(peer);
        let (commit, bytes) = (head.end.index, head.bytes);
        tracing::info!(%name, %commit, bytes, "a peer's snapshot is fetched");
        let frontier = self.agreed_frontier(peer, &head).await?;
        let committee = frontier.committee(self.delivery.genesis.committee());
        let cluster = self.delivery.cluster;
        let read = |signed: &SignedHeader| {
            let read = signed.verify(|author| key_of(&self.delivery, author));
            read.ok().map(|(header, _)| header)
        };
        if !offer.is_attested_by(&cluster, committee, read) {
            return Err(TransferError::NotAttested);
        }
        self.fetch_chunks(peer, &head).await?;
        self.fetch_past(peer, head.end.index).await?;
        let (outcome, mut came) = mpsc::channel(1);
        let fetched = Fetched { offer, frontier, outcome };
        if self.fetched.send(fetched).await.is_err() {
            return Err(TransferError::Silent);
        }
        match came.recv().await {
            Some(Outcome::Begun) => Ok(commit),
            Some(Outcome::FalseSnapshot) => {
                self.forget(&head).await?;
                Err(TransferError::FalseSnapshot)
            }
            Some(Outcome::FalsePast) => {
                self.forget(&head).await?;
                Err(TransferError::FalsePast)
            }
            // All parts are here when it is tried again.
            None => Err(TransferError::NotTaken),
        }
    }

    async fn ask(&mut self, peer: AuthorIndex, part: Part) -> Result<Bytes, TransferError> {
        let ask = PeerMessage::AskPart { part };
        self.links.send(peer, ask.to_bytes().into());
        let answer = async {
            while let Some(heard) = self.heard.recv().await {
                if (heard.from, heard.part) == (peer, part) {
                    return Ok(heard.bytes);
                }
            }
            Err(TransferError::Silent)
        };
        let bytes = timeout(PART_WAIT_MAX, answer).await.map_err(|_| TransferError::Silent)??;
        if bytes.is_empty() { Err(TransferError::Gone) } else { Ok(bytes) }
    }

    /// The frontier as more members than may lie say it, the offering peer among them.
    async fn agreed_frontier(
        &mut self,
        peer: AuthorIndex,
        head: &SnapshotHead,
    ) -> Result<Frontier, TransferError> {
        let frontier = self.frontier_of(peer, head).await?;
        let agreed = frontier.agreed_bytes();
        let committee = self.delivery.committee();
        let mut says_so = usize::from(committee.contains(peer));
        let me = self.delivery.me;
        for other in committee.authors().filter(|other| *other != peer && *other != me) {
            if says_so > committee.faulty_max() {
                break;
            }
            if !self.links.is_connected(other) {
                continue;
            }
            match self.frontier_of(other, head).await {
                Ok(theirs) if theirs.agreed_bytes() == agreed => says_so += 1,
                Ok(_) => tracing::warn!(name = self.name(other), "another frontier is named"),
                Err(TransferError::Delivery(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
        if says_so > committee.faulty_max() { Ok(frontier) } else { Err(TransferError::NotAgreed) }
    }

    async fn frontier_of(
        &mut self,
        peer: AuthorIndex,
        head: &SnapshotHead,
    ) -> Result<Frontier, TransferError> {
        let bytes = self.ask(peer, Part::Frontier { commit: head.end.index }).await?;
        let frontier: Frontier = codec::decode(&bytes).map_err(|_| TransferError::Malformed)?;
        let fits = frontier.last().is_some_and(|last| {
            (last.index, last.last_position, last.prefix_hash)
                == (head.end.index, head.end.position, head.end.prefix_hash)
        });
        let founded = frontier.handover.as_ref().is_none_or(|handover| self.is_signed(handover));
        if fits && founded { Ok(frontier) } else { Err(TransferError::Malformed) }
    }

    /// Whether all headers of the certificate are members' and name its end. Whose quorum they
    /// are, those say who agree on the frontier.
    fn is_signed(&self, handover: &Handover) -> bool {
        handover.headers.iter().all(|signed| {
            let read = signed.verify(|author| key_of(&self.delivery, author));
            read.is_ok_and(|(header, _)| {
                header.cluster == self.delivery.cluster
                    && header.attestation.newest == handover.founding.end
            })
        })
    }

    /// Fetches the chunks that are not here yet; what has come stays, however it ends.
    async fn fetch_chunks(
        &mut self,
        peer: AuthorIndex,
        head: &SnapshotHead,
    ) -> Result<(), TransferError> {
        if head.chunks > SNAPSHOT_CHUNKS_MAX {
            return Err(TransferError::Malformed);
        }
        let (mut number, mut ended) = (0, Ok(()));
        while number < head.chunks && ended.is_ok() {
            let (mut changes, mut bytes) = (Vec::new(), 0);
            while number < head.chunks && bytes < SNAPSHOT_WRITE_BYTES {
                match self.chunk(peer, head.made_after, number).await {
                    Ok(Some(chunk)) => {
                        bytes += chunk.len();
                        changes.push(snapshots::chunk_change(head.made_after, number, &chunk));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        ended = Err(error);
                        break;
                    }
                }
                number += 1;
            }
            self.delivery.writer.store(changes).await?;
        }
        ended
    }

    /// One chunk; none when it is here already.
    async fn chunk(
        &mut self,
        peer: AuthorIndex,
        made_after: CommitIndex,
        number: u32,
    ) -> Result<Option<Bytes>, TransferError> {
        if self.delivery.records.snapshot_chunk_here(made_after, number)?.is_some() {
            return Ok(None);
        }
        let chunk = self.ask(peer, Part::Chunk { made_after, number }).await?;
        if chunk.len() > 2 * SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(TransferError::Malformed);
        }
        Ok(Some(chunk))
    }

    /// Fetches the releases up to `through` that are not here yet.
    async fn fetch_past(
        &mut self,
        peer: AuthorIndex,
        through: CommitIndex,
    ) -> Result<(), TransferError> {
        let mut after = self.delivery.records.last_release()?;
        while after < through {
            let page = self.past_page(peer, after, through).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            let commits: Vec<_> = page.iter().map(|sealed| sealed.release.end.index).collect();
            let rises = commits.first().is_some_and(|first| *first > after)
                && commits.windows(2).all(|pair| pair[0] < pair[1]);
            let last = last.release.end.index;
            if !rises || last > through {
                return Err(TransferError::Malformed);
            }
            let changes = page.iter().map(records::release_change).collect();
            self.delivery.writer.store(changes).await?;
            after = last;
        }
        Ok(())
    }

    async fn past_page(
        &mut self,
        peer: AuthorIndex,
        after: CommitIndex,
        through: CommitIndex,
    ) -> Result<Vec<dagger_payload::release::SealedRelease>, TransferError> {
        let mut page = BytesMut::new();
        loop {
            let offset = u64::try_from(page.len()).expect("a length fits into 64 bits");
            let bytes = self.ask(peer, Part::Past { after, through, offset }).await?;
            let piece: PastPiece = codec::decode(&bytes).map_err(|_| TransferError::Malformed)?;
            if piece.bytes.is_empty() || piece.total > PAST_PAGE_BYTES_MAX {
                return Err(TransferError::Malformed);
            }
            page.extend_from_slice(&piece.bytes);
            if u64::try_from(page.len()).expect("fits") >= piece.total {
                let read = codec::decode::<PastReleases>(&page);
                return Ok(read.map_err(|_| TransferError::Malformed)?.0);
            }
        }
    }

    /// Takes away all that was fetched: who sent one false part is believed in none.
    async fn forget(&self, head: &SnapshotHead) -> Result<(), TransferError> {
        let changes = self.delivery.records.chunk_removals(head.made_after)?;
        self.delivery.writer.store(changes).await?;
        let judged = self.delivery.records.last_judged()?.map_or(CommitIndex(0), |end| end.index);
        loop {
            let changes = self.delivery.records.release_removals(judged)?;
            if changes.is_empty() {
                return Ok(());
            }
            self.delivery.writer.store(changes).await?;
        }
    }
}

fn key_of(delivery: &Delivery, author: AuthorIndex) -> Option<&PublicKey> {
    delivery.genesis.host(author).map(|host| &host.ledger_key)
}

fn read_offer(heard: &Heard) -> Option<SnapshotOffer> {
    (heard.part == Part::Offer).then(|| codec::decode(&heard.bytes).ok()).flatten()
}
