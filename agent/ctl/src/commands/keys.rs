//! `daggerctl account key`: who signs for an account.
//!
//! Owns the arguments of the group. Never makes a key: `ssh-keygen` does. Called by
//! `commands::account` and, to make documents without sending them, by `commands::payload`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use dagger_payload::kind::{AccountAddKey, AccountRemoveKey, AccountRotateKey, Body, KeyRole};
use dagger_payload::object::AccountKey;

use super::{ChangeOptions, Expected};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::Session;
use crate::signer::read_public_key;

pub(crate) const EXAMPLES: &str = "\
Examples:
  ssh-keygen -t ed25519 -f new_key
  # Signed with an owner's old key, which then signs no more
  daggerctl account key rotate new_key.pub
  daggerctl account key add colleague.pub --role operate
  daggerctl account key remove colleague.pub

Roles: owner (everything), operate (everything but keys), read (look, and
change nothing). One key stays owner. Only an owner's key is rotated; an
owner replaces any other: he adds the new key and removes the old. A request
that was signed with an old key and gets its place in the order after the
change is refused.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Let another key sign for your account, or give one that does another role
    Add(KeyChange<AddArguments>),
    /// Let a key sign for your account no more
    Remove(KeyChange<RemoveArguments>),
    /// Put a new key in the place of the owner's that signs this
    Rotate(KeyChange<RotateArguments>),
}

/// A change of keys, and how far to wait for it.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyChange<T: Args> {
    /// What changes.
    #[command(flatten)]
    what: T,
    /// How far to wait.
    #[command(flatten)]
    options: ChangeOptions,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamedRole {
    /// Everything, keys included
    Owner,
    /// Everything but keys
    Operate,
    /// Look, and change nothing
    Read,
}

/// What `account key add` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddArguments {
    // Not `key`: the whole command line has an argument of that id.
    /// The public key
    #[arg(value_name = "FILE.pub")]
    public_key: PathBuf,
    /// What it may do
    #[arg(long, value_enum)]
    role: NamedRole,
    #[command(flatten)]
    expected: Expected,
}

/// What `account key remove` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoveArguments {
    /// The public key
    #[arg(value_name = "FILE.pub")]
    public_key: PathBuf,
    #[command(flatten)]
    expected: Expected,
}

/// What `account key rotate` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct RotateArguments {
    /// The new public key
    #[arg(value_name = "FILE.pub")]
    public_key: PathBuf,
    #[command(flatten)]
    expected: Expected,
}

impl AddArguments {
    /// The body of `account.add_key`.
    pub(crate) fn body(&self) -> Result<Body, Failure> {
        let role = match self.role {
            NamedRole::Owner => KeyRole::Owner,
            NamedRole::Operate => KeyRole::Operate,
            NamedRole::Read => KeyRole::Read,
        };
        let key = read_public_key(&self.public_key)?;
        let expected_generation = self.expected.generation();
        Ok(Body::AccountAddKey(AccountAddKey { key, role, expected_generation }))
    }
}

impl RemoveArguments {
    /// The body of `account.remove_key`.
    pub(crate) fn body(&self) -> Result<Body, Failure> {
        let key = read_public_key(&self.public_key)?;
        let expected_generation = self.expected.generation();
        Ok(Body::AccountRemoveKey(AccountRemoveKey { key, expected_generation }))
    }
}

impl RotateArguments {
    /// The body of `account.rotate_key`.
    pub(crate) fn body(&self) -> Result<Body, Failure> {
        let new_key = read_public_key(&self.public_key)?;
        let expected_generation = self.expected.generation();
        Ok(Body::AccountRotateKey(AccountRotateKey { new_key, expected_generation }))
    }
}

/// Runs a command of the group.
pub(crate) async fn run(command: KeyCommand, session: &Session) -> Result<(), Failure> {
    let (body, options) = match &command {
        KeyCommand::Add(change) => (change.what.body()?, &change.options),
        KeyCommand::Remove(change) => (change.what.body()?, &change.options),
        KeyCommand::Rotate(change) => (change.what.body()?, &change.options),
    };
    let progress = Progress::new(session.output.format);
    let signed = session.sign(None, body).await?;
    let view = session.submit(&signed, options.until(), options.deadline(), &progress).await?;
    drop(progress);
    session.output.show(&view, super::payload::show)
}

/// A key as a row of a table.
pub(crate) fn row(own: &AccountKey) -> [String; 2] {
    let role = match own.role {
        KeyRole::Owner => "owner",
        KeyRole::Operate => "operate",
        KeyRole::Read => "read",
    };
    [role.to_owned(), own.key.to_string()]
}
