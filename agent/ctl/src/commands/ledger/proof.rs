//! `daggerctl ledger proof`: asks a host for a proof and prints it, to be given to others.
//!
//! Owns how an object is named. Never checks what it prints: whoever believes nobody does, with
//! `ledger verify`. Called by `commands::ledger`.

use clap::Subcommand;
use dagger_api::LedgerView;
use dagger_api::proof::ProofView;
use dagger_payload::id::{AccountId, Epoch, HostId, PayloadDigest, VmId, VolumeId};

use super::super::{encode, image};
use crate::failure::Failure;
use crate::session::Session;

pub(super) const EXAMPLES: &str = "\
Examples:
  daggerctl ledger proof vm web-1 > proof.json
  daggerctl ledger verify proof.json --genesis genesis.json
  # That there is no such VM (any more), by its id
  daggerctl ledger proof vm 0123456789abcdef0123456789abcdef > gone.json

A proof is a small JSON document: the object, its path to the state root, and
signed headers of a quorum that name this root. That of a payload also shows
the event that carried it: its path to the event's Merkle root, and the header
that its carrier signed.";

/// What can be proven.
#[derive(Subcommand)]
pub(crate) enum ProofCommand {
    /// What a VM is; by the id of none, that there is no such VM
    #[command(after_help = "Example:\n  daggerctl ledger proof vm web-1 > proof.json")]
    Vm {
        /// Name of a VM of yours, or the id of any
        vm: String,
    },
    /// What a volume is; by the id of none, that there is no such volume
    #[command(after_help = "Example:\n  daggerctl ledger proof volume data > proof.json")]
    Volume {
        /// Name of a volume of yours, or the id of any
        volume: String,
    },
    /// An account's keys and grants
    #[command(after_help = "Example:\n  daggerctl ledger proof account > proof.json")]
    Account {
        /// Its id [default: the key's own account]
        account: Option<AccountId>,
    },
    /// What an account's deleted VMs and volumes have used on a host
    #[command(after_help = "Example:\n  daggerctl ledger proof usage HOST_ID > proof.json")]
    Usage {
        /// The host's id
        host: HostId,
        /// The account's id [default: the key's own account]
        account: Option<AccountId>,
    },
    /// What a host offers, and its keys
    #[command(after_help = "Example:\n  daggerctl ledger proof host host1 > proof.json")]
    Host {
        /// Its name, or its id
        host: String,
    },
    /// Which file an image is, and who registered it
    #[command(after_help = "Example:\n  daggerctl ledger proof image op1/small > proof.json")]
    Image {
        /// publisher/name, or name alone as for `vm create`
        image: String,
    },
    /// That a payload was ordered, where, and what was decided; until its own not_after_ms
    #[command(after_help = "Example:\n  daggerctl ledger proof payload DIGEST > proof.json")]
    Payload {
        /// Its digest
        digest: PayloadDigest,
    },
    /// Whose seat it is, and with which key that host's ledger signs
    #[command(after_help = "Example:\n  daggerctl ledger proof seat host5 > proof.json")]
    Seat {
        /// The host's name, or the seat's number
        seat: String,
    },
    /// Who votes in an epoch, and by which version of the rules it is judged
    #[command(after_help = "Example:\n  daggerctl ledger proof epoch > proof.json")]
    Epoch {
        /// Its number [default: the present one]
        epoch: Option<u64>,
    },
    /// Which key signs for an operator, and whether he takes part
    #[command(after_help = "Example:\n  daggerctl ledger proof operator op5 > proof.json")]
    Operator {
        /// His name, or his id
        operator: String,
    },
    /// What is proposed and who has approved; of one that is not pending, that it is not
    #[command(after_help = "Example:\n  daggerctl ledger proof proposal ID > proof.json")]
    Proposal {
        /// Its whole id (`operator ls --json`)
        proposal: PayloadDigest,
    },
    /// What everything so far adds up to: shows that an exported history is the true one
    #[command(after_help = "Example:\n  daggerctl ledger proof order > proof.json")]
    Order,
}

/// Prints a proof.
pub(super) async fn run(command: ProofCommand, session: &Session) -> Result<(), Failure> {
    let own = async |account: Option<AccountId>| match account {
        Some(account) => Ok::<_, Failure>(account),
        None => session.account().await,
    };
    let below = match command {
        ProofCommand::Vm { vm } if vm.parse::<VmId>().is_ok() => format!("vm/{vm}"),
        ProofCommand::Vm { vm } => format!("vm/{}?account={}", encode(&vm), own(None).await?),
        ProofCommand::Volume { volume } if volume.parse::<VolumeId>().is_ok() => {
            format!("volume/{volume}")
        }
        ProofCommand::Volume { volume } => {
            format!("volume/{}?account={}", encode(&volume), own(None).await?)
        }
        ProofCommand::Account { account } => format!("account/{}", own(account).await?),
        ProofCommand::Usage { host, account } => {
            format!("usage/{}/{host}", own(account).await?)
        }
        ProofCommand::Host { host } => format!("host/{}", encode(&host)),
        ProofCommand::Image { image } => {
            // By its full name also one that is retired, or none.
            let name = match image.contains('/') {
                true => image,
                false => image::resolve(session, &image).await?.name.to_string(),
            };
            let parts: Vec<String> = name.split('/').map(encode).collect();
            format!("image/{}", parts.join("/"))
        }
        ProofCommand::Payload { digest } => format!("payload/{digest}"),
        ProofCommand::Seat { seat } => format!("seat/{}", encode(&seat)),
        ProofCommand::Epoch { epoch: Some(epoch) } => format!("epoch/{epoch}"),
        ProofCommand::Epoch { epoch: None } => format!("epoch/{}", present(session).await?),
        ProofCommand::Operator { operator } => format!("operator/{}", encode(&operator)),
        ProofCommand::Proposal { proposal } => format!("proposal/{proposal}"),
        ProofCommand::Order => "order".to_owned(),
    };
    let proof: ProofView = session.client.get(&format!("/v1/proofs/{below}")).await?;
    session.output.json(&proof)
}

/// The epoch of the next commit.
async fn present(session: &Session) -> Result<Epoch, Failure> {
    let ledger: LedgerView = session.client.get("/v1/ledger").await?;
    Ok(ledger.epoch.epoch)
}
