//! Who may take a whole VM away, and when. What is in the file is shown by the tests of the whole.

use dagger_agent::handover::VmSight;
use dagger_api::Sight;

use crate::agent::Agent;
use crate::support::{Chronicle, World, create_vm};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_leaves_its_host_only_through_the_hosts_own_socket_and_only_switched_off() {
    let agent = Agent::start().await;
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;

    let code = async |path: &str| agent.unix.get(path).await.problem().code;
    assert_eq!(agent.tcp.get("/v1/vms/web-1/export").await.problem().code, "unix_socket_only");
    assert_eq!(code("/v1/vms/web-2/export").await, "not_found");
    let here = vm.placement.host() == Some(agent.world.genesis.hosts[0].id());
    let refused = if here { "vm_not_stopped" } else { "vm_elsewhere" };
    assert_eq!(code("/v1/vms/web-1/export").await, refused);
    // What is seen is not enough: its owner wants it to run.
    agent.board.update(|sights| {
        let sight = Sight::Stopped;
        let seen = VmSight { sight, applied_generation: None, reason: None, awaits_image: false };
        sights.vms.insert(vm.id, seen);
    });
    assert_eq!(code(&format!("/v1/vms/{}/export", vm.id)).await, refused);
}
