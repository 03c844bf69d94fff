//! Sessions with agents that are asked over TCP, made when one of them asks for one.
//!
//! Owns when a session is signed and how long it is used again. Over Unix sockets none is needed.
//! Called by `client`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use dagger_api::ClusterView;
use dagger_payload::session::{SESSION_HEADER, SESSION_SIGNATURE_HEADER, SessionDocument};
use dagger_payload::sshsig::{self, Namespace};
use hyper::header::HeaderName;

use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::limits::SESSION_LIFE;
use crate::signer::{self, SigningKey};
use crate::units::milliseconds;

/// Headers of a session.
pub(crate) type SessionHeaders = Vec<(HeaderName, String)>;

/// Code with which an agent asks for a session.
pub(crate) const SESSION_NEEDED: &str = "session_needed";

/// The sessions of one call.
pub(crate) struct Login {
    /// The key that was named, if any.
    key: Option<PathBuf>,
    made: Mutex<BTreeMap<String, (Instant, SessionHeaders)>>,
}

impl Login {
    /// With the key at `key`, or the default one.
    pub(crate) fn new(key: Option<PathBuf>) -> Self {
        Self { key, made: Mutex::default() }
    }

    /// Headers of a session with `endpoint` that was made before and still lasts.
    pub(crate) fn known(&self, endpoint: &Endpoint) -> SessionHeaders {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let known = made.get(&endpoint.to_string());
        // The other half of its life is for the request itself.
        known
            .filter(|(at, _)| at.elapsed() < SESSION_LIFE / 2)
            .map_or_else(Vec::new, |(_, headers)| headers.clone())
    }

    /// Signs a session with the host that showed `cluster` at `endpoint`.
    pub(crate) fn sign(&self, endpoint: &Endpoint, cluster: &ClusterView) -> Result<(), Failure> {
        let key = match &self.key {
            Some(path) => SigningKey::open(path)?,
            None => SigningKey::open(&signer::default_path()?)?,
        };
        let text = SessionDocument {
            dagger: 1,
            cluster: cluster.cluster,
            host: cluster.host,
            key: key.public_key().clone(),
            not_after_ms: cluster.ledger_time.plus_ms(milliseconds(SESSION_LIFE)),
        }
        .to_text();
        let signature = key.sign(Namespace::Session, text.as_bytes())?;
        let signature = sshsig::to_base64(key.public_key(), Namespace::Session, &signature);
        let headers = vec![
            (HeaderName::from_static(SESSION_HEADER), text),
            (HeaderName::from_static(SESSION_SIGNATURE_HEADER), signature),
        ];
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(endpoint.to_string(), (Instant::now(), headers));
        Ok(())
    }
}
