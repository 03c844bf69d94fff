//! Proofs, as the API hands them out: complete enough for a stranger, and to those only who may see
//! the object.

use dagger_api::proof::{Hex, ProofView};
use dagger_payload::attested::{AttestedEnd, AttestedProof};
use dagger_payload::codec;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{
    AccountId, AuthorIndex, CommitIndex, Epoch, OperatorId, PayloadDigest, Position, PrefixHash,
    StateRoot, VmId,
};
use dagger_payload::object::Vm;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::proven::Proven;
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::state_tree::{EMPTY, Subject, key_hash, leaf};
use hyper::StatusCode;

use crate::agent::Agent;
use crate::sessions::{get, two_accounts};
use crate::support::{World, evidence, key};

/// A proof against a state with `value` under `subject` and nothing else, or with nothing.
fn proof(world: &World, subject: &Subject, value: Option<&[u8]>) -> AttestedProof {
    let root = value.map_or(EMPTY, |value| leaf(&key_hash(&subject.key()), value));
    let end = CommitEnd {
        index: CommitIndex(2),
        position: Position(2),
        prefix_hash: PrefixHash([4; 32]),
        state_root: StateRoot(root),
    };
    let finding = value.map_or(Finding::Nothing, |value| Finding::Value(value.to_vec().into()));
    let headers = evidence(world.cluster, &[0, 1, 3], end).headers;
    AttestedProof {
        state: StateProof { path: Path(Vec::new()), finding },
        attested: AttestedEnd { end, headers, handovers: Vec::new() },
        carried: None,
    }
}

fn vm_of(agent: &Agent, name: &str) -> Vm {
    let vm = |vm: &&Vm| vm.name.as_str() == name;
    agent.model.read(|model| model.vms().find(vm).cloned()).expect("it was created")
}

/// What a stranger with the genesis finds in it.
fn check(world: &World, view: &ProofView) -> Result<Option<Proven>, String> {
    let parts = view.read().map_err(|error| error.to_string())?;
    let attested = parts.attested.verify(&world.cluster, &world.genesis);
    let witnesses = attested.map_err(|error| error.to_string())?;
    assert_eq!((witnesses.authors.len(), witnesses.quorum), (3, 3));
    let shown = parts.state.verify(&view.end.state_root, &view.subject);
    let value = shown.map_err(|error| error.to_string())?;
    let object = value.map(|value| Proven::read(&view.subject, value)).transpose();
    object.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_is_small_and_holds_everything_that_a_stranger_needs() {
    let agent = two_accounts().await;
    let vm = vm_of(&agent, "web-1");
    let subject = Subject::Vm(vm.id);
    agent.ledger.prove(proof(&agent.world, &subject, Some(&codec::encode(&vm))));
    let answered = agent.unix.get("/v1/proofs/vm/web-1").await;
    assert!(answered.body.len() < 8192, "{} bytes", answered.body.len());
    let view: ProofView = answered.json();
    assert_eq!((view.cluster, &view.subject), (agent.world.cluster, &subject));
    let object = check(&agent.world, &view).expect("it holds");
    assert_eq!(object, Some(Proven::Vm(Box::new(vm.clone()))));
    // The document that created it comes along, with a signature for stock OpenSSH.
    let [signed] = &view.documents[..] else { panic!("{:?}", view.documents) };
    assert_eq!(PayloadDigest::of(signed.document.as_bytes()), vm.created.digest);
    let read = sshsig::from_armor(&signed.signature, Namespace::Payload).expect("a signature");
    let (developer, bytes) = (key(World::DEVELOPER).public_key(), signed.document.as_bytes());
    assert!(sshsig::verifies(&developer, Namespace::Payload, bytes, &read.signature));

    for at in 0..view.state.0.len() {
        let mut tampered = view.clone();
        tampered.state.0[at] ^= 1;
        assert!(check(&agent.world, &tampered).is_err(), "byte {at}");
    }
    let mut tampered = view.clone();
    tampered.headers[0].signature = Hex(vec![0; 64]);
    assert!(check(&agent.world, &tampered).is_err());
    let mut other = view;
    other.subject = Subject::Vm(vm_of(&agent, "web-2").id);
    assert!(check(&agent.world, &other).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_there_is_none_is_proven_by_id_to_those_who_may_see_everything() {
    let agent = two_accounts().await;
    let id = VmId([9; 16]);
    agent.ledger.prove(proof(&agent.world, &Subject::Vm(id), None));
    let path = format!("/v1/proofs/vm/{id}");
    let view: ProofView = agent.unix.get_json(&path).await;
    assert_eq!(check(&agent.world, &view), Ok(None));
    assert!(view.documents.is_empty());
    let by_name = agent.unix.get("/v1/proofs/vm/nobody").await;
    assert_eq!(by_name.status, StatusCode::NOT_FOUND);
    // A session learns of a VM that is none what it learns of somebody else's.
    let developer = key(World::DEVELOPER);
    let others = vm_of(&agent, "web-2").id;
    for path in [path, format!("/v1/proofs/vm/{others}")] {
        assert_eq!(get(&agent, &path, &developer, 0).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_is_for_those_who_may_see_the_object() {
    let agent = two_accounts().await;
    let account = |byte| AccountId::of(&key(byte).public_key());
    let (own, other) = (account(World::DEVELOPER), account(World::OTHER_DEVELOPER));
    let host = agent.world.host_id(0);
    let developer = key(World::DEVELOPER);
    for path in [format!("account/{other}"), format!("usage/{other}/{host}")] {
        let answered = get(&agent, &format!("/v1/proofs/{path}"), &developer, 0).await;
        assert_eq!(answered.problem().code, "session_refused", "{path}");
    }
    for (path, subject) in [
        (format!("account/{own}"), Subject::Account(own)),
        (format!("usage/{own}/{host}"), Subject::Usage(own, host)),
    ] {
        agent.ledger.prove(proof(&agent.world, &subject, None));
        let answered = get(&agent, &format!("/v1/proofs/{path}"), &developer, 0).await;
        assert_eq!(answered.json::<ProofView>().subject, subject);
    }
    // These are for anybody to see.
    let digest = PayloadDigest::of(b"some");
    let operator = OperatorId::of(&agent.world.genesis.operators[0].key);
    for (path, subject) in [
        ("host/host1".to_owned(), Subject::Host(host)),
        ("image/op1/small".to_owned(), Subject::Image("op1/small".parse().expect("a name"))),
        (format!("payload/{digest}"), Subject::Payload(digest)),
        ("seat/3".to_owned(), Subject::Seat(AuthorIndex(3))),
        ("seat/host1".to_owned(), Subject::Seat(AuthorIndex(0))),
        ("epoch/2".to_owned(), Subject::Epoch(Epoch(2))),
        (format!("operator/{operator}"), Subject::Operator(operator)),
        ("operator/op1".to_owned(), Subject::Operator(operator)),
        (format!("proposal/{digest}"), Subject::Proposal(digest)),
    ] {
        agent.ledger.prove(proof(&agent.world, &subject, None));
        let answered = agent.tcp.get(&format!("/v1/proofs/{path}")).await;
        assert_eq!(answered.json::<ProofView>().subject, subject);
    }
    for unknown in ["host", "seat", "operator"] {
        let answered = agent.tcp.get(&format!("/v1/proofs/{unknown}/nobody")).await;
        assert_eq!(answered.status, StatusCode::NOT_FOUND, "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_quorum_attests_is_not_proven_and_a_false_proof_is_not_handed_on() {
    let agent = two_accounts().await;
    let answered = agent.unix.get("/v1/proofs/vm/web-1").await;
    assert_eq!(answered.problem().code, "not_attested");
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    let vm = vm_of(&agent, "web-1");
    let of_another = proof(&agent.world, &Subject::Vm(VmId([9; 16])), Some(&codec::encode(&vm)));
    agent.ledger.prove(of_another);
    let answered = agent.unix.get("/v1/proofs/vm/web-1").await;
    assert_eq!(answered.problem().code, "internal");
}
