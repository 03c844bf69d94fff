//! A host whose view is behind: what others know already it has not heard of. It does not judge by
//! that view what is asked through it.

use dagger_api::{PayloadState, PayloadView};
use dagger_payload::id::VmId;
use hyper::StatusCode;

use crate::agent::Agent;
use crate::support::{Chronicle, World, create_vm, key, vm_stop};

/// An agent that has heard of somebody else's VM only, and what the others know more.
async fn behind() -> (Agent, Chronicle, VmId) {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    create_vm(&agent.world, &mut chronicle, World::OTHER_DEVELOPER, "other");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1").id;
    (agent, chronicle, vm)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_about_what_a_host_has_not_heard_of_goes_to_the_order_and_is_not_denied_there() {
    let (mut agent, chronicle, vm) = behind().await;
    // Neither its signer nor its VM is in this host's view, and both are in the others'.
    let payload = agent.world.sign(&key(World::DEVELOPER), vm_stop(vm));
    assert_eq!(agent.unix.get(&format!("/v1/vms/{vm}")).await.problem().code, "not_found");
    let answered = agent.unix.post_payload(&payload).await;
    assert_eq!(answered.status, StatusCode::ACCEPTED);
    let view: PayloadView = answered.json();
    assert_eq!((view.state, view.digest), (PayloadState::Received, payload.digest()));
    assert_eq!(agent.ledger.submitted.recv().await, Some(payload));

    // It shows what it was told, once it was.
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    assert_eq!(agent.unix.get(&format!("/v1/vms/{vm}")).await.status, StatusCode::OK);
}
