//! The published signature vectors: every edge case of ed25519 has one verdict, whichever way a
//! signature comes in.

use std::path::PathBuf;

use dagger_payload::event::{Event, EventError, SignedHeader};
use dagger_payload::id::{Epoch, EventDigest};
use dagger_payload::key::{Domain, KeyError, PublicKey, Signature};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::sshsig::{self, Namespace};
use serde_json::Value;

/// One vector, read.
struct Vector {
    name: String,
    path: String,
    key: Result<PublicKey, KeyError>,
    key_bytes: [u8; 32],
    message: Vec<u8>,
    signature: Signature,
    document: Option<String>,
    header: Option<Vec<u8>>,
    key_refused: Option<String>,
    accepted: bool,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digit).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn vectors() -> Vec<Vector> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/signatures.json");
    let file = std::fs::read_to_string(path).expect("the vector file");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let bytes = |value: &Value| unhex(value.as_str().expect("hex"));
    let read = |vector: &Value| {
        let key_bytes = bytes(&vector["public_key_hex"]).try_into().expect("32 bytes");
        Vector {
            name: text(&vector["name"]).expect("a name"),
            path: text(&vector["path"]).expect("a path"),
            key: PublicKey::from_bytes(&key_bytes),
            key_bytes,
            message: bytes(&vector["message_hex"]),
            signature: Signature(bytes(&vector["signature_hex"]).try_into().expect("64 bytes")),
            document: text(&vector["document"]),
            header: vector["header_hex"].as_str().map(unhex),
            key_refused: text(&vector["key_refused"]),
            accepted: vector["accepted"].as_bool().expect("a verdict"),
        }
    };
    file["signatures"].as_array().expect("a list").iter().map(read).collect()
}

fn on_path(path: &str) -> Vec<Vector> {
    let found: Vec<_> = vectors().into_iter().filter(|vector| vector.path == path).collect();
    // Both verdicts are there, so that neither "always" nor "never" passes.
    assert!(found.iter().any(|vector| vector.accepted), "{path}");
    assert!(found.iter().any(|vector| !vector.accepted && vector.key_refused.is_none()), "{path}");
    found
}

#[test]
fn every_published_signature_has_the_verdict_that_the_file_says() {
    let vectors = vectors();
    assert_eq!(vectors.iter().filter(|vector| vector.path == "raw").count(), 12);
    for vector in vectors {
        let refused = vector.key.as_ref().err().map(|error| match error {
            KeyError::Weak => "weak",
            KeyError::NotCanonical => "not_canonical",
            other => panic!("{}: {other}", vector.name),
        });
        assert_eq!(refused, vector.key_refused.as_deref(), "{}", vector.name);
        let accepted = vector.key.is_ok_and(|key| key.verifies(&vector.message, &vector.signature));
        assert_eq!(accepted, vector.accepted, "{}", vector.name);
    }
}

#[test]
fn a_payload_gets_the_published_verdict_with_its_signature_raw_and_armoured() {
    for vector in on_path("payload") {
        let document = vector.document.expect("a document");
        let payload = SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: vector.signature,
            bytes: document.clone().into(),
        };
        assert_eq!(sshsig::signed_bytes(Namespace::Payload, document.as_bytes()), vector.message);
        let read = Payload::read(document.as_bytes());
        let Ok(key) = vector.key else {
            let code = read.expect_err(&vector.name).code;
            assert_eq!(code, RefusalCode::SignerUnsupported, "{}", vector.name);
            continue;
        };
        let read = read.expect("a well-formed document");
        assert_eq!(read.signer, key, "{}", vector.name);
        assert_eq!(payload.is_signed_by(&read.signer), vector.accepted, "{}", vector.name);
        let armor = sshsig::to_armor(&key, Namespace::Payload, &vector.signature);
        let Ok(read) = sshsig::from_armor(&armor, Namespace::Payload) else {
            // Reading the armour may refuse a malformed signature already, never a good one.
            assert!(!vector.accepted, "{}", vector.name);
            continue;
        };
        let verifies = sshsig::verifies(
            &read.signer,
            Namespace::Payload,
            document.as_bytes(),
            &read.signature,
        );
        assert_eq!(verifies, vector.accepted, "{}", vector.name);
    }
}

#[test]
fn an_event_gets_the_published_verdict_whole_and_as_a_header() {
    for vector in on_path("event") {
        let header = vector.header.expect("a header");
        let digest = EventDigest::of(&header);
        assert_eq!(Domain::Event.message(digest.as_bytes())[..], vector.message);
        let signed = SignedHeader { header: header.clone().into(), signature: vector.signature };
        let key = vector.key.as_ref().ok();
        let expected = match key {
            None => Err(EventError::UnknownAuthor),
            Some(_) if vector.accepted => Ok(()),
            Some(_) => Err(EventError::BadSignature),
        };
        // A key that is refused cannot be any member's.
        assert_eq!(signed.verify(|_| key).map(|_| ()), expected, "{}", vector.name);
        // The event around this header: an array of three, with an empty body.
        let length = u8::try_from(header.len()).expect("a short header");
        let mut bytes = vec![0x83, 0x58, length];
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&[0x58, 64]);
        bytes.extend_from_slice(&vector.signature.0);
        bytes.push(0x40);
        let event = Event::read(bytes.into()).expect("well-formed");
        let cluster = event.header.cluster;
        let verdict = event.verify(&cluster, Epoch(event.header.epoch.0), |_| key);
        assert_eq!(verdict, expected, "{}", vector.name);
    }
}

#[test]
fn no_key_that_is_refused_as_bytes_passes_as_text_or_cbor() {
    for vector in vectors().into_iter().filter(|vector| vector.key_refused.is_some()) {
        let key = ssh_key::public::Ed25519PublicKey(vector.key_bytes);
        let line = ssh_key::PublicKey::new(ssh_key::public::KeyData::Ed25519(key), "");
        let line = line.to_openssh().expect("any 32 bytes have a text form");
        assert!(line.parse::<PublicKey>().is_err(), "{}", vector.name);
        let json = serde_json::to_string(&line).expect("a string");
        assert!(serde_json::from_str::<PublicKey>(&json).is_err(), "{}", vector.name);
        let cbor = minicbor::to_vec(minicbor::bytes::ByteArray::from(vector.key_bytes));
        let cbor = cbor.expect("bytes always encode");
        assert!(minicbor::decode::<PublicKey>(&cbor).is_err(), "{}", vector.name);
    }
}
