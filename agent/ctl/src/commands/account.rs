//! `daggerctl account`: operators grant, everybody looks.
//!
//! Owns the arguments of the group. Never decides what a grant allows. Called by `main` and
//! `commands::payload`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use dagger_api::{AccountSummary, AccountView, OperatorView, PayloadView};
use dagger_payload::id::{AccountId, LedgerTime, OperatorId};
use dagger_payload::kind::{AccountGrant, AccountRevoke, Body, Capacity};

use super::keys::{self, KeyCommand};
use super::{ChangeOptions, Expected, prefix, short, usage};
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::progress::Progress;
use crate::session::Session;
use crate::signer::read_public_key;
use crate::units::{self, milliseconds, show_gib, show_mib, show_time};

const GRANT_EXAMPLES: &str = "\
Examples:
  # As an operator: let a developer use this much on your hosts
  daggerctl account grant dev.pub --cpus 8 --memory 16GiB --disk 200GiB \\
      --vms 10 --for 90d --key operator_key
  # On a development cluster: one grant by each of its operators
  daggerctl account grant $DAGGER_KEY.pub --cpus 8 --memory 4GiB \\
      --disk 50GiB --operator-key $DAGGER_OPERATOR_KEYS

A grant replaces the same operator's earlier grant to the account.";

const USAGE_EXAMPLES: &str = "\
Examples:
  daggerctl account usage
  # A bill, and whether another operator's host comes to the same one, byte
  # for byte; else it ends with 4
  daggerctl account usage --commit 1200 --json > bill.json
  daggerctl --api https://other-host account usage --check bill.json
  # The same without asking anybody: from the history that an operator has
  # exported for you, and a proof of any host
  daggerctl ledger export > history               # as an operator
  daggerctl ledger proof order > order.json
  daggerctl account usage --check bill.json --from-log history \\
      --proof order.json --genesis genesis.json

Counted in ledger time: processors and memory while the host's signed reports
say that the guest runs and its owner wants it to, disk from the host's
acceptance to the deletion.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum AccountCommand {
    /// Let an account use this much on your hosts (operators)
    #[command(after_help = GRANT_EXAMPLES)]
    Grant {
        /// What is granted.
        #[command(flatten)]
        grant: GrantArguments,
        /// Operators' keys, separated by commas: one grant is signed with each [default: the --key]
        #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
        operator_key: Vec<PathBuf>,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Take back your grant to an account: its VMs on your hosts go on, nothing new starts there
    /// (operators)
    #[command(after_help = "Example:\n  daggerctl account revoke dev.pub --key operator_key")]
    Revoke {
        /// Whose grant.
        #[command(flatten)]
        revoke: RevokeArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Show an account: its grants and what its VMs take
    #[command(after_help = "Examples:\n  daggerctl account show\n  daggerctl account show dev.pub")]
    Show {
        /// An account's id or its public key file [default: the account of the --key]
        #[arg(value_name = "ID|FILE.pub")]
        account: Option<String>,
    },
    /// Show what an account's VMs have used, by host and VM; every host says the same of a commit
    #[command(after_help = USAGE_EXAMPLES)]
    Usage {
        /// An account's id or its public key file [default: the account of the --key]
        #[arg(value_name = "ID|FILE.pub")]
        account: Option<String>,
        /// As of this commit [default: the newest one]
        #[arg(long, value_name = "N")]
        commit: Option<u64>,
        /// Show nothing but whether the host that answers, or the history, comes to this bill
        /// (written with --json)
        #[arg(long, value_name = "BILL.json", conflicts_with_all = ["account", "commit"])]
        check: Option<PathBuf>,
        /// From which history, if nobody is to be asked.
        #[command(flatten)]
        from_log: usage::FromLog,
    },
    /// Change who signs for your account
    #[command(subcommand, after_help = keys::EXAMPLES)]
    Key(KeyCommand),
    /// List accounts
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl account ls")]
    Ls,
}

/// What `account grant` grants.
#[derive(Debug, Clone, Args)]
pub(crate) struct GrantArguments {
    /// The developer's public key; of an account with several keys, its first one
    #[arg(value_name = "FILE.pub")]
    pub(crate) account: PathBuf,
    /// Virtual CPUs in all
    #[arg(long, value_name = "N")]
    pub(crate) cpus: u32,
    /// Memory in all, for example 16GiB
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    pub(crate) memory: u64,
    /// Disk in all, for example 200GiB
    #[arg(long, value_name = "SIZE", value_parser = units::disk_gib)]
    pub(crate) disk: u64,
    /// How many VMs
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) vms: u32,
    /// For how long, from now
    #[arg(long = "for", value_name = "SPAN", default_value = "365d", value_parser = units::span)]
    pub(crate) span: Duration,
    /// For which version of the account; 0 while there is none.
    #[command(flatten)]
    pub(crate) expected: Expected,
}

/// What `account revoke` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct RevokeArguments {
    /// The account's id or its public key file
    #[arg(value_name = "ID|FILE.pub")]
    pub(crate) account: String,
    /// In which version.
    #[command(flatten)]
    pub(crate) expected: Expected,
}

impl RevokeArguments {
    /// The body of `account.revoke`.
    pub(crate) async fn body(&self, session: &Session) -> Result<Body, Failure> {
        let account = account_id(&self.account, session).await?;
        let expected_generation = self.expected.generation();
        Ok(Body::AccountRevoke(AccountRevoke { account, expected_generation }))
    }
}

/// Runs a command of the group.
pub(crate) async fn run(command: AccountCommand, session: &Session) -> Result<(), Failure> {
    match command {
        AccountCommand::Grant { grant, operator_key, options } => {
            run_grant(&grant, &operator_key, &options, session).await
        }
        AccountCommand::Revoke { revoke, options } => {
            let progress = Progress::new(session.output.format);
            let signed = session.sign(None, revoke.body(session).await?).await?;
            let (until, deadline) = (options.until(), options.deadline());
            let view = session.submit(&signed, until, deadline, &progress).await?;
            drop(progress);
            session.output.show(&view, super::payload::show)
        }
        AccountCommand::Usage { check: Some(bill), from_log, .. } => {
            usage::check(&bill, &from_log, session).await
        }
        AccountCommand::Usage { account, commit, check: None, from_log } => {
            let id = match from_log.is_given() {
                true => named_offline(account.as_deref())?,
                false => named_or_own(account.as_deref(), session).await?,
            };
            usage::run(id, commit, &from_log, session).await
        }
        AccountCommand::Show { account } => {
            let id = named_or_own(account.as_deref(), session).await?;
            let view: AccountView = session.client.get(&format!("/v1/accounts/{id}")).await?;
            let operators: Vec<OperatorView> = session.client.get("/v1/operators").await?;
            let now = session.cluster().await?.ledger_time;
            session.output.show(&view, |view| show(view, &operators, now))
        }
        AccountCommand::Key(command) => keys::run(command, session).await,
        AccountCommand::Ls => {
            let accounts: Vec<AccountSummary> = session.client.get("/v1/accounts").await?;
            session.output.show(&accounts, |accounts| {
                let rows = accounts.iter().map(|account| {
                    [account.id.to_string(), account.fingerprint.clone(), account.vms.to_string()]
                });
                table(["ACCOUNT", "KEY", "VMS"], rows, "No accounts: no operator granted any yet.")
            })
        }
    }
}

async fn named_or_own(account: Option<&str>, session: &Session) -> Result<AccountId, Failure> {
    match account {
        None => session.account().await,
        Some(text) => account_id(text, session).await,
    }
}

/// Nobody is asked: a key file counts as the account's first key.
fn named_offline(account: Option<&str>) -> Result<AccountId, Failure> {
    let Some(text) = account else {
        let advice = "Give its id, or the file of its first public key.";
        return Err(Failure::usage("an offline bill needs the account", advice));
    };
    match text.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(AccountId::of(&read_public_key(std::path::Path::new(text))?)),
    }
}

/// The body of `account.grant`.
pub(crate) async fn grant_body(
    arguments: &GrantArguments,
    session: &Session,
) -> Result<Body, Failure> {
    let now = session.cluster().await?.ledger_time;
    Ok(Body::AccountGrant(AccountGrant {
        key: read_public_key(&arguments.account)?,
        capacity: Capacity {
            cpus: arguments.cpus,
            memory_mib: arguments.memory,
            disk_gib: arguments.disk,
        },
        vms: arguments.vms,
        until_ms: now.plus_ms(milliseconds(arguments.span)).0,
        expected_generation: arguments.expected.generation(),
    }))
}

async fn run_grant(
    grant: &GrantArguments,
    operator_keys: &[PathBuf],
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    let deadline = options.deadline();
    let progress = Progress::new(session.output.format);
    let keys: Vec<Option<&PathBuf>> = if operator_keys.is_empty() {
        vec![None]
    } else {
        operator_keys.iter().map(Some).collect()
    };
    let body = grant_body(grant, session).await?;
    let mut views: Vec<PayloadView> = Vec::new();
    for key in keys {
        let signed = session.sign(key.map(PathBuf::as_path), body.clone()).await?;
        views.push(session.submit(&signed, options.until(), deadline, &progress).await?);
    }
    drop(progress);
    let account = session.account_of(&read_public_key(&grant.account)?).await?;
    session
        .output
        .show(&views, |views| format!("account {account} granted by {} operator(s)", views.len()))
}

/// By its id, by the file of a key of its, or by the first digits of its id.
async fn account_id(text: &str, session: &Session) -> Result<AccountId, Failure> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let file = std::path::Path::new(text);
    if prefix::is_prefix(text) && !file.exists() {
        let accounts: Vec<AccountSummary> = session.client.get("/v1/accounts").await?;
        let found = prefix::only(text, accounts.iter().map(|account| account.id))?;
        return found.ok_or_else(|| {
            let what = format!("no account's id begins with {text}, and there is no such file");
            Failure::refused("not_found", what, "See `daggerctl account ls`.")
        });
    }
    session.account_of(&read_public_key(file)?).await
}

fn show(view: &AccountView, operators: &[OperatorView], now: LedgerTime) -> String {
    let called = |id: &OperatorId| {
        let operator = operators.iter().find(|operator| operator.id == *id);
        operator.map_or_else(|| short(id), |operator| operator.name.to_string())
    };
    let account = &view.account;
    let head = facts([
        ("account", account.id.to_string()),
        ("generation", account.generation.to_string()),
        (
            "used",
            format!(
                "{} VMs, {} CPUs, {} memory, {} disk",
                view.vms,
                view.used.cpus,
                show_mib(view.used.memory_mib),
                show_gib(view.used.disk_gib)
            ),
        ),
    ]);
    let rows = account.grants.iter().map(|grant| {
        [
            called(&grant.operator),
            grant.vms.to_string(),
            grant.capacity.cpus.to_string(),
            show_mib(grant.capacity.memory_mib),
            show_gib(grant.capacity.disk_gib),
            match grant.until < now {
                true => format!("ended {}", show_time(grant.until)),
                false => show_time(grant.until),
            },
        ]
    });
    let header = ["GRANTED BY", "VMS", "CPUS", "MEMORY", "DISK", "UNTIL"];
    let grants = table(header, rows, "No grants.");
    let keys = table(["ROLE", "KEY"], account.keys.iter().map(keys::row), "No keys.");
    format!("{head}\n\n{keys}\n\n{grants}")
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{Generation, PayloadDigest, Position};
    use dagger_payload::key::SecretKey;
    use dagger_payload::membership::OperatorStanding;
    use dagger_payload::object::{Account, Cause, Grant};
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn grants_name_their_operators_and_those_that_are_past_are_called_ended() {
        let key = SecretKey::from_seed(&Zeroizing::new([1; 32])).public_key();
        let cause = Cause { digest: PayloadDigest::ZERO, position: Position(3) };
        let capacity = Capacity { cpus: 8, memory_mib: 4096, disk_gib: 50 };
        let (known, gone) = (OperatorId([1; 16]), OperatorId([2; 16]));
        let grant = |operator, until| Grant { operator, capacity, vms: 2, until, cause };
        let now = LedgerTime(1_800_000_000_000);
        let view = AccountView {
            account: Account {
                id: AccountId::of(&key),
                key: key.clone(),
                grants: vec![grant(known, now), grant(gone, LedgerTime(now.0 - 1))],
                generation: Generation(1),
                cause,
                keys: Vec::new(),
                opened_by: known,
            },
            used: Capacity::default(),
            vms: 0,
        };
        let operator = OperatorView {
            id: known,
            name: "op1".parse().expect("a name"),
            key,
            standing: OperatorStanding::Present,
            hosts: Vec::new(),
            followers: Vec::new(),
        };
        let shown = show(&view, &[operator], now);
        let line = |begin: &str| shown.lines().find(|line| line.starts_with(begin));
        let live = line("op1").expect("by name");
        assert!(live.contains("4 GiB") && !live.contains("ended"), "{shown}");
        assert!(line("020202020202").expect("by its id").contains("ended"), "{shown}");
    }
}
