//! Verifying, admitting and judging are total: whatever bytes come in, each gives an answer, the
//! door the same one as the judge, and a refused payload has no effects.

use std::path::PathBuf;

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{AuthorIndex, ClusterId, LedgerTime, Round};
use dagger_payload::key::{SecretKey, Signature};
use dagger_payload::kind::{AccountGrant, Body, Capacity};
use dagger_payload::limits::{JSON_INTEGER_MAX, PAYLOAD_BYTES_MAX, REASON_BYTES_MAX};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{OrderedCommit, OrderedPayload, Verdict, extend_prefix};
use dagger_payload::sshsig::{self, Namespace};
use dagger_processor::judge::Judge;
use dagger_processor::verify::verify;
use proptest::prelude::*;
use serde_json::Value;

const NOW: LedgerTime = LedgerTime(1_700_000_000_000);

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

fn operator() -> SecretKey {
    key(10)
}

/// One operator with one host.
fn genesis() -> Genesis {
    Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: "test".parse().expect("a name"),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator {
            name: "op".parse().expect("a name"),
            key: operator().public_key(),
        }],
        hosts: vec![GenesisHost {
            name: "host".parse().expect("a name"),
            operator: "op".parse().expect("a name"),
            ledger_key: key(20).public_key(),
            address: "127.0.0.1:7400".parse().expect("an address"),
        }],
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    }
}

fn cluster() -> ClusterId {
    ClusterId::of(&genesis().to_bytes())
}

fn grant() -> Payload {
    let body = Body::AccountGrant(AccountGrant {
        key: key(1).public_key(),
        capacity: Capacity { cpus: 4, memory_mib: 4096, disk_gib: 50 },
        vms: 4,
        until_ms: NOW.0 + 1,
        expected_generation: None,
    });
    let (signer, not_after) = (operator().public_key(), NOW.plus_ms(1000));
    Payload { cluster: cluster(), signer, not_after, body }
}

fn sign(bytes: Vec<u8>) -> SignedPayload {
    let signature = sshsig::sign(&operator(), Namespace::Payload, &bytes);
    SignedPayload { signature_kind: SignatureKind::SshEd25519, signature, bytes: bytes.into() }
}

/// What verifying, admitting and judging say, which must be one thing; a refused payload must have
/// no effects.
fn outcome(signed: &SignedPayload) -> Result<(), RefusalCode> {
    let mut judge = Judge::found(genesis(), cluster());
    let before = judge.end();
    let verified = verify(signed);
    assert_eq!(verified, verify(signed), "verifying twice");
    let admitted = match judge.admit(&verified, NOW) {
        AdmissionOutcome::Admitted { digest, .. } => {
            assert_eq!(digest, signed.digest());
            Ok(())
        }
        AdmissionOutcome::Refused { refusal } => Err(refusal.code),
        other => panic!("nothing was judged before, and yet: {other:?}"),
    };
    let payloads = vec![signed.clone()];
    let commit = OrderedCommit {
        index: before.index.next(),
        ledger_time: NOW,
        leader_round: Round(1),
        authors: vec![(AuthorIndex(0), Round(1))],
        prefix_hash: extend_prefix(&before.prefix_hash, NOW, &payloads),
        payloads: vec![OrderedPayload { author: AuthorIndex(0), payload: signed.clone() }],
        first_position: before.position.next(),
    };
    let release = judge.apply(commit, std::slice::from_ref(&verified)).expect("the next commit");
    let [judged] = &release.releases[..] else { panic!("one payload, one release") };
    let verdict = match &judged.verdict {
        Verdict::Accepted => Ok(()),
        Verdict::Refused(refusal) => {
            assert!(judged.effects.is_empty(), "a refused payload has no effect");
            assert!(
                refusal.detail.len() <= REASON_BYTES_MAX,
                "{} bytes of reason",
                refusal.detail.len()
            );
            Err(refusal.code)
        }
    };
    assert_eq!(admitted, verdict, "the door and the judge");
    verdict
}

#[test]
fn the_unchanged_payload_is_accepted() {
    assert_eq!(outcome(&sign(grant().to_bytes())), Ok(()));
}

#[test]
fn no_flipped_or_cut_byte_of_a_signed_payload_is_accepted() {
    let control = sign(grant().to_bytes());
    for at in 0..control.bytes.len() {
        for mask in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = control.bytes.to_vec();
            bytes[at] ^= mask;
            let changed = SignedPayload { bytes: bytes.into(), ..control.clone() };
            assert!(outcome(&changed).is_err(), "byte {at} with {mask:#x}");
        }
        let cut = SignedPayload { bytes: control.bytes.slice(..at).into(), ..control.clone() };
        assert!(outcome(&cut).is_err(), "cut at {at}");
    }
    for bit in 0..512 {
        let mut signature = control.signature;
        signature.0[bit / 8] ^= 1 << (bit % 8);
        let changed = SignedPayload { signature, ..control.clone() };
        assert_eq!(outcome(&changed), Err(RefusalCode::SignatureInvalid), "bit {bit}");
    }
    assert_eq!(outcome(&control), Ok(()));
}

#[test]
fn a_payload_changed_before_it_was_signed_is_answered_whatever_it_says() {
    let control = grant().to_bytes();
    let mut accepted = 0;
    for at in 0..control.len() {
        for byte in [b'0', b'9', b'"', b'\\', b'{', b'}', b',', b' ', 0, 0xff] {
            let mut bytes = control.clone();
            bytes[at] = byte;
            accepted += usize::from(outcome(&sign(bytes)).is_ok());
        }
        // Only the trailing newline may be cut.
        let cut = outcome(&sign(control[..at].to_vec()));
        assert_eq!(cut.is_ok(), at + 1 == control.len(), "cut at {at}");
    }
    assert!(accepted > 0, "white space and other numbers are allowed");
}

/// The document with each number in turn replaced by `number`.
fn with_number(document: &str, number: &str) -> Vec<String> {
    let mut changed = Vec::new();
    for (at, _) in document.match_indices(": ") {
        let (before, rest) = document.split_at(at + 2);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            changed.push(format!("{before}{number}{}", &rest[digits..]));
        }
    }
    changed
}

#[test]
fn numbers_at_and_beyond_every_limit_are_answered() {
    let document = String::from_utf8(grant().to_bytes()).expect("JSON");
    let limits = [0, 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, JSON_INTEGER_MAX];
    for number in limits {
        let changed = with_number(&document, &number.to_string());
        assert!(changed.len() >= 6, "{changed:?}");
        for text in changed {
            let _answered = outcome(&sign(text.into_bytes()));
        }
    }
    let beyond = [JSON_INTEGER_MAX + 1, u64::MAX].map(|number| number.to_string());
    let forms = ["18446744073709551616", "-1", "1.0", "1e3", "01", "null", "\"1\"", "[]"];
    for number in beyond.iter().map(String::as_str).chain(forms) {
        for text in with_number(&document, number) {
            let verdict = outcome(&sign(text.clone().into_bytes()));
            assert_eq!(verdict, Err(RefusalCode::PayloadMalformed), "{text}");
        }
    }
    assert!(
        with_number(&document, "1")
            .iter()
            .any(|text| { outcome(&sign(text.clone().into_bytes())).is_ok() })
    );
}

#[test]
fn a_key_that_stands_twice_is_refused_at_every_level() {
    let document = String::from_utf8(grant().to_bytes()).expect("JSON");
    let mut doubled = 0;
    for (at, _) in document.match_indices("\": ") {
        let start = document[..at].rfind('"').expect("a key has two quotes");
        for value in ["0", "{}", "\"x\""] {
            let member = format!("{}: {value}, ", &document[start..=at]);
            let text = format!("{}{member}{}", &document[..start], &document[start..]);
            let verdict = outcome(&sign(text.clone().into_bytes()));
            assert_eq!(verdict, Err(RefusalCode::PayloadMalformed), "{text}");
        }
        doubled += 1;
    }
    assert!(doubled >= 12, "{doubled} keys at three levels");
    assert_eq!(outcome(&sign(document.into_bytes())), Ok(()));
}

#[test]
fn what_is_over_a_limit_is_refused_before_it_is_read() {
    let mut long = grant().to_bytes();
    long.resize(PAYLOAD_BYTES_MAX, b' ');
    assert_eq!(outcome(&sign(long.clone())), Ok(()), "white space up to the limit");
    long.push(b' ');
    assert_eq!(outcome(&sign(long)), Err(RefusalCode::PayloadTooLarge));
    let nested = "[".repeat(PAYLOAD_BYTES_MAX);
    assert_eq!(outcome(&sign(nested.into_bytes())), Err(RefusalCode::PayloadMalformed));
    // What a refusal repeats of the document is bounded too.
    let text = String::from_utf8(grant().to_bytes()).expect("JSON");
    for place in ["\"dagger\"", "\"cpus\"", "account.grant", "ssh-ed25519 "] {
        assert!(text.contains(place), "{place}");
        for change in [format!("\"{}\":0,{place}", "x".repeat(60_000)), "x".repeat(60_000)] {
            let changed = text.replacen(place, &change, 1);
            assert!(outcome(&sign(changed.into_bytes())).is_err(), "{place}");
        }
    }
}

#[test]
fn the_published_signatures_have_the_published_verdict_here_too() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("payload/vectors/signatures.json");
    let file = std::fs::read_to_string(path).expect("the vector file");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let mut verdicts = [0, 0];
    for vector in file["signatures"].as_array().expect("a list") {
        let Some(document) = vector["document"].as_str() else { continue };
        let hex = vector["signature_hex"].as_str().expect("hex");
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex");
        let signed = SignedPayload {
            signature_kind: SignatureKind::SshEd25519,
            signature: Signature(std::array::from_fn(byte)),
            bytes: document.to_owned().into(),
        };
        let accepted = vector["accepted"] == true;
        assert_eq!(verify(&signed).outcome.is_ok(), accepted, "{}", vector["name"]);
        // The document is for another cluster: whatever its signature, it does nothing here.
        assert!(outcome(&signed).is_err(), "{}", vector["name"]);
        verdicts[usize::from(accepted)] += 1;
    }
    assert!(verdicts[0] > 0 && verdicts[1] > 0);
}

/// Any JSON value of bounded size, in words that payloads use.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..=JSON_INTEGER_MAX).prop_map(Value::from),
        word().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(10, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn word() -> impl Strategy<Value = String> {
    let words = [
        "dagger",
        "cluster",
        "signer",
        "kind",
        "not_after_ms",
        "body",
        "vm",
        "name",
        "image",
        "digest",
        "cpus",
        "memory_mib",
        "capacity",
        "labels",
        "key",
        "until_ms",
        "vm.create",
        "account.grant",
        "report.vm",
        "qcow2",
        "",
        "..",
        "op/x",
        "0",
    ];
    prop_oneof![prop::sample::select(words.to_vec()).prop_map(str::to_owned), "[a-z_.]{0,12}"]
}

/// Every kind that there is, and one that is none.
fn kind() -> impl Strategy<Value = &'static str> {
    prop::sample::select([Body::KINDS, &["vm.none"]].concat())
}

/// The published body of `kind`: valid, with every field that the kind has.
fn template(kind: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("payload/vectors/bodies.json");
    let file = std::fs::read_to_string(path).expect("the vector file");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let body = &file["bodies"][kind];
    assert!(body.is_object(), "{kind}: there is no body to change");
    body.clone()
}

/// Random text in place of every id, digest and name, and random numbers in place of numbers.
fn with_other_ids(value: &mut Value, ids: &[u8; 32], number: u64) {
    match value {
        Value::String(text) if text.len() >= 32 && text.bytes().all(|c| c.is_ascii_hexdigit()) => {
            let hex: String = ids.iter().map(|byte| format!("{byte:02x}")).collect();
            *text = hex[..text.len().min(64)].to_owned();
        }
        Value::Number(_) => *value = number.into(),
        Value::Array(items) => items.iter_mut().for_each(|each| with_other_ids(each, ids, number)),
        Value::Object(members) => {
            members.values_mut().for_each(|each| with_other_ids(each, ids, number));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// `numbers` with the texts of `ids`.
fn with_ids_of(numbers: &Value, ids: &Value) -> Value {
    match (numbers, ids) {
        (Value::Object(numbers), Value::Object(ids)) => {
            let pairs = numbers.iter().zip(ids.values());
            Value::Object(pairs.map(|((key, n), i)| (key.clone(), with_ids_of(n, i))).collect())
        }
        (Value::Number(_), _) => numbers.clone(),
        _ => ids.clone(),
    }
}

/// What `key` signs when it asks for `body`.
fn signed_by(key: &SecretKey, kind: &str, body: &Value, not_after: u64) -> SignedPayload {
    let mut document: Value = serde_json::from_slice(&grant().to_bytes()).expect("JSON");
    document["signer"] = key.public_key().to_string().into();
    document["kind"] = kind.into();
    document["not_after_ms"] = not_after.into();
    document["body"] = body.clone();
    let bytes = document.to_string().into_bytes();
    let signature = sshsig::sign(key, Namespace::Payload, &bytes);
    SignedPayload { signature_kind: SignatureKind::SshEd25519, signature, bytes: bytes.into() }
}

#[test]
fn there_is_a_body_of_every_kind_and_each_is_understood() {
    for kind in Body::KINDS {
        let signed = signed_by(&operator(), kind, &template(kind), NOW.0 + 1);
        assert!(signed.read().is_ok(), "{kind}: {:?}", signed.read());
        let understood = !matches!(
            outcome(&signed),
            Err(RefusalCode::PayloadMalformed
                | RefusalCode::KindUnknown
                | RefusalCode::LimitExceeded)
        );
        assert!(understood, "{kind}: {:?}", outcome(&signed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(outcome(&sign(bytes)).is_err());
    }

    #[test]
    fn random_json_is_refused(value in json()) {
        prop_assert!(outcome(&sign(value.to_string().into_bytes())).is_err());
    }

    #[test]
    fn a_signed_envelope_with_a_random_body_is_answered(kind in kind(), body in json()) {
        let mut document: Value = serde_json::from_slice(&grant().to_bytes()).expect("JSON");
        document["kind"] = kind.into();
        document["body"] = body;
        prop_assert!(outcome(&sign(document.to_string().into_bytes())).is_err());
    }

    #[test]
    fn a_signed_envelope_with_one_random_field_is_answered(field in word(), value in json()) {
        let mut document: Value = serde_json::from_slice(&grant().to_bytes()).expect("JSON");
        let control = document.to_string();
        prop_assert_eq!(outcome(&sign(control.into_bytes())), Ok(()));
        document["body"][field] = value;
        let _answered = outcome(&sign(document.to_string().into_bytes()));
    }

    #[test]
    fn every_kind_about_things_that_nobody_made_is_answered(
        kind in prop::sample::select(Body::KINDS),
        ids in any::<[u8; 32]>(),
        number in prop_oneof![0..100_u64, 0..=JSON_INTEGER_MAX],
        keeps_numbers in any::<bool>(),
        not_after in prop_oneof![Just(NOW.0 + 1), 0..=JSON_INTEGER_MAX],
        signer in prop::sample::select(vec![10_u8, 20, 30, 1]),
    ) {
        let mut body = template(kind);
        let kept = body.clone();
        with_other_ids(&mut body, &ids, number);
        if keeps_numbers {
            body = with_ids_of(&kept, &body);
        }
        let verdict = outcome(&signed_by(&key(signer), kind, &body, not_after));
        // Of what is about something, only the founding acts of an operator find their something.
        let founds = matches!(
            kind,
            "host.join" | "account.grant" | "image.register" | "operator.propose"
                | "operator.rotate_key"
        );
        prop_assert!(verdict.is_err() || (founds && signer == 10), "{kind}: {verdict:?}");
    }

    #[test]
    fn every_kind_with_one_random_field_is_answered(
        kind in prop::sample::select(Body::KINDS),
        which in any::<prop::sample::Index>(),
        value in json(),
        signer in prop::sample::select(vec![10_u8, 20, 30, 1]),
    ) {
        let mut body = template(kind);
        let members = body.as_object_mut().expect("bodies are objects");
        let at = which.index(members.len());
        *members.values_mut().nth(at).expect("a member") = value;
        let _answered = outcome(&signed_by(&key(signer), kind, &body, NOW.0 + 1));
    }
}
