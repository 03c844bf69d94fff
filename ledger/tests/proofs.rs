//! Proofs, as far as the ledger makes them: four real ledgers bring a state and headers of a quorum
//! that name exactly it together. Only the judge is a test's, and says of everything that it is not
//! there; what is checked here is what a stranger checks besides.

mod common;

use common::{Cluster, Host, payload};
use dagger_bus::ledger::{Answer, Call};
use dagger_payload::attested::AttestedProof;
use dagger_payload::id::{AuthorIndex, Epoch, PayloadDigest, Position, VmId};
use dagger_payload::state_tree::Subject;

async fn proof(host: &Host) -> AttestedProof {
    proof_of(host, Subject::Vm(VmId([1; 16]))).await
}

async fn proof_of(host: &Host, subject: Subject) -> AttestedProof {
    match host.ask(Call::Prove { subject }).await {
        Answer::Proof { proof: Some(proof) } => *proof,
        other => panic!("{other:?}\n{}", host.log()),
    }
}

fn assert_a_stranger_believes_it(cluster: &Cluster, proof: &AttestedProof) {
    let witnesses = proof.attested.verify(&cluster.id, &cluster.genesis);
    let witnesses = witnesses.unwrap_or_else(|error| panic!("{error}: {proof:?}"));
    assert!(witnesses.authors.len() >= 3);
}

/// The payload is shown to have come into the order by an event of member `author`, of this epoch.
fn assert_carried_by(
    cluster: &Cluster,
    proof: &AttestedProof,
    text: &str,
    (author, epoch): (u16, u64),
) {
    let carried = proof.carried.as_ref().expect("nothing is pruned");
    let carrier = carried.verify(&cluster.id, &cluster.genesis, &proof.attested.handovers);
    let carrier = carrier.unwrap_or_else(|error| panic!("{error}: {proof:?}"));
    assert_eq!(carrier.digest, payload(text).digest());
    assert_eq!((carrier.author, carrier.epoch), (AuthorIndex(author), Epoch(epoch)), "{text}");
}

/// Waits until a quorum attests it here.
async fn until_attested(host: &Host, text: &str) {
    host.stream(0).await.until_attested(&[payload(text).digest()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_host_proves_the_newest_state_of_a_quiet_cluster_also_after_a_restart() {
    let mut cluster = Cluster::start(4).await;
    cluster.hosts[0].submitted("one").await;
    cluster.hosts[1].submitted("two").await;
    for host in &cluster.hosts {
        until_attested(host, "one").await;
        until_attested(host, "two").await;
        let proof = proof(host).await;
        assert_a_stranger_believes_it(&cluster, &proof);
        assert_eq!(proof.attested.end.position, Position(2));
    }
    // Nothing new is ordered: what it has on disk is enough, also while there is no quorum.
    cluster.hosts[2].kill();
    cluster.hosts[3].kill();
    cluster.hosts[1].kill();
    cluster.hosts[1].start();
    let proof = proof(&cluster.hosts[1]).await;
    assert_a_stranger_believes_it(&cluster, &proof);
    assert_eq!(proof.attested.end.position, Position(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_payload_any_host_shows_which_member_carried_it_and_of_no_payload_that_none_did() {
    let cluster = Cluster::start(4).await;
    // Several go into one event: each has its own way to that event's root.
    let texts: Vec<_> = (0..12).map(|number| format!("payload {number}")).collect();
    futures_util::future::join_all((0..12).map(|number| {
        let (host, text) = (&cluster.hosts[number % 4], &texts[number]);
        async move { host.submitted(text).await }
    }))
    .await;
    for (number, text) in (0_u16..).zip(&texts) {
        let reader = &cluster.hosts[usize::from(number + 1) % 4];
        until_attested(reader, text).await;
        let digest = payload(text).digest();
        let proof = proof_of(reader, Subject::Payload(digest)).await;
        assert_a_stranger_believes_it(&cluster, &proof);
        assert_carried_by(&cluster, &proof, text, (number % 4, 0));
    }
    let never = Subject::Payload(PayloadDigest::of(b"never sent"));
    assert_eq!(proof_of(&cluster.hosts[0], never).await.carried, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_never_rests_is_proven_to_be_in_states_that_follow_each_other() {
    let cluster = Cluster::start(4).await;
    cluster.hosts[0].submitted("first").await;
    let submitting = async {
        for number in 0.. {
            cluster.hosts[number % 4].submitted(&format!("busy {number}")).await;
        }
    };
    let proving = async {
        let (mut last, mut seen) = (Position(0), 0);
        // As long as it takes for some of the load to be attested.
        while seen < 12 || last <= Position(1) {
            let proof = proof(&cluster.hosts[seen % 4]).await;
            assert_a_stranger_believes_it(&cluster, &proof);
            last = last.max(proof.attested.end.position);
            seen += 1;
        }
        last
    };
    let last = tokio::select! {
        last = proving => last,
        () = submitting => unreachable!("it goes on for ever"),
    };
    assert!(last > Position(1), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_a_later_epoch_come_with_the_handover_that_leads_there() {
    let cluster = Cluster::start(4).await;
    // The same members: their keys are those of the genesis.
    cluster.hosts[0].submitted("members 0 1 2 3").await;
    let mut number = 0;
    loop {
        number += 1;
        let text = format!("later {number}");
        cluster.hosts[0].submitted(&text).await;
        until_attested(&cluster.hosts[0], &text).await;
        let status = cluster.hosts[0].status().await;
        if status.epoch > Epoch(0) {
            break;
        }
    }
    cluster.hosts[1].submitted("in the next epoch").await;
    until_attested(&cluster.hosts[1], "in the next epoch").await;
    let proof = proof(&cluster.hosts[1]).await;
    assert_a_stranger_believes_it(&cluster, &proof);
    assert_eq!(proof.attested.handovers.len(), 1);
    // So do those who carried payloads in either epoch.
    for (text, carrier) in [("members 0 1 2 3", (0, 0)), ("in the next epoch", (1, 1))] {
        let subject = Subject::Payload(payload(text).digest());
        let proof = proof_of(&cluster.hosts[2], subject).await;
        assert_carried_by(&cluster, &proof, text, carrier);
    }
    let mut without = proof.attested;
    without.handovers.clear();
    assert!(without.verify(&cluster.id, &cluster.genesis).is_err());
}
