//! The agent, or the hypervisor's process with the guest in it, dies at every point of everything
//! that is asked of a host, once per run, and one restart later everything is as if it had not.
//!
//! Real: controller, journal (files), performer. Fake: hypervisor, disks, ledger (see `support`).
//! Pinned: exactly one machine, one disk and each volume, made once; no orphan; nothing left after
//! the deletion but what is in quarantine; a lost guest is started once more, unless it is to be
//! started once; and that no step of a host is left out (`coverage`).

mod agent;
mod coverage;
mod ledger;
mod lives;

use std::collections::BTreeSet;
use std::sync::Arc;

use dagger_agent::controller::{Output, Step};
use dagger_agent::hypervisor::{Machine, Power};
use dagger_agent::journal::Journal;
use dagger_payload::kind::ReportPhase;

use self::agent::{Agent, Ended};
use self::coverage::{Death, When, has_inside};
use self::ledger::{Ledger, Version};
use self::lives::{ImageAt, LONG, Life, Remains, VolumeEnd};
use super::support::{FakeHost, FakeState, Fuse, Guest, HERE, VM, Victim};

/// In memory where the machine has that: hundreds of runs sync thousands of files, and what is
/// pinned here is the order of writes and acts, not the disk's.
fn directory_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What came of one run.
struct Lived {
    /// How many points there were at which an agent could have died.
    points: usize,
    lived: BTreeSet<&'static str>,
    deaths: BTreeSet<Death>,
    /// How many guests were lost with their process, and how often one was started beyond what was
    /// asked for.
    lost: usize,
    started_again: usize,
    /// One was lost that may not be started again.
    had_to_stay_off: bool,
}

/// Runs the whole life with one death of `victim` after `dies_after` points.
fn live(life: &Life, guest: Guest, victim: Victim, dies_after: Option<usize>) -> Lived {
    let directory = directory_in_memory();
    let world = Arc::new(FakeHost::new(guest));
    if let ImageAt::Elsewhere(_) = life.image {
        world.state().images.clear();
    }
    let mut ledger = Ledger::new(life);
    world.state().fuse = Fuse { victim, left: dies_after, ..Fuse::default() };
    if Agent::start(life, &world, &mut ledger, directory.path()).run() == Ended::Died {
        world.state().fuse.dead = false;
        world.state().fuse.left = None;
        assert_eq!(Agent::start(life, &world, &mut ledger, directory.path()).run(), Ended::Idle);
    }
    assert!(ledger.is_over, "died after {dies_after:?}: waits for number {}", ledger.asked);
    let state = world.state();
    check(life, &state, &format!("died after {dies_after:?}: {state:?}"));
    let told = ledger.last().vm.reported.as_ref().unwrap();
    assert_eq!(told.phase, ReportPhase::Deleted, "died after {dies_after:?}");
    let journal = Journal::open(directory.path().to_owned(), HERE).unwrap();
    assert!(journal.read_all().unwrap().records.is_empty(), "died after {dies_after:?}");
    Lived {
        points: state.fuse.passed,
        lost: state.processes_lost,
        started_again: state.starts - life.starts,
        had_to_stay_off: ledger.has_to_stay_off(),
        lived: ledger.lived,
        deaths: ledger.deaths,
    }
}

/// No orphan, no duplicate, no lost disk.
fn check(life: &Life, state: &FakeState, context: &str) {
    let machines = state.machines.is_empty() && state.cards.is_empty() && state.given.is_empty();
    assert!(machines && state.disks.is_empty() && state.seeds.is_empty(), "{context}");
    let counts = (state.disks_made, state.volumes_made);
    assert_eq!(counts, (life.disks, life.volumes.len()), "{context}");
    // A guest that was lost is started once more, if it was to run on.
    let starts = life.starts..=life.starts + state.processes_lost;
    assert!(starts.contains(&state.starts), "{} starts, not {starts:?}: {context}", state.starts);
    for (volume, end) in life.volumes {
        let seen = match (state.volumes.get(volume), state.volumes_quarantined.get(volume)) {
            (None, None) => VolumeEnd::Collected,
            (None, Some(size)) => VolumeEnd::Quarantined(*size),
            (Some(_), None) => VolumeEnd::Kept,
            (Some(_), Some(_)) => panic!("two volumes of one name: {context}"),
        };
        assert_eq!(seen, *end, "{context}");
    }
    state.kept.check(life.kept);
    let fetched = match life.image {
        ImageAt::Here => 0,
        ImageAt::Elsewhere(times) => times,
    };
    assert_eq!(state.images_fetched, fetched, "{context}");
    match life.remains {
        Remains::Kept => {
            assert_eq!(state.quarantine.contains(&VM), life.disks == 1, "{context}");
            assert_eq!(state.collected, 0, "{context}");
        }
        Remains::Collected(things) => {
            assert_eq!((state.collected, state.remains()), (things, 0), "{context}");
            assert!(state.images.is_empty(), "{context}");
        }
    }
}

/// Lives it once without a death, and once with each that is possible.
fn live_and_die(life: &Life, victim: Victim, points_min: usize) {
    for guest in [Guest::Obeys, Guest::Ignores] {
        let whole = live(life, guest, victim, None);
        let points = whole.points;
        assert!(points >= points_min, "the run is too short to mean anything: {points} points");
        let runs = (0..points).map(|point| live(life, guest, victim, Some(point)));
        let (mut deaths, mut lost, mut started_again) = (BTreeSet::new(), 0, 0);
        for run in runs {
            deaths.extend(run.deaths);
            lost += run.lost;
            started_again += run.started_again;
        }
        let loses = victim == Victim::Process && life.starts > 0;
        assert_eq!((lost > 0, started_again > 0), (loses, loses), "{lost}, {started_again}");
        for name in whole.lived {
            let inside = has_inside(name).then_some(When::Within);
            for when in [When::Before, When::After].into_iter().chain(inside) {
                assert!(deaths.contains(&(name, when)), "nobody died {when:?} {name}");
            }
        }
    }
}

/// Each life with the sentences that it proves of an agent and of a hypervisor that die, and all of
/// them, so that none is left out.
macro_rules! lives {
    ($($life:ident, $points_min:literal: $of_agent:ident, $of_process:ident;)*) => {
        const LIVES: &[&Life] = &[$(&lives::$life),*];
        $(
            #[test]
            fn $of_agent() {
                live_and_die(&lives::$life, Victim::Agent, $points_min);
            }

            #[test]
            fn $of_process() {
                live_and_die(&lives::$life, Victim::Process, $points_min);
            }
        )*
    };
}

lives! {
    LONG, 60:
        a_crash_at_any_step_of_a_vms_life_leaves_exactly_one_vm_and_then_none,
        a_process_that_dies_at_any_step_of_a_vms_life_comes_back_once_and_then_goes;
    FORCED, 40:
        a_crash_while_a_vm_is_changed_or_switched_off_by_force_repeats_nothing,
        a_process_that_dies_while_its_vm_is_changed_or_switched_off_by_force_repeats_nothing;
    PAUSED, 40:
        a_crash_while_a_paused_vm_is_asked_for_anything_else_loses_no_wish,
        a_process_that_dies_with_a_paused_guest_is_told_as_off_and_loses_no_wish;
    HALTED, 40:
        a_crash_while_the_operator_stops_a_vm_by_hand_neither_forgets_nor_repeats_that,
        a_process_that_dies_while_the_operator_stops_it_by_hand_is_not_started_against_his_word;
    ONCE, 40:
        a_crash_starts_no_vm_again_that_is_to_be_started_once,
        a_process_that_dies_is_not_started_again_if_its_vm_is_to_be_started_once;
    ONCE_BESIDE_A_VOLUME, 60:
        a_crash_at_work_on_a_volume_starts_no_vm_again_that_is_to_be_started_once,
        a_process_that_dies_beside_work_on_a_volume_stays_off_if_it_is_to_be_started_once;
    UNMADE, 10:
        a_vm_that_is_deleted_while_it_is_being_made_leaves_nothing_whenever_the_agent_dies,
        a_vm_that_is_deleted_while_it_is_being_made_leaves_nothing_whenever_a_process_dies;
    FETCHED, 40:
        a_crash_while_an_image_is_fetched_fetches_it_once,
        a_process_that_dies_fetches_no_image_again;
    GIVEN_UP, 10:
        a_vm_that_is_deleted_while_its_image_is_fetched_leaves_nothing_whenever_the_agent_dies,
        a_vm_that_is_deleted_while_its_image_is_fetched_leaves_nothing_whenever_a_process_dies;
    ATTACHED, 30:
        a_vm_that_is_deleted_with_a_volume_leaves_the_volume_whenever_the_agent_dies,
        a_vm_that_is_deleted_with_a_volume_leaves_the_volume_whenever_its_process_dies;
    OFF, 60:
        a_crash_while_a_volume_comes_to_and_leaves_a_vm_that_is_off_loses_nothing,
        a_process_that_dies_around_changes_of_a_vm_that_is_off_loses_no_volume;
    KEPT, 60:
        a_crash_while_a_volume_is_kept_and_put_back_copies_the_same_bytes_once,
        a_process_that_dies_while_a_volume_is_kept_and_put_back_changes_no_byte_of_it;
    KEPT_LIVE, 60:
        a_crash_while_a_volume_is_copied_beside_a_guest_leaves_one_whole_snapshot,
        a_process_that_dies_while_it_copies_its_volume_leaves_one_whole_snapshot;
    KEPT_OFF, 60:
        a_crash_while_a_volume_of_a_vm_that_is_off_is_kept_leaves_one_whole_snapshot,
        a_process_that_dies_before_its_volume_is_kept_leaves_one_whole_snapshot;
    COLLECTED, 60:
        a_crash_while_remains_are_collected_removes_those_and_nothing_else,
        a_process_that_dies_around_the_collection_of_remains_loses_nothing_else;
    CLONED, 60:
        a_crash_while_a_volume_is_cloned_copies_the_snapshot_once_and_loses_nothing,
        a_process_that_dies_while_a_volume_is_cloned_loses_neither;
}

#[test]
fn a_process_dies_in_some_lives_after_its_guest_ran_that_is_to_be_started_once() {
    let life = &lives::ONCE_BESIDE_A_VOLUME;
    let points = live(life, Guest::Obeys, Victim::Process, None).points;
    let live = |point| live(life, Guest::Obeys, Victim::Process, Some(point));
    assert!((0..points).any(|point| live(point).had_to_stay_off));
}

#[test]
fn an_agent_with_an_empty_journal_adopts_what_runs_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(FakeHost::new(Guest::Obeys));
    let mut ledger = Ledger::new(&LONG);
    // The fuse ends the first life once the guest runs and is reported: the owner's next wish comes
    // later.
    let mut agent = Agent::start(&LONG, &world, &mut ledger, directory.path());
    while agent.ledger.asked == 0 {
        let input = agent.inputs.pop_front().unwrap();
        for output in agent.controller.handle(agent.now, input) {
            agent.carry_out(output);
        }
    }
    assert!(matches!(ledger.versions.pop(), Some(Version::Volume(_))), "a wish for a volume");
    ledger.asked = 0;
    let empty = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(&LONG, &world, &mut ledger, empty.path());
    while let Some(input) = agent.inputs.pop_front() {
        for output in agent.controller.handle(agent.now, input) {
            // The card is made sure of, as it is by every agent that starts.
            match &output {
                Output::Act(job) => assert_eq!(job.action.step(), Step::Network, "{output:?}"),
                other => assert!(!matches!(other, Output::Report(_)), "{other:?}"),
            }
            agent.carry_out(output);
        }
    }
    let records = agent.journal.read_all().unwrap().records;
    assert_eq!(records[&VM].applied, Some(ledger.last().vm.generation));
    let state = world.state();
    assert_eq!((state.starts, state.disks_made), (1, 1));
    assert!(matches!(&state.machines[&VM], Machine::Ours { power: Power::Running, .. }));
}
