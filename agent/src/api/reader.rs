//! Who reads, and what of the accounts' objects he may see.
//!
//! Owns the rule: over the host's Unix socket everything (the file system is the guard); over TCP
//! what belongs to accounts needs a session, which shows any key of an account its objects and an
//! operator's key all of them. Payloads are shown to whoever knows their digest, and what concerns
//! the whole cluster to anybody. Sessions never change anything. Whoever is answered for long is
//! looked at again, since keys are taken away. Called by the handlers through [`Reader`] and
//! [`LongReader`].

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use dagger_payload::id::{AccountId, CommitIndex};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::KeyRole;
use dagger_payload::session::{self, SESSION_HEADER, SESSION_SIGNATURE_HEADER};

use super::problem::ApiProblem;
use super::{Api, Door};
use crate::model::{LookExtent, Walker};

/// A reader who may see objects of accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// All of them.
    All,
    /// Those of this account.
    Account(AccountId),
    /// Those of this account, by a key that may only read.
    Onlooker(AccountId),
}

impl Reader {
    /// The account to look in, when `asked` is asked for.
    ///
    /// # Errors
    /// `session_refused`: another account than the reader's.
    pub(super) fn account(self, asked: Option<AccountId>) -> Result<Option<AccountId>, ApiProblem> {
        match (self, asked) {
            (Self::All, asked) => Ok(asked),
            (Self::Account(own) | Self::Onlooker(own), None) => Ok(Some(own)),
            (Self::Account(own) | Self::Onlooker(own), Some(asked)) if own == asked => {
                Ok(Some(own))
            }
            (Self::Account(own) | Self::Onlooker(own), Some(_)) => Err(ApiProblem::session(
                format!("this session's key belongs to account {own} and sees nothing of others"),
            )),
        }
    }

    /// Whether he may see what belongs to `account`.
    pub(super) fn sees(self, account: AccountId) -> bool {
        match self {
            Self::All => true,
            Self::Account(own) | Self::Onlooker(own) => own == account,
        }
    }

    /// His account; none of who sees all.
    pub(super) fn own(self) -> Option<AccountId> {
        match self {
            Self::All => None,
            Self::Account(own) | Self::Onlooker(own) => Some(own),
        }
    }

    /// Whether he has an account here, or sees all.
    pub(super) fn is_known(self, api: &Api) -> bool {
        let has_account = |own| api.parts.model.read(|model| model.account(&own).is_some());
        self.own().is_none_or(has_account)
    }

    /// How he looks at many records.
    pub(super) fn walk(self) -> LookExtent {
        LookExtent::Walk(self.own().map_or(Walker::Operator, Walker::Account))
    }

    /// Checks that he may type into guests.
    ///
    /// # Errors
    /// `session_refused`: the session's key may only read.
    pub(super) fn require_hands(self) -> Result<(), ApiProblem> {
        match self {
            Self::All | Self::Account(_) => Ok(()),
            Self::Onlooker(_) => Err(ApiProblem::session(
                "this session's key may only read: ask for the console without an upgrade to see \
                 what the guest said"
                    .to_owned(),
            )),
        }
    }
}

impl FromRequestParts<Api> for Reader {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiProblem> {
        match parts.extensions.get::<Door>() {
            Some(Door::Unix) => Ok(Self::All),
            Some(Door::Tcp(_) | Door::Images) => scope(&session_key(&parts.headers, api)?, api),
            None => Err(ApiProblem::internal("the request came through no door")),
        }
    }
}

/// A reader who is answered for as long as he listens, and the key that he showed for it.
///
/// The session itself may end meanwhile: it says who came, and the key says what he may see.
#[derive(Debug, Clone)]
pub(super) struct LongReader {
    /// Who he was when he came.
    pub(super) reader: Reader,
    key: Option<PublicKey>,
    /// How much of the history was known then.
    since: CommitIndex,
}

impl FromRequestParts<Api> for LongReader {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiProblem> {
        let since = api.parts.model.progress().judged;
        let reader = Reader::from_request_parts(parts, api).await?;
        let key = match parts.extensions.get::<Door>() {
            Some(Door::Tcp(_) | Door::Images) => Some(session_key(&parts.headers, api)?),
            Some(Door::Unix) | None => None,
        };
        Ok(Self { reader, key, since })
    }
}

impl LongReader {
    /// Checks that he may still see what he could when he came.
    ///
    /// # Errors
    /// `session_refused`: his key signs for its account no more, or may do something else there.
    pub(super) fn check(&self, api: &Api) -> Result<(), ApiProblem> {
        let Some(key) = &self.key else { return Ok(()) };
        // A history that is read again from its beginning says nothing yet about keys.
        if api.parts.model.progress().judged < self.since || scope(key, api)? == self.reader {
            return Ok(());
        }
        let detail = "what this session's key may see has changed; begin again with a new session";
        Err(ApiProblem::session(detail))
    }
}

/// The key behind the session that came with a request.
///
/// # Errors
/// `session_needed`, `session_refused`.
pub(super) fn session_key(headers: &HeaderMap, api: &Api) -> Result<PublicKey, ApiProblem> {
    let text = |name: &'static str| match headers.get(name).map(|value| value.to_str()) {
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(ApiProblem::session(format!("the {name} header is not ASCII"))),
        None => Ok(None),
    };
    let (Some(document), Some(signature)) =
        (text(SESSION_HEADER)?, text(SESSION_SIGNATURE_HEADER)?)
    else {
        return Err(ApiProblem::no_session());
    };
    let here = (api.parts.cluster, api.me);
    session::check(document, signature, here, api.now())
        .map_err(|error| ApiProblem::session(error.to_string()))
}

fn scope(key: &PublicKey, api: &Api) -> Result<Reader, ApiProblem> {
    api.parts.model.read(|model| {
        if model.members().operator_signed_by(key).is_some() {
            return Ok(Reader::All);
        }
        let id = model.account_signed_by(key);
        match model.account(&id) {
            Some(account) if account.role_of(key).is_none() => Err(ApiProblem::session(
                "this session's key signs for its account no more".to_owned(),
            )),
            Some(account) if account.role_of(key) == Some(KeyRole::Read) => {
                Ok(Reader::Onlooker(id))
            }
            _ => Ok(Reader::Account(id)),
        }
    })
}
