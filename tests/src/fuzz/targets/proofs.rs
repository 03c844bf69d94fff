//! Proofs and exported histories, as somebody hands them to a stranger who has the genesis and
//! nothing else.

use dagger_api::proof::ProofView;
use dagger_payload::attested::{AttestedEnd, AttestedProof};
use dagger_payload::carried::Carried;
use dagger_payload::codec;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::history::Chains;
use dagger_payload::id::{CommitIndex, Position, PrefixHash, StateRoot};
use dagger_payload::merkle;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::state_tree::Subject;

use super::super::mutate::Form;
use super::super::samples::{World, world};
use super::{Answer, Target, require};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "proof", form: Form::Text, samples: proofs, read: proof },
    Target { name: "history", form: Form::Cbor, samples: releases, read: history },
];

/// The end that the headers of the world attest.
fn end() -> CommitEnd {
    CommitEnd {
        index: CommitIndex(100),
        position: Position(7),
        prefix_hash: PrefixHash([1; 32]),
        state_root: StateRoot([2; 32]),
    }
}

fn carried(event: &Event, at: usize) -> Carried {
    Carried {
        payload: event.payloads[at].clone(),
        index: u32::try_from(at).expect("few"),
        path: Path(merkle::prove(&event.leaves, at).expect("it is there")),
        header: event.signed_header(),
    }
}

/// Who carried a payload, and a leaf that leads to no root.
fn proofs(world: &World) -> Vec<Vec<u8>> {
    let event = world.events.last().expect("some");
    let carried = [carried(event, 0), carried(event, event.payloads.len() - 1)];
    let view = |carried: Carried| {
        let subject = Subject::Payload(carried.payload.digest());
        let finding = Finding::Value(vec![7; 40].into());
        let proof = AttestedProof {
            state: StateProof { path: Path(vec![[7; 32]; 3]), finding },
            attested: AttestedEnd {
                end: end(),
                headers: world.headers(),
                handovers: vec![dagger_payload::attested::EpochBeginning {
                    handover: world.handover(),
                    members: None,
                    seats: Vec::new(),
                }],
            },
            carried: Some(carried),
        };
        ProofView::new(world.cluster, subject, &proof, Vec::new())
    };
    let views = carried.into_iter().map(view);
    // Without the handover, whose headers attest another end, all of it but the leaf holds.
    let both = views.flat_map(|view| [ProofView { handovers: Vec::new(), ..view.clone() }, view]);
    both.map(|view| serde_json::to_vec(&view).expect("plain data always writes")).collect()
}

/// The parts of an exported history.
fn releases(world: &World) -> Vec<Vec<u8>> {
    let releases = world.releases.iter().map(|sealed| &sealed.release);
    releases.filter(|release| !release.is_empty()).map(codec::encode).collect()
}

fn history(bytes: &[u8]) -> Result<Answer, String> {
    let mut chains = Chains::founding(&world().cluster);
    let before = chains;
    let Ok(release) = chains.take(bytes) else { return Ok(Answer::Refused) };
    require(codec::encode(&release) == bytes, "it takes bytes that it would write otherwise")?;
    require(chains.at == release.end.index && chains != before, "what it took counts for nothing")?;
    Ok(Answer::Accepted)
}

fn proof(bytes: &[u8]) -> Result<Answer, String> {
    let Ok(view) = serde_json::from_slice::<ProofView>(bytes) else { return Ok(Answer::Refused) };
    let Ok(parts) = view.read() else { return Ok(Answer::Refused) };
    let (world, handovers) = (world(), &parts.attested.handovers);
    let attested = parts.attested.verify(&world.cluster, &world.genesis);
    require(attested.is_err() || parts.attested.end == end(), "nobody attests that end")?;
    let shown = parts.state.verify(&view.end.state_root, &view.subject);
    let is_attested = attested.is_ok();
    require(shown.is_err() || !is_attested, "nothing leads to the root that is attested")?;
    if let Some(carried) = &parts.carried
        && let Ok(carrier) = carried.verify(&world.cluster, &world.genesis, handovers)
    {
        let event = world.events.iter().find(|event| event.digest == carrier.event);
        let at = usize::try_from(carrier.index).map_err(|error| error.to_string())?;
        let payload = event.and_then(|event| event.payloads.get(at));
        require(payload == Some(&carried.payload), "nobody carried that payload")?;
    }
    let again = ProofView::new(view.cluster, view.subject.clone(), &parts, view.documents.clone());
    require(again == view, "it would write otherwise what it reads")?;
    Ok(Answer::Accepted)
}
