//! The operator's switch at the API. The machines' half is a **fake**: the test answers its
//! requests and says what is seen.

use dagger_agent::handover::{NoSuchMachine, VmSight};
use dagger_api::{LocalStopView, Sight};
use dagger_payload::id::{Generation, VmId};
use dagger_payload::kind::StopManner;
use hyper::StatusCode;

use crate::agent::Agent;
use crate::http::Answered;
use crate::support::{Chronicle, World, create_vm};

const BODY: &str = r#"{"reason": "it mines coins", "manner": "forced"}"#;

fn see(agent: &Agent, vm: VmId, sight: Sight) {
    agent.board.update(|sights| {
        let sight = VmSight { sight, applied_generation: None, reason: None, awaits_image: false };
        sights.vms.insert(vm, sight);
    });
}

/// Asks for the stop of `named`, with the machines' half answering `answer` and the machine going
/// off then.
async fn stop(
    agent: &mut Agent,
    named: &str,
    answer: Result<Generation, NoSuchMachine>,
) -> (Answered, VmId) {
    let unix = agent.unix.clone();
    let path = format!("/v1/vms/{named}/local-stop");
    let asking = unix.post(&path, BODY);
    let board = agent.board.clone();
    let answering = async {
        let request = agent.local_stops.recv().await.expect("it is asked for");
        assert_eq!((request.manner, &*request.reason), (StopManner::Forced, "it mines coins"));
        let _ = request.reply.send(answer);
        board.update(|sights| {
            if let Some(vm) = sights.vms.get_mut(&request.vm) {
                vm.sight = Sight::Stopped;
            }
        });
        request.vm
    };
    tokio::join!(asking, answering)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_stopped_by_its_id_before_any_history_is_known_and_by_its_name_after() {
    let mut agent = Agent::start().await;
    let vm = VmId([7; 16]);
    see(&agent, vm, Sight::Running);
    let (answered, asked) = stop(&mut agent, &vm.to_string(), Ok(Generation(3))).await;
    assert_eq!((answered.status, asked), (StatusCode::OK, vm));
    let view: LocalStopView = answered.json();
    assert_eq!(view, LocalStopView { vm, generation: Generation(3), sight: Sight::Stopped });

    see(&agent, vm, Sight::Running);
    let unknown = agent.unix.post("/v1/vms/web-1/local-stop", BODY).await.problem();
    assert_eq!(unknown.code, "not_found");
    assert!(unknown.detail.contains(&vm.to_string()), "{}", unknown.detail);

    let mut chronicle = Chronicle::new(&agent.world);
    let known = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    see(&agent, known.id, Sight::Running);
    let (answered, asked) = stop(&mut agent, "web-1", Ok(Generation(1))).await;
    assert_eq!((answered.status, asked), (StatusCode::OK, known.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_holds_the_hosts_own_socket_stops_by_hand_and_only_with_a_reason() {
    let mut agent = Agent::start().await;
    let vm = VmId([7; 16]);
    let path = format!("/v1/vms/{vm}/local-stop");
    assert_eq!(agent.tcp.post(&path, BODY).await.problem().code, "unix_socket_only");
    for body in ["{}", r#"{"reason": ""}"#, r#"{"reason": "a\nb"}"#, r#"{"reason": "x", "y": 1}"#] {
        assert_eq!(agent.unix.post(&path, body).await.problem().code, "request_malformed");
    }
    assert!(agent.local_stops.try_recv().is_err(), "the machines' half was asked");
    let (answered, _) = stop(&mut agent, &vm.to_string(), Err(NoSuchMachine)).await;
    assert_eq!(answered.problem().code, "not_found");
}
