//! `daggerctl ledger`: what the ledger has ordered, whether it can order more, and proofs for those
//! who believe nobody.
//!
//! Owns how the ledger's state is shown. Never speaks with a ledger itself. Called by `main`.

mod log;
mod proof;
pub(super) mod verify;

use clap::Subcommand;
use dagger_api::{EpochView, ForkView, JunkView, LedgerView};
use dagger_payload::id::CommitIndex;
use dagger_payload::roster::Roster;

use super::host::{link_word, vote_word};
use super::short;
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::session::Session;
use crate::units::{show_bytes, show_time};

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum LedgerCommand {
    /// Show how far the order has come, and whether a quorum is there
    #[command(after_help = "Example:\n  daggerctl ledger status")]
    Status,
    /// Write all seats of the cluster as JSON: what a new host's ledger and agent need as `roster`
    #[command(
        after_help = "Example (on a member, for a host that has just joined):\n  daggerctl ledger roster > roster.json"
    )]
    Roster,
    /// List what was ordered, with signer and verdict of each payload, also of refused ones
    #[command(after_help = log::EXAMPLES)]
    Log(log::LogArguments),
    /// Write the whole history as one file: what everybody can recompute everything from
    #[command(after_help = super::past::EXAMPLES)]
    Export,
    /// Print a proof of what an object is, for somebody who has only the cluster's genesis
    #[command(subcommand, after_help = proof::EXAMPLES)]
    Proof(proof::ProofCommand),
    /// Check a proof: offline, without any host or daemon
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArguments),
}

/// Runs a command of the group.
pub(crate) async fn run(command: LedgerCommand, session: &Session) -> Result<(), Failure> {
    match command {
        LedgerCommand::Status => {
            let view: LedgerView = session.client.get("/v1/ledger").await?;
            session.output.show(&view, show)
        }
        LedgerCommand::Roster => {
            let roster: Roster = session.client.get("/v1/roster").await?;
            let text = serde_json::to_vec_pretty(&roster);
            let mut text = text.map_err(|error| Failure::broken(format!("a roster: {error}")))?;
            text.push(b'\n');
            session.output.bytes(&text)
        }
        LedgerCommand::Log(arguments) => log::run(&arguments, session).await,
        LedgerCommand::Export => super::past::export(session).await,
        LedgerCommand::Proof(command) => proof::run(command, session).await,
        LedgerCommand::Verify(arguments) => verify::run(&arguments, session),
    }
}

/// What a committee withstands, in words. A dishonest operator has all of his hosts.
pub(crate) fn survives(hosts: usize, operators: usize) -> String {
    let count = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    if hosts == 0 {
        return "no fault: with fewer than 4 hosts there is signed history, no fault tolerance"
            .to_owned();
    }
    format!("{}, or {}", count(hosts, "dead host"), count(operators, "dishonest operator"))
}

fn epoch_words(epoch: &EpochView) -> String {
    let voters: Vec<_> = epoch.voters.iter().map(|voter| voter.as_str()).collect();
    let (number, protocol) = (epoch.epoch, epoch.protocol);
    let after = match epoch.begins_after {
        CommitIndex(0) => "from the founding on".to_owned(),
        commit => format!("from commit {} on", commit.next()),
    };
    format!("{number}, {after}: {} vote, by version {protocol} of the rules", voters.join(", "))
}

fn show(view: &LedgerView) -> String {
    let changes = match &view.unavailable {
        None => format!("possible: {} voters reached, {} needed", view.reached, view.quorum),
        Some(why) => format!("NOT possible: {why}"),
    };
    let survives = survives(view.faults_survived.into(), view.dishonest_operators_survived.into());
    let snapshot = match view.snapshot {
        CommitIndex(0) => "none yet".to_owned(),
        commit => format!("of commit {commit}"),
    };
    let bodies = match view.pruned_round {
        0 => "all".to_owned(),
        round => format!("of epoch {} from round {} on", view.pruned_epoch, round + 1),
    };
    let head = facts([
        ("cluster", view.cluster.to_string()),
        ("changes", changes),
        ("survives", survives),
        ("epoch", epoch_words(&view.epoch)),
        ("next epoch", view.next_epoch.as_ref().map(epoch_words).unwrap_or_default()),
        ("committed", view.committed.to_string()),
        ("judged", view.judged.to_string()),
        ("attested", view.attested.to_string()),
        ("position", view.position.to_string()),
        ("ledger time", show_time(view.ledger_time)),
        ("round", view.round.to_string()),
        ("waiting", format!("{} payloads", view.waiting)),
        ("store", show_bytes(view.store_bytes)),
        ("snapshot", snapshot),
        ("event bodies", bodies),
    ]);
    let rows = view.members.iter().map(|member| {
        [
            member.name.to_string(),
            vote_word(member.vote).to_owned(),
            link_word(member.link).to_owned(),
            member.seat.to_string(),
            member.highest_round.to_string(),
            member.host.to_string(),
        ]
    });
    let members = table(["MEMBER", "VOTE", "LINK", "SEAT", "ROUND", "ID"], rows, "No members.");
    let mut parts = vec![head, members];
    if !view.forks.is_empty() {
        parts.push(forks(&view.forks));
    }
    parts.extend((!view.junk.is_empty()).then(|| junk(&view.junk)));
    parts.join("\n\n")
}

fn forks(forks: &[ForkView]) -> String {
    let rows = forks.iter().map(|fork| {
        let round = fork.round.map_or("unknown".to_owned(), |round| round.to_string());
        let events: Vec<_> = fork.events.iter().map(short).collect();
        [fork.name.to_string(), round, events.join(" and "), fork.host.to_string()]
    });
    table(["TWO EVENTS BY", "ROUND", "EVENTS", "ID"], rows, "None.")
}

/// Who carried what no honest host takes in, and what to do about it.
fn junk(junk: &[JunkView]) -> String {
    let line = |junk: &JunkView| {
        let count = match junk.payloads {
            1 => "1 payload".to_owned(),
            count => format!("{count} payloads"),
        };
        format!(
            "JUNK by {} ({count}, {}): no honest host takes in what is malformed or not signed. Its \
             operator explains it, or the others remove him: daggerctl operator propose",
            junk.name,
            show_bytes(junk.bytes)
        )
    };
    junk.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use dagger_api::JunkView;
    use dagger_payload::id::{AuthorIndex, HostId};

    use super::{junk, survives};

    #[test]
    fn each_member_that_carried_junk_has_a_line_that_says_what_to_do() {
        let of = |name: &str, payloads| JunkView {
            name: name.parse().expect("a name"),
            host: HostId([1; 16]),
            seat: AuthorIndex(1),
            payloads,
            bytes: 2048,
        };
        let text = junk(&[of("liar", 1), of("other", 3)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("liar") && lines[0].contains("1 payload,"), "{text}");
        assert!(lines[1].contains("3 payloads") && lines[1].contains("operator"), "{text}");
    }

    #[test]
    fn what_is_survived_is_counted_in_hosts_and_in_operators() {
        assert_eq!(survives(1, 1), "1 dead host, or 1 dishonest operator");
        assert_eq!(survives(2, 0), "2 dead hosts, or 0 dishonest operators");
        assert!(survives(0, 0).starts_with("no fault"));
    }
}
