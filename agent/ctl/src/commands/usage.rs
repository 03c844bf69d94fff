//! `daggerctl account usage`: what an account's VMs and volumes have used.
//!
//! Owns how it is shown: hours for people, exact milliseconds with `--json`. Counts nothing itself.
//! Called by `commands::account`.

use dagger_api::UsageView;
use dagger_payload::id::AccountId;
use dagger_payload::usage::Used;

use crate::failure::Failure;
use crate::output::table;
use crate::session::Session;
use crate::units::show_time;

/// Asks for the meters and shows them.
pub(crate) async fn run(
    account: AccountId,
    commit: Option<u64>,
    session: &Session,
) -> Result<(), Failure> {
    let query = commit.map_or_else(String::new, |commit| format!("?commit={commit}"));
    let path = format!("/v1/accounts/{account}/usage{query}");
    let usage: UsageView = session.client.get(&path).await?;
    session.output.show(&usage, show)
}

fn show(usage: &UsageView) -> String {
    let mut rows = Vec::new();
    for host in &usage.hosts {
        let name = host.name.as_ref().map_or_else(|| host.host.to_string(), ToString::to_string);
        let vms = host.vms.iter().map(|vm| (vm.name.to_string(), &vm.used));
        let volumes = &host.volumes;
        let volumes = volumes.iter().map(|one| (format!("{} (volume)", one.name), &one.used));
        let deleted = (host.deleted_used != Used::default())
            .then(|| (format!("({} deleted)", host.deleted_vms), &host.deleted_used));
        rows.extend(
            vms.chain(volumes).chain(deleted).map(|(vm, used)| row([name.clone(), vm], used)),
        );
    }
    rows.push(row(["in all".to_owned(), String::new()], &usage.used));
    let head = ["HOST", "VM", "VCPU HOURS", "MEMORY GIB HOURS", "DISK GIB HOURS"];
    let when = show_time(usage.ledger_time_ms);
    format!("{}as of commit {}, ledger time {when}\n", table(head, rows, ""), usage.commit)
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
    fn hours_are_rounded_down_to_thousandths() {
        assert_eq!(hours(3_600_000 * 2 + 1_800_000, 1), "2.500");
        assert_eq!(hours(3_599, 1), "0.000");
        assert_eq!(hours(512 * 3_600_000, 1024), "0.500");
    }
}
