//! What every backend promises of machines, as one table: the same scenarios on each, with the
//! whole machines' half of the agent.
//!
//! Setting: QEMU (TCG) under a libvirtd of this test's own; libvirt's test driver; the program that
//! behaves like Cloud Hypervisor; and the real one beside it where `DAGGER_CLOUD_HYPERVISOR` names
//! it. Pinned: what passes, and what a backend does not offer, with its stable code. The table is
//! printed. Besides: what a libvirtd that hangs or dies does to its machines.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

mod disks;
#[path = "../shared/half.rs"]
mod half;
mod outage;
mod people;
#[path = "../shared/program_under_test.rs"]
mod program_under_test;
mod scenarios;
mod setting;
#[path = "../shared/versions.rs"]
mod versions;
#[path = "../shared/volumes.rs"]
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_tests::libvirtd::Libvirtd;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use virt::connect::Connect;

use self::scenarios::{NotOffered, Scenario};
use self::setting::{Backend, PAPER, Setting};

/// Scenarios that are lived at the same time, besides those that only wait.
const TOGETHER_MAX: usize = 3;

/// What backends do not offer, with the code that says so.
const NOT_OFFERED: &[(Scenario, &str, &str)] = &[
    (Scenario::Console, "test:///", "console_unsupported"),
    (Scenario::KeptWhileRunning, "test:///", "snapshot_while_off_only"),
    (Scenario::KeptWhileRunning, "contract", "snapshot_while_off_only"),
    (Scenario::KeptWhileRunning, "cloud-hypervisor", "snapshot_while_off_only"),
    (Scenario::GrownWhileRunning, "test:///", "sizes_on_paper"),
    (Scenario::VolumeWhileRunning, "test:///", "hypervisor_failed"),
];

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// With the code that the backend gave.
    NotOffered(String),
    Failed,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Passed => "passed".to_owned(),
            Self::NotOffered(code) => format!("not offered: {code}"),
            Self::Failed => "FAILED".to_owned(),
        };
        formatter.pad(&text)
    }
}

type Table = BTreeMap<(Scenario, usize), Verdict>;

fn print(backends: &[Backend], table: &Table) {
    let line = |name: &str, cells: Vec<String>| {
        let cells = cells.into_iter().map(|cell| format!("{cell:<38} "));
        println!("{name:<66}{}", cells.collect::<String>().trim_end());
    };
    line("", backends.iter().map(|backend| backend.name().to_owned()).collect());
    for scenario in Scenario::ALL {
        let cells = (0..backends.len()).map(|at| table[&(scenario, at)].to_string());
        line(scenario.sentence(), cells.collect());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backend_lives_the_same_lives_or_says_in_a_code_what_it_does_not_offer() {
    // The test driver forgets everything with its last connection.
    let paper = Connect::open(Some(PAPER)).unwrap();
    let base = tempfile::Builder::new().prefix("dl").tempdir().unwrap();
    let libvirtd = Libvirtd::start(base.path()).unwrap();
    let mut backends = vec![Backend::Qemu(libvirtd.uri()), Backend::Paper, Backend::Contract];
    backends.extend(program_under_test::real_program().map(Backend::Real));
    let turns = Arc::new(Semaphore::new(TOGETHER_MAX));
    let mut running = JoinSet::new();
    for (at, backend) in backends.iter().enumerate() {
        for scenario in Scenario::ALL {
            let (backend, turns) = (backend.clone(), Arc::clone(&turns));
            running.spawn(async move {
                let turn = match scenario.only_waits() {
                    true => None,
                    false => Some(turns.acquire().await.unwrap()),
                };
                let setting = Setting::new(backend, scenario, at);
                let lived = tokio::spawn(async move { scenario.live(&setting).await }).await;
                drop(turn);
                let verdict = match lived {
                    Ok(Ok(())) => Verdict::Passed,
                    Ok(Err(NotOffered(code))) => Verdict::NotOffered(code),
                    Err(_) => Verdict::Failed,
                };
                ((scenario, at), verdict)
            });
        }
    }
    let mut table = Table::new();
    while let Some(ended) = running.join_next().await {
        table.extend([ended.unwrap()]);
    }
    print(&backends, &table);
    for ((scenario, at), verdict) in &table {
        let name = backends[*at].name();
        let known = NOT_OFFERED.iter().find(|(of, by, _)| (of, *by) == (scenario, name));
        let expected = match known {
            Some((_, _, code)) => Verdict::NotOffered((*code).to_owned()),
            None => Verdict::Passed,
        };
        assert_eq!(*verdict, expected, "{name}: {}", scenario.sentence());
    }
    drop((libvirtd, paper));
}
