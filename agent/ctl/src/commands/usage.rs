//! `daggerctl account usage`: what an account's VMs and volumes have used.
//!
//! Owns how it is shown, hours for people, exact milliseconds with `--json`, and how two bills are
//! compared. Counts nothing itself: hosts do, or `commands::past` from an exported history. Called
//! by `commands::account`.

use std::path::{Path, PathBuf};

use clap::Args;
use dagger_api::{ClusterView, UsageView};
use dagger_payload::id::{AccountId, CommitIndex};
use dagger_payload::usage::Used;

use super::past;
use crate::failure::Failure;
use crate::output::{Format, json_text, table};
use crate::session::Session;
use crate::signer::read_small;
use crate::units::show_time;

/// From what a bill is computed when nobody is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct FromLog {
    /// Compute it here, from this exported history (`ledger export`), and ask nobody
    #[arg(long, value_name = "HISTORY", requires_all = ["proof", "genesis"])]
    from_log: Option<PathBuf>,
    /// What shows that the history is the true one (`ledger proof order`)
    #[arg(long, value_name = "PROOF.json", requires = "from_log")]
    proof: Option<PathBuf>,
    /// The document that founded the cluster; have it from somebody whom you trust
    #[arg(long, value_name = "FILE", requires = "from_log")]
    genesis: Option<PathBuf>,
    /// Its operators' signatures [default: the genesis file's name and .sig]
    #[arg(long, value_name = "FILE", requires = "from_log")]
    signatures: Option<PathBuf>,
}

impl FromLog {
    /// What is to be read, if nobody is to be asked.
    fn sources(&self) -> Option<past::Sources<'_>> {
        Some(past::Sources {
            history: self.from_log.as_deref()?,
            proof: self.proof.as_deref()?,
            genesis: self.genesis.as_deref()?,
            signatures: self.signatures.as_deref(),
        })
    }

    /// Whether nobody is to be asked.
    pub(crate) fn is_given(&self) -> bool {
        self.from_log.is_some()
    }
}

/// Asks for the meters, or reads them from a history, and shows them.
pub(crate) async fn run(
    account: AccountId,
    commit: Option<u64>,
    from_log: &FromLog,
    session: &Session,
) -> Result<(), Failure> {
    let usage = match from_log.sources() {
        Some(sources) => past::bill(&sources, account, commit.map(CommitIndex))?,
        None => {
            let query = commit.map_or_else(String::new, |commit| format!("?commit={commit}"));
            session.client.get(&format!("/v1/accounts/{account}/usage{query}")).await?
        }
    };
    session.output.show(&usage, show)
}

/// Compares a bill byte for byte with what the host that answers, or a history, comes to.
pub(crate) async fn check(
    bill: &Path,
    from_log: &FromLog,
    session: &Session,
) -> Result<(), Failure> {
    let text = read_small(bill)?;
    let given: UsageView = serde_json::from_str(&text).map_err(|error| {
        let what = format!("{} is no bill: {error}", bill.display());
        let advice = "A bill is what `account usage --commit N --json` prints.";
        Failure::refused("bill_malformed", what, advice)
    })?;
    let (who, own) = match from_log.sources() {
        Some(sources) => {
            ("the history".to_owned(), past::bill(&sources, given.account, Some(given.commit))?)
        }
        None => {
            let cluster: ClusterView = session.client.get("/v1/cluster").await?;
            let path = format!("/v1/accounts/{}/usage?commit={}", given.account, given.commit);
            (cluster.host_name.to_string(), session.client.get(&path).await?)
        }
    };
    let is_same = json_text(&own)? == text;
    if session.output.format == Format::Json {
        let value = serde_json::json!({ "same": is_same, "host": who, "bill": own });
        session.output.json(&value)?;
    } else if is_same {
        session.output.line(format!(
            "{who} comes to the same bill for account {} as of commit {}, byte for byte ({} bytes)",
            own.account,
            own.commit,
            text.len()
        ))?;
    } else {
        session.output.line(format!("{who} comes to another bill"))?;
        session.output.line(differences(&given, &own))?;
    }
    if is_same { Ok(()) } else { Err(Failure::Found) }
}

/// What stands in one of two bills alone, line by line, exactly.
fn differences(given: &UsageView, own: &UsageView) -> String {
    let (given, own) = (exact(given), exact(own));
    let only = |mark: &'static str, these: &[[String; 5]], others: &[[String; 5]]| {
        let alone = these.iter().filter(|line| !others.contains(line));
        let marked = alone.map(|[host, vm, cpu, memory, disk]| {
            [mark, host, vm, cpu, memory, disk].map(ToString::to_string)
        });
        marked.collect::<Vec<_>>()
    };
    let lines = only("bill", &given, &own).into_iter().chain(only("computed", &own, &given));
    let head = ["OF", "HOST", "VM", "VCPU MS", "MEMORY MIB MS", "DISK GIB MS"];
    table(head, lines, "The numbers are the same; how they are written is not.")
}

fn show(usage: &UsageView) -> String {
    let head = ["HOST", "VM", "VCPU HOURS", "MEMORY GIB HOURS", "DISK GIB HOURS"];
    let when = show_time(usage.ledger_time_ms);
    let rows = table(head, rows(usage, row), "");
    format!("{rows}\n\nas of commit {}, ledger time {when}\n", usage.commit)
}

/// In milliseconds, as they are counted.
fn exact(usage: &UsageView) -> Vec<[String; 5]> {
    let in_milliseconds = |[host, vm]: [String; 2], used: &Used| {
        let Used { cpu_ms, memory_mib_ms, disk_gib_ms } = used;
        [host, vm, cpu_ms.to_string(), memory_mib_ms.to_string(), disk_gib_ms.to_string()]
    };
    rows(usage, in_milliseconds)
}

/// One of each VM and volume, also of deleted VMs, of each sum of what is deleted, in which those
/// are again, and the last one in all.
fn rows(usage: &UsageView, row: impl Fn([String; 2], &Used) -> [String; 5]) -> Vec<[String; 5]> {
    let mut rows = Vec::new();
    for host in &usage.hosts {
        let name = host.name.as_ref().map_or_else(|| host.host.to_string(), ToString::to_string);
        let vms = host.vms.iter().map(|vm| (vm.name.to_string(), &vm.used));
        let volumes = &host.volumes;
        let volumes = volumes.iter().map(|one| (format!("{} (volume)", one.name), &one.used));
        let of_deleted = host.deleted.iter();
        let of_deleted = of_deleted.map(|vm| (format!("({} deleted)", vm.name), &vm.used));
        let deleted = (host.deleted_used != Used::default())
            .then(|| (format!("(all {} deleted)", host.deleted_vms), &host.deleted_used));
        let lines = vms.chain(volumes).chain(of_deleted).chain(deleted);
        rows.extend(lines.map(|(vm, used)| row([name.clone(), vm], used)));
    }
    rows.push(row(["in all".to_owned(), String::new()], &usage.used));
    rows
}

fn row([host, vm]: [String; 2], used: &Used) -> [String; 5] {
    [host, vm, hours(used.cpu_ms, 1), hours(used.memory_mib_ms, 1024), hours(used.disk_gib_ms, 1)]
}

/// Thousandths of an hour, rounded down; `per_unit` of what is counted are one.
fn hours(amount_ms: u64, per_unit: u64) -> String {
    let thousandths = amount_ms / per_unit / 3_600;
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bills_that_differ_are_told_apart_line_by_line() {
        let bill = |cpu_ms: u64| UsageView {
            account: AccountId([1; 16]),
            commit: dagger_payload::id::CommitIndex(7),
            ledger_time_ms: dagger_payload::id::LedgerTime(0),
            hosts: Vec::new(),
            used: Used { cpu_ms, ..Used::default() },
        };
        let told = differences(&bill(3_600_000), &bill(3_600_001));
        let lines: Vec<_> = told.lines().skip(1).collect();
        assert!(lines[0].starts_with("bill      in all") && lines[0].contains("3600000"), "{told}");
        assert!(lines[1].starts_with("computed  in all") && lines[1].contains("3600001"), "{told}");
        assert_eq!(lines.len(), 2, "{told}");
        assert!(differences(&bill(1), &bill(1)).contains("The numbers are the same"));
        let shown = show(&bill(3_600_000));
        assert!(shown.contains("1.000") && shown.contains("\n\nas of commit 7, "), "{shown}");
    }

    #[test]
    fn hours_are_rounded_down_to_thousandths() {
        assert_eq!(hours(3_600_000 * 2 + 1_800_000, 1), "2.500");
        assert_eq!(hours(3_599, 1), "0.000");
        assert_eq!(hours(512 * 3_600_000, 1024), "0.500");
    }
}
