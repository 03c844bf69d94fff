//! Hostile documents in the states that a kept history passes through.
//!
//! Every payload of the history that counted is changed, leaf by leaf, to what its signer could
//! have signed instead: numbers at every limit, texts of other lengths, lists emptied and drawn
//! out, fields left out. Judging one must be total there, too, and not only in an empty cluster:
//! the door gives an answer, and one that is refused changes nothing. Owns the changes alone.

use std::collections::BTreeMap;

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, CommitIndex, ProtocolVersion};
use dagger_payload::key::Signature;
use dagger_payload::limits::{JSON_INTEGER_MAX, REASON_BYTES_MAX};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::release::{OrderedCommit, OrderedPayload, Release, Verdict, extend_prefix};
use dagger_processor::judge::Judge;
use dagger_processor::verify::{Verified, verify};
use serde_json::{Value, json};

use super::door::reborn;
use super::history::kept;

/// Of each kind so many payloads are changed in all ways.
const OF_EACH_KIND: usize = 12;
/// Elements of a list that was drawn out.
const DRAWN_OUT: usize = 300;

/// What `value` could say instead.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Number(_) => {
            let limits = [0, 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, JSON_INTEGER_MAX];
            limits.map(|number| json!(number)).into()
        }
        Value::String(text) => {
            let longer = text.repeat(40);
            let mut other = text.clone();
            let last = other.pop();
            other.push(if last == Some('a') { 'b' } else { 'a' });
            vec![json!(""), json!(other), json!(longer), json!("0".repeat(text.len()))]
        }
        Value::Array(list) => {
            let drawn_out = list.iter().cycle().take(if list.is_empty() { 0 } else { DRAWN_OUT });
            vec![json!([]), drawn_out.cloned().collect()]
        }
        Value::Object(_) => vec![json!({})],
        Value::Bool(is) => vec![json!(!is)],
        Value::Null => Vec::new(),
    }
}

/// Every document that differs from `document` in one place.
fn changed(document: &Value) -> Vec<Value> {
    let mut all = others(document);
    match document {
        Value::Object(fields) => {
            for (name, field) in fields {
                let with = |field: Value| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), field);
                    Value::Object(fields)
                };
                all.extend(changed(field).into_iter().map(with));
                let mut without = fields.clone();
                without.remove(name);
                all.push(Value::Object(without));
            }
        }
        Value::Array(list) => {
            for (at, element) in list.iter().enumerate() {
                let with = |element: Value| {
                    let mut list = list.clone();
                    list[at] = element;
                    Value::Array(list)
                };
                all.extend(changed(element).into_iter().map(with));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

/// As if its signer had signed it, without the cost.
fn signed(document: &Value) -> (SignedPayload, Verified) {
    let bytes = serde_json::to_vec(document).expect("writes");
    let outcome = Payload::read(&bytes).map(Box::new);
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: Signature([0; 64]),
        bytes: bytes.into(),
    };
    match outcome {
        Ok(read) => (payload.clone(), Verified::of(&payload, Ok(read))),
        // What cannot be read is refused before its signature is looked at.
        Err(_) => (payload.clone(), verify(&payload)),
    }
}

/// A commit with the payload alone, at the time and by the authors of another.
fn alone(judge: &Judge, like: &OrderedCommit, payload: &SignedPayload) -> OrderedCommit {
    let before = judge.end();
    let author = like.payloads[0].author;
    OrderedCommit {
        index: before.index.next(),
        prefix_hash: extend_prefix(
            &before.prefix_hash,
            like.ledger_time,
            std::slice::from_ref(payload),
        ),
        payloads: vec![OrderedPayload { author, payload: payload.clone() }],
        first_position: before.position.next(),
        ..like.clone()
    }
}

fn check(release: &Release) -> &Verdict {
    if let Verdict::Refused(refusal) = &release.verdict {
        assert!(release.effects.is_empty(), "a refused payload has no effect: {release:#?}");
        assert!(refusal.detail.len() <= REASON_BYTES_MAX, "{refusal:?}");
    }
    &release.verdict
}

#[test]
fn whatever_its_signer_could_have_signed_instead_is_answered_in_every_state() {
    let history = kept();
    let cluster = ClusterId::of(&history.genesis);
    let genesis = || Genesis::read(&history.genesis).expect("a genesis");
    let found = || Judge::found(genesis(), cluster).knowing(ProtocolVersion(u32::MAX));
    let mut judge = found();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let (mut accepted, mut refused, mut admitted) = (0, 0, 0);
    for commit in &history.commits {
        let verified: Vec<_> = commit.payloads.iter().map(|each| verify(&each.payload)).collect();
        let mut other = None;
        for each in &commit.payloads {
            let Ok(document) = serde_json::from_slice::<Value>(&each.payload.bytes) else {
                continue;
            };
            let kind = document["kind"].as_str().unwrap_or_default().to_owned();
            let count = seen.entry(kind).or_default();
            *count += 1;
            if *count > OF_EACH_KIND {
                continue;
            }
            for document in changed(&document) {
                let (payload, verified) = signed(&document);
                let said = judge.admit(&verified, commit.ledger_time);
                admitted += usize::from(matches!(said, AdmissionOutcome::Admitted { .. }));
                // Each is judged after those before it: the states grow ever stranger.
                other = other.take().or_else(|| {
                    let is_founding = judge.end().index == CommitIndex(0);
                    if is_founding { Some(found()) } else { reborn(&judge, genesis(), cluster) }
                });
                let Some(other) = &mut other else { continue };
                let next = alone(other, commit, &payload);
                let release = other.apply(next, &[verified]).expect("the next commit");
                match check(&release.releases[0]) {
                    Verdict::Accepted => accepted += 1,
                    Verdict::Refused(_) => refused += 1,
                }
            }
        }
        judge.apply(commit.clone(), &verified).expect("the next commit");
    }
    println!("{accepted} accepted, {refused} refused, {admitted} admitted, of {seen:?}");
    assert!(accepted > 100 && refused > 1000 && admitted > 100, "hardly anything was compared");
    assert!(seen.len() >= dagger_payload::kind::Body::KINDS.len() / 2, "{seen:?}");
}
