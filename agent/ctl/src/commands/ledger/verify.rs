//! `daggerctl ledger verify`: what a proof shows to somebody who has the cluster's genesis and
//! nothing else.
//!
//! Owns the order of the checks and the words of the result. Opens no connection, asks nobody, and
//! says what no proof can show. Called by `commands::ledger`.

use std::path::PathBuf;

use clap::Args;
use dagger_api::proof::{ProofDocument, ProofView};
use dagger_payload::attested::Witnesses;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId, PayloadDigest, Position};
use dagger_payload::key::PublicKey;
use dagger_payload::payload::Payload;
use dagger_payload::proven::Proven;
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::state_tree::Subject;
use serde::Serialize;

use super::super::genesis::signatures_path;
use crate::failure::Failure;
use crate::output::facts;
use crate::session::Session;
use crate::signer::read_small;
use crate::units::show_time;

pub(super) const EXAMPLES: &str = "\
Examples:
  daggerctl ledger verify proof.json --genesis genesis.json
  daggerctl ledger verify proof.json --genesis genesis.json --json | jq .object.placement

Needs no network, no daemon and no account: only the genesis document and its operators' signatures. Ends with 1 if anything does
not hold.";

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
    let text = read_small(&arguments.genesis)?;
    let default = || signatures_path(&arguments.genesis);
    let signatures = read_small(&arguments.signatures.clone().unwrap_or_else(default))?;
    let read = Genesis::read_signed(text.as_bytes(), &signatures);
    let (genesis, cluster) = read.map_err(|error| {
        let advice = "Have the document and its signatures from somebody whom you trust.";
        Failure::refused("genesis_invalid", error.to_string(), advice)
    })?;
    let false_proof = |False(why): False| {
        let advice = "Believe nothing of it. Ask another host of the cluster for a new one.";
        Failure::refused("proof_false", format!("NOT PROVEN: {why}"), advice)
    };
    let proof: ProofView = serde_json::from_str(&read_small(&arguments.proof)?)
        .map_err(|error| false_proof(False(format!("it is no proof: {error}"))))?;
    let checked = check(&proof, cluster, &genesis).map_err(false_proof)?;
    session.output.show(&checked, |checked| show(checked, &genesis))
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
    let name = |author: &AuthorIndex| {
        let host = genesis.host(*author);
        host.map_or_else(|| format!("member {author}"), |host| host.name.to_string())
    };
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
    })
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
        let is_signed = signed.signer == read.signer
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
    }
}

fn show(checked: &Checked, genesis: &Genesis) -> String {
    let what = subject_text(&checked.subject);
    let verdict = match checked.shown {
        Shown::Present => format!("PROVEN: {what} is as shown below."),
        Shown::Absent => format!("PROVEN: there is no {what}."),
    };
    let time = |milliseconds| show_time(dagger_payload::id::LedgerTime(milliseconds));
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
    let object = checked.object.as_ref().map_or_else(String::new, |object| {
        let text = serde_json::to_string_pretty(object).expect("plain data always writes");
        format!("\n{text}\n")
    });
    format!("{verdict}\n\n{head}\n{documents}{object}\n{}", limits(checked))
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
        let line = match checked.shown {
            Shown::Present => "what the payload changed: prove the object that it is about",
            Shown::Absent => {
                "that it was never ordered: the state forgets a payload when its not_after_ms has \
                 passed"
            }
        };
        lines.push(line.to_owned());
    }
    let lines: String = lines.iter().map(|line| format!("\n  * {line}")).collect();
    format!("This does not show:{lines}")
}

#[cfg(test)]
mod tests {
    use dagger_payload::attested::{AttestedEnd, AttestedProof};
    use dagger_payload::codec;
    use dagger_payload::event::{Attestation, CommitEnd, EVENT_VERSION, Event, Header};
    use dagger_payload::genesis::{GenesisHost, GenesisMode, GenesisOperator};
    use dagger_payload::id::{
        CommitIndex, Epoch, EventDigest, Generation, ImageDigest, LedgerTime, MerkleRoot,
        PrefixHash, Round, StateRoot,
    };
    use dagger_payload::key::{Domain, SecretKey};
    use dagger_payload::kind::{Body, ImageFormat, ImageRegister};
    use dagger_payload::object::{Cause, Image, ImageStatus};
    use dagger_payload::payload::SignedPayload;
    use dagger_payload::proof::{Finding, Path, StateProof};
    use dagger_payload::state_tree::{Hash, key_hash, leaf, node, side};
    use zeroize::Zeroizing;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([byte; 32]))
    }

    fn genesis(nonce: &str) -> (Genesis, ClusterId) {
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
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        (genesis, cluster)
    }

    fn header(
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
        let sign =
            |digest: &EventDigest| key(10 + author).sign_in(Domain::Event, digest.as_bytes());
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
        };
        let document = ProofDocument {
            document: String::from_utf8(signed.bytes.to_vec()).expect("JSON"),
            signature: sshsig::to_armor(&signer, Namespace::Payload, &signed.signature),
        };
        ProofView::new(cluster, subject, &proof, vec![document])
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
}
