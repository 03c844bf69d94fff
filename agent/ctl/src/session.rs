//! What every command shares: which agents, which key, who reads the output.
//!
//! Owns making, signing and submitting a payload. Never decides what to ask for. Called by the
//! commands.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dagger_api::{AccountSummary, ClusterView, LedgerView, PayloadState, PayloadView};
use dagger_payload::id::{AccountId, PayloadDigest};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::Body;
use dagger_payload::payload::Payload;
use dagger_payload::sshsig::{self, Namespace};

use crate::client::{Client, NO_QUORUM};
use crate::commands::encode;
use crate::failure::Failure;
use crate::limits::{LONG_POLL, PAUSE_FIRST, PAUSE_MAX, SUBMIT_RETRY_MAX};
use crate::output::Output;
use crate::progress::Progress;
use crate::signer::{self, SigningKey};
use crate::units::milliseconds;

/// The settings of one call.
pub(crate) struct Session {
    /// The agents.
    pub(crate) client: Client,
    /// Standard output.
    pub(crate) output: Output,
    /// The key that was named, if any.
    pub(crate) key: Option<PathBuf>,
    /// How long a new payload stays valid, in ledger time.
    pub(crate) valid_for: Duration,
}

/// A payload with its signature, ready to be sent any number of times.
pub(crate) struct Signed {
    /// Identity of `bytes`.
    pub(crate) digest: PayloadDigest,
    /// The exact signed bytes.
    pub(crate) bytes: Bytes,
    /// The signature as it goes into the header.
    pub(crate) signature: String,
}

impl Session {
    /// Opens the key to sign with.
    pub(crate) fn signing_key(&self) -> Result<SigningKey, Failure> {
        match &self.key {
            Some(path) => SigningKey::open(path),
            None => SigningKey::open(&signer::default_path()?),
        }
    }

    /// The account of the key to sign with.
    pub(crate) async fn account(&self) -> Result<AccountId, Failure> {
        self.account_of(self.signing_key()?.public_key()).await
    }

    /// The account for which `key` signs; for one that signs for nobody yet, the one that it would
    /// open.
    pub(crate) async fn account_of(&self, key: &PublicKey) -> Result<AccountId, Failure> {
        let path = format!("/v1/accounts?key={}", encode(&key.to_string()));
        let found: Vec<AccountSummary> = self.client.get(&path).await?;
        Ok(found.first().map_or_else(|| AccountId::of(key), |account| account.id))
    }

    /// `GET /v1/cluster`.
    pub(crate) async fn cluster(&self) -> Result<ClusterView, Failure> {
        self.client.get("/v1/cluster").await
    }

    /// The document that asks for `body`.
    pub(crate) async fn document(&self, key: &SigningKey, body: Body) -> Result<Payload, Failure> {
        body.check()?;
        let cluster = self.cluster().await?;
        Ok(Payload {
            cluster: cluster.cluster,
            signer: key.public_key().clone(),
            not_after: cluster.ledger_time.plus_ms(milliseconds(self.valid_for)),
            body,
        })
    }

    /// Makes and signs a payload with the key at `path`, or with the session's.
    pub(crate) async fn sign(&self, path: Option<&Path>, body: Body) -> Result<Signed, Failure> {
        let key = match path {
            Some(path) => SigningKey::open(path)?,
            None => self.signing_key()?,
        };
        let bytes: Bytes = self.document(&key, body).await?.to_bytes().into();
        sign_bytes(&key, bytes)
    }

    /// Hands a payload in and waits until it is received, or ordered and judged.
    ///
    /// The same bytes are handed in again whenever the answering agent does not know them: it may
    /// be another one than before.
    pub(crate) async fn submit(
        &self,
        signed: &Signed,
        until: Until,
        deadline: Instant,
        progress: &Progress,
    ) -> Result<PayloadView, Failure> {
        progress.working("handing the request in");
        let view = self.hand_in(signed, deadline).await?;
        progress.done(format!("received: payload {}", signed.digest));
        if until == Until::Received {
            return refused_or(view);
        }
        progress.working("waiting for its place in the order");
        let view = self.wait_judged(signed, view, deadline).await?;
        if let Some(position) = view.position {
            progress.done(format!("ordered at position {position}"));
        }
        refused_or(view)
    }

    /// Hands the bytes in. Trouble that passes by itself is waited out for a while; a missing
    /// quorum is told at once.
    async fn hand_in(&self, signed: &Signed, deadline: Instant) -> Result<PayloadView, Failure> {
        let deadline = deadline.min(Instant::now() + SUBMIT_RETRY_MAX);
        let mut pause = Pause::new();
        loop {
            match self.client.submit(&signed.bytes, &signed.signature).await {
                Err(failure)
                    if failure.is_unavailable()
                        && !failure.has_code(NO_QUORUM)
                        && Instant::now() < deadline =>
                {
                    pause.wait().await;
                }
                answered => return answered,
            }
        }
    }

    async fn wait_judged(
        &self,
        signed: &Signed,
        mut view: PayloadView,
        deadline: Instant,
    ) -> Result<PayloadView, Failure> {
        let mut pause = Pause::new();
        while !is_judged(&view) {
            if Instant::now() >= deadline {
                return Err(self.not_ordered(signed).await);
            }
            let wait = LONG_POLL.min(deadline.saturating_duration_since(Instant::now()));
            let path = format!(
                "/v1/payloads/{}?wait=accepted&timeout_ms={}",
                signed.digest,
                milliseconds(wait)
            );
            match self.client.get_waiting(&path, wait).await {
                Ok(newer) => view = newer,
                Err(failure) if failure.has_code("not_found") => {
                    view = self.client.submit(&signed.bytes, &signed.signature).await?;
                }
                Err(failure) if failure.is_unavailable() => pause.wait().await,
                Err(failure) => return Err(failure),
            }
        }
        Ok(view)
    }

    /// Says why a payload may still wait.
    async fn not_ordered(&self, signed: &Signed) -> Failure {
        let ledger: Result<LedgerView, _> = self.client.get("/v1/ledger").await;
        let why = ledger.ok().and_then(|ledger| ledger.unavailable);
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        Failure::unavailable(
            "not_ordered_in_time",
            format!("payload {} was received but is not ordered yet{why}", signed.digest),
            format!(
                "It is not lost and will be ordered when a quorum is there: `daggerctl ledger status`, \
                 `daggerctl payload show {}`.",
                signed.digest
            ),
        )
    }
}

/// How far a payload is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Durable on the host that took it.
    Received,
    /// Ordered and judged.
    Judged,
}

/// Signs finished bytes.
pub(crate) fn sign_bytes(key: &SigningKey, bytes: Bytes) -> Result<Signed, Failure> {
    let signature = key.sign(Namespace::Payload, &bytes)?;
    Ok(Signed {
        digest: PayloadDigest::of(&bytes),
        signature: sshsig::to_base64(key.public_key(), Namespace::Payload, &signature),
        bytes,
    })
}

fn is_judged(view: &PayloadView) -> bool {
    match view.state {
        PayloadState::Accepted | PayloadState::Refused => true,
        PayloadState::Received | PayloadState::Ordered => false,
    }
}

fn refused_or(view: PayloadView) -> Result<PayloadView, Failure> {
    match view.refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(view),
    }
}

/// Growing pauses between looks at something that is awaited.
pub(crate) struct Pause {
    next: Duration,
}

impl Pause {
    /// Starts with the shortest pause.
    pub(crate) fn new() -> Self {
        Self { next: PAUSE_FIRST }
    }

    /// Waits; the next pause is twice as long, up to the longest.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }

    /// Something changed: look often again.
    pub(crate) fn reset(&mut self) {
        self.next = PAUSE_FIRST;
    }
}
