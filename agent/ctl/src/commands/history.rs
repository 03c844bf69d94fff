//! `daggerctl vm history`: what happened to a VM, from the signature that asked to the machine that
//! did.
//!
//! Owns how a history is shown, and checks every payload's digest and signature here, on the
//! reader's machine. Never trusts the agent for those. Called by `commands::vm`.

use std::path::{Path, PathBuf};

use clap::Args;
use dagger_api::{HistoryEntry, HistoryPayload, HistoryView};
use dagger_payload::id::PayloadDigest;
use dagger_payload::name::Name;
use dagger_payload::payload::Payload;
use dagger_payload::sshsig::{self, Namespace};

use super::lookup::vm_path;
use super::vm::VmName;
use crate::failure::Failure;
use crate::limits::HISTORY_ANSWERS_MAX;
use crate::output::Format;
use crate::session::Session;
use crate::units::show_time;

pub(crate) const EXAMPLES: &str = "\
Examples:
  daggerctl vm history web-1
  # Keep each signed request, and check one with stock OpenSSH
  daggerctl vm history web-1 --export proof
  ssh-keygen -Y check-novalidate -n dagger -s proof/POSITION.json.sig \\
      < proof/POSITION.json";

/// Arguments of `vm history`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HistoryArguments {
    /// Which VM.
    #[command(flatten)]
    pub(crate) name: VmName,
    /// Also write each signed document and its signature into this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) export: Option<PathBuf>,
}

/// What was found when a payload was checked here.
enum Checked {
    /// Digest and signature are right.
    Holds,
    /// They are not; this is why.
    Fails(String),
}

/// Shows the history.
pub(crate) async fn run(arguments: &HistoryArguments, session: &Session) -> Result<(), Failure> {
    let path = vm_path(session, &arguments.name.vm, "/history").await?;
    let history = read(session, &path).await?;
    if let Some(directory) = &arguments.export {
        export(directory, &history)?;
    }
    if session.output.format == Format::Json {
        session.output.json(&history)?;
    } else {
        session.output.line(format!("{} ({})", history.name, history.vm))?;
        if let Some(earlier) = history.earlier {
            let left_out =
                format!("(of {HISTORY_ANSWERS_MAX} answers; steps before {earlier} are left out)");
            session.output.line(left_out)?;
        }
        for entry in &history.entries {
            session.output.line(show(entry))?;
        }
    }
    let wrong = history.entries.iter().filter_map(|entry| {
        let payload = entry.payload.as_ref()?;
        match check(payload) {
            Checked::Holds => None,
            Checked::Fails(why) => Some(format!("payload {}: {why}", payload.digest)),
        }
    });
    match wrong.collect::<Vec<_>>() {
        wrong if wrong.is_empty() => Ok(()),
        wrong => Err(Failure::refused(
            "history_not_proven",
            wrong.join("; "),
            "Ask another host with --api; the one that answered shows what was not signed.",
        )),
    }
}

/// The steps, oldest first: all of them, if they come in so many answers; else `earlier` says where
/// they begin.
async fn read(session: &Session, path: &str) -> Result<HistoryView, Failure> {
    let mut history: HistoryView = session.client.get(path).await?;
    let mut parts = vec![std::mem::take(&mut history.entries)];
    // Whatever an agent says of there being more, it ends.
    while let Some(before) = history.earlier.filter(|_| parts.len() < HISTORY_ANSWERS_MAX) {
        let joint = if path.contains('?') { '&' } else { '?' };
        let earlier: HistoryView =
            session.client.get(&format!("{path}{joint}before={before}")).await?;
        if earlier.earlier.is_some_and(|earlier| earlier >= before) {
            return Err(Failure::broken("the agent shows a history that goes in a circle"));
        }
        parts.push(earlier.entries);
        history.earlier = earlier.earlier;
    }
    history.entries = parts.into_iter().rev().flatten().collect();
    Ok(history)
}

/// Checks what needs no trust: the digest covers the document, and the signature is by the key that
/// it names.
fn check(payload: &HistoryPayload) -> Checked {
    let bytes = payload.document.as_bytes();
    if PayloadDigest::of(bytes) != payload.digest {
        return Checked::Fails("the document has another digest".to_owned());
    }
    let signer = match Payload::read(bytes) {
        Ok(document) => document.signer,
        Err(refusal) => return Checked::Fails(refusal.to_string()),
    };
    if signer.to_openssh() != payload.signer {
        return Checked::Fails("the document names another signer".to_owned());
    }
    match sshsig::from_armor(&payload.signature, Namespace::Payload) {
        Ok(read)
            if read.signer == signer
                && sshsig::verifies(&signer, Namespace::Payload, bytes, &read.signature) =>
        {
            Checked::Holds
        }
        Ok(_) => Checked::Fails("the signature does not verify".to_owned()),
        Err(error) => Checked::Fails(error.to_string()),
    }
}

fn show(entry: &HistoryEntry) -> String {
    let place = entry.position.map_or_else(
        || format!("commit {}", entry.commit),
        |position| format!("position {position}, commit {}", entry.commit),
    );
    let mut text = format!("\n{}  {place}\n  {}", show_time(entry.ledger_time), entry.summary);
    let mut fact = |name: &str, value: String| {
        text.push_str(&format!("\n    {name:<12}{value}"));
    };
    if let Some(refusal) = &entry.refusal {
        fact("refused", refusal.to_string());
    }
    if let Some(generation) = entry.generation {
        fact("generation", generation.to_string());
    }
    if let Some(payload) = &entry.payload {
        fact("kind", payload.kind.clone());
        fact("payload", payload.digest.to_string());
        fact("signed by", format!("{}  {}", payload.signer_name, payload.signer));
        fact(
            "checked",
            match check(payload) {
                Checked::Holds => "digest and signature hold".to_owned(),
                Checked::Fails(why) => format!("NOT PROVEN: {why}"),
            },
        );
        fact("carried by", payload.carried_by.to_string());
    }
    let names: Vec<_> = entry.attested_by.iter().map(Name::as_str).collect();
    fact("attested by", if names.is_empty() { "nobody yet".to_owned() } else { names.join(", ") });
    text
}

fn export(directory: &Path, history: &HistoryView) -> Result<(), Failure> {
    std::fs::create_dir_all(directory).map_err(|error| Failure::file(directory, &error))?;
    for entry in &history.entries {
        if let (Some(position), Some(payload)) = (entry.position, &entry.payload) {
            let document = directory.join(format!("{position}.json"));
            std::fs::write(&document, &payload.document)
                .map_err(|error| Failure::file(&document, &error))?;
            let signature = directory.join(format!("{position}.json.sig"));
            std::fs::write(&signature, &payload.signature)
                .map_err(|error| Failure::file(&signature, &error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dagger_payload::id::{ClusterId, LedgerTime, VmId};
    use dagger_payload::key::SecretKey;
    use dagger_payload::kind::{Body, VmChange};
    use zeroize::Zeroizing;

    fn payload() -> HistoryPayload {
        let key = SecretKey::from_seed(&Zeroizing::new([4; 32]));
        let document = Payload {
            cluster: ClusterId([1; 32]),
            signer: key.public_key(),
            not_after: LedgerTime(1),
            body: Body::VmStop(VmChange { vm: VmId([2; 16]), expected_generation: None }.into()),
        };
        let bytes = document.to_bytes();
        let signature = sshsig::sign(&key, Namespace::Payload, &bytes);
        HistoryPayload {
            digest: PayloadDigest::of(&bytes),
            kind: "vm.stop".into(),
            signer: key.public_key().to_openssh(),
            signer_name: "account".into(),
            carried_by: "host1".parse().expect("a name"),
            document: String::from_utf8(bytes).expect("JSON"),
            signature: sshsig::to_armor(&key.public_key(), Namespace::Payload, &signature),
        }
    }

    #[test]
    fn an_agent_that_shows_what_was_not_signed_is_found_out() {
        let honest = payload();
        assert!(matches!(check(&honest), Checked::Holds));
        let mut changed = honest.clone();
        changed.document = changed.document.replace("vm.stop", "vm.delete");
        assert!(matches!(check(&changed), Checked::Fails(_)));
        changed.digest = PayloadDigest::of(changed.document.as_bytes());
        assert!(matches!(check(&changed), Checked::Fails(_)));
        let mut other = honest;
        other.signer = SecretKey::from_seed(&Zeroizing::new([5; 32])).public_key().to_openssh();
        assert!(matches!(check(&other), Checked::Fails(_)));
    }
}
