//! Sessions: who reads at an agent's API over TCP, said by a signature of a few minutes' life.
//!
//! Owns the document, its check, and the two HTTP headers that carry it. A session allows reading
//! and nothing else: every change is a signed payload of its own. Never decides what its key may
//! see. Called by `daggerctl` (makes) and the agent's API (checks).

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, HostId, LedgerTime};
use crate::key::{PublicKey, SecretKey};
use crate::limits::{SESSION_BYTES_MAX, SESSION_LIFE_MS_MAX};
use crate::sshsig::{self, Namespace};
use crate::strict_json;

/// The header that carries the document: its exact bytes, on one line.
pub const SESSION_HEADER: &str = "dagger-session";
/// The header that carries its signature: base64 text as in a `.sig` file, on one line.
pub const SESSION_SIGNATURE_HEADER: &str = "dagger-session-signature";

/// What is signed, in namespace `dagger-session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionDocument {
    /// Version of this form: 1.
    pub dagger: u32,
    /// The cluster.
    pub cluster: ClusterId,
    /// The host that is asked: no other one takes it.
    pub host: HostId,
    /// The key that signs.
    pub key: PublicKey,
    /// When it ends: at most ten minutes ahead of the host's time, as its `/v1/cluster` shows it.
    pub not_after_ms: LedgerTime,
}

/// Why a session is refused; each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Not a session document.
    #[error("the session is no document of this form: {0}")]
    Malformed(String),
    /// For another cluster or host.
    #[error(
        "the session is for another {0}; sign one that names this one, as /v1/cluster shows it"
    )]
    Elsewhere(&'static str),
    /// Over, or too long.
    #[error("the session has ended; sign a new one")]
    Ended,
    /// It would live too long.
    #[error("the session ends more than ten minutes from now; sign a shorter one")]
    TooLong,
    /// The signature does not count.
    #[error("the session's signature does not count: {0}")]
    Signature(String),
}

impl SessionDocument {
    /// The exact bytes to be signed: one line of ASCII.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain data always writes")
    }

    /// Values of the two headers, signed with `key`, which the document must name.
    pub fn to_headers(&self, key: &SecretKey) -> (String, String) {
        let text = self.to_text();
        let signature = sshsig::sign(key, Namespace::Session, text.as_bytes());
        let signature = sshsig::to_base64(&key.public_key(), Namespace::Session, &signature);
        (text, signature)
    }
}

/// The key behind a session with the host `host` of `cluster`, at the time `now`.
///
/// # Errors
/// [`SessionError`].
pub fn check(
    document: &str,
    signature: &str,
    (cluster, host): (ClusterId, HostId),
    now: LedgerTime,
) -> Result<PublicKey, SessionError> {
    let malformed = |error: &dyn std::fmt::Display| SessionError::Malformed(error.to_string());
    if document.len() > SESSION_BYTES_MAX || signature.len() > SESSION_BYTES_MAX {
        return Err(SessionError::Malformed(format!("over {SESSION_BYTES_MAX} bytes")));
    }
    let text = strict_json::check(document.as_bytes()).map_err(|error| malformed(&error))?;
    let session: SessionDocument = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    if session.dagger != 1 {
        return Err(SessionError::Malformed("dagger must be 1".to_owned()));
    }
    if session.cluster != cluster {
        return Err(SessionError::Elsewhere("cluster"));
    }
    if session.host != host {
        return Err(SessionError::Elsewhere("host"));
    }
    if session.not_after_ms < now {
        return Err(SessionError::Ended);
    }
    if session.not_after_ms > now.plus_ms(SESSION_LIFE_MS_MAX) {
        return Err(SessionError::TooLong);
    }
    let read = sshsig::from_base64(signature, Namespace::Session)
        .map_err(|error| SessionError::Signature(error.to_string()))?;
    let counts = read.signer == session.key
        && sshsig::verifies(&read.signer, Namespace::Session, document.as_bytes(), &read.signature);
    if counts {
        Ok(session.key)
    } else {
        Err(SessionError::Signature("it is not the named key's over this document".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 32]);
    const HOST: HostId = HostId([2; 16]);
    const NOW: LedgerTime = LedgerTime(1_000_000);

    fn key() -> SecretKey {
        SecretKey::from_seed(&[3; 32].into())
    }

    fn document() -> SessionDocument {
        SessionDocument {
            dagger: 1,
            cluster: CLUSTER,
            host: HOST,
            key: key().public_key(),
            not_after_ms: NOW.plus_ms(60_000),
        }
    }

    fn checked(document: &SessionDocument, key: &SecretKey) -> Result<PublicKey, SessionError> {
        let (text, signature) = document.to_headers(key);
        check(&text, &signature, (CLUSTER, HOST), NOW)
    }

    #[test]
    fn a_session_counts_for_its_key_host_cluster_and_time_only() {
        assert_eq!(checked(&document(), &key()), Ok(key().public_key()));
        let elsewhere = SessionDocument { cluster: ClusterId([9; 32]), ..document() };
        assert_eq!(checked(&elsewhere, &key()), Err(SessionError::Elsewhere("cluster")));
        let elsewhere = SessionDocument { host: HostId([9; 16]), ..document() };
        assert_eq!(checked(&elsewhere, &key()), Err(SessionError::Elsewhere("host")));
        let ended = SessionDocument { not_after_ms: LedgerTime(NOW.0 - 1), ..document() };
        assert_eq!(checked(&ended, &key()), Err(SessionError::Ended));
        let long =
            SessionDocument { not_after_ms: NOW.plus_ms(SESSION_LIFE_MS_MAX + 1), ..document() };
        assert_eq!(checked(&long, &key()), Err(SessionError::TooLong));
        let other = SecretKey::from_seed(&[4; 32].into());
        assert!(matches!(checked(&document(), &other), Err(SessionError::Signature(_))));
    }

    #[test]
    fn a_signature_for_another_purpose_or_over_other_bytes_does_not_count() {
        let (text, signature) = document().to_headers(&key());
        let changed = text.replace("1060000", "1060001");
        assert_ne!(text, changed);
        let verdict = check(&changed, &signature, (CLUSTER, HOST), NOW);
        assert!(matches!(verdict, Err(SessionError::Signature(_))));
        let signature = sshsig::sign(&key(), Namespace::Payload, text.as_bytes());
        let signature = sshsig::to_base64(&key().public_key(), Namespace::Payload, &signature);
        let verdict = check(&text, &signature, (CLUSTER, HOST), NOW);
        assert!(matches!(verdict, Err(SessionError::Signature(_))));
    }

    #[test]
    fn what_is_no_session_document_is_refused_before_its_signature_is_read() {
        let text = document().to_text();
        let doubled = text.replacen("{\"dagger\":1", "{\"dagger\":1,\"dagger\":1", 1);
        let more = text.replacen('{', "{\"more\":1,", 1);
        let newer = text.replacen("\"dagger\":1", "\"dagger\":2", 1);
        let large = format!("{text}{}", " ".repeat(SESSION_BYTES_MAX));
        for text in ["", "{}", "[]", &doubled, &more, &newer, &large] {
            let verdict = check(text, "", (CLUSTER, HOST), NOW);
            assert!(matches!(verdict, Err(SessionError::Malformed(_))), "{text}: {verdict:?}");
        }
    }
}
