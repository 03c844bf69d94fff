//! `daggerctl ledger verify`: what a proof shows to somebody who has the cluster's genesis and
//! nothing else.
//!
//! Owns the order of the checks and the words of the result. Opens no connection, asks nobody, and
//! says what no proof can show. Called by `commands::ledger`.

use std::path::{Path, PathBuf};

use clap::Args;
use dagger_api::proof::{ProofDocument, ProofView};
use dagger_payload::attested::{AttestedProof, Walk, Witnesses};
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AuthorIndex, ClusterId, EventDigest, LedgerTime, PayloadDigest, Position, Round,
};
use dagger_payload::key::PublicKey;
use dagger_payload::payload::Payload;
use dagger_payload::proven::Proven;
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::state_tree::{Ordered, Subject};
use serde::Serialize;

use super::super::genesis::signatures_path;
use crate::failure::Failure;
use crate::output::facts;
use crate::session::Session;
use crate::signer::{read_signatures, read_small};
use crate::units::show_time;

pub(super) const EXAMPLES: &str = "\
Examples:
  daggerctl ledger verify proof.json --genesis genesis.json
  daggerctl ledger verify proof.json --genesis genesis.json --json \\
      | jq .object.placement

Needs no network, no daemon and no account: only the genesis document and its
operators' signatures. Ends with 1 if anything does not hold.";

/// Arguments of `ledger verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VerifyArguments {
    /// The proof, as `ledger proof` printed it
    proof: PathBuf,
    /// The document that founded the cluster; have it from somebody whom you trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// Its operators' signatures [default: the genesis file's name and .sig]
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
}

/// Whether there is such an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Shown {
    /// It stands there.
    Present,
    /// There is none.
    Absent,
}

/// A signed document that an object names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Signed {
    /// What it did: `created`, `changed`, ...
    did: Vec<&'static str>,
    position: Position,
    digest: PayloadDigest,
    /// Whoever signed it; none when the proof does not bring the document.
    signer: Option<PublicKey>,
    kind: Option<String>,
}

/// Who carried a payload, in which event, and what the payload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CarriedBy {
    member: String,
    epoch: u64,
    round: Round,
    event: EventDigest,
    /// Its place among the event's payloads, from 1.
    number: u32,
    /// How many those are.
    count: u32,
    /// By the member's clock.
    signed_ms: LedgerTime,
    /// Whoever signed the payload; none when nobody signed it for this cluster.
    signer: Option<PublicKey>,
    kind: Option<String>,
}

/// What holds.
#[derive(Debug, Serialize)]
struct Checked {
    shown: Shown,
    cluster: ClusterId,
    subject: Subject,
    object: Option<Proven>,
    end: dagger_api::proof::ProofEnd,
    epoch: u64,
    attested_by: Vec<String>,
    members: usize,
    quorum: usize,
    /// By the clocks of those who attest it.
    signed_from_ms: u64,
    signed_until_ms: u64,
    documents: Vec<Signed>,
    carried: Option<CarriedBy>,
}

/// Why a proof shows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct False(String);

impl<E: std::error::Error> From<E> for False {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Checks a proof and shows what it shows.
pub(super) fn run(arguments: &VerifyArguments, session: &Session) -> Result<(), Failure> {
    let (genesis, cluster) = founded(&arguments.genesis, arguments.signatures.as_deref())?;
    let proof = read_proof(&arguments.proof)?;
    let checked = check(&proof, cluster, &genesis).map_err(false_proof)?;
    session.output.show(&checked, |checked| show(checked, &genesis))
}

/// The genesis that its operators signed, and the cluster that it founds.
pub(crate) fn founded(
    genesis: &Path,
    signatures: Option<&Path>,
) -> Result<(Genesis, ClusterId), Failure> {
    let text = read_small(genesis)?;
    let signatures = signatures.map_or_else(|| signatures_path(genesis), Path::to_owned);
    let without =
        "Have its signatures from whoever gave you the document, or name them: --signatures.";
    let signed = read_signatures(&signatures, without.to_owned())?;
    let read = Genesis::read_signed(text.as_bytes(), &signed);
    read.map_err(|error| {
        let advice = "Have the document and its signatures from somebody whom you trust.";
        Failure::refused("genesis_invalid", error.to_string(), advice)
    })
}

/// What a proof of the order shows, and after which commit.
pub(crate) fn order(
    proof: &Path,
    cluster: ClusterId,
    genesis: &Genesis,
) -> Result<(CommitEnd, Ordered), Failure> {
    let proof = read_proof(proof)?;
    let checked = check(&proof, cluster, genesis).map_err(false_proof)?;
    match (checked.object, proof.read()) {
        (Some(Proven::Order(ordered)), Ok(parts)) => Ok((parts.attested.end, ordered)),
        _ => {
            let what = format!("it proves {}, and not the order", subject_text(&proof.subject));
            Err(false_proof(False(what)))
        }
    }
}

fn read_proof(path: &Path) -> Result<ProofView, Failure> {
    let read = serde_json::from_str(&read_small(path)?);
    read.map_err(|error| false_proof(False(format!("it is no proof: {error}"))))
}

fn false_proof(False(why): False) -> Failure {
    let advice = "Believe nothing of it. Ask another host of the cluster for a new one.";
    Failure::refused("proof_false", format!("NOT PROVEN: {why}"), advice)
}

/// Everything that can be checked, from the genesis to the signatures of the documents.
fn check(proof: &ProofView, cluster: ClusterId, genesis: &Genesis) -> Result<Checked, False> {
    if proof.cluster != cluster {
        let theirs = proof.cluster;
        return Err(False(format!(
            "it is about cluster {theirs}, and this genesis founds {cluster}"
        )));
    }
    let parts = proof.read()?;
    let Witnesses { epoch, authors, members, quorum, signed_at } =
        parts.attested.verify(&cluster, genesis)?;
    let value = parts.state.verify(&proof.end.state_root, &proof.subject)?;
    let object = value.map(|value| Proven::read(&proof.subject, value)).transpose()?;
    let documents = documents(proof, object.as_ref())?;
    let walk = Walk::along(&cluster, genesis, &parts.attested.handovers)?;
    let name = |author: &AuthorIndex| {
        let name = walk.name(*author);
        name.map_or_else(|| format!("member {author}"), ToString::to_string)
    };
    let carried = carried(proof, &parts, genesis, &name)?;
    Ok(Checked {
        shown: if object.is_some() { Shown::Present } else { Shown::Absent },
        cluster,
        subject: proof.subject.clone(),
        object,
        end: proof.end,
        epoch: epoch.0,
        attested_by: authors.iter().map(name).collect(),
        members,
        quorum,
        signed_from_ms: signed_at.0.0,
        signed_until_ms: signed_at.1.0,
        documents,
        carried,
    })
}

/// Who carried the payload that the proof is about.
fn carried(
    proof: &ProofView,
    parts: &AttestedProof,
    genesis: &Genesis,
    name: &impl Fn(&AuthorIndex) -> String,
) -> Result<Option<CarriedBy>, False> {
    let Some(carried) = &parts.carried else { return Ok(None) };
    let carrier = carried.verify(&proof.cluster, genesis, &parts.attested.handovers)?;
    if proof.subject != Subject::Payload(carrier.digest) {
        let digest = carrier.digest;
        return Err(False(format!("it shows who carried payload {digest}, and is not about it")));
    }
    // Members carry what they are given: that somebody signed it is another question.
    let read = carried.payload.read().ok();
    let signed = read
        .filter(|read| read.cluster == proof.cluster && carried.payload.is_signed_by(&read.signer));
    Ok(Some(CarriedBy {
        member: name(&carrier.author),
        epoch: carrier.epoch.0,
        round: carrier.round,
        event: carrier.event,
        number: carrier.index + 1,
        count: carrier.count,
        signed_ms: carrier.timestamp,
        kind: signed.as_ref().map(|signed| signed.body.kind().to_owned()),
        signer: signed.map(|signed| signed.signer),
    }))
}

/// The documents that the object names. Each that is shown must be one of them and be signed by
/// the key that it names; one that is missing is told.
fn documents(proof: &ProofView, object: Option<&Proven>) -> Result<Vec<Signed>, False> {
    let mut named: Vec<Signed> = Vec::new();
    for (did, cause) in object.iter().flat_map(|object| object.causes(&proof.subject)) {
        match named.iter_mut().find(|known| known.digest == cause.digest) {
            Some(known) if !known.did.contains(&did) => known.did.push(did),
            Some(_) => {}
            None => named.push(Signed {
                did: vec![did],
                position: cause.position,
                digest: cause.digest,
                signer: None,
                kind: None,
            }),
        }
    }
    for ProofDocument { document, signature } in &proof.documents {
        let bytes = document.as_bytes();
        let digest = PayloadDigest::of(bytes);
        let Some(named) = named.iter_mut().find(|named| named.digest == digest) else {
            return Err(False(format!(
                "it shows document {digest}, which the object does not name"
            )));
        };
        let read = Payload::read(bytes)
            .map_err(|refusal| False(format!("document {digest}: {refusal}")))?;
        let signed = sshsig::from_armor(signature, Namespace::Payload)?;
        // One spelling only: readers of the frame bear false lengths in it.
        let armor = sshsig::to_armor(&signed.signer, Namespace::Payload, &signed.signature);
        let is_signed = armor == *signature
            && signed.signer == read.signer
            && sshsig::verifies(&read.signer, Namespace::Payload, bytes, &signed.signature);
        if !is_signed || read.cluster != proof.cluster {
            return Err(False(format!(
                "document {digest} is not signed for this cluster by the key that it names"
            )));
        }
        named.signer = Some(read.signer);
        named.kind = Some(read.body.kind().to_owned());
    }
    Ok(named)
}

fn subject_text(subject: &Subject) -> String {
    match subject {
        Subject::Host(id) => format!("host {id}"),
        Subject::Account(id) => format!("account {id}"),
        Subject::Image(name) => format!("image {name}"),
        Subject::Vm(id) => format!("VM {id}"),
        Subject::Volume(id) => format!("volume {id}"),
        Subject::Usage(account, host) => {
            format!("past use of account {account} on host {host}")
        }
        Subject::Payload(digest) => format!("payload {digest}"),
        Subject::Seat(index) => format!("seat {index}"),
        Subject::Epoch(epoch) => format!("epoch {epoch}"),
        Subject::Operator(id) => format!("operator {id}"),
        Subject::Proposal(id) => format!("proposal {id}"),
        Subject::Order => "order".to_owned(),
    }
}

fn show(checked: &Checked, genesis: &Genesis) -> String {
    let what = subject_text(&checked.subject);
    let verdict = match checked.shown {
        Shown::Present => format!("PROVEN: {what} is as shown below."),
        Shown::Absent => format!("PROVEN: there is no {what}."),
    };
    let time = |milliseconds| show_time(LedgerTime(milliseconds));
    let operators: Vec<&str> = genesis.operators.iter().map(|each| each.name.as_str()).collect();
    let head = facts([
        ("in the state", format!("after commit {}", checked.end.commit)),
        ("position", checked.end.position.to_string()),
        ("state root", checked.end.state_root.to_string()),
        (
            "attested by",
            format!(
                "{} ({} of {} members of epoch {}; it takes {})",
                checked.attested_by.join(", "),
                checked.attested_by.len(),
                checked.members,
                checked.epoch,
                checked.quorum
            ),
        ),
        (
            "signed",
            format!(
                "between {} and {}, by their own clocks",
                time(checked.signed_from_ms),
                time(checked.signed_until_ms)
            ),
        ),
        ("cluster", format!("{} ({})", genesis.name, checked.cluster)),
        ("founded by", operators.join(", ")),
    ]);
    let documents: String = checked.documents.iter().map(show_document).collect();
    let carried = checked.carried.as_ref().map(show_carried).unwrap_or_default();
    let object = checked.object.as_ref().map_or_else(String::new, |object| {
        let text = serde_json::to_string_pretty(object).expect("plain data always writes");
        format!("\n{text}\n")
    });
    format!("{verdict}\n\n{head}\n{documents}{carried}{object}\n{}", limits(checked))
}

fn show_carried(carried: &CarriedBy) -> String {
    let what = match (&carried.signer, &carried.kind) {
        (Some(signer), Some(kind)) => {
            format!("{kind} signed by {signer}: digest and signature hold")
        }
        _ => "bytes that nobody signed for this cluster: noise, whatever they say".to_owned(),
    };
    format!(
        "\ncarried by {}: payload {} of {} in its signed event of round {}, epoch {}, {}\n    event {}\n    {what}\n",
        carried.member,
        carried.number,
        carried.count,
        carried.round,
        carried.epoch,
        show_time(carried.signed_ms),
        carried.event,
    )
}

fn show_document(signed: &Signed) -> String {
    let who = match (&signed.signer, &signed.kind) {
        (Some(signer), Some(kind)) => {
            format!("{kind} signed by {signer}: digest and signature hold")
        }
        _ => "its document is not in this proof".to_owned(),
    };
    format!(
        "\n{} at position {}: {}\n    {who}",
        signed.did.join(", "),
        signed.position,
        signed.digest
    ) + "\n"
}

/// What no proof can show.
fn limits(checked: &Checked) -> String {
    let mut lines = vec![
        "that this genesis is the cluster you mean: compare the cluster's digest with what its \
         operators publish"
            .to_owned(),
        format!("what has changed since commit {}: ask for a new proof", checked.end.commit),
        format!(
            "anything, if more than {} of {} members were dishonest together",
            checked.members - checked.quorum,
            checked.members
        ),
    ];
    let is_present = checked.shown == Shown::Present;
    if matches!(checked.subject, Subject::Vm(_) | Subject::Volume(_)) && is_present {
        let line = "what the host's machine really does: `reported` is what the host signed";
        lines.push(line.to_owned());
    }
    if matches!(checked.subject, Subject::Payload(_)) {
        let line = match (checked.shown, &checked.carried) {
            (Shown::Present, _) => "what the payload changed: prove the object that it is about",
            (Shown::Absent, None) => {
                "that it was never ordered: the state forgets a payload when its not_after_ms has \
                 passed"
            }
            (Shown::Absent, Some(_)) => {
                "that it was ordered, or what was decided: the state forgets a payload when its \
                 not_after_ms has passed, and that a member carried it is less"
            }
        };
        lines.push(line.to_owned());
        if checked.carried.is_none() {
            let line = "which member carried it: the host that made the proof has not ordered it, \
                        or has pruned the event";
            lines.push(line.to_owned());
        }
    }
    let lines: String = lines.iter().map(|line| format!("\n  * {line}")).collect();
    format!("This does not show:{lines}")
}

#[cfg(test)]
pub(crate) mod tests;
