//! `daggerctl operator`: lists the operators.
//!
//! Owns how operators are shown. Never decides who is one: the genesis does. Called by `main`.

use clap::Subcommand;
use dagger_api::OperatorView;

use crate::failure::Failure;
use crate::output::table;
use crate::session::Session;

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum OperatorCommand {
    /// List operators: whose hosts vote, and the keys with which they sign grants
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl operator ls")]
    Ls,
}

/// Runs a command of the group.
pub(crate) async fn run(command: OperatorCommand, session: &Session) -> Result<(), Failure> {
    match command {
        OperatorCommand::Ls => {
            let operators: Vec<OperatorView> = session.client.get("/v1/operators").await?;
            session.output.show(&operators, |operators| show(operators))
        }
    }
}

fn show(operators: &[OperatorView]) -> String {
    let rows = operators.iter().map(|operator| {
        let hosts: Vec<_> = operator.hosts.iter().map(|host| host.as_str()).collect();
        [
            operator.name.to_string(),
            hosts.len().to_string(),
            hosts.join(", "),
            operator.key.to_string(),
        ]
    });
    table(["OPERATOR", "VOTES", "HOSTS", "KEY"], rows, "No operators.")
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::OperatorId;
    use dagger_payload::key::SecretKey;

    use super::*;

    #[test]
    fn an_operator_is_shown_with_votes_hosts_and_key() {
        let key = SecretKey::from_seed(&[1; 32].into()).public_key();
        let name = |text: &str| text.parse().expect("a name");
        let operator = OperatorView {
            id: OperatorId::of(&key),
            name: name("acme"),
            key: key.clone(),
            hosts: vec![name("a1"), name("a2")],
        };
        let shown = show(&[operator]);
        let row = shown.lines().last().expect("a row");
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words[..4], ["acme", "2", "a1,", "a2"]);
        assert!(row.contains(&key.to_string()), "{row}");
    }
}
