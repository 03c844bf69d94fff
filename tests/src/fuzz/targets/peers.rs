//! What other ledgers send: frames, events, headers, and the parts of a snapshot.

use bytes::Bytes;
use dagger_ledger::transfer::Piece;
use dagger_ledger_core::interface::{
    CoreConfiguration, EventSigner, Input, Moment, Output, RestoredState,
};
use dagger_ledger_core::{Core, Frontier};
use dagger_payload::attested::EpochBeginning;
use dagger_payload::codec;
use dagger_payload::event::{Event, Header, SignedHeader};
use dagger_payload::handover::{EpochEnd, Founding, Handover};
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, EventDigest, Round};
use dagger_payload::key::{Domain, PublicKey, SecretKey, Signature};
use dagger_payload::limits::COMMIT_BYTES_DEFAULT;
use dagger_payload::peer::{EndOfEpoch, Highest, Part, PeerMessage, Receipt};
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::snapshot::{PastReleases, SnapshotHead, SnapshotOffer};
use dagger_processor::judge::snapshot::{Restoring, SnapshotError};

use super::super::mutate::Form;
use super::super::samples::{NOW, World, key, world};
use super::{Answer, Target, canonical, require};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "frame", form: Form::Cbor, samples: frames, read: frame },
    Target { name: "core", form: Form::Cbor, samples: frames, read: core },
    Target { name: "event", form: Form::Cbor, samples: events, read: event },
    Target { name: "header", form: Form::Cbor, samples: headers, read: header },
    Target { name: "handover", form: Form::Cbor, samples: handovers, read: handover },
    Target {
        name: "beginning",
        form: Form::Cbor,
        samples: beginnings,
        read: canonical::<EpochBeginning>,
    },
    Target { name: "epoch-end", form: Form::Cbor, samples: ends, read: canonical::<EpochEnd> },
    Target { name: "frontier", form: Form::Cbor, samples: frontiers, read: frontier },
    Target { name: "offer", form: Form::Cbor, samples: offers, read: offer },
    Target { name: "past", form: Form::Cbor, samples: pasts, read: canonical::<PastReleases> },
    Target { name: "piece", form: Form::Cbor, samples: pieces, read: canonical::<Piece> },
    Target { name: "chunk", form: Form::Cbor, samples: chunks, read: chunk },
];

fn key_of(author: AuthorIndex) -> Option<&'static PublicKey> {
    world().genesis.host(author).map(|host| &host.ledger_key)
}

fn frames(world: &World) -> Vec<Vec<u8>> {
    let author = AuthorIndex(1);
    let (nonce, epoch) = (7, Epoch(0));
    let (highest_of_asker, quorum_round) = (Round(8), Round(9));
    let highest = (0..4).map(|author| Highest { author: AuthorIndex(author), round: Round(9) });
    let (commit, after, through) = (CommitIndex(100), CommitIndex(3), CommitIndex(99));
    let parts = [
        (Part::Offer, codec::encode(&world.offer())),
        (Part::Frontier { commit, offset: 0 }, codec::encode(&world.frontier)),
        (Part::Chunk { made_after: commit, number: 3 }, world.snapshot.1[0].clone()),
        (Part::Past { after, through, offset: 7 }, codec::encode(&world.releases[0])),
        (Part::Handover { epoch, offset: 0 }, handovers(world).swap_remove(0)),
    ];
    let mut messages = vec![
        PeerMessage::Hello { version: 1, cluster: world.cluster },
        PeerMessage::Have { highest: highest.collect(), epoch },
        PeerMessage::Have { highest: vec![Highest { author, round: Round(u64::MAX) }], epoch },
        PeerMessage::Want { events: world.events.iter().map(Event::as_parent).collect(), epoch },
        PeerMessage::AskRecovery { nonce, epoch },
        PeerMessage::AnswerRecovery {
            nonce,
            highest_of_asker,
            quorum_round,
            epoch,
            end: EndOfEpoch::MayHaveCome,
        },
        PeerMessage::Closing { header: world.events[1].signed_header() },
        PeerMessage::Submit { payload: world.lived[0].clone() },
    ];
    let refusal = Refusal::new(RefusalCode::Expired, "late");
    let receipts = [Receipt::Taken {}, Receipt::Refused { refusal }, Receipt::NotNow {}];
    let digest = world.lived[0].digest();
    messages.extend(receipts.map(|receipt| PeerMessage::Taken { digest, receipt }));
    messages.extend(world.events.iter().map(PeerMessage::event));
    for (part, bytes) in parts {
        messages.push(PeerMessage::AskPart { part });
        messages.push(PeerMessage::Part { part, bytes: bytes.into() });
    }
    messages.iter().map(PeerMessage::to_bytes).collect()
}

fn frame(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(message) = PeerMessage::read(bytes) else { return Ok(Answer::Refused) };
    require(message.to_bytes() == bytes, "it takes bytes that it would write otherwise")?;
    Ok(Answer::Accepted)
}

/// Signs like the last member.
struct Signer(SecretKey);

impl EventSigner for Signer {
    fn sign(&self, digest: &EventDigest) -> Signature {
        self.0.sign_in(Domain::Event, digest.as_bytes())
    }
}

/// The consensus of the last of four members, just started and linked to all others.
fn started(outputs: &mut Vec<Output>) -> Core {
    let world = world();
    let configuration = CoreConfiguration {
        cluster: world.cluster,
        epoch: Epoch(0),
        committee: world.genesis.committee(),
        me: AuthorIndex(3),
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: COMMIT_BYTES_DEFAULT,
        founding: Founding { end: world.anchor.anchor.end, ledger_time: NOW },
    };
    let signer = Box::new(Signer(key(23)));
    let mut core = Core::restore(configuration, signer, RestoredState::default());
    for peer in 0..3 {
        let input = Input::PeerConnected(AuthorIndex(peer));
        core.handle(Moment(1), NOW, input, outputs);
    }
    core
}

/// What a frame of a member does to the consensus: nothing ends it.
fn core(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(message) = PeerMessage::read(bytes) else { return Ok(Answer::Refused) };
    let mut outputs = Vec::new();
    let mut core = started(&mut outputs);
    let from = AuthorIndex(1);
    let input = match message {
        PeerMessage::Event { bytes } => {
            let Ok(event) = Event::read(bytes) else { return Ok(Answer::Accepted) };
            Some(Input::EventReceived { from, event: event.into() })
        }
        PeerMessage::Closing { header: signed } => match codec::decode::<Header>(&signed.header) {
            Ok(header) => Some(Input::ClosingShown { header: header.into(), signed }),
            Err(_) => None,
        },
        other => Input::of_message(from, other),
    };
    for (after, input) in input.into_iter().chain([Input::Tick, Input::Tick]).enumerate() {
        let now = Moment(2 + 5_000 * u64::try_from(after).expect("three"));
        core.handle(now, NOW, input, &mut outputs);
    }
    let halts = outputs.iter().any(|output| matches!(output, Output::Halted(_)));
    require(!halts, "one member's frame halts another member")?;
    Ok(Answer::Accepted)
}

fn events(world: &World) -> Vec<Vec<u8>> {
    world.events.iter().map(|event| event.bytes.to_vec()).collect()
}

fn event(bytes: &[u8]) -> Result<Answer, String> {
    let digest = Event::digest_in(bytes);
    let Ok(read) = Event::read(Bytes::copy_from_slice(bytes)) else { return Ok(Answer::Refused) };
    require(digest == Ok(read.digest), "its digest depends on who reads it")?;
    let (header, payloads) = (read.header.clone(), read.payloads.clone());
    let again = Event::make(header, payloads, |_| read.signature);
    require(again.bytes == bytes, "it takes bytes that it would write otherwise")?;
    let _verdict = read.verify(&world().cluster, Epoch(0), key_of);
    let _parents = read.has_quorum_below(world().genesis.committee());
    Ok(Answer::Accepted)
}

fn headers(world: &World) -> Vec<Vec<u8>> {
    world.headers().iter().map(codec::encode).collect()
}

fn header(bytes: &[u8]) -> Result<Answer, String> {
    let answer = canonical::<SignedHeader>(bytes)?;
    if let Ok(signed) = codec::decode::<SignedHeader>(bytes)
        && let Ok((header, digest)) = signed.verify(key_of)
    {
        require(codec::encode(&header) == signed.header, "other bytes were signed")?;
        require(digest == EventDigest::of(&signed.header), "another digest was signed")?;
    }
    Ok(answer)
}

fn handovers(world: &World) -> Vec<Vec<u8>> {
    vec![codec::encode(&world.handover())]
}

fn handover(bytes: &[u8]) -> Result<Answer, String> {
    if let Ok(handover) = codec::decode::<Handover>(bytes) {
        let before = world().genesis.committee();
        // Its three headers attest another end than it names.
        let certified = handover.is_certified_by(&world().cluster, before, key_of);
        require(!certified, "nobody certified it")?;
    }
    canonical::<Handover>(bytes)
}

fn ends(world: &World) -> Vec<Vec<u8>> {
    vec![codec::encode(&world.epoch_end())]
}

fn frontiers(world: &World) -> Vec<Vec<u8>> {
    let first = Frontier { handover: None, ..world.frontier.clone() };
    vec![codec::encode(&world.frontier), codec::encode(&first)]
}

fn frontier(bytes: &[u8]) -> Result<Answer, String> {
    if let Ok(frontier) = codec::decode::<Frontier>(bytes) {
        let last = frontier.last().cloned();
        require(last.is_none_or(|last| last.index > frontier.began()), "it ends before it begins")?;
        let _epoch = (frontier.epoch(Epoch(0)), frontier.committee(world().genesis.committee()));
        let _agreed = frontier.agreed_bytes();
    }
    canonical::<Frontier>(bytes)
}

fn offers(world: &World) -> Vec<Vec<u8>> {
    vec![codec::encode(&world.offer())]
}

fn offer(bytes: &[u8]) -> Result<Answer, String> {
    if let Ok(offer) = codec::decode::<SnapshotOffer>(bytes) {
        let read = |signed: &SignedHeader| signed.verify(key_of).ok().map(|(header, _)| header);
        let committee = world().genesis.committee();
        let attested = offer.is_attested_by(&world().cluster, committee, read);
        // Its three headers attest another state than it names.
        require(!attested, "nobody attests it")?;
    }
    canonical::<SnapshotOffer>(bytes)
}

fn pasts(world: &World) -> Vec<Vec<u8>> {
    vec![codec::encode(&PastReleases(world.releases.clone()))]
}

fn beginnings(world: &World) -> Vec<Vec<u8>> {
    let handover: Handover = codec::decode(&handovers(world)[0]).expect("as encoded");
    let value = Finding::Value(Bytes::from(codec::encode(&world.roster.seats()[0])));
    let proof = StateProof { path: Path(vec![[7; 32]; 3]), finding: value };
    let seats = vec![(AuthorIndex(0), proof.clone())];
    vec![codec::encode(&EpochBeginning { handover, members: Some(proof), seats })]
}

fn pieces(world: &World) -> Vec<Vec<u8>> {
    let bytes = Bytes::from(codec::encode(&world.releases[0]));
    vec![codec::encode(&Piece { total: 9_000, bytes })]
}

fn chunks(world: &World) -> Vec<Vec<u8>> {
    world.snapshot.1.clone()
}

/// A chunk that is a whole snapshot, under a head that says what it leads to: whatever a quorum of
/// liars attests, the judge stands it.
fn chunk(bytes: &[u8]) -> Result<Answer, String> {
    let world = world();
    let length = u64::try_from(bytes.len()).expect("fits");
    let mut head = SnapshotHead { chunks: 1, bytes: length, ..world.snapshot.0.clone() };
    let restore = |head: &SnapshotHead| {
        let (genesis, cluster) = (world.genesis.clone(), world.cluster);
        let mut restoring = Restoring::begin(genesis, cluster, head.clone());
        restoring.take(bytes)?;
        restoring.finish()
    };
    let judge = match restore(&head) {
        Ok(judge) => judge,
        Err(SnapshotError::AnotherRoot { found }) => {
            head.end.state_root = found;
            match restore(&head) {
                Ok(judge) => judge,
                Err(SnapshotError::AnotherRoot { .. }) => return Err("two roots".to_owned()),
                // It leads to its root, and still is no state that was ever judged.
                Err(_) => return Ok(Answer::Refused),
            }
        }
        Err(_) => return Ok(Answer::Refused),
    };
    let _deadline = judge.next_deadline();
    for signed in world.lived.iter().filter(|_| bytes.len() < 4096) {
        let _predicted = judge.predict(&signed.bytes, NOW);
    }
    Ok(Answer::Accepted)
}
