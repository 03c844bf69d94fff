//! The ordered history as an auditor reads it.

use dagger_api::Attested;
use dagger_api::log::LogView;
use dagger_payload::id::Position;
use dagger_payload::key::Signature;
use dagger_payload::refusal::RefusalCode;

use crate::agent::Agent;
use crate::sessions::get;
use crate::support::{Chronicle, World, create_vm, key, open_accounts, refused, vm_create};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_signer_kind_and_verdict_of_every_payload_in_its_place() {
    let agent = Agent::start().await;
    let world = &agent.world;
    let mut chronicle = Chronicle::new(world);
    open_accounts(&mut chronicle, &[World::DEVELOPER]);
    agent.ledger.say(chronicle.newest());
    create_vm(world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    let first = chronicle.releases[1].end;
    let other = world.sign(&key(World::OTHER_DEVELOPER), vm_create("web-2"));
    let mut forged = world.sign(&key(World::DEVELOPER), vm_create("web-3"));
    forged.signature = Signature([1; 64]);
    let refusals = [RefusalCode::GrantExceeded, RefusalCode::SignatureInvalid].map(refused);
    let judged = [other, forged].into_iter().zip(refusals);
    chronicle.commit(judged.map(|(payload, why)| (payload, why, vec![])).collect(), Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.ledger.say(chronicle.attested(&[0, 1, 2], first));
    agent.until(|progress| progress.judged.0 == 3 && progress.attested.0 == 2).await;

    let log: LogView = agent.unix.get_json("/v1/log").await;
    let told: Vec<_> = log
        .entries
        .iter()
        .map(|each| (each.position.0, each.kind.as_deref(), each.attested))
        .collect();
    let (yes, no) = (Attested::Yes, Attested::No);
    // Nobody is proven to have signed the last one.
    let kind = Some("vm.create");
    assert_eq!(told, [(1, kind, yes), (2, kind, no), (3, None, no)]);
    assert_eq!((log.entries[2].signer.as_ref(), log.next), (None, None));
    let signer = log.entries[0].signer_name.as_deref().expect("it is signed");
    assert!(signer.starts_with("account "), "{signer}");
    let codes: Vec<_> =
        log.entries.iter().map(|each| each.refusal.as_ref().map(|why| why.code)).collect();
    let expected = [RefusalCode::GrantExceeded, RefusalCode::SignatureInvalid].map(Some);
    assert_eq!(codes, [&[None], &expected[..]].concat());

    // In parts.
    let part: LogView = agent.unix.get_json("/v1/log?from=1&limit=2").await;
    assert_eq!((part.entries.len(), part.next), (2, Some(Position(3))));
    let rest: LogView = agent.unix.get_json("/v1/log?from=3").await;
    assert_eq!((rest.entries, rest.next), (log.entries[2..].to_vec(), None));
    let newest: LogView = agent.unix.get_json("/v1/log?limit=1").await;
    assert_eq!(newest.entries, log.entries[2..]);
    let beyond: LogView = agent.unix.get_json("/v1/log?from=9").await;
    assert_eq!((beyond.entries.len(), beyond.next), (0, None));

    // A session sees what is its account's, or nobody's.
    let own: LogView = get(&agent, "/v1/log", &key(World::DEVELOPER), 0).await.json();
    let positions: Vec<_> = own.entries.iter().map(|each| each.position.0).collect();
    assert_eq!(positions, [1, 3]);
    // Of who has no account nothing is told, not even what is nobody's.
    let stranger: LogView = get(&agent, "/v1/log", &key(World::OTHER_DEVELOPER), 0).await.json();
    assert_eq!((stranger.entries.len(), stranger.next), (0, None));
}
