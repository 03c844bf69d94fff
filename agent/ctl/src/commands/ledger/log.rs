//! `daggerctl ledger log`: the ordered history, payload by payload.
//!
//! Owns how a part of it is shown. Never leaves anything out but what a session may not see. Called
//! by `commands::ledger`.

use clap::Args;
use dagger_api::Attested;
use dagger_api::log::{LogEntry, LogView};

use super::super::short;
use crate::failure::Failure;
use crate::output::{Format, table};
use crate::session::Session;
use crate::units::show_time;

pub(super) const EXAMPLES: &str = "\
Examples:
  daggerctl ledger log --limit 20                  # the newest
  daggerctl ledger log --from 1 --limit 1000 --json
  daggerctl ledger log --json | \\
      jq -r 'select(.refusal) | [.position, .kind, .refusal.code] | @tsv'

With --json each payload is one line. Over a host's Unix socket, or with an
operator's key, everything is shown; any other key sees what its own account
has signed.";

/// Arguments of `ledger log`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArguments {
    /// Start at this position; 1 is the first [default: the newest payloads]
    #[arg(long, value_name = "POSITION")]
    from: Option<u64>,
    /// How many payloads at most
    #[arg(long, value_name = "N", default_value = "50")]
    limit: usize,
}

/// Shows a part of the log.
pub(super) async fn run(arguments: &LogArguments, session: &Session) -> Result<(), Failure> {
    let mut left = arguments.limit;
    let mut from = arguments.from;
    let mut entries = Vec::new();
    while left > 0 {
        let place = from.map(|from| format!("&from={from}")).unwrap_or_default();
        let part: LogView = session.client.get(&format!("/v1/log?limit={left}{place}")).await?;
        left = left.saturating_sub(part.entries.len());
        if session.output.format == Format::Json {
            part.entries.iter().try_for_each(|entry| session.output.json_line(entry))?;
        } else {
            entries.extend(part.entries);
        }
        match part.next {
            // It only ever grows, so this ends.
            Some(next) if from.is_some_and(|from| next.0 > from) => from = Some(next.0),
            Some(_) | None => break,
        }
    }
    if session.output.format == Format::Json {
        return Ok(());
    }
    let header = ["POSITION", "COMMIT", "LEDGER TIME", "KIND", "SIGNED BY", "VERDICT", "ATTESTED"];
    let nothing = "Nothing is ordered from there on that this key may see.";
    session.output.line(table(header, entries.iter().map(row), nothing))
}

fn row(entry: &LogEntry) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        entry.position.to_string(),
        entry.commit.to_string(),
        show_time(entry.ledger_time),
        or_dash(entry.kind.clone()),
        or_dash(entry.signer_name.as_deref().map(shortened)),
        entry.refusal.as_ref().map_or_else(
            || "accepted".to_owned(),
            |refusal| format!("refused: {}", refusal.code.as_str()),
        ),
        match entry.attested {
            Attested::Yes => "yes",
            Attested::No => "not yet",
        }
        .to_owned(),
    ]
}

/// `account 0123456789ab`, `operator NAME`, `host NAME`.
fn shortened(name: &str) -> String {
    name.strip_prefix("account ")
        .map_or_else(|| name.to_owned(), |id| format!("account {}", short(&id)))
}
