//! Fetching another ledger's snapshot, part by part.
//!
//! Owns whom to ask, what is checked before it is believed, and that an interrupted transfer goes
//! on where it was. A peer whose parts are false, missing or late is left for another, and said by
//! name. Never hands anything to the judge itself. Runs as one task, beside a core that has
//! nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use dagger_ledger_core::Frontier;
use dagger_payload::attested::{AttestationError, EpochBeginning, Walk};
use dagger_payload::codec;
use dagger_payload::event::SignedHeader;
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch};
use dagger_payload::limits::{SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_CHUNKS_MAX};
use dagger_payload::peer::{Part, PeerMessage};
use dagger_payload::snapshot::{PastReleases, SnapshotHead, SnapshotOffer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::inbox::Parts;
use super::pace::Pace;
use super::{Fetched, Outcome, Piece};
use crate::delivery::{Delivery, DeliveryError};
use crate::driver::start::FIRST_EPOCH;
use crate::limits::{
    HANDOVER_BYTES_MAX, OFFERS_WAIT_MAX, PAST_PAGE_BYTES_MAX, PIECE_BYTES_MAX,
    SNAPSHOT_WRITE_BYTES, TRANSFER_REST, frontier_bytes_max,
};
use crate::link::Links;
use crate::store::snapshots::SnapshotKey;
use crate::store::{Change, StoreError, chain, past, snapshots};

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
    /// Its epoch does not follow from the genesis.
    #[error("its epoch does not follow from the genesis: {0}")]
    FalseChain(#[from] AttestationError),
    /// Its commit is of another epoch than was shown.
    #[error("its epoch began otherwise than the handovers show")]
    OtherEpoch,
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
    /// With more of it this host itself might find no room.
    #[error("there is too little room for what it sends")]
    NoRoom,
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
    delivery: Arc<Delivery>,
    links: Links,
    parts: Parts,
    fetched: mpsc::Sender<Fetched>,
    /// Whose parts wait here.
    contributors: BTreeSet<AuthorIndex>,
    /// How long each peer may still be waited for in this transfer.
    paces: BTreeMap<AuthorIndex, Pace>,
}

impl Client {
    /// With store, keys and state, the way to the peers, what they send, and the way to the judge.
    pub fn new(
        delivery: Arc<Delivery>,
        links: Links,
        parts: Parts,
        fetched: mpsc::Sender<Fetched>,
    ) -> Self {
        let (contributors, paces) = (BTreeSet::new(), BTreeMap::new());
        Self { delivery, links, parts, fetched, contributors, paces }
    }

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
                    for failed in self.blamed(peer, &error) {
                        *failures.entry(failed).or_default() += 1;
                    }
                    tracing::warn!(%name, %error, "a peer's snapshot is not used; others are asked");
                    sleep(TRANSFER_REST).await;
                    // What was offered meanwhile may be there no more.
                    drop(self.parts.offers_now());
                    self.ask_for_offers();
                }
            }
        }
    }

    /// Who may be at fault when it ended so. A false whole may hold parts of an earlier peer, whose
    /// transfer was interrupted. What the judge did not take counts, too: it may be made to be too
    /// much for it. So does a frontier that too few name: an honest peer is only asked later for
    /// it, and one who names a false one would else be the first for ever.
    fn blamed(&mut self, peer: AuthorIndex, error: &TransferError) -> BTreeSet<AuthorIndex> {
        match error {
            TransferError::FalseSnapshot | TransferError::FalsePast | TransferError::NoRoom => {
                let mut all = std::mem::take(&mut self.contributors);
                all.insert(peer);
                all
            }
            _ => BTreeSet::from([peer]),
        }
    }

    fn name(&self, peer: AuthorIndex) -> String {
        self.delivery.seats.name(peer)
    }

    fn ask_for_offers(&self) {
        let ask = PeerMessage::AskPart { part: Part::Offer };
        self.links.broadcast(&ask.to_bytes().into());
    }

    /// Offers of all who answer soon after the first; none when the daemon stops.
    async fn offers(&mut self) -> Option<BTreeMap<AuthorIndex, Bytes>> {
        let mut offers = BTreeMap::new();
        while offers.is_empty() {
            offers = self.parts.offers().await?;
            offers.retain(|_, offer| self.is_wanted(offer));
        }
        self.ask_for_offers();
        sleep(OFFERS_WAIT_MAX).await;
        offers.extend(self.parts.offers_now());
        offers.retain(|_, offer| self.is_wanted(offer));
        Some(offers)
    }

    fn is_wanted(&self, offer: &Bytes) -> bool {
        codec::decode::<SnapshotOffer>(offer).is_ok_and(|offer| self.is_ahead(&offer.head))
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
        self.paces.clear();
        let name = self.name(peer);
        let (commit, bytes) = (head.end.index, head.bytes);
        tracing::info!(%name, %commit, bytes, "a peer's snapshot is fetched");
        let mut frontier = self.frontier_of(peer, &head).await?;
        let walked = self.walk(peer, frontier.epoch(FIRST_EPOCH)).await?;
        if !same_beginning(frontier.handover.as_ref(), walked.began.as_ref()) {
            return Err(TransferError::OtherEpoch);
        }
        let Walked { of_commit, began, newest } = walked;
        // Nobody has checked the headers that the peer shows, and others name none.
        if let (Some(claimed), Some(checked)) = (&mut frontier.handover, began) {
            claimed.headers = checked.headers;
        }
        let read = |signed: &SignedHeader| {
            let read = signed.verify(|author| of_commit.key(author));
            read.ok().map(|(header, _)| header)
        };
        if !offer.is_attested_by(&self.delivery.cluster, of_commit.committee(), read) {
            return Err(TransferError::NotAttested);
        }
        self.agree_on(&frontier, peer, &head, &newest).await?;
        self.contributors.insert(peer);
        self.fetch_parts(peer, &head).await?;
        let (outcome, mut came) = mpsc::channel(1);
        let fetched = Fetched { offer, frontier, outcome };
        if self.fetched.send(fetched).await.is_err() {
            return Err(TransferError::Silent);
        }
        match came.recv().await {
            Some(Outcome::Begun) => {
                self.contributors.clear();
                Ok(commit)
            }
            Some(Outcome::FalseSnapshot) => {
                self.forget(&head).await?;
                Err(TransferError::FalseSnapshot)
            }
            Some(Outcome::FalsePast) => {
                self.forget(&head).await?;
                Err(TransferError::FalsePast)
            }
            Some(Outcome::NotAhead) => {
                self.forget(&head).await?;
                Err(TransferError::NotAhead)
            }
            // All parts are here when it is tried again.
            None => Err(TransferError::NotTaken),
        }
    }

    /// Asks for one part. A peer that was waited for too long in this transfer is asked in vain.
    async fn ask(&mut self, peer: AuthorIndex, part: Part) -> Result<Bytes, TransferError> {
        let answer = self.parts.expect(peer, part);
        let ask = PeerMessage::AskPart { part };
        self.links.send(peer, ask.to_bytes().into());
        let (pace, began) = (self.paces.entry(peer).or_default(), Instant::now());
        match timeout(pace.wait_max(), answer).await {
            Ok(Ok(bytes)) if bytes.is_empty() => {
                pace.waited(began.elapsed());
                Err(TransferError::Gone)
            }
            Ok(Ok(bytes)) => {
                pace.came(began.elapsed(), bytes.len());
                Ok(bytes)
            }
            Ok(Err(_)) | Err(_) => {
                pace.waited(began.elapsed());
                Err(TransferError::Silent)
            }
        }
    }

    /// Walks from the genesis on: up to `epoch`, with how it began, and as far as it goes. What is
    /// here already is not asked for.
    async fn walk(&mut self, peer: AuthorIndex, epoch: Epoch) -> Result<Walked, TransferError> {
        let cluster = self.delivery.cluster;
        let mut newest = Walk::founding(&self.delivery.genesis);
        let mut walked = Walked { of_commit: newest.clone(), began: None, newest: newest.clone() };
        loop {
            let next = newest.epoch().next();
            let here = self.delivery.records.beginning_of(next)?;
            let here = here.filter(|here| newest.step(&cluster, here).is_ok());
            let beginning = match here {
                Some(here) => here,
                None => match self.fetch_beginning(peer, next, &mut newest).await {
                    Ok(beginning) => beginning,
                    Err(TransferError::Gone) if next > epoch => {
                        match self.later_than_offered(peer, next, &mut newest).await? {
                            Some(beginning) => beginning,
                            None => {
                                walked.newest = newest;
                                return Ok(walked);
                            }
                        }
                    }
                    Err(error) => return Err(error),
                },
            };
            if next == epoch {
                walked.of_commit = newest.clone();
                walked.began = Some(beginning.handover);
            }
        }
    }

    /// Steps into an epoch as one peer shows that it began, and keeps that.
    async fn fetch_beginning(
        &mut self,
        peer: AuthorIndex,
        next: Epoch,
        newest: &mut Walk,
    ) -> Result<EpochBeginning, TransferError> {
        let beginning = self.beginning_of(peer, next).await?;
        newest.step(&self.delivery.cluster, &beginning)?;
        let change = chain::fetched_change(beginning.clone());
        self.delivery.writer.store(vec![change]).await?;
        Ok(beginning)
    }

    /// Asks all others for an epoch that the offering peer does not know of: those who voted before
    /// may hide that others vote now. None when nobody shows it.
    async fn later_than_offered(
        &mut self,
        peer: AuthorIndex,
        next: Epoch,
        newest: &mut Walk,
    ) -> Result<Option<EpochBeginning>, TransferError> {
        for other in self.links.connected().into_iter().filter(|other| *other != peer) {
            match self.fetch_beginning(other, next, newest).await {
                Ok(beginning) => return Ok(Some(beginning)),
                Err(TransferError::Delivery(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    async fn beginning_of(
        &mut self,
        peer: AuthorIndex,
        epoch: Epoch,
    ) -> Result<EpochBeginning, TransferError> {
        let part = |offset| Part::Handover { epoch, offset };
        let bytes = self.pieces(peer, part, HANDOVER_BYTES_MAX).await?;
        codec::decode(&bytes).map_err(|_| TransferError::Malformed)
    }

    /// Finds that more of those who vote in the newest epoch name this frontier than may lie, the
    /// offering peer among them.
    async fn agree_on(
        &mut self,
        frontier: &Frontier,
        peer: AuthorIndex,
        head: &SnapshotHead,
        newest: &Walk,
    ) -> Result<(), TransferError> {
        let agreed = frontier.agreed_bytes();
        let committee = newest.committee();
        // Under this number a peer of the chain's key is linked to, or none.
        let seats = self.delivery.seats.now();
        let is_voter = |author| {
            committee.contains(author)
                && seats.key(author).is_some_and(|own| newest.key(author) == Some(own))
        };
        let mut says_so = usize::from(is_voter(peer));
        let me = self.delivery.me;
        for other in committee.authors().filter(|other| *other != peer && *other != me) {
            if says_so > committee.faulty_max() {
                break;
            }
            if !is_voter(other) || !self.links.is_connected(other) {
                continue;
            }
            match self.frontier_of(other, head).await {
                Ok(theirs) if theirs.agreed_bytes() == agreed => says_so += 1,
                Ok(_) => tracing::warn!(name = self.name(other), "another frontier is named"),
                Err(TransferError::Delivery(error)) => return Err(error.into()),
                Err(_) => {}
            }
        }
        if says_so > committee.faulty_max() { Ok(()) } else { Err(TransferError::NotAgreed) }
    }

    async fn frontier_of(
        &mut self,
        peer: AuthorIndex,
        head: &SnapshotHead,
    ) -> Result<Frontier, TransferError> {
        let part = |offset| Part::Frontier { commit: head.end.index, offset };
        let bytes_max = frontier_bytes_max(self.delivery.genesis.collection_depth_rounds);
        let bytes = self.pieces(peer, part, bytes_max).await?;
        let frontier: Frontier = codec::decode(&bytes).map_err(|_| TransferError::Malformed)?;
        let fits = frontier.last().is_some_and(|last| {
            (last.index, last.last_position, last.prefix_hash)
                == (head.end.index, head.end.position, head.end.prefix_hash)
        });
        if fits { Ok(frontier) } else { Err(TransferError::Malformed) }
    }

    /// Fetches chunks and releases. What comes is believed only when all is here, so a peer may
    /// send more than there is room for: then all of it is thrown away.
    async fn fetch_parts(
        &mut self,
        peer: AuthorIndex,
        head: &SnapshotHead,
    ) -> Result<(), TransferError> {
        let fetched = match self.fetch_chunks(peer, head).await {
            Ok(()) => self.fetch_past(peer, head.end.index).await,
            failed => failed,
        };
        if matches!(fetched, Err(TransferError::NoRoom)) {
            self.forget(head).await?;
        }
        fetched
    }

    /// Keeps what came unproven, if there is room for it and for this host itself.
    async fn keep(&self, changes: Vec<Change>) -> Result<(), TransferError> {
        let bytes = changes.iter().map(Change::size_bytes).sum();
        if !changes.is_empty() && !self.delivery.records.has_room_for_fetched(bytes)? {
            return Err(TransferError::NoRoom);
        }
        Ok(self.delivery.writer.store(changes).await?)
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
                        let of = SnapshotKey::fetched(head.made_after);
                        changes.push(snapshots::chunk_change(of, number, &chunk));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        ended = Err(error);
                        break;
                    }
                }
                number += 1;
            }
            self.keep(changes).await?;
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
        let of = SnapshotKey::fetched(made_after);
        if self.delivery.records.snapshot_chunk(of, number)?.is_some() {
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
        let mut after = self.delivery.records.last_fetched()?;
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
            self.keep(page.iter().map(past::fetched_release_change).collect()).await?;
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
        let part = |offset| Part::Past { after, through, offset };
        let page = self.pieces(peer, part, PAST_PAGE_BYTES_MAX).await?;
        let read = codec::decode::<PastReleases>(&page);
        Ok(read.map_err(|_| TransferError::Malformed)?.0)
    }

    /// What may be larger than one answer.
    async fn pieces(
        &mut self,
        peer: AuthorIndex,
        part: impl Fn(u64) -> Part,
        bytes_max: u64,
    ) -> Result<BytesMut, TransferError> {
        let (mut whole, mut total) = (BytesMut::new(), None);
        loop {
            let offset = u64::try_from(whole.len()).expect("a length fits into 64 bits");
            let bytes = self.ask(peer, part(offset)).await?;
            let piece: Piece = codec::decode(&bytes).map_err(|_| TransferError::Malformed)?;
            let total = *total.get_or_insert(piece.total);
            if piece.total != total || total > bytes_max || !fits(&piece, offset) {
                return Err(TransferError::Malformed);
            }
            whole.extend_from_slice(&piece.bytes);
            if u64::try_from(whole.len()).expect("fits") == total {
                return Ok(whole);
            }
        }
    }

    /// Takes away all that was fetched: who sent one false part is believed in none. What counts
    /// already stays.
    async fn forget(&self, head: &SnapshotHead) -> Result<(), TransferError> {
        let records = &self.delivery.records;
        let of = SnapshotKey::fetched(head.made_after);
        if records.snapshots()?.iter().all(|kept| kept.key() != of) {
            let changes = records.chunk_removals(of)?;
            self.delivery.writer.store(changes).await?;
        }
        loop {
            let changes = records.fetched_removals()?;
            if changes.is_empty() {
                return Ok(());
            }
            self.delivery.writer.store(changes).await?;
        }
    }
}

/// What handovers from the genesis on have shown.
struct Walked {
    /// In the epoch of a snapshot's commit.
    of_commit: Walk,
    /// How that epoch began; none for the first.
    began: Option<Handover>,
    /// In the newest epoch that the peer knows.
    newest: Walk,
}

/// Whether both say the same of how an epoch began, as far as its certificate goes: ledger time is
/// under no signature, and that of the walk is one peer's word. The frontier's is agreed on.
fn same_beginning(one: Option<&Handover>, other: Option<&Handover>) -> bool {
    let said = |handover: &Handover| (handover.epoch, handover.committee, handover.founding.end);
    one.map(said) == other.map(said)
}

/// Whether a piece is as long as one is that an honest peer sends: smaller ones would make of one
/// whole as many questions as it has bytes.
fn fits(piece: &Piece, offset: u64) -> bool {
    let length = u64::try_from(piece.bytes.len()).expect("a length fits into 64 bits");
    let rest = piece.total.saturating_sub(offset);
    length > 0 && length == rest.min(u64::try_from(PIECE_BYTES_MAX).expect("fits"))
}
