//! What a draft copies of the state. Called by the test runner.

use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{ClusterId, LedgerTime, PayloadDigest, Position};
use dagger_payload::key::SecretKey;
use dagger_payload::name::Name;

use super::*;

fn key(purpose: u8, number: u8) -> PublicKey {
    let mut seed = [purpose; 32];
    seed[0] = number;
    SecretKey::from_seed(&seed.into()).public_key()
}

fn name(text: String) -> Name {
    text.parse().expect("a name")
}

/// Three operators with two voting hosts each.
fn founded() -> State {
    let operators = (0..3)
        .map(|number| GenesisOperator { name: name(format!("op{number}")), key: key(1, number) });
    let hosts = (0..6).map(|number| GenesisHost {
        name: name(format!("host{number}")),
        operator: name(format!("op{}", number % 3)),
        ledger_key: key(2, number),
        address: "127.0.0.1:7400".parse().expect("an address"),
    });
    let genesis = Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: name("test".to_owned()),
        mode: GenesisMode::Judged,
        operators: operators.collect(),
        hosts: hosts.collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    };
    State::found(&genesis, ClusterId::of(&genesis.to_bytes()))
}

fn host(number: u8) -> HostId {
    HostId::of(&key(2, number))
}

fn without(number: u8) -> Change {
    Change::Voters { add: Vec::new(), remove: vec![host(number)] }
}

/// Lets a change wait that has passed.
fn pass(state: &mut State, number: u8, change: Change) {
    let id = PayloadDigest([number; 32]);
    let proposer = OperatorId::of(&key(1, 0));
    state.absorb_alone(&Effect::Proposal(Box::new(Proposal {
        id,
        proposer,
        change,
        approvals: vec![proposer],
        standing: ProposalStanding::Passed,
        expires: LedgerTime(1),
        cause: Cause { digest: id, position: Position(number.into()) },
    })));
}

#[test]
fn what_waits_is_put_together_without_a_copy_of_all_seats_and_with_one_where_a_key_changes() {
    let mut state = founded();
    for number in 0..4 {
        pass(&mut state, number, without(number));
    }
    let mut draft = Draft::planned(&state);
    draft.take(&state, &without(4)).expect("one is left");
    draft.take(&state, &without(5)).expect_err("one must vote");
    assert_eq!(draft.committee.authors().collect::<Vec<_>>(), [AuthorIndex(5)]);
    assert!(matches!(draft.roster, Cow::Borrowed(_)));
    assert_eq!(draft.seats_since(&state.roster), []);

    pass(&mut state, 9, Change::LedgerKey { host: host(5), key: key(2, 9) });
    let draft = Draft::planned(&state);
    assert!(matches!(draft.roster, Cow::Owned(_)));
    assert_eq!(draft.seats_since(&state.roster).len(), 1);
}

#[test]
fn a_change_that_does_not_fit_leaves_the_members_as_they_were_to_be() {
    let state = founded();
    let mut draft = Draft::decided(&state);
    let taken = Change::LedgerKey { host: host(0), key: key(2, 1) };
    let changes = [
        taken,
        Change::Voters { add: vec![host(0)], remove: vec![host(1)] },
        Change::Protocol { version: draft.protocol.next().next() },
        Change::Protocol { version: draft.protocol.next() },
        Change::RemoveOperator { operator: OperatorId([9; 16]) },
    ];
    for change in changes {
        draft.take(&state, &change).expect_err("it does not fit");
        let before = Draft::decided(&state);
        assert_eq!(
            (&draft.roster, draft.committee, draft.protocol, &draft.removed),
            (&before.roster, before.committee, before.protocol, &before.removed)
        );
    }
}
