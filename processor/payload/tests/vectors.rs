//! The published vectors: documents and events that every implementation reads alike.
//! `vectors/check.py` reads the same files in another language; it is run here too.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, EventDigest, LedgerTime, MerkleRoot, Position,
    PrefixHash, Round, StateRoot,
};
use dagger_payload::key::{Domain, SecretKey, Signature};
use dagger_payload::kind::Body;
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(name)).expect("a vector file");
    serde_json::from_str(&text).expect("JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn every_published_document_is_accepted_or_refused_as_it_says() {
    let vectors = read("documents.json");
    for vector in vectors["documents"].as_array().expect("a list") {
        let document = match vector["document_hex"].as_str() {
            Some(text) => unhex(text),
            None => vector["document"].as_str().expect("a text").as_bytes().to_vec(),
        };
        let refused = Payload::read(&document).err().map(|refusal| refusal.code.as_str());
        assert_eq!(refused, vector["refused"].as_str(), "{}", vector["name"]);
    }
}

#[test]
fn there_is_a_published_body_of_every_kind() {
    let vectors = read("bodies.json");
    let bodies = vectors["bodies"].as_object().expect("bodies by kind");
    let kinds: BTreeSet<&str> = bodies.keys().map(String::as_str).collect();
    assert_eq!(kinds, Body::KINDS.iter().copied().collect());
    for (kind, body) in bodies {
        let read = Body::read(kind, &body.to_string()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read.to_json(), *body, "{kind}: every field is there, and read");
    }
}

fn events() -> Vec<(&'static str, Event)> {
    let key = SecretKey::from_seed(&[1; 32].into());
    let end = |index: u64| CommitEnd {
        index: CommitIndex(index),
        position: Position(index / 2),
        prefix_hash: PrefixHash([2; 32]),
        state_root: StateRoot([3; 32]),
    };
    let parent = |author: u16, round: u64| Parent {
        author: AuthorIndex(author),
        round: Round(round),
        digest: EventDigest([4; 32]),
    };
    let header = |round: u64, parents: Vec<Parent>, checkpoint: Option<CommitEnd>| Header {
        version: EVENT_VERSION,
        cluster: ClusterId([5; 32]),
        epoch: Epoch(0),
        round: Round(round),
        author: AuthorIndex(2),
        parents,
        payload_root: MerkleRoot::ZERO,
        payload_count: 0,
        timestamp: LedgerTime(1_700_000_000_000),
        attestation: Attestation { newest: end(round), checkpoint },
    };
    let payload = |text: &'static str| SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([6; 64]),
        bytes: text.into(),
    };
    let make = |header, payloads| {
        Event::make(header, payloads, |digest| key.sign_in(Domain::Event, digest.as_bytes()))
    };
    vec![
        ("a first event", make(header(1, vec![], None), vec![])),
        (
            "an event with three parents and two payloads",
            make(
                header(300, vec![parent(2, 299), parent(0, 299), parent(3, 250)], Some(end(200))),
                vec![payload("{}"), payload("{\"a\":1}\n")],
            ),
        ),
    ]
}

#[test]
fn the_published_events_are_what_this_code_writes() {
    let written: Vec<Value> = events()
        .into_iter()
        .map(|(name, event)| {
            json!({
                "name": name,
                "author": event.header.author.0,
                "round": event.header.round.0,
                "digest": event.digest.to_string(),
                "event_hex": hex(&event.bytes),
            })
        })
        .collect();
    let published = read("events.json");
    assert_eq!(published["events"], Value::Array(written.clone()), "{}", json!(written));
    for vector in published["events"].as_array().expect("a list") {
        let bytes = unhex(vector["event_hex"].as_str().expect("hex"));
        let event = Event::read(bytes.into()).expect("well-formed");
        assert_eq!(event.digest.to_string(), vector["digest"]);
    }
}

#[test]
fn another_language_reads_the_vectors_alike() {
    let output = Command::new("python3").arg(folder().join("check.py")).output();
    let output = output.expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
