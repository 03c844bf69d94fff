//! Another version of the rules is activated while real ledgers run: real processes, real TLS, real
//! LMDB. Only the judges are a test's, so that one of them can be of an older build.
//!
//! Pins: the version counts from the first commit of the next epoch on, on every host, and in the
//! epochs after it; a host whose judge does not know it judges nothing more, takes nothing and says
//! what to do, also after a restart; the others go on; once it knows the rules it has everything.

mod common;

use common::{Cluster, Host};
use dagger_bus::ledger::{Answer, Call, LedgerStatus, Unavailable};
use dagger_payload::attested::AttestedProof;
use dagger_payload::codec;
use dagger_payload::id::{Epoch, PayloadDigest, ProtocolVersion};
use dagger_payload::roster::EpochMembers;
use dagger_payload::state_tree::Subject;

/// The host of the older build.
const OLD: usize = 3;
const SECOND: ProtocolVersion = ProtocolVersion(2);

fn in_epoch(number: u64) -> impl Fn(&LedgerStatus) -> bool {
    move |status| status.epoch.0 == number
}

fn needs_upgrade(status: &LedgerStatus) -> bool {
    status.unavailable == Some(Unavailable::UpgradeNeeded { needs: SECOND })
}

/// What the host proves of an epoch to somebody who has only the genesis.
async fn proven(cluster: &Cluster, host: &Host, epoch: u64) -> EpochMembers {
    let subject = Subject::Epoch(Epoch(epoch));
    let answer = host.ask(Call::Prove { subject: subject.clone() }).await;
    let Answer::Proof { proof: Some(proof) } = answer else { panic!("{answer:?}") };
    let AttestedProof { state, attested, .. } = *proof;
    attested.verify(&cluster.id, &cluster.genesis).expect("a quorum attests it");
    let shown = state.verify(&attested.end.state_root, &subject).expect("it leads there");
    codec::decode(shown.expect("there is such an epoch")).expect("as the judge wrote it")
}

/// Has something ordered at the hosts that know the rules, and attested by them.
async fn go_on(cluster: &Cluster, digests: &mut Vec<PayloadDigest>, text: &str) {
    for number in 0..12 {
        let host = &cluster.hosts[number % OLD];
        digests.push(host.submitted(&format!("{text} {number}")).await);
    }
    for host in &cluster.hosts[..OLD] {
        host.stream(0).await.until_attested(digests).await;
    }
}

async fn assert_it_stands_still_and_says_what_to_do(host: &Host) -> LedgerStatus {
    let status = host.until(needs_upgrade).await;
    host.until_logged("the processor does not know the rules that count now: upgrade it").await;
    let answer = host.submit("at the host of the older build").await;
    let Answer::Unavailable { reason } = answer else { panic!("{answer:?}") };
    assert_eq!(reason, Unavailable::UpgradeNeeded { needs: SECOND });
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn activated_rules_count_in_all_later_epochs_and_who_does_not_know_them_waits_for_an_upgrade()
{
    let mut cluster = Cluster::start(4).await;
    cluster.hosts[OLD].judge.knows_up_to(1);
    let mut digests = vec![cluster.hosts[OLD].submitted("by the first rules").await];
    cluster.attested_everywhere(&digests).await;
    digests.push(cluster.hosts[1].submitted("protocol 2").await);
    for host in &cluster.hosts[..OLD] {
        host.until(in_epoch(1)).await;
    }
    go_on(&cluster, &mut digests, "by the second rules").await;
    let stands = assert_it_stands_still_and_says_what_to_do(&cluster.hosts[OLD]).await;
    // It has judged the whole epoch before, and nothing of the one that it does not know.
    let first = proven(&cluster, &cluster.hosts[0], 1).await;
    assert_eq!((first.protocol, first.begins_after), (SECOND, stands.judged));

    // The version is carried over the next epoch, without the host that stands still.
    digests.push(cluster.hosts[2].submitted("members 0 1 2 3").await);
    for host in &cluster.hosts[..OLD] {
        host.until(in_epoch(2)).await;
    }
    go_on(&cluster, &mut digests, "in the epoch after").await;
    for host in &cluster.hosts[..OLD] {
        assert_eq!(proven(&cluster, host, 2).await.protocol, SECOND);
    }
    cluster.hosts[OLD].kill();
    cluster.hosts[OLD].start();
    let still = assert_it_stands_still_and_says_what_to_do(&cluster.hosts[OLD]).await;
    assert_eq!(still.judged, stands.judged);

    // A processor of the newer build takes its place.
    let old = &mut cluster.hosts[OLD];
    old.judge.restart().await;
    old.judge.knows_up_to(2);
    old.until(|status| in_epoch(2)(status) && status.unavailable.is_none()).await;
    digests.push(cluster.hosts[OLD].submitted("by the upgraded host").await);
    cluster.attested_everywhere(&digests).await;
    assert_eq!(proven(&cluster, &cluster.hosts[OLD], 2).await.protocol, SECOND);
}
