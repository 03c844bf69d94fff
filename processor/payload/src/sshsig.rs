//! OpenSSH signatures (SSHSIG, `PROTOCOL.sshsig` in OpenSSH's source): what `ssh-keygen -Y sign`
//! makes and `ssh-keygen -Y verify` checks.
//!
//! Owns namespaces, the signed bytes and the armoured form. The frame itself is read and written by
//! `ssh-key`. Never decides who may sign. Called by `daggerctl` (sign), the API (read the armour)
//! and the processor (verify).

use ssh_key::public::{Ed25519PublicKey, KeyData};
use ssh_key::{Algorithm, HashAlg, LineEnding, SshSig};

use crate::key::{PublicKey, SecretKey, Signature};

/// What an OpenSSH signature is for; `ssh-keygen` calls it the namespace (`-n`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// A payload: `dagger`.
    Payload,
    /// A genesis document: `dagger-genesis`.
    Genesis,
    /// A session with one host's API: `dagger-session`.
    Session,
}

impl Namespace {
    /// The text that `ssh-keygen -n` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Payload => "dagger",
            Self::Genesis => "dagger-genesis",
            Self::Session => "dagger-session",
        }
    }
}

/// Why an armoured signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshSigError {
    /// Not an SSHSIG at all.
    #[error("not an OpenSSH signature; make one with `ssh-keygen -Y sign -n {0} -f KEY FILE`")]
    Malformed(&'static str),
    /// Made for something else.
    #[error("the signature's namespace is not `{0}`; sign with `-n {0}`")]
    WrongNamespace(&'static str),
    /// Not SHA-512.
    #[error("the signature's hash is not sha512; leave out ssh-keygen's `-O hashalg`")]
    WrongHash,
    /// Not plain ed25519.
    #[error("only plain ssh-ed25519 keys can sign (no RSA, ECDSA or hardware key yet)")]
    WrongKeyType,
}

/// An SSHSIG taken apart: who claims to have signed, and the 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadSignature {
    /// The key that the signature names.
    pub signer: PublicKey,
    /// The raw signature.
    pub signature: Signature,
}

/// The exact bytes that ed25519 signs for `message` in `namespace`.
pub fn signed_bytes(namespace: Namespace, message: &[u8]) -> Vec<u8> {
    SshSig::signed_data(namespace.as_str(), HashAlg::Sha512, message)
        .expect("a fixed short namespace always encodes")
}

/// Signs `message` as `ssh-keygen -Y sign` does.
pub fn sign(key: &SecretKey, namespace: Namespace, message: &[u8]) -> Signature {
    key.sign(&signed_bytes(namespace, message))
}

/// Whether `signature` by `signer` over `message` counts.
pub fn verifies(
    signer: &PublicKey,
    namespace: Namespace,
    message: &[u8],
    signature: &Signature,
) -> bool {
    signer.verifies(&signed_bytes(namespace, message), signature)
}

/// The armoured form (`-----BEGIN SSH SIGNATURE-----`) that `ssh-keygen -Y verify` reads.
pub fn to_armor(signer: &PublicKey, namespace: Namespace, signature: &Signature) -> String {
    let key = KeyData::Ed25519(Ed25519PublicKey(*signer.as_bytes()));
    let raw = ssh_key::Signature::new(Algorithm::Ed25519, signature.0.to_vec())
        .expect("64 bytes are an ed25519 signature");
    SshSig::new(key, namespace.as_str(), HashAlg::Sha512, raw)
        .and_then(|framed| framed.to_pem(LineEnding::LF))
        .expect("a well-formed frame always has an armoured form")
}

/// Reads an armoured signature. It is not verified here.
///
/// # Errors
/// One of [`SshSigError`], each of which says what to do.
pub fn from_armor(armor: &str, namespace: Namespace) -> Result<ReadSignature, SshSigError> {
    let framed =
        armor.trim().parse::<SshSig>().map_err(|_| SshSigError::Malformed(namespace.as_str()))?;
    read(&framed, namespace)
}

/// Reads the base64 text between the armour's first and last line, with or without line breaks:
/// what fits into an HTTP header.
///
/// # Errors
/// As [`from_armor`].
pub fn from_base64(text: &str, namespace: Namespace) -> Result<ReadSignature, SshSigError> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if !text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=')) {
        return Err(SshSigError::Malformed(namespace.as_str()));
    }
    let mut armor = String::from("-----BEGIN SSH SIGNATURE-----\n");
    for line in text.as_bytes().chunks(70) {
        armor.push_str(std::str::from_utf8(line).expect("checked to be ASCII"));
        armor.push('\n');
    }
    armor.push_str("-----END SSH SIGNATURE-----\n");
    from_armor(&armor, namespace)
}

/// The base64 text of an armoured signature, on one line.
pub fn to_base64(signer: &PublicKey, namespace: Namespace, signature: &Signature) -> String {
    let armor = to_armor(signer, namespace, signature);
    armor.lines().filter(|line| !line.starts_with('-')).collect()
}

fn read(framed: &SshSig, namespace: Namespace) -> Result<ReadSignature, SshSigError> {
    if framed.namespace() != namespace.as_str() {
        return Err(SshSigError::WrongNamespace(namespace.as_str()));
    }
    if framed.hash_alg() != HashAlg::Sha512 {
        return Err(SshSigError::WrongHash);
    }
    let KeyData::Ed25519(key) = framed.public_key() else {
        return Err(SshSigError::WrongKeyType);
    };
    if framed.algorithm() != Algorithm::Ed25519 {
        return Err(SshSigError::WrongKeyType);
    }
    let signer = PublicKey::from_bytes(&key.0).map_err(|_| SshSigError::WrongKeyType)?;
    let bytes = framed.signature_bytes().try_into().map_err(|_| SshSigError::WrongKeyType)?;
    Ok(ReadSignature { signer, signature: Signature(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    #[test]
    fn both_written_forms_read_back_and_another_namespace_is_refused() {
        let key = SecretKey::from_seed(&Zeroizing::new([5; 32]));
        let signature = sign(&key, Namespace::Payload, b"text");
        let armor = to_armor(&key.public_key(), Namespace::Payload, &signature);
        let read = from_armor(&armor, Namespace::Payload).expect("own armour");
        assert_eq!(read, ReadSignature { signer: key.public_key(), signature });
        let line = to_base64(&key.public_key(), Namespace::Payload, &signature);
        assert_eq!(from_base64(&line, Namespace::Payload), Ok(read.clone()));
        assert!(verifies(&read.signer, Namespace::Payload, b"text", &read.signature));
        assert!(!verifies(&read.signer, Namespace::Genesis, b"text", &read.signature));
        assert_eq!(
            from_armor(&armor, Namespace::Genesis),
            Err(SshSigError::WrongNamespace("dagger-genesis"))
        );
        assert!(from_base64("!!", Namespace::Payload).is_err());
    }
}
