//! `daggerctl genesis`: makes, signs and checks the document that founds a cluster.
//!
//! Owns the arguments of the group; shape and checks of the document are `dagger_payload`'s. Never
//! founds anything by itself: daemons start only with every operator's signature. Called by `main`
//! and `cluster::identity`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::ClusterId;
use dagger_payload::name::Name;
use dagger_payload::sshsig::Namespace;
use dagger_payload::votes::Votes;
use serde_json::json;

use super::ledger::survives;
use crate::failure::Failure;
use crate::output::{facts, table};
use crate::session::Session;
use crate::signer::{SigningKey, read_public_key, read_small};

/// Rounds behind the committed leader that stay open for late events.
pub(crate) const COLLECTION_DEPTH_ROUNDS: u64 = 64;
/// Commits between a decision on membership and the next epoch.
pub(crate) const HANDOVER_DISTANCE_COMMITS: u64 = 16;

const EXAMPLES: &str = "\
Example: three organisations found a cluster
  daggerctl genesis make --name north --operator acme=acme.pub \\
      --operator bolt=bolt.pub --operator core=core.pub \\
      --host a1=acme,a1-ledger.pub,192.0.2.1:7400 \\
      --host b1=bolt,b1-ledger.pub,192.0.2.2:7400 \\
      --host c1=core,c1-ledger.pub,192.0.2.3:7400 > genesis.json
  # each operator, after reading it:
  daggerctl genesis sign genesis.json --key acme
  # anyone:
  daggerctl genesis show genesis.json";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum GenesisCommand {
    /// Print a new, unsigned document
    #[command(after_help = EXAMPLES)]
    Make(MakeArguments),
    /// Add your signature, as one of its operators, to FILE.sig
    #[command(after_help = EXAMPLES)]
    Sign {
        /// The document
        file: PathBuf,
    },
    /// Show a document and whether all of its operators have signed
    #[command(after_help = EXAMPLES)]
    Show {
        /// The document; its signatures are in FILE.sig
        file: PathBuf,
    },
}

/// Arguments of `genesis make`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MakeArguments {
    /// What the cluster is called
    #[arg(long)]
    name: Name,
    /// A founding operator; may be repeated
    #[arg(long, value_name = "NAME=FILE.pub", required = true)]
    operator: Vec<OperatorArgument>,
    /// A founding host; may be repeated
    #[arg(long, value_name = "NAME=OPERATOR,LEDGER_KEY.pub,ADDRESS:PORT", required = true)]
    host: Vec<HostArgument>,
    /// Whether payloads are judged
    #[arg(long, value_enum, default_value = "judged")]
    mode: ModeArgument,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// Every payload is judged
    Judged,
    /// Payloads are ordered unread; for benchmarks of the ledger alone
    Opaque,
}

#[derive(Debug, Clone)]
struct OperatorArgument {
    name: Name,
    key: PathBuf,
}

impl FromStr for OperatorArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, key) = text.split_once('=').ok_or("write NAME=FILE.pub")?;
        let name = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
        Ok(Self { name, key: key.into() })
    }
}

#[derive(Debug, Clone)]
struct HostArgument {
    name: Name,
    operator: Name,
    ledger_key: PathBuf,
    address: SocketAddr,
}

impl FromStr for HostArgument {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let rule = "write NAME=OPERATOR,LEDGER_KEY.pub,ADDRESS:PORT";
        let (name, rest) = text.split_once('=').ok_or(rule)?;
        let [operator, ledger_key, address] =
            rest.split(',').collect::<Vec<_>>().try_into().map_err(|_| rule)?;
        Ok(Self {
            name: name.parse().map_err(|error| format!("{name:?}: {error}"))?,
            operator: operator.parse().map_err(|error| format!("{operator:?}: {error}"))?,
            ledger_key: ledger_key.into(),
            address: address.parse().map_err(|error| format!("{address:?}: {error}"))?,
        })
    }
}

/// Runs a command of the group.
pub(crate) fn run(command: GenesisCommand, session: &Session) -> Result<(), Failure> {
    match command {
        GenesisCommand::Make(arguments) => make(arguments, session),
        GenesisCommand::Sign { file } => {
            sign(&file, &session.signing_key()?)?;
            let path = signatures_path(&file);
            session
                .output
                .show(&json!({ "signatures": path }), |_| format!("signed: {}", path.display()))
        }
        GenesisCommand::Show { file } => show(&file, session),
    }
}

fn make(arguments: MakeArguments, session: &Session) -> Result<(), Failure> {
    let mut operators = Vec::new();
    for operator in arguments.operator {
        operators
            .push(GenesisOperator { key: read_public_key(&operator.key)?, name: operator.name });
    }
    let mut hosts = Vec::new();
    for host in arguments.host {
        hosts.push(GenesisHost {
            ledger_key: read_public_key(&host.ledger_key)?,
            name: host.name,
            operator: host.operator,
            address: host.address,
        });
    }
    let mode = match arguments.mode {
        ModeArgument::Judged => GenesisMode::Judged,
        ModeArgument::Opaque => GenesisMode::Opaque,
    };
    session.output.bytes(&compose(arguments.name, mode, operators, hosts)?)
}

/// The bytes of a new document, checked.
pub(crate) fn compose(
    name: Name,
    mode: GenesisMode,
    operators: Vec<GenesisOperator>,
    hosts: Vec<GenesisHost>,
) -> Result<Vec<u8>, Failure> {
    let genesis = Genesis {
        dagger: 1,
        nonce: random_hex()?,
        name,
        mode,
        operators,
        hosts,
        collection_depth_rounds: COLLECTION_DEPTH_ROUNDS,
        handover_distance_commits: HANDOVER_DISTANCE_COMMITS,
        commit_bytes_max: None,
    };
    let bytes = genesis.to_bytes();
    Genesis::read(&bytes).map_err(|error| {
        Failure::usage(error.to_string(), "Correct the names, keys and addresses.")
    })?;
    check_balance(&genesis)?;
    Ok(bytes)
}

/// No operator founds, or signs, a cluster in which one of four or more can break it alone.
fn check_balance(genesis: &Genesis) -> Result<(), Failure> {
    Votes::at_founding(genesis).check_balance().map_err(|error| {
        let advice = "List fewer hosts of this operator, or more of the others.";
        Failure::refused("votes_unbalanced", error.at_founding(genesis), advice)
    })
}

/// 32 random hex digits.
pub(crate) fn random_hex() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::broken(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds one signature to the document's signature file; signing twice changes nothing.
pub(crate) fn sign(file: &Path, key: &SigningKey) -> Result<(), Failure> {
    let text = read_small(file)?;
    let genesis = read(text.as_bytes())?;
    if !genesis.operators.iter().any(|operator| operator.key == *key.public_key()) {
        return Err(Failure::refused(
            "not_an_operator",
            format!("{} is no key of an operator in this document", key.public_key()),
            "Name your operator's key with --key.",
        ));
    }
    check_balance(&genesis)?;
    let armor = key.sign_armored(Namespace::Genesis, text.as_bytes())?;
    let path = signatures_path(file);
    let before = if path.exists() { read_small(&path)? } else { String::new() };
    if before.contains(armor.trim()) {
        return Ok(());
    }
    let separator = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let after = format!("{before}{separator}{}\n", armor.trim_end());
    std::fs::write(&path, after).map_err(|error| Failure::file(&path, &error))
}

fn read(bytes: &[u8]) -> Result<Genesis, Failure> {
    Genesis::read(bytes).map_err(|error| {
        let advice = "Make it with `daggerctl genesis make`, and do not edit it after signing.";
        Failure::refused("genesis_invalid", error.to_string(), advice)
    })
}

/// `genesis.json` -> `genesis.json.sig`.
pub(crate) fn signatures_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

fn show(file: &Path, session: &Session) -> Result<(), Failure> {
    let text = read_small(file)?;
    let genesis = read(text.as_bytes())?;
    let cluster = ClusterId::of(text.as_bytes());
    let signatures = read_small(&signatures_path(file)).unwrap_or_default();
    let signed = genesis.check_signatures(text.as_bytes(), &signatures);
    let state = match &signed {
        Ok(()) => "by every operator".to_owned(),
        Err(error) => format!("NOT complete: {error}"),
    };
    let value = json!({ "cluster": cluster, "genesis": genesis, "signed": signed.is_ok() });
    let votes = Votes::at_founding(&genesis);
    session.output.show(&value, |_| {
        let head = facts([
            ("name", genesis.name.to_string()),
            ("cluster", cluster.to_string()),
            ("signed", state.clone()),
            ("survives", survives(votes.hosts_survived(), votes.operators_survived())),
        ]);
        let operators = genesis
            .operators
            .iter()
            .map(|operator| [operator.name.to_string(), operator.key.to_string()]);
        let hosts = genesis.hosts.iter().map(|host| {
            [
                host.name.to_string(),
                host.operator.to_string(),
                host.address.to_string(),
                host.id().to_string(),
            ]
        });
        format!(
            "{head}\n\n{}\n\n{}",
            table(["OPERATOR", "KEY"], operators, "No operators."),
            table(["HOST", "OPERATOR", "ADDRESS", "ID"], hosts, "No hosts.")
        )
    })?;
    signed.map_err(|error| {
        let advice = "Every operator signs: `daggerctl genesis sign FILE --key OPERATOR_KEY`.";
        Failure::refused("genesis_unsigned", error.to_string(), advice)
    })
}
