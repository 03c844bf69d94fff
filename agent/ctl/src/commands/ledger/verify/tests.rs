//! Proofs that were made here, whole and changed; and what a verifier in another language says of
//! them.

use std::path::PathBuf;
use std::process::Command;

use dagger_payload::attested::{AttestedEnd, AttestedProof};
use dagger_payload::carried::Carried;
use dagger_payload::codec;
use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header};
use dagger_payload::genesis::{GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{
    CommitIndex, Epoch, EventDigest, Generation, ImageDigest, LedgerTime, MerkleRoot, PrefixHash,
    Round, StateRoot,
};
use dagger_payload::key::{Domain, SecretKey};
use dagger_payload::kind::{Body, ImageFormat, ImageRegister};
use dagger_payload::merkle;
use dagger_payload::object::{Cause, Image, ImageStatus};
use dagger_payload::payload::SignedPayload;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::state_tree::{Hash, key_hash, leaf, node, side};
use zeroize::Zeroizing;

use super::*;

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([byte; 32]))
}

pub(crate) fn genesis(nonce: &str) -> (Genesis, ClusterId) {
    let host = |number: u8| GenesisHost {
        name: format!("host{number}").parse().expect("a name"),
        operator: "op1".parse().expect("a name"),
        ledger_key: key(10 + number).public_key(),
        address: "127.0.0.1:7400".parse().expect("an address"),
    };
    let genesis = Genesis {
        dagger: 1,
        nonce: nonce.repeat(32),
        name: "test".parse().expect("a name"),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator {
            name: "op1".parse().expect("a name"),
            key: key(1).public_key(),
        }],
        hosts: (0..4).map(host).collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    };
    let cluster = ClusterId::of(&genesis.to_bytes());
    (genesis, cluster)
}

pub(crate) fn header(
    cluster: ClusterId,
    author: u8,
    newest: CommitEnd,
) -> dagger_payload::event::SignedHeader {
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch: Epoch(0),
        round: Round(1),
        author: AuthorIndex(author.into()),
        parents: Vec::new(),
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(1_700_000_000_000),
        attestation: Attestation { newest, checkpoint: None },
    };
    let sign = |digest: &EventDigest| key(10 + author).sign_in(Domain::Event, digest.as_bytes());
    Event::make(header, Vec::new(), sign).signed_header()
}

/// The registration of an image, with one other leaf beside it in the state.
fn proof() -> ProofView {
    let (_, cluster) = genesis("0");
    let name: dagger_payload::name::ImageName = "op1/small".parse().expect("a name");
    let body = ImageRegister {
        name: name.clone(),
        digest: ImageDigest([5; 32]),
        format: ImageFormat::Qcow2,
        size_bytes: 1 << 20,
        virtual_size_bytes: 1 << 26,
        sources: Vec::new(),
    };
    let signer = key(1).public_key();
    let document = Payload {
        cluster,
        signer: signer.clone(),
        not_after: LedgerTime(5),
        body: Body::ImageRegister(body),
    };
    let signed = SignedPayload::sign(&key(1), &document);
    let image = Image {
        name: name.clone(),
        publisher: signer.clone(),
        digest: ImageDigest([5; 32]),
        format: ImageFormat::Qcow2,
        size_bytes: 1 << 20,
        virtual_size_bytes: 1 << 26,
        sources: Vec::new(),
        generation: Generation(1),
        cause: Cause { digest: signed.digest(), position: Position(3) },
        status: ImageStatus::Offered,
    };
    let (subject, value) = (Subject::Image(name), codec::encode(&image));
    let place = key_hash(&subject.key());
    let (own, beside): (Hash, Hash) = (leaf(&place, &value), [7; 32]);
    let root = if side(&place, 0) == 0 { node(&own, &beside) } else { node(&beside, &own) };
    let end = CommitEnd {
        index: CommitIndex(4),
        position: Position(3),
        prefix_hash: PrefixHash([8; 32]),
        state_root: StateRoot(root),
    };
    let proof = AttestedProof {
        state: StateProof { path: Path(vec![beside]), finding: Finding::Value(value.into()) },
        attested: AttestedEnd {
            end,
            headers: [0, 1, 3].map(|author| header(cluster, author, end)).to_vec(),
            handovers: Vec::new(),
        },
        carried: None,
    };
    let document = ProofDocument {
        document: String::from_utf8(signed.bytes.to_vec()).expect("JSON"),
        signature: sshsig::to_armor(&signer, Namespace::Payload, &signed.signature),
    };
    ProofView::new(cluster, subject, &proof, vec![document])
}

/// That the state has forgotten a payload which host2 carried as the second of three.
fn carried_proof() -> ProofView {
    carried_proof_of(genesis("0").1)
}

/// The same with payloads that were signed for the cluster `meant`.
fn carried_proof_of(meant: ClusterId) -> ProofView {
    let (_, cluster) = genesis("0");
    let signed = |number: u64| {
        let body = Body::OperatorWithdraw(dagger_payload::kind::ProposalChange {
            proposal: PayloadDigest([3; 32]),
        });
        let (signer, not_after) = (key(1).public_key(), LedgerTime(number));
        SignedPayload::sign(&key(1), &Payload { cluster: meant, signer, not_after, body })
    };
    let end = CommitEnd {
        index: CommitIndex(4),
        position: Position(3),
        prefix_hash: PrefixHash([8; 32]),
        state_root: StateRoot(dagger_payload::state_tree::EMPTY),
    };
    let header = Header {
        version: EVENT_VERSION,
        cluster,
        epoch: Epoch(0),
        round: Round(1),
        author: AuthorIndex(2),
        parents: Vec::new(),
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(1_700_000_000_000),
        attestation: Attestation { newest: end, checkpoint: None },
    };
    let event = Event::make(header, (0..3).map(signed).collect(), |digest| {
        key(12).sign_in(Domain::Event, digest.as_bytes())
    });
    let payload = event.payloads[1].clone();
    let digest = payload.digest();
    let path = Path(merkle::prove(&event.leaves, 1).expect("there"));
    let carried = Carried { payload, index: 1, path, header: event.signed_header() };
    let headers = [0, 1, 3].map(|author| self::header(cluster, author, end)).to_vec();
    let proof = AttestedProof {
        state: StateProof { path: Path(Vec::new()), finding: Finding::Nothing },
        attested: AttestedEnd { end, headers, handovers: Vec::new() },
        carried: Some(carried),
    };
    ProofView::new(cluster, Subject::Payload(digest), &proof, Vec::new())
}

fn checked(proof: &ProofView) -> Result<Checked, False> {
    let (genesis, cluster) = genesis("0");
    check(proof, cluster, &genesis)
}

#[test]
fn a_true_proof_shows_object_witnesses_and_the_signature_that_caused_it() {
    let proof = proof();
    let checked = self::checked(&proof).expect("it holds");
    assert_eq!(checked.attested_by, ["host0", "host1", "host3"]);
    assert_eq!((checked.quorum, checked.members), (3, 4));
    let [document] = &checked.documents[..] else { panic!("{checked:?}") };
    assert_eq!(document.did, ["registered"]);
    assert_eq!(document.signer, Some(key(1).public_key()));
    let text = show(&checked, &genesis("0").0);
    for part in [
        "PROVEN: image op1/small is as shown below",
        "host0, host1, host3 (3 of 4 members of epoch 0; it takes 3)",
        "image.register signed by ssh-ed25519",
        "\"status\": \"offered\"",
        "This does not show:",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Without the document the object is proven as well.
    let without = ProofView { documents: Vec::new(), ..proof };
    assert_eq!(self::checked(&without).expect("it holds").documents[0].signer, None);
}

#[test]
fn whatever_is_changed_in_a_proof_it_shows_nothing_any_more() {
    let proof = proof();
    let refused = |proof: &ProofView, what: &str| {
        assert!(checked(proof).is_err(), "{what}");
    };
    let text = serde_json::to_string(&proof).expect("plain data");
    assert!(text.len() < 6000, "{} bytes", text.len());
    // Every character of the JSON document, changed to another one of its kind.
    for (at, old) in text.char_indices() {
        let new = match old {
            '0'..='8' | 'a'..='e' => char::from_u32(u32::from(old) + 1).expect("ASCII"),
            '9' => 'a',
            'f' => '0',
            'x' => 'y',
            _ => 'x',
        };
        let mut changed = text.clone();
        changed.replace_range(at..at + old.len_utf8(), new.encode_utf8(&mut [0; 4]));
        let Ok(read) = serde_json::from_str::<ProofView>(&changed) else { continue };
        refused(&read, &changed);
    }
    let mut fewer = proof.clone();
    fewer.headers.pop();
    refused(&fewer, "two of four");
    let mut twice = fewer.clone();
    twice.headers.push(fewer.headers[0].clone());
    refused(&twice, "one of them twice");
    let mut more = proof.clone();
    more.documents.push(more.documents[0].clone());
    more.documents[1].document.push('\n');
    refused(&more, "a document that nothing names");
    let (other, cluster) = genesis("1");
    assert!(check(&proof, cluster, &other).is_err());
    let pretending = ProofView { cluster, ..proof };
    assert!(check(&pretending, cluster, &other).is_err());
}

#[test]
fn who_carried_a_payload_is_shown_also_when_the_state_has_forgotten_it() {
    let proof = carried_proof();
    let checked = self::checked(&proof).expect("it holds");
    let text = show(&checked, &genesis("0").0);
    for part in [
        "PROVEN: there is no payload ",
        "carried by host2: payload 2 of 3 in its signed event of round 1, epoch 0,",
        "operator.withdraw signed by ssh-ed25519",
        "that a member carried it is less",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let read = serde_json::from_str(&serde_json::to_string(&proof).expect("plain data"));
    assert_eq!(read.ok().as_ref(), Some(&proof));
    let changes: [fn(&mut ProofView); 5] = [
        |proof| proof.subject = Subject::Payload(PayloadDigest([1; 32])),
        |proof| proof.carried.as_mut().expect("some").index = 2,
        |proof| proof.carried.as_mut().expect("some").path.0[3] ^= 1,
        |proof| proof.carried.as_mut().expect("some").path.0.truncate(32),
        |proof| proof.carried.as_mut().expect("some").event.signature.0[3] ^= 1,
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut changed = proof.clone();
        change(&mut changed);
        assert!(self::checked(&changed).is_err(), "change {at}");
        assert!(other_language(&changed).0.contains("NOT PROVEN"), "change {at}");
    }
    // A member carries what it is given: the payload's own signature is another question.
    let mut noise = proof;
    let record = &mut noise.carried.as_mut().expect("some").record.0;
    record[10] ^= 1;
    assert!(self::checked(&noise).is_err(), "its leaf covers the signature");
}

#[test]
fn a_payload_that_was_signed_for_another_cluster_is_shown_as_noise_that_a_member_carried() {
    let checked = checked(&carried_proof_of(genesis("1").1)).expect("a member carried it");
    let carried = checked.carried.as_ref().expect("shown");
    assert_eq!((&carried.signer, &carried.kind), (&None, &None));
    let text = show(&checked, &genesis("0").0);
    assert!(text.contains("bytes that nobody signed for this cluster"), "{text}");
}

/// What `processor/payload/vectors/check_proof.py` says, and whether it ended well.
fn other_language(proof: &ProofView) -> (String, bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let document = genesis("0").0.to_bytes();
    let signature = sshsig::sign(&key(1), Namespace::Genesis, &document);
    let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
    let script = "../../processor/payload/vectors/check_proof.py";
    let output = Command::new("python3")
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(script))
        .arg(write("proof.json", &serde_json::to_vec(proof).expect("plain data")))
        .arg(write("genesis.json", &document))
        .arg(write("genesis.json.sig", armor.as_bytes()))
        .output()
        .expect("python3 is there");
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), output.status.success())
}

#[test]
fn a_verifier_in_another_language_finds_the_same() {
    let good = proof();
    let (said, holds) = other_language(&good);
    assert!(holds, "{said}");
    assert!(said.contains("PROVEN: image op1/small is there after commit 4"), "{said}");
    assert!(said.contains("attested by host0, host1, host3; signed: image.register"), "{said}");
    let (said, holds) = other_language(&carried_proof());
    assert!(holds && said.contains("is not there after commit 4, carried by host2,"), "{said}");
    let changes: [fn(&mut ProofView); 6] = [
        |proof| *proof.state.0.last_mut().expect("bytes") ^= 1,
        |proof| proof.headers[1].signature.0[7] ^= 1,
        |proof| *proof.headers[0].header.0.last_mut().expect("bytes") ^= 1,
        |proof| proof.end.commit = CommitIndex(5),
        |proof| proof.headers.truncate(2),
        |proof| proof.documents[0].document = proof.documents[0].document.replace("small", "large"),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut changed = good.clone();
        change(&mut changed);
        let (said, holds) = other_language(&changed);
        assert!(!holds && said.contains("NOT PROVEN"), "change {at}: {said}");
        assert!(checked(&changed).is_err(), "change {at}");
    }
}
