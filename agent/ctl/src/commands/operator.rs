//! `daggerctl operator`: lists operators and what they propose, and signs proposals and approvals.
//!
//! Owns the arguments and words of the group. Never counts approvals: the judge does. Called by
//! `main`, `commands::payload` and `commands::host`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{ArgGroup, Args, Subcommand};
use dagger_api::{HostView, LedgerView, OperatorView, ProposalView, Vote};
use dagger_payload::id::{Epoch, HostId, OperatorId, PayloadDigest, ProtocolVersion};
use dagger_payload::kind::{Body, OperatorPropose, OperatorRotateKey, ProposalChange};
use dagger_payload::membership::{Change, OperatorStanding, ProposalStanding};
use dagger_payload::name::Name;
use serde::Serialize;

use super::lookup::find_host;
use super::{ChangeOptions, Wait, short};
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::progress::{Progress, say};
use crate::session::{Pause, Session};
use crate::signer::read_public_key;

const PROPOSE_EXAMPLES: &str = "\
Examples:
  daggerctl operator propose add-operator op5 op5_key.pub --key op1_key
  daggerctl operator propose add-voter host5 --key op5_key --wait applied
  # In one step
  daggerctl operator propose voters --add host5 --remove host2 --key op1_key
  daggerctl operator propose protocol 2 --key op1_key

Proposing approves. The change counts once more than two thirds of the
operators approve: operators at once, voters and rules from the next epoch on.
`daggerctl operator ls` names who is missing.

Rules are only activated that more than two thirds of the hosts that will vote
know, as their operators declare: upgrade the hosts, then declare each of them
anew with `daggerctl host join`.";

const APPROVE_EXAMPLES: &str = "\
Examples:
  daggerctl operator approve 3f0c9a --key op2_key
  # On a development cluster: one approval by each of these operators
  daggerctl operator approve 3f0c9a \\
      --operator-key $DAGGER_DIRECTORY/keys/op2,$DAGGER_DIRECTORY/keys/op3";

const ROTATE_EXAMPLES: &str = "\
Example (the old key signs this, and nothing after it):
  daggerctl operator rotate-key new_key.pub --key old_key";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum OperatorCommand {
    /// List operators, whose hosts vote, and what is proposed: who approves, who is missing
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl operator ls")]
    Ls,
    /// Propose who takes part or votes, or which rules count (operators)
    #[command(after_help = PROPOSE_EXAMPLES)]
    Propose {
        /// How to sign, and how far to wait.
        #[command(flatten)]
        options: ProposeOptions,
        /// What is to change
        #[command(subcommand)]
        what: ProposeWhat,
    },
    /// Approve what another operator proposed (operators)
    #[command(after_help = APPROVE_EXAMPLES)]
    Approve(VoiceArguments),
    /// Take your approval back; for your own proposal: end it (operators)
    #[command(after_help = "Example:\n  daggerctl operator withdraw 3f0c9a --key op1_key")]
    Withdraw(VoiceArguments),
    /// Let another key sign for you from now on (operators)
    #[command(after_help = ROTATE_EXAMPLES)]
    RotateKey {
        /// Which key.
        #[command(flatten)]
        key: NewOperatorKey,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
}

/// What can be proposed.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ProposeWhat {
    /// Another operator takes part
    AddOperator {
        /// What he is called
        name: Name,
        /// His public key
        #[arg(value_name = "KEY.pub")]
        public_key: PathBuf,
    },
    /// An operator takes part no more, even against his will; his hosts leave with him, and what
    /// they carry is lost to the cluster
    RemoveOperator {
        /// Who
        operator: Name,
    },
    /// Hosts that follow vote from the next epoch on
    AddVoter {
        /// Which
        #[arg(value_name = "HOST", required = true)]
        hosts: Vec<Name>,
    },
    /// Hosts that vote only follow from the next epoch on
    RemoveVoter {
        /// Which
        #[arg(value_name = "HOST", required = true)]
        hosts: Vec<Name>,
    },
    /// Both in one step, so that no operator holds too many votes in between
    #[command(group(
        ArgGroup::new("voters").required(true).multiple(true).args(["add", "remove"])
    ))]
    Voters {
        /// Hosts that are to vote; may be repeated
        #[arg(long, value_name = "HOST")]
        add: Vec<Name>,
        /// Hosts that are to vote no more; may be repeated
        #[arg(long, value_name = "HOST")]
        remove: Vec<Name>,
    },
    /// The next version of the rules counts from the next epoch on
    Protocol {
        /// The one after the present one
        version: u32,
    },
}

/// How to sign a proposal, and how far to wait.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProposeOptions {
    /// How far to wait; applied: until the change counts
    #[arg(long, value_enum, default_value = "ordered", global = true)]
    wait: Wait,
    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "300s", value_parser = crate::units::span, global = true)]
    timeout: std::time::Duration,
    /// The newest epoch that you know to be decided: refused if there is a newer one
    #[arg(long, value_name = "N", global = true)]
    expected_epoch: Option<u64>,
}

impl ProposeOptions {
    fn change(&self) -> ChangeOptions {
        ChangeOptions { wait: self.wait, timeout: self.timeout }
    }
}

/// Arguments of `operator approve|withdraw`.
#[derive(Debug, Clone, Args)]
pub(crate) struct VoiceArguments {
    /// Which proposal.
    #[command(flatten)]
    proposal: ProposalName,
    /// Operators' keys, separated by commas: one is signed with each [default: the --key]
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    operator_key: Vec<PathBuf>,
    /// How far to wait; applied: until the change counts
    #[command(flatten)]
    options: ChangeOptions,
}

/// Names a proposal.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProposalName {
    /// Its id, or the first digits of it
    #[arg(value_name = "PROPOSAL")]
    proposal: String,
}

/// The key that comes.
#[derive(Debug, Clone, Args)]
pub(crate) struct NewOperatorKey {
    /// The public half of the key that comes
    #[arg(value_name = "NEW.pub")]
    new_key: PathBuf,
}

/// What `operator ls` shows.
#[derive(Serialize)]
struct Listing {
    operators: Vec<OperatorView>,
    proposals: Vec<ProposalView>,
}

/// Runs a command of the group.
pub(crate) async fn run(command: OperatorCommand, session: &Session) -> Result<(), Failure> {
    match command {
        OperatorCommand::Ls => {
            let operators: Vec<OperatorView> = session.client.get("/v1/operators").await?;
            let listing = Listing { operators, proposals: proposals(session).await? };
            session.output.show(&listing, show)
        }
        OperatorCommand::Propose { options, what } => {
            let Body::OperatorPropose(mut propose) = what.body(session).await? else {
                return Err(Failure::broken("a proposal is none"));
            };
            if let Change::Protocol { version } = propose.change {
                warn_of_unknown(version, session).await?;
            }
            propose.expected_epoch = options.expected_epoch.map(Epoch);
            order(Body::OperatorPropose(propose), &[], None, &options.change(), session).await
        }
        OperatorCommand::Approve(arguments) => {
            let change = arguments.proposal.change(session).await?;
            let (keys, id) = (&arguments.operator_key, Some(change.proposal));
            order(Body::OperatorApprove(change), keys, id, &arguments.options, session).await
        }
        OperatorCommand::Withdraw(arguments) => {
            let change = arguments.proposal.change(session).await?;
            let (keys, id) = (&arguments.operator_key, Some(change.proposal));
            order(Body::OperatorWithdraw(change), keys, id, &arguments.options, session).await
        }
        OperatorCommand::RotateKey { key, options } => {
            let progress = Progress::new(session.output.format);
            let signed = session.sign(None, key.body()?).await?;
            let deadline = options.deadline();
            let view = session.submit(&signed, options.until(), deadline, &progress).await?;
            drop(progress);
            session.output.show(&view, super::payload::show)
        }
    }
}

/// Says before anything is signed which voting hosts do not know the rules.
async fn warn_of_unknown(version: ProtocolVersion, session: &Session) -> Result<(), Failure> {
    let hosts: Vec<HostView> = session.client.get("/v1/hosts").await?;
    if let Some(warning) = unknown_to(&hosts, version) {
        say(&warning);
    }
    Ok(())
}

fn unknown_to(hosts: &[HostView], version: ProtocolVersion) -> Option<String> {
    let votes = |view: &&HostView| matches!(view.vote, Vote::Votes | Vote::Coming);
    let voting: Vec<_> = hosts.iter().filter(votes).collect();
    let is_older = |view: &&&HostView| {
        let declared = view.host.as_ref().and_then(|host| host.protocol_max);
        declared.unwrap_or(ProtocolVersion::FIRST) < version
    };
    let not: Vec<Name> = voting.iter().filter(is_older).map(|view| view.name.clone()).collect();
    if not.is_empty() {
        return None;
    }
    let outcome = match 3 * not.len() < voting.len() {
        true => "they will stop judging until they are upgraded",
        false => "the proposal will be refused",
    };
    Some(format!(
        "warning: {} of {} voting hosts do not declare that they know version {version} of the \
         rules, and {outcome}: {}",
        not.len(),
        voting.len(),
        joined(&not)
    ))
}

async fn proposals(session: &Session) -> Result<Vec<ProposalView>, Failure> {
    session.client.get("/v1/proposals").await
}

async fn find(id: PayloadDigest, session: &Session) -> Result<ProposalView, Failure> {
    let found = proposals(session).await?.into_iter().find(|view| view.proposal.id == id);
    found.ok_or_else(|| {
        let what = format!("the host that answers shows no proposal {id}");
        Failure::refused("not_found", what, "See `daggerctl operator ls`.")
    })
}

/// Signs and orders a proposal, or a voice about one, and shows how the proposal stands then.
async fn order(
    body: Body,
    keys: &[PathBuf],
    id: Option<PayloadDigest>,
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    let progress = Progress::new(session.output.format);
    let deadline = options.deadline();
    let keys: Vec<_> = match keys {
        [] => vec![None],
        keys => keys.iter().map(|key| Some(key.as_path())).collect(),
    };
    let mut last = None;
    for key in keys {
        let signed = session.sign(key, body.clone()).await?;
        let view = session.submit(&signed, options.until(), deadline, &progress).await?;
        last = Some((signed.digest, view));
    }
    let Some((digest, view)) = last else {
        return Err(Failure::broken("nothing was signed"));
    };
    if options.wait == Wait::Received {
        drop(progress);
        return session.output.show(&view, super::payload::show);
    }
    let id = id.unwrap_or(digest);
    if options.wait == Wait::Applied {
        progress.working("waiting until the change counts");
        wait_applied(id, deadline, session).await?;
    }
    drop(progress);
    session.output.show(&find(id, session).await?, show_proposal)
}

/// Waits until a proposal is executed, and what it changes counts.
async fn wait_applied(
    id: PayloadDigest,
    deadline: Instant,
    session: &Session,
) -> Result<(), Failure> {
    let mut pause = Pause::new();
    loop {
        let view = find(id, session).await?;
        match view.proposal.standing {
            ProposalStanding::Open | ProposalStanding::Passed => {}
            ProposalStanding::Done => break,
            ProposalStanding::Withdrawn | ProposalStanding::Lapsed | ProposalStanding::Failed => {
                let what = format!("the proposal {}", standing_words(view.proposal.standing));
                let advice = "Propose it again if it is still wanted.";
                return Err(Failure::refused("proposal_ended", what, advice));
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::unavailable("not_applied_in_time", show_proposal(&view), ""));
        }
        pause.wait().await;
    }
    let is_open = |ledger: &LedgerView| ledger.next_epoch.is_some();
    wait_while(is_open, deadline, session).await
}

/// Waits until an epoch has ended, as told by `waits`.
pub(crate) async fn wait_epoch(
    waits: impl Fn(&LedgerView) -> bool,
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    wait_while(waits, options.deadline(), session).await
}

async fn wait_while(
    waits: impl Fn(&LedgerView) -> bool,
    deadline: Instant,
    session: &Session,
) -> Result<(), Failure> {
    let mut pause = Pause::new();
    loop {
        let ledger: LedgerView = session.client.get("/v1/ledger").await?;
        if !waits(&ledger) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let what = "the next epoch is decided and has not begun yet";
            let advice = "It begins by itself: `daggerctl ledger status`.";
            return Err(Failure::unavailable("not_applied_in_time", what, advice));
        }
        pause.wait().await;
    }
}

impl ProposeWhat {
    /// The body of `operator.propose`.
    pub(crate) async fn body(&self, session: &Session) -> Result<Body, Failure> {
        let change = match self {
            Self::AddOperator { name, public_key } => {
                Change::AddOperator { name: name.clone(), key: read_public_key(public_key)? }
            }
            Self::RemoveOperator { operator } => {
                Change::RemoveOperator { operator: find_operator(session, operator).await? }
            }
            Self::AddVoter { hosts } => {
                Change::Voters { add: ids(session, hosts).await?, remove: Vec::new() }
            }
            Self::RemoveVoter { hosts } => {
                Change::Voters { add: Vec::new(), remove: ids(session, hosts).await? }
            }
            Self::Voters { add, remove } => Change::Voters {
                add: ids(session, add).await?,
                remove: ids(session, remove).await?,
            },
            Self::Protocol { version } => Change::Protocol { version: ProtocolVersion(*version) },
        };
        Ok(Body::OperatorPropose(Box::new(OperatorPropose { change, expected_epoch: None })))
    }
}

impl ProposalName {
    /// The body of `operator.approve` and `operator.withdraw`.
    pub(crate) async fn change(&self, session: &Session) -> Result<ProposalChange, Failure> {
        let pending = proposals(session).await?.into_iter();
        let ids: Vec<_> = pending
            .filter(|view| view.proposal.standing.is_pending())
            .map(|view| view.proposal.id)
            .filter(|id| id.to_string().starts_with(&self.proposal))
            .collect();
        match ids[..] {
            [proposal] => Ok(ProposalChange { proposal }),
            [] => {
                let what = format!("no proposal {} is pending", self.proposal);
                Err(Failure::refused("not_found", what, "See `daggerctl operator ls`."))
            }
            [..] => {
                let what = format!("{} pending proposals begin with {}", ids.len(), self.proposal);
                Err(Failure::refused("name_ambiguous", what, "Write more of its id."))
            }
        }
    }
}

impl NewOperatorKey {
    /// The body of `operator.rotate_key`.
    pub(crate) fn body(&self) -> Result<Body, Failure> {
        let new_key = read_public_key(&self.new_key)?;
        Ok(Body::OperatorRotateKey(OperatorRotateKey { new_key }))
    }
}

async fn find_operator(session: &Session, name: &Name) -> Result<OperatorId, Failure> {
    let operators: Vec<OperatorView> = session.client.get("/v1/operators").await?;
    let present = |view: &&OperatorView| view.standing == OperatorStanding::Present;
    let found = operators.iter().filter(present).find(|operator| operator.name == *name);
    found.map(|operator| operator.id).ok_or_else(|| {
        let what = format!("no operator is called {name}");
        Failure::refused("not_found", what, "See `daggerctl operator ls`.")
    })
}

async fn ids(session: &Session, hosts: &[Name]) -> Result<Vec<HostId>, Failure> {
    let mut ids = Vec::new();
    for name in hosts {
        ids.push(find_host(session, name).await?.id);
    }
    Ok(ids)
}

fn joined(names: &[Name]) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn show(listing: &Listing) -> String {
    let rows = listing.operators.iter().map(|operator| {
        [
            operator.name.to_string(),
            match operator.standing {
                OperatorStanding::Present => operator.hosts.len().to_string(),
                OperatorStanding::Left => "has left".to_owned(),
            },
            joined(&operator.hosts),
            joined(&operator.followers),
            operator.key.to_string(),
        ]
    });
    let header = ["OPERATOR", "VOTES", "HOSTS", "FOLLOWERS", "KEY"];
    let operators = table(header, rows, "No operators.");
    if listing.proposals.is_empty() {
        return operators;
    }
    let rows = listing.proposals.iter().map(|view| {
        [
            short(&view.proposal.id),
            view.summary.clone(),
            standing_words(view.proposal.standing).to_owned(),
            joined(&view.approved_by),
            missing(view),
        ]
    });
    let header = ["PROPOSAL", "CHANGE", "STANDING", "APPROVED BY", "MISSING"];
    format!("{operators}\n\n{}", table(header, rows, "Nothing is proposed."))
}

fn show_proposal(view: &ProposalView) -> String {
    facts([
        ("proposal", view.proposal.id.to_string()),
        ("change", view.summary.clone()),
        ("standing", standing_words(view.proposal.standing).to_owned()),
        ("approved by", joined(&view.approved_by)),
        ("missing", missing(view)),
    ])
}

/// How many approvals are missing, and of whom they may be.
fn missing(view: &ProposalView) -> String {
    let approvals = view.approved_by.len();
    let missing = usize::from(view.approvals_needed).saturating_sub(approvals);
    match view.proposal.standing {
        ProposalStanding::Open if missing > 0 => {
            format!("{missing} of {}", joined(&view.not_approved_by))
        }
        _ => String::new(),
    }
}

fn standing_words(standing: ProposalStanding) -> &'static str {
    match standing {
        ProposalStanding::Open => "waits for approvals",
        ProposalStanding::Passed => "has passed; counts with the next epoch",
        ProposalStanding::Done => "is done",
        ProposalStanding::Withdrawn => "was withdrawn",
        ProposalStanding::Lapsed => "has lapsed: too few approved in time",
        ProposalStanding::Failed => "had passed, and could not be executed any more",
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{LedgerTime, Position};
    use dagger_payload::key::SecretKey;
    use dagger_payload::membership::Proposal;
    use dagger_payload::object::Cause;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn an_operator_is_shown_with_votes_hosts_and_key() {
        let key = SecretKey::from_seed(&[1; 32].into()).public_key();
        let operator = OperatorView {
            id: OperatorId::of(&key),
            name: name("acme"),
            key: key.clone(),
            standing: OperatorStanding::Present,
            hosts: vec![name("a1"), name("a2")],
            followers: vec![name("a3")],
        };
        let shown = show(&Listing { operators: vec![operator], proposals: Vec::new() });
        let row = shown.lines().last().expect("a row");
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words[..5], ["acme", "2", "a1,", "a2", "a3"]);
        assert!(row.contains(&key.to_string()), "{row}");
    }

    #[test]
    fn who_does_not_know_the_rules_is_named_before_they_are_proposed() {
        let host = |number: u8, vote| HostView {
            id: HostId([number; 16]),
            name: name(&format!("host{number}")),
            operator: name("op1"),
            host: None,
            used: Default::default(),
            vms: 0,
            link: dagger_api::HostLink::Connected,
            seat: dagger_payload::id::AuthorIndex(number.into()),
            vote,
        };
        let hosts = [host(1, Vote::Votes), host(2, Vote::Follows), host(3, Vote::Coming)];
        assert_eq!(unknown_to(&hosts, ProtocolVersion::FIRST), None);
        let told = unknown_to(&hosts, ProtocolVersion(2)).expect("nobody declared anything");
        assert!(told.contains("2 of 2 voting hosts") && told.contains("will be refused"), "{told}");
        assert!(told.ends_with(": host1, host3"), "{told}");
    }

    #[test]
    fn a_proposal_says_how_many_approvals_are_missing_and_of_whom() {
        let operator = OperatorId([1; 16]);
        let mut view = ProposalView {
            proposal: Proposal {
                id: PayloadDigest([3; 32]),
                proposer: operator,
                change: Change::RemoveOperator { operator },
                approvals: vec![operator],
                standing: ProposalStanding::Open,
                expires: LedgerTime(0),
                cause: Cause { digest: PayloadDigest([3; 32]), position: Position(1) },
            },
            summary: "op4 is an operator no more".into(),
            proposer_name: Some(name("op1")),
            approved_by: vec![name("op1")],
            not_approved_by: vec![name("op2"), name("op3"), name("op4")],
            approvals_needed: 3,
        };
        assert_eq!(missing(&view), "2 of op2, op3, op4");
        assert!(show_proposal(&view).contains("waits for approvals"));
        view.proposal.standing = ProposalStanding::Done;
        assert_eq!(missing(&view), "");
    }
}
