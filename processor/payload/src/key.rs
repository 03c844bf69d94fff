//! Ed25519 keys: parsed once, valid by construction, and the one rule by which a signature counts.
//!
//! Owns the verdict on signatures (`verify_strict`, one by one, never a batch: see `decisions.md`)
//! and the domains under which raw signatures are made. Never reads a file. Called wherever
//! something is signed or checked.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::id::cmp_digests;

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no canonical encoding of a point.
    #[error("not a canonical ed25519 public key")]
    NotCanonical,
    /// The point has small order: anybody could sign for it.
    #[error("a weak ed25519 key (small order)")]
    Weak,
    /// The text is no OpenSSH public key line of type `ssh-ed25519`.
    #[error(
        "expected a line `ssh-ed25519 AAAA... comment`; make a key with `ssh-keygen -t ed25519`"
    )]
    NotOpenSsh,
    /// A hardware key, whose signatures cover other bytes.
    #[error("hardware keys (sk-ssh-ed25519) are not supported yet; use a plain ssh-ed25519 key")]
    Hardware,
    /// The private key file is encrypted.
    #[error("the private key is encrypted; unlock it or sign with `ssh-keygen -Y sign`")]
    Encrypted,
    /// The text is no OpenSSH private key file.
    #[error("not an OpenSSH private key file of type ssh-ed25519")]
    NotPrivateKey,
}

/// An ed25519 public key that is canonical and not weak.
#[derive(Clone)]
pub struct PublicKey {
    point: VerifyingKey,
}

impl PublicKey {
    /// Checks and parses 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::NotCanonical`] and [`KeyError::Weak`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let point = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotCanonical)?;
        // Decompression accepts y >= p and keeps the bytes as given: compare with the re-encoded
        // point.
        if point.to_edwards().compress().as_bytes() != bytes {
            return Err(KeyError::NotCanonical);
        }
        if point.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self { point })
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.point.as_bytes()
    }

    /// Whether `signature` over exactly `message` counts. The only verdict in the project.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.point.verify_strict(message, &signature).is_ok()
    }

    /// Whether `signature` was made over `digest` in `domain`.
    pub fn verifies_in(&self, domain: Domain, digest: &[u8; 32], signature: &Signature) -> bool {
        self.verifies(&domain.message(digest), signature)
    }

    /// The line `ssh-ed25519 AAAA...` without a comment.
    pub fn to_openssh(&self) -> String {
        let key = ssh_key::public::Ed25519PublicKey(*self.as_bytes());
        let key = ssh_key::PublicKey::new(ssh_key::public::KeyData::Ed25519(key), "");
        key.to_openssh().expect("an ed25519 key always has a text form")
    }

    /// The key's fingerprint as `ssh-keygen -l` prints it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        let key = ssh_key::public::Ed25519PublicKey(*self.as_bytes());
        ssh_key::public::KeyData::Ed25519(key).fingerprint(ssh_key::HashAlg::Sha256).to_string()
    }
}

/// How every ed25519 key begins in an OpenSSH line: its type, and in base64 the type and the key's
/// length again (RFC 8709, section 4).
const LINE_BEGINNING: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI";

/// Reads an OpenSSH line. What begins otherwise is none: the library would make room by lengths
/// that only the line says, up to a MiB.
fn read_line(text: &str) -> Option<ssh_key::PublicKey> {
    let begins = text.starts_with(LINE_BEGINNING);
    begins.then(|| ssh_key::PublicKey::from_openssh(text).ok()).flatten()
}

/// The 32 bytes of the ed25519 key in an OpenSSH line, whether or not they are a key that counts:
/// enough to tell signers apart, and cheap.
pub fn bytes_in(text: &str) -> Option<[u8; 32]> {
    let key = read_line(text)?;
    key.key_data().ed25519().map(|key| key.0)
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.starts_with("sk-") {
            return Err(KeyError::Hardware);
        }
        let key = read_line(text).ok_or(KeyError::NotOpenSsh)?;
        match key.key_data() {
            ssh_key::public::KeyData::Ed25519(key) => Self::from_bytes(&key.0),
            _ => Err(KeyError::NotOpenSsh),
        }
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for PublicKey {}
impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        cmp_digests(self.as_bytes(), other.as_bytes())
    }
}
impl std::hash::Hash for PublicKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}
impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_openssh())
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}
impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
impl<C> minicbor::Encode<C> for PublicKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(self.as_bytes())?.ok()
    }
}
impl<'b, C> minicbor::Decode<'b, C> for PublicKey {
    fn decode(
        decoder: &mut minicbor::Decoder<'b>,
        _: &mut C,
    ) -> Result<Self, minicbor::decode::Error> {
        let wrong = || minicbor::decode::Error::message("not a public key");
        let bytes: &[u8; 32] = decoder.bytes()?.try_into().map_err(|_| wrong())?;
        Self::from_bytes(bytes).map_err(|_| wrong())
    }
}
#[cfg(feature = "schema")]
impl utoipa::PartialSchema for PublicKey {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        crate::name::string_schema("^ssh-ed25519 [A-Za-z0-9+/=]+$", "an OpenSSH ed25519 public key")
    }
}
#[cfg(feature = "schema")]
impl utoipa::ToSchema for PublicKey {}

/// 64 bytes of an ed25519 signature, of any content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signature(")?;
        self.0.iter().take(4).try_for_each(|byte| write!(formatter, "{byte:02x}"))?;
        formatter.write_str("..)")
    }
}
impl<C> minicbor::Encode<C> for Signature {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}
impl<'b, C> minicbor::Decode<'b, C> for Signature {
    fn decode(
        decoder: &mut minicbor::Decoder<'b>,
        _: &mut C,
    ) -> Result<Self, minicbor::decode::Error> {
        let bytes = decoder.bytes()?.try_into();
        bytes.map(Self).map_err(|_| minicbor::decode::Error::message("a signature has 64 bytes"))
    }
}

/// What a raw signature is for. A signature made in one domain never verifies in another, nor as an
/// SSHSIG (whose signed bytes start with `SSHSIG`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A ledger signs an event digest.
    Event,
    /// A processor seals a commit's releases.
    Seal,
}

impl Domain {
    /// The bytes that are signed: 16 bytes that name the domain, then the digest.
    pub fn message(self, digest: &[u8; 32]) -> [u8; 48] {
        let name: &[u8; 16] = match self {
            Self::Event => b"dagger v1 event\0",
            Self::Seal => b"dagger v1 seal\0\0",
        };
        let mut message = [0; 48];
        message[..16].copy_from_slice(name);
        message[16..].copy_from_slice(digest);
        message
    }
}

/// An ed25519 private key. Wiped when dropped, never printed.
pub struct SecretKey {
    key: SigningKey,
}

impl SecretKey {
    /// A key from 32 secret bytes, drawn by the caller from the operating system.
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self { key: SigningKey::from_bytes(seed) }
    }

    /// Reads an unencrypted OpenSSH private key file (`-----BEGIN OPENSSH PRIVATE KEY-----`).
    ///
    /// # Errors
    /// [`KeyError::Encrypted`] and [`KeyError::NotPrivateKey`].
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        let key =
            ssh_key::PrivateKey::from_openssh(text.trim()).map_err(|_| KeyError::NotPrivateKey)?;
        if key.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        let pair = key.key_data().ed25519().ok_or(KeyError::NotPrivateKey)?;
        Ok(Self { key: SigningKey::from_bytes(pair.private.as_ref()) })
    }

    /// The key as an OpenSSH private key file.
    pub fn to_openssh(&self, comment: &str) -> Zeroizing<String> {
        let pair = ssh_key::private::Ed25519Keypair {
            public: ssh_key::public::Ed25519PublicKey(*self.public_key().as_bytes()),
            private: ssh_key::private::Ed25519PrivateKey::from_bytes(self.key.as_bytes()),
        };
        let key = ssh_key::PrivateKey::new(ssh_key::private::KeypairData::Ed25519(pair), comment)
            .expect("an unencrypted key needs no cipher");
        key.to_openssh(ssh_key::LineEnding::LF).expect("an ed25519 key always has a text form")
    }

    /// The 32 secret bytes, for the link layer's own key format.
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey { point: self.key.verifying_key() }
    }

    /// Signs exactly `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.key.sign(message).to_bytes())
    }

    /// Signs `digest` in `domain`.
    pub fn sign_in(&self, domain: Domain, digest: &[u8; 32]) -> Signature {
        self.sign(&domain.message(digest))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretKey(of {})", self.public_key().fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([byte; 32]))
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_bytes(&identity), Err(KeyError::Weak));
        // y = p + 3: decompresses to the point of y = 3 where its encoding is tolerated.
        let mut above_p = [0xff; 32];
        above_p[0] = 0xf0;
        above_p[31] = 0x7f;
        assert_eq!(PublicKey::from_bytes(&above_p), Err(KeyError::NotCanonical));
    }

    #[test]
    fn a_line_that_claims_other_lengths_is_no_key() {
        let line = key(1).public_key().to_string();
        assert_eq!(line.parse(), Ok(key(1).public_key()));
        assert_eq!(bytes_in(&line), Some(*key(1).public_key().as_bytes()));
        for (true_length, other) in [("NTE5AAAAI", "NTE5AAzaI"), ("AAAAC3Nz", "AAzaC3Nz")] {
            let lies = line.replacen(true_length, other, 1);
            assert_ne!(lies, line);
            assert_eq!(lies.parse::<PublicKey>(), Err(KeyError::NotOpenSsh));
            assert_eq!(bytes_in(&lies), None);
        }
    }

    #[test]
    fn a_signature_counts_only_in_its_domain() {
        let signature = key(1).sign_in(Domain::Event, &[7; 32]);
        assert!(key(1).public_key().verifies_in(Domain::Event, &[7; 32], &signature));
        assert!(!key(1).public_key().verifies_in(Domain::Seal, &[7; 32], &signature));
        assert!(!key(2).public_key().verifies_in(Domain::Event, &[7; 32], &signature));
    }

    #[test]
    fn a_key_file_reads_back_and_debug_shows_no_secret() {
        let text = key(3).to_openssh("op1");
        let read = SecretKey::from_openssh(&text).expect("own file");
        assert_eq!(read.public_key(), key(3).public_key());
        assert!(!format!("{read:?}").contains("03030303"));
        assert_eq!(read.public_key().to_string().parse(), Ok(read.public_key()));
    }
}
