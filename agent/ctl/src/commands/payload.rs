//! `daggerctl payload`: every step between a wish and a signed request, one at a time.
//!
//! Owns the arguments of the group and how a payload is shown. Never sends what was not asked to be
//! sent. Called by `main`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use dagger_api::{Attested, PayloadState, PayloadView};
use dagger_payload::id::PayloadDigest;
use dagger_payload::kind::{Body, Protection};
use dagger_payload::limits::PAYLOAD_BYTES_MAX;
use dagger_payload::payload::Payload;
use dagger_payload::sshsig::{self, Namespace};
use serde_json::json;

use super::account::{GrantArguments, RevokeArguments, grant_body};
use super::host::{DutyWhat, JoinArguments, RotateLedgerKeyArguments, duty_body, join_body};
use super::image::{RegisterArguments, RetireArguments, register_body};
use super::keys::{AddArguments, RemoveArguments, RotateArguments};
use super::operator::{NewOperatorKey, ProposalName, ProposeWhat};
use super::vm::{
    ChangeWhat, CreateArguments, ResizeWhat, StopWhat, change_body, create_body, protect,
    resize_body, stop_body, unprotect,
};
use super::vm_network::NetworkWhat;
use super::volume;
use super::volume_snapshots;
use super::{ChangeOptions, Wait};
use crate::failure::Failure;
use crate::output::facts;
use crate::progress::Progress;
use crate::session::{Session, Signed, sign_bytes};
use crate::signer::read_signatures;

const MAKE_EXAMPLES: &str = "\
Example: order a VM with ssh-keygen and curl, without handing your key to
daggerctl
  daggerctl payload make vm.create web-1 --image tiny --cpus 1 \\
      --memory 512MiB --disk 2GiB --ssh-key ~/.ssh/id_ed25519.pub \\
      --key ~/.ssh/id_ed25519.pub > request.json
  ssh-keygen -Y sign -n dagger -f ~/.ssh/id_ed25519 request.json
  curl --unix-socket /run/dagger/api/api.sock http://localhost/v1/payloads \\
      --data-binary @request.json \\
      -H \"dagger-signature: $(grep -v -- ---- request.json.sig | tr -d '\\n')\"";

const SIGN_EXAMPLES: &str = "\
Examples:
  daggerctl payload sign request.json            # writes request.json.sig
  # Prints the value of the header dagger-signature
  daggerctl payload sign request.json --header
  # The same with OpenSSH alone
  ssh-keygen -Y sign -n dagger -f ~/.ssh/id_ed25519 request.json";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum PayloadCommand {
    /// Print the unsigned document of a request
    #[command(after_help = MAKE_EXAMPLES)]
    Make {
        /// The kind of request.
        #[command(subcommand)]
        kind: Box<MakeKind>,
    },
    /// Sign a document's exact bytes
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(SignArguments),
    /// Hand a signed document in; doing so twice, or at two agents, counts once
    #[command(after_help = "Example:\n  daggerctl payload send request.json --wait ordered")]
    Send {
        /// The document; its signature is in FILE.sig
        file: PathBuf,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Show where a payload stands
    #[command(after_help = "Example:\n  daggerctl payload show 3fb1...")]
    Show {
        /// Its digest (64 hex digits)
        digest: PayloadDigest,
    },
    /// Print the digest under which a document is known
    #[command(after_help = "Example:\n  daggerctl payload digest request.json")]
    Digest {
        /// The document, or - for standard input
        file: PathBuf,
    },
}

/// Arguments of `payload sign`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SignArguments {
    /// The document, or - for standard input (the signature then goes to standard output)
    file: PathBuf,
    /// Print the value of the HTTP header instead of writing FILE.sig
    #[arg(long)]
    header: bool,
}

/// What `vm.protect` and `volume.protect` make of a VM or a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamedProtection {
    /// It cannot be deleted
    Protected,
    /// It can
    Unprotected,
}

/// The kinds of request that can be made.
#[derive(Subcommand)]
pub(crate) enum MakeKind {
    /// As `daggerctl vm create`
    #[command(name = "vm.create")]
    VmCreate(CreateArguments),
    /// As `daggerctl vm start`
    #[command(name = "vm.start")]
    VmStart(ChangeWhat),
    /// As `daggerctl vm stop`
    #[command(name = "vm.stop")]
    VmStop(StopWhat),
    /// As `daggerctl vm pause`
    #[command(name = "vm.pause")]
    VmPause(ChangeWhat),
    /// As `daggerctl vm resume`
    #[command(name = "vm.resume")]
    VmResume(ChangeWhat),
    /// As `daggerctl vm reboot`
    #[command(name = "vm.reboot")]
    VmReboot(ChangeWhat),
    /// As `daggerctl vm resize`
    #[command(name = "vm.resize")]
    VmResize(ResizeWhat),
    /// As `daggerctl vm network`
    #[command(name = "vm.network")]
    VmNetwork(NetworkWhat),
    /// As `daggerctl vm protect` and `vm unprotect`
    #[command(name = "vm.protect")]
    VmProtect {
        /// Which VM.
        #[command(flatten)]
        what: ChangeWhat,
        /// What it becomes
        #[arg(long, value_enum, default_value = "protected")]
        protection: NamedProtection,
    },
    /// As `daggerctl vm delete`
    #[command(name = "vm.delete")]
    VmDelete(ChangeWhat),
    /// As `daggerctl volume create`
    #[command(name = "volume.create")]
    VolumeCreate(volume::CreateArguments),
    /// As `daggerctl volume attach`
    #[command(name = "volume.attach")]
    VolumeAttach(volume::AttachArguments),
    /// As `daggerctl volume detach`
    #[command(name = "volume.detach")]
    VolumeDetach(volume::DetachArguments),
    /// As `daggerctl volume grow`
    #[command(name = "volume.grow")]
    VolumeGrow(volume::GrowArguments),
    /// As `daggerctl volume protect` and `volume unprotect`
    #[command(name = "volume.protect")]
    VolumeProtect {
        /// Which volume.
        #[command(flatten)]
        what: volume::ProtectArguments,
        /// What it becomes
        #[arg(long, value_enum, default_value = "protected")]
        protection: NamedProtection,
    },
    /// As `daggerctl volume delete`
    #[command(name = "volume.delete")]
    VolumeDelete(volume::DeleteArguments),
    /// As `daggerctl volume snapshot`
    #[command(name = "volume.snapshot")]
    VolumeSnapshot(volume_snapshots::TakeArguments),
    /// As `daggerctl volume restore`
    #[command(name = "volume.restore")]
    VolumeRestore(volume_snapshots::RestoreArguments),
    /// As `daggerctl volume clone`
    #[command(name = "volume.clone")]
    VolumeClone(volume_snapshots::CloneArguments),
    /// As `daggerctl volume delete-snapshot`
    #[command(name = "snapshot.delete")]
    SnapshotDelete(volume_snapshots::DeleteSnapshotArguments),
    /// As `daggerctl account grant`
    #[command(name = "account.grant")]
    AccountGrant(GrantArguments),
    /// As `daggerctl account revoke`
    #[command(name = "account.revoke")]
    AccountRevoke(RevokeArguments),
    /// As `daggerctl account key add`
    #[command(name = "account.add_key")]
    AccountAddKey(AddArguments),
    /// As `daggerctl account key remove`
    #[command(name = "account.remove_key")]
    AccountRemoveKey(RemoveArguments),
    /// As `daggerctl account key rotate`
    #[command(name = "account.rotate_key")]
    AccountRotateKey(RotateArguments),
    /// As `daggerctl image retire`
    #[command(name = "image.retire")]
    ImageRetire(RetireArguments),
    /// As `daggerctl image register`
    #[command(name = "image.register")]
    ImageRegister(RegisterArguments),
    /// As `daggerctl host drain`
    #[command(name = "host.drain")]
    HostDrain(DutyWhat),
    /// As `daggerctl host resume`
    #[command(name = "host.resume")]
    HostResume(DutyWhat),
    /// As `daggerctl host leave`
    #[command(name = "host.leave")]
    HostLeave(DutyWhat),
    /// As `daggerctl host rotate-ledger-key`
    #[command(name = "host.rotate_ledger_key")]
    HostRotateLedgerKey(RotateLedgerKeyArguments),
    /// As `daggerctl operator propose`
    #[command(name = "operator.propose")]
    OperatorPropose {
        /// What is to change
        #[command(subcommand)]
        what: ProposeWhat,
    },
    /// As `daggerctl operator approve`
    #[command(name = "operator.approve")]
    OperatorApprove(ProposalName),
    /// As `daggerctl operator withdraw`
    #[command(name = "operator.withdraw")]
    OperatorWithdraw(ProposalName),
    /// As `daggerctl operator rotate-key`
    #[command(name = "operator.rotate_key")]
    OperatorRotateKey(NewOperatorKey),
    /// As `daggerctl host join`
    #[command(name = "host.join")]
    HostJoin(JoinArguments),
}

/// Runs a command of the group.
pub(crate) async fn run(command: PayloadCommand, session: &Session) -> Result<(), Failure> {
    match command {
        PayloadCommand::Make { kind } => {
            let body = body_of(&kind, session).await?;
            let document = session.document(&session.signing_key()?, body).await?;
            session.output.bytes(&document.to_bytes())
        }
        PayloadCommand::Sign(arguments) => sign(&arguments, session),
        PayloadCommand::Send { file, options } => send(&file, &options, session).await,
        PayloadCommand::Show { digest } => {
            let view: PayloadView = session.client.get(&format!("/v1/payloads/{digest}")).await?;
            session.output.show(&view, show)
        }
        PayloadCommand::Digest { file } => {
            let digest = PayloadDigest::of(&read_document(&file)?);
            session.output.show(&json!({ "digest": digest }), |_| digest.to_string())
        }
    }
}

async fn body_of(kind: &MakeKind, session: &Session) -> Result<Body, Failure> {
    Ok(match kind {
        MakeKind::VmCreate(arguments) => create_body(arguments, session).await?,
        MakeKind::VmStart(what) => Body::VmStart(change_body(what, session).await?),
        MakeKind::VmStop(what) => Body::VmStop(stop_body(what, session).await?),
        MakeKind::VmPause(what) => Body::VmPause(change_body(what, session).await?),
        MakeKind::VmResume(what) => Body::VmResume(change_body(what, session).await?),
        MakeKind::VmReboot(what) => Body::VmReboot(change_body(what, session).await?),
        MakeKind::VmResize(what) => resize_body(what, session).await?,
        MakeKind::VmDelete(what) => Body::VmDelete(change_body(what, session).await?),
        MakeKind::VmNetwork(what) => Body::VmNetwork(what.body(session).await?),
        MakeKind::VmProtect { what, protection } => {
            let change = change_body(what, session).await?;
            match protection {
                NamedProtection::Protected => protect(change),
                NamedProtection::Unprotected => unprotect(change),
            }
        }
        MakeKind::VolumeCreate(arguments) => arguments.body(session).await?,
        MakeKind::VolumeAttach(arguments) => Body::VolumeAttach(arguments.body(session).await?),
        MakeKind::VolumeDetach(arguments) => Body::VolumeDetach(arguments.body(session).await?),
        MakeKind::VolumeGrow(arguments) => Body::VolumeGrow(arguments.body(session).await?),
        MakeKind::VolumeProtect { what, protection } => {
            let protection = match protection {
                NamedProtection::Protected => Protection::Protected,
                NamedProtection::Unprotected => Protection::Unprotected,
            };
            Body::VolumeProtect(what.body(protection, session).await?)
        }
        MakeKind::VolumeDelete(arguments) => Body::VolumeDelete(arguments.body(session).await?),
        MakeKind::VolumeSnapshot(arguments) => Body::VolumeSnapshot(arguments.body(session).await?),
        MakeKind::VolumeRestore(arguments) => Body::VolumeRestore(arguments.body(session).await?),
        MakeKind::VolumeClone(arguments) => Body::VolumeClone(arguments.body(session).await?),
        MakeKind::SnapshotDelete(arguments) => Body::SnapshotDelete(arguments.body(session).await?),
        MakeKind::AccountRevoke(arguments) => arguments.body(session).await?,
        MakeKind::AccountAddKey(arguments) => arguments.body()?,
        MakeKind::AccountRemoveKey(arguments) => arguments.body()?,
        MakeKind::AccountRotateKey(arguments) => arguments.body()?,
        MakeKind::ImageRetire(arguments) => arguments.body(),
        MakeKind::HostDrain(host) => Body::HostDrain(duty_body(host, session).await?),
        MakeKind::HostLeave(host) => Body::HostLeave(duty_body(host, session).await?),
        MakeKind::HostRotateLedgerKey(arguments) => arguments.body(session).await?,
        MakeKind::OperatorPropose { what } => what.body(session).await?,
        MakeKind::OperatorApprove(proposal) => {
            Body::OperatorApprove(proposal.change(session).await?)
        }
        MakeKind::OperatorWithdraw(proposal) => {
            Body::OperatorWithdraw(proposal.change(session).await?)
        }
        MakeKind::OperatorRotateKey(arguments) => arguments.body()?,
        MakeKind::HostResume(host) => Body::HostResume(duty_body(host, session).await?),
        MakeKind::AccountGrant(arguments) => grant_body(arguments, session).await?,
        MakeKind::ImageRegister(arguments) => {
            let progress = Progress::new(session.output.format);
            Body::ImageRegister(register_body(arguments, &progress)?)
        }
        MakeKind::HostJoin(arguments) => join_body(arguments)?,
    })
}

fn sign(arguments: &SignArguments, session: &Session) -> Result<(), Failure> {
    let bytes = read_document(&arguments.file)?;
    let document = Payload::read(&bytes)?;
    let key = session.signing_key()?;
    if document.signer != *key.public_key() {
        return Err(Failure::refused(
            "signer_differs",
            format!("the document names the signer {}, not your key", document.signer),
            "Name that key with --key, or make the document again with yours.",
        ));
    }
    if arguments.header {
        let signed = sign_bytes(&key, bytes.into())?;
        return session.output.line(signed.signature);
    }
    let armor = key.sign_armored(Namespace::Payload, &bytes)?;
    if arguments.file.as_os_str() == "-" {
        return session.output.bytes(armor.as_bytes());
    }
    let path = signature_path(&arguments.file);
    let written =
        std::fs::File::create(&path).and_then(|mut file| file.write_all(armor.as_bytes()));
    written.map_err(|error| Failure::file(&path, &error))?;
    let digest = PayloadDigest::of(&bytes);
    session.output.show(&json!({ "digest": digest, "signature": path }), |_| {
        format!("payload {digest} signed with {}: {}", key.path().display(), path.display())
    })
}

async fn send(file: &Path, options: &ChangeOptions, session: &Session) -> Result<(), Failure> {
    if options.wait == Wait::Applied {
        let what = "a document that is sent by hand is followed until it is ordered at most";
        return Err(Failure::usage(what, "Use --wait ordered, then `daggerctl vm why NAME`."));
    }
    let bytes = read_document(file)?;
    let path = signature_path(file);
    let without = format!("Sign it first: `daggerctl payload sign {}`.", file.display());
    let armor = read_signatures(&path, without)?;
    let signature = sshsig::from_armor(&armor, Namespace::Payload).map_err(|error| {
        let what = format!("{}: {error}", path.display());
        Failure::refused("signature_invalid", what, "Sign it: `daggerctl payload sign FILE`.")
    })?;
    let signed = Signed {
        digest: PayloadDigest::of(&bytes),
        signature: sshsig::to_base64(&signature.signer, Namespace::Payload, &signature.signature),
        bytes: bytes.into(),
    };
    let progress = Progress::new(session.output.format);
    let view = session.submit(&signed, options.until(), options.deadline(), &progress).await?;
    drop(progress);
    session.output.show(&view, show)
}

fn signature_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// Reads a document, no more of it than may be sent.
fn read_document(file: &Path) -> Result<Vec<u8>, Failure> {
    let limit = PAYLOAD_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::file(file, &error))?;
    Ok(bytes)
}

/// Where a payload stands.
pub(crate) fn show(view: &PayloadView) -> String {
    let state = match view.state {
        PayloadState::Received => "received: durable on the host that answers, not yet ordered",
        PayloadState::Ordered => "ordered, not yet judged by the host that answers",
        PayloadState::Accepted => "accepted",
        PayloadState::Refused => "refused",
    };
    facts([
        ("payload", view.digest.to_string()),
        ("state", state.to_owned()),
        ("position", view.position.map(|position| position.to_string()).unwrap_or_default()),
        (
            "attested",
            match view.attested {
                Attested::Yes => "by a quorum of hosts".to_owned(),
                Attested::No => "not yet".to_owned(),
            },
        ),
        ("refusal", view.refusal.as_ref().map(ToString::to_string).unwrap_or_default()),
        (
            "the rule",
            view.refusal.as_ref().map(|why| why.code.rule().to_owned()).unwrap_or_default(),
        ),
        ("vm", view.vm.map(|vm| vm.to_string()).unwrap_or_default()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_stands_beside_its_document_as_ssh_keygen_writes_it() {
        assert_eq!(signature_path(Path::new("a/r.json")), Path::new("a/r.json.sig"));
    }

    #[test]
    fn every_kind_that_people_sign_can_be_made() {
        use clap::CommandFactory;
        let arguments = crate::arguments::Arguments::command();
        let payload = arguments.find_subcommand("payload").expect("payload");
        let make = payload.find_subcommand("make").expect("make");
        let kinds: Vec<_> = make.get_subcommands().map(|kind| kind.get_name()).collect();
        // Reports are signed by hosts.
        for kind in Body::KINDS.iter().filter(|kind| !kind.starts_with("report.")) {
            assert!(kinds.contains(kind), "{kind}");
        }
    }
}
