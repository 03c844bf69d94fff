//! Signs with the user's SSH key: in this process when the key file is not encrypted, otherwise
//! through `ssh-keygen -Y sign`, which asks for the passphrase or uses the ssh-agent.
//!
//! Owns finding the key and its public half. Never prints, copies or stores a secret. Called by
//! whoever makes payloads.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dagger_payload::key::{KeyError, PublicKey, SecretKey, Signature};
use dagger_payload::sshsig::{self, Namespace};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::limits::SMALL_FILE_BYTES_MAX;

/// How a signature is made.
enum Method {
    /// With a key in memory.
    InProcess(SecretKey),
    /// By `ssh-keygen -Y sign -f` this file: an encrypted private key, or a public key whose other
    /// half an ssh-agent holds.
    SshKeygen(PathBuf),
}

/// A key that can sign.
pub(crate) struct SigningKey {
    public: PublicKey,
    path: PathBuf,
    method: Method,
}

impl SigningKey {
    /// Opens the key at `path`: a private key file, or a `.pub` file for a key in the ssh-agent.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path.extension().is_some_and(|extension| extension == "pub") {
            return Ok(Self {
                public: read_public_key(path)?,
                path: path.to_owned(),
                method: Method::SshKeygen(path.to_owned()),
            });
        }
        let public_path = with_pub(path);
        if !path.exists() && public_path.exists() {
            return Self::open(&public_path);
        }
        check_permissions(path)?;
        let text = Zeroizing::new(read_small(path)?);
        match SecretKey::from_openssh(&text) {
            Ok(secret) => Ok(Self {
                public: secret.public_key(),
                path: path.to_owned(),
                method: Method::InProcess(secret),
            }),
            Err(KeyError::Encrypted) => Ok(Self {
                public: read_public_key(&public_path)?,
                path: path.to_owned(),
                method: Method::SshKeygen(path.to_owned()),
            }),
            Err(error) => Err(Failure::refused(
                "key_unreadable",
                format!("{}: {error}", path.display()),
                "Make a key with `ssh-keygen -t ed25519` and name it with --key or $DAGGER_KEY.",
            )),
        }
    }

    /// The public half.
    pub(crate) fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Where the key was found.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Signs `message`. The signature is checked before it is returned.
    pub(crate) fn sign(&self, namespace: Namespace, message: &[u8]) -> Result<Signature, Failure> {
        match &self.method {
            Method::InProcess(secret) => Ok(sshsig::sign(secret, namespace, message)),
            Method::SshKeygen(path) => {
                let armor = ssh_keygen_sign(path, namespace, message)?;
                let read = sshsig::from_armor(&armor, namespace).map_err(|error| {
                    Failure::refused("signer_unsupported", error.to_string(), ED25519_ADVICE)
                })?;
                let is_ours = read.signer == self.public;
                if is_ours && sshsig::verifies(&self.public, namespace, message, &read.signature) {
                    return Ok(read.signature);
                }
                Err(Failure::refused(
                    "key_mismatch",
                    format!("ssh-keygen signed with another key than {}.pub", path.display()),
                    "Bring the private key and its .pub file together again.",
                ))
            }
        }
    }

    /// The armoured signature, as `ssh-keygen -Y sign` writes it to a `.sig` file.
    pub(crate) fn sign_armored(
        &self,
        namespace: Namespace,
        message: &[u8],
    ) -> Result<String, Failure> {
        let signature = self.sign(namespace, message)?;
        Ok(sshsig::to_armor(&self.public, namespace, &signature))
    }
}

const ED25519_ADVICE: &str = "Sign with a plain ed25519 key: `ssh-keygen -t ed25519`.";

/// The key that is used when none is named: `~/.ssh/id_ed25519`.
pub(crate) fn default_path() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(|home| PathBuf::from(home).join(".ssh/id_ed25519"))
        .ok_or_else(|| Failure::usage("no key is named and $HOME is not set", "Give --key FILE."))
}

/// Reads a `.pub` file that holds an ed25519 key.
pub(crate) fn read_public_key(path: &Path) -> Result<PublicKey, Failure> {
    read_small(path)?.trim().parse().map_err(|error: KeyError| {
        Failure::refused("key_unreadable", format!("{}: {error}", path.display()), ED25519_ADVICE)
    })
}

/// Reads the signatures in the file at `path`; `without` says what to do when there is none.
pub(crate) fn read_signatures(path: &Path, without: String) -> Result<String, Failure> {
    let is_missing = path.try_exists().is_ok_and(|is_there| !is_there);
    if is_missing {
        let what = format!("there is no signature: {} is missing", path.display());
        return Err(Failure::refused("not_signed", what, without));
    }
    read_small(path)
}

/// Reads a small text file.
pub(crate) fn read_small(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(SMALL_FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(count) if count as u64 > SMALL_FILE_BYTES_MAX => Err(Failure::refused(
            "file_too_large",
            format!("{} is larger than 1 MiB", path.display()),
            "Check that this is the right file.",
        )),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::file(path, &error)),
    }
}

/// `KEY` -> `KEY.pub`.
pub(crate) fn with_pub(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Refuses, as OpenSSH does, a private key that others can read.
fn check_permissions(path: &Path) -> Result<(), Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        let what = format!("signing key {}: {error}", path.display());
        let advice =
            "Make one with `ssh-keygen -t ed25519`, or name yours with --key or $DAGGER_KEY.";
        Failure::refused("key_unreadable", what, advice)
    })?;
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Failure::refused(
        "key_exposed",
        format!("{} can be read by others", path.display()),
        format!("chmod 600 {}", path.display()),
    ))
}

fn ssh_keygen_sign(path: &Path, namespace: Namespace, message: &[u8]) -> Result<String, Failure> {
    let failed = |what: String| {
        let advice = "Unlock the key, or add it to your ssh-agent with ssh-add.";
        Failure::refused("signing_failed", what, advice)
    };
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", namespace.as_str(), "-f"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("ssh-keygen cannot be run: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A failed write shows in the exit code, with ssh-keygen's own words.
        let _ = input.write_all(message);
    }
    let output =
        child.wait_with_output().map_err(|error| failed(format!("ssh-keygen: {error}")))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(format!("ssh-keygen could not sign: {words}")));
    }
    String::from_utf8(output.stdout).map_err(|_| failed("ssh-keygen wrote no text".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(directory: &Path, name: &str, passphrase: &str) -> PathBuf {
        let path = directory.join(name);
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f"])
            .arg(&path)
            .status()
            .expect("ssh-keygen runs");
        assert!(status.success());
        path
    }

    /// What `ssh-keygen -Y verify` says about our armour.
    fn ssh_keygen_accepts(directory: &Path, key: &SigningKey, message: &[u8], armor: &str) -> bool {
        let signers = directory.join("signers");
        std::fs::write(&signers, format!("me {}\n", key.public_key())).expect("write");
        let signature = directory.join("message.sig");
        std::fs::write(&signature, armor).expect("write");
        let mut child = Command::new("ssh-keygen")
            .args(["-Y", "verify", "-n", "dagger", "-I", "me", "-f"])
            .arg(&signers)
            .arg("-s")
            .arg(&signature)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ssh-keygen runs");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(message).expect("write");
        drop(input);
        child.wait().expect("ends").success()
    }

    #[test]
    fn ssh_keygen_verifies_what_was_signed_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let key = SigningKey::open(&key_file(directory.path(), "key", "")).expect("a key");
        let armor = key.sign_armored(Namespace::Payload, b"{}\n").expect("signs");
        assert!(ssh_keygen_accepts(directory.path(), &key, b"{}\n", &armor));
        assert!(!ssh_keygen_accepts(directory.path(), &key, b"{ }\n", &armor));
    }

    #[test]
    fn a_private_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = key_file(directory.path(), "key", "");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        let failure = SigningKey::open(&path).err().expect("refused");
        assert!(failure.has_code("key_exposed"));
    }

    #[test]
    fn an_encrypted_key_without_its_public_half_says_what_is_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = key_file(directory.path(), "key", "secret words");
        let key = SigningKey::open(&path).expect("its public half is there");
        assert!(matches!(key.method, Method::SshKeygen(_)));
        std::fs::remove_file(with_pub(&path)).expect("remove");
        let failure = SigningKey::open(&path).err().expect("refused");
        assert!(failure.to_text().contains("key.pub"));
    }

    #[test]
    fn a_missing_key_says_how_to_make_one() {
        let failure = SigningKey::open(Path::new("/nonexistent/key")).err().expect("refused");
        assert!(failure.to_text().contains("ssh-keygen -t ed25519"));
    }
}
