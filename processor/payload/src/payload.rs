//! A payload: a signed JSON document, kept and carried as the exact bytes that were signed.
//!
//! Owns the envelope (`dagger`, `cluster`, `signer`, `kind`, `not_after_ms`, `body`), its identity
//! and the record that carries it with its signature. Never judges. Called by the API and
//! `daggerctl` (to make), by the ledger (to carry unread) and by the processor (to read and
//! verify).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, LedgerTime, PayloadDigest};
use crate::key::{PublicKey, SecretKey, Signature};
use crate::kind::Body;
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::merkle::{self, Leaf};
use crate::refusal::{Refusal, RefusalCode};
use crate::signed_bytes::SignedBytes;
use crate::sshsig::{self, Namespace};
use crate::strict_json;

/// Version of the envelope that this code writes and reads.
pub const PAYLOAD_VERSION: u64 = 1;

/// How a payload is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum SignatureKind {
    /// SSHSIG by a plain ed25519 key, SHA-512, namespace `dagger`.
    #[n(0)]
    SshEd25519,
}

/// What travels, is stored and is ordered: the signed bytes and their signature. As CBOR an array
/// `[signature kind, signature (64 bytes), payload bytes]`; nothing in it has been checked but its
/// shape.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SignedPayload {
    /// How it is signed.
    #[n(0)]
    pub signature_kind: SignatureKind,
    /// The raw signature.
    #[n(1)]
    pub signature: Signature,
    /// The exact bytes that were signed.
    #[n(2)]
    pub bytes: SignedBytes,
}

impl SignedPayload {
    /// Identity: a digest of the signed bytes alone, so that signing again changes nothing.
    pub fn digest(&self) -> PayloadDigest {
        self.bytes.digest()
    }

    /// What stands for it in its event's Merkle tree, and in the chain of everything ordered.
    pub fn leaf(&self) -> Leaf {
        merkle::leaf(&self.digest(), self.signature_kind, &self.signature)
    }

    /// The canonical record: what stands in an event's body and in the store.
    pub fn to_record(&self) -> Vec<u8> {
        crate::codec::encode(self)
    }

    /// Signs a new payload.
    pub fn sign(key: &SecretKey, document: &Payload) -> Self {
        let bytes = document.to_bytes();
        let signature = sshsig::sign(key, Namespace::Payload, &bytes);
        Self { signature_kind: SignatureKind::SshEd25519, signature, bytes: bytes.into() }
    }

    /// Reads the document. The signature is not looked at.
    ///
    /// # Errors `payload_too_large`, `payload_malformed`, `kind_unknown`, `limit_exceeded`,
    /// `signer_unsupported`.
    pub fn read(&self) -> Result<Payload, Refusal> {
        Payload::read(&self.bytes)
    }

    /// The bytes of the key that the document names, read before anything is checked; none when it
    /// names none. For counting what a signer has under way, never for deciding what he may do.
    pub fn claimed_signer(&self) -> Option<[u8; 32]> {
        #[derive(Deserialize)]
        struct Claim<'a> {
            // Borrowed, unless it is written with escapes.
            #[serde(borrow)]
            signer: Cow<'a, str>,
        }
        let claim: Claim = serde_json::from_slice(&self.bytes).ok()?;
        crate::key::bytes_in(&claim.signer)
    }

    /// Whether the signature verifies under the key that the document names.
    pub fn is_signed_by(&self, signer: &PublicKey) -> bool {
        sshsig::verifies(signer, Namespace::Payload, &self.bytes, &self.signature)
    }
}

/// The document inside a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The cluster it is meant for.
    pub cluster: ClusterId,
    /// Who signs.
    pub signer: PublicKey,
    /// Ledger time after which it counts no more.
    pub not_after: LedgerTime,
    /// What is asked.
    pub body: Body,
}

/// The envelope as it stands in JSON; `body` is read once the kind is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadEnvelope<'a> {
    dagger: u64,
    cluster: ClusterId,
    signer: String,
    kind: String,
    not_after_ms: u64,
    #[serde(borrow)]
    body: &'a serde_json::value::RawValue,
}

#[derive(Serialize)]
struct WriteEnvelope<'a> {
    dagger: u64,
    cluster: &'a ClusterId,
    signer: &'a PublicKey,
    kind: &'a str,
    not_after_ms: u64,
    body: serde_json::Value,
}

impl Payload {
    /// The document as it is signed: JSON, indented for people, one trailing newline.
    pub fn to_bytes(&self) -> Vec<u8> {
        let envelope = WriteEnvelope {
            dagger: PAYLOAD_VERSION,
            cluster: &self.cluster,
            signer: &self.signer,
            kind: self.body.kind(),
            not_after_ms: self.not_after.0,
            body: self.body.to_json(),
        };
        let mut bytes = serde_json::to_vec_pretty(&envelope).expect("plain data always writes");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a document strictly.
    ///
    /// # Errors `payload_too_large`, `payload_malformed`, `kind_unknown`, `limit_exceeded`,
    /// `signer_unsupported`.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |detail: String| Refusal::new(RefusalCode::PayloadMalformed, detail);
        if bytes.len() > PAYLOAD_BYTES_MAX {
            let detail = format!("{} bytes; the limit is {PAYLOAD_BYTES_MAX}", bytes.len());
            return Err(Refusal::new(RefusalCode::PayloadTooLarge, detail));
        }
        let text = strict_json::check(bytes).map_err(|error| malformed(error.to_string()))?;
        // What reads fields by name would take a list of their values, too.
        let is_object = |text: &str| text.trim_start().starts_with('{');
        if !is_object(text) {
            return Err(malformed("the document is no JSON object".to_owned()));
        }
        let envelope: ReadEnvelope =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if !is_object(envelope.body.get()) {
            return Err(malformed("body: no JSON object".to_owned()));
        }
        if envelope.dagger != PAYLOAD_VERSION {
            return Err(malformed(format!("dagger: version {} is unknown", envelope.dagger)));
        }
        let signer = envelope.signer.parse().map_err(|error: crate::key::KeyError| {
            Refusal::new(RefusalCode::SignerUnsupported, format!("signer: {error}"))
        })?;
        Ok(Self {
            cluster: envelope.cluster,
            signer,
            not_after: LedgerTime(envelope.not_after_ms),
            body: Body::read(&envelope.kind, envelope.body.get())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VmId;
    use crate::kind::VmChange;
    use zeroize::Zeroizing;

    fn payload() -> (SecretKey, Payload) {
        let key = SecretKey::from_seed(&Zeroizing::new([9; 32]));
        let signer = key.public_key();
        let body = Body::VmStop(VmChange { vm: VmId([1; 16]), expected_generation: None }.into());
        (key, Payload { cluster: ClusterId([2; 32]), signer, not_after: LedgerTime(5), body })
    }

    #[test]
    fn a_signed_payload_reads_back_and_its_identity_ignores_the_signature() {
        let (key, payload) = payload();
        let mut signed = SignedPayload::sign(&key, &payload);
        assert_eq!(signed.read(), Ok(payload));
        assert!(signed.is_signed_by(&key.public_key()));
        let digest = signed.digest();
        signed.signature.0[0] ^= 1;
        assert_eq!(signed.digest(), digest);
        assert!(!signed.is_signed_by(&key.public_key()));
        assert_eq!(signed.claimed_signer(), Some(*key.public_key().as_bytes()));
        let opaque = SignedPayload { bytes: "opaque".into(), ..signed.clone() };
        assert_eq!(opaque.claimed_signer(), None);
        let record = signed.to_record();
        assert_eq!(crate::codec::decode(&record), Ok(signed));
    }

    #[test]
    fn nobody_escapes_being_counted_by_how_he_writes_his_key() {
        let (key, payload) = payload();
        let text = String::from_utf8(payload.to_bytes()).expect("JSON");
        let written = |text: String| {
            let signed = SignedPayload::sign(&key, &payload);
            SignedPayload { bytes: text.into_bytes().into(), ..signed }
        };
        let escaped = written(text.replacen("ssh-ed25519", "\\u0073sh-ed25519", 1));
        assert_eq!(escaped.read().as_ref(), Ok(&payload));
        assert_eq!(escaped.claimed_signer(), Some(*key.public_key().as_bytes()));
        // What stands in a list has no names.
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let fields = ["dagger", "cluster", "signer", "kind", "not_after_ms", "body"];
        let list = serde_json::json!(fields.map(|field| &value[field])).to_string();
        value["body"] = serde_json::json!([value["body"]["vm"]]);
        for text in [list, value.to_string()] {
            let refused = written(text).read().map_err(|refusal| refusal.code);
            assert_eq!(refused, Err(RefusalCode::PayloadMalformed));
        }
    }

    #[test]
    fn an_unknown_field_kind_version_or_signer_is_refused_with_its_own_code() {
        let (_, payload) = payload();
        let text = String::from_utf8(payload.to_bytes()).expect("JSON");
        let refused = |from: &str, to: &str| {
            assert!(text.contains(from));
            Payload::read(text.replacen(from, to, 1).as_bytes()).expect_err("refused").code
        };
        assert_eq!(refused("\"kind\"", "\"x\":1,\"kind\""), RefusalCode::PayloadMalformed);
        assert_eq!(refused("\"vm\"", "\"x\":1,\"vm\""), RefusalCode::PayloadMalformed);
        assert_eq!(refused("vm.stop", "vm.stopp"), RefusalCode::KindUnknown);
        assert_eq!(refused("\"dagger\": 1", "\"dagger\": 2"), RefusalCode::PayloadMalformed);
        assert_eq!(refused("ssh-ed25519", "ssh-rsa"), RefusalCode::SignerUnsupported);
        let large = vec![b' '; PAYLOAD_BYTES_MAX + 1];
        assert_eq!(Payload::read(&large).expect_err("refused").code, RefusalCode::PayloadTooLarge);
    }
}
