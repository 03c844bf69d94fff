//! The desk for consoles, before a fake hypervisor at which one machine hangs.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use dagger_agent::handover::{ConsoleProblem, ConsoleRequest, ConsoleTyping};
use dagger_agent::observation::ConsoleDesk;
use dagger_payload::id::VmId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::support::{FakeHost, Guest};

/// Shorter than any call may hang.
const PATIENCE: Duration = Duration::from_secs(5);
const HUNG: VmId = VmId([8; 16]);

type Answer = oneshot::Receiver<Result<ConsoleTyping, ConsoleProblem>>;

async fn ask(requests: &mpsc::Sender<ConsoleRequest>, vm: VmId) -> Answer {
    let (reply, answer) = oneshot::channel();
    requests.send(ConsoleRequest { vm, reply }).await.unwrap();
    answer
}

#[tokio::test]
async fn a_console_that_hangs_keeps_nobody_from_another_one() {
    let host = Arc::new(FakeHost::new(Guest::Obeys));
    let gate = Arc::new(Barrier::new(2));
    host.state().hanging.insert(HUNG, Arc::clone(&gate));
    let (requests, asked) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let desk = ConsoleDesk { hypervisor: host, requests: asked };
    let running = tokio::spawn(desk.run(stop.clone()));
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(ask(&requests, HUNG).await);
    }
    for byte in 20..40 {
        let answer = timeout(PATIENCE, ask(&requests, VmId([byte; 16])).await).await;
        let answer = answer.expect("it is answered while another hangs").unwrap();
        assert!(matches!(answer, Err(ConsoleProblem::NotRunning)), "{answer:?}");
    }
    // One look was for all who wait there, and answers them all.
    tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
    for answer in waiting {
        let answer = timeout(PATIENCE, answer).await.expect("in time").unwrap();
        assert!(matches!(answer, Err(ConsoleProblem::NotRunning)), "{answer:?}");
    }
    stop.cancel();
    running.await.unwrap();
}
