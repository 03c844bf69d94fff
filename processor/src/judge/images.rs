//! `image.register`, `image.retire`: a name for an image file.
//!
//! Owns which names a publisher may give, and that a name belongs to who registered it first. Never
//! looks at a file: hosts verify digests before use.

use dagger_payload::id::{Generation, OperatorId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{ImageRegister, ImageRetire};
use dagger_payload::limits::{IMAGES_ALWAYS, IMAGES_PER_PUBLISHER_MAX, IMAGES_TOGETHER_MAX};
use dagger_payload::object::{Account, Effect, Image, ImageStatus};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::accounts::acting;
use super::state::State;
use super::{Case, Ruling, refuse, require_generation};

pub(crate) fn register(state: &State, case: &Case<'_>, body: &ImageRegister) -> Ruling {
    let publisher = publisher(state, case)?;
    let Publisher { key: publisher, called, account } = publisher;
    let grants = account.map(|account| &account.grants);
    let opened_by = account.map(|account| account.opened_by);
    if grants.is_some_and(|grants| !grants.iter().any(|grant| state.is_live(grant, case.now))) {
        return refuse(RefusalCode::AccountUnknown, "the account has no live grant");
    }
    if body.name.publisher() != called {
        let detail = format!(
            "with this key an image is called {called}/NAME; images of {} are signed with its key",
            body.name.publisher()
        );
        return refuse(RefusalCode::NotAuthorized, detail);
    }
    let old = state.images.get(&body.name);
    if old.is_some_and(|old| old.publisher != *publisher) {
        let detail = format!("{} belongs to another publisher", body.name);
        return refuse(RefusalCode::NameTaken, detail);
    }
    if old.is_none() {
        require_few_names(state, publisher, opened_by)?;
    }
    let image = Image {
        name: body.name.clone(),
        publisher: publisher.clone(),
        digest: body.digest,
        format: body.format,
        size_bytes: body.size_bytes,
        virtual_size_bytes: body.virtual_size_bytes,
        sources: body.sources.clone(),
        generation: old.map_or(Generation(1), |old| old.generation.next()),
        cause: case.cause,
        status: ImageStatus::Offered,
    };
    let unchanged = old.is_some_and(|old| {
        let (generation, cause) = (old.generation, old.cause);
        *old == Image { generation, cause, ..image.clone() }
    });
    if unchanged {
        let detail = format!("{} is registered exactly like this", body.name);
        return refuse(RefusalCode::AlreadyExists, detail);
    }
    Ok(vec![Effect::Image(Box::new(image))])
}

/// Whether `publisher`, an account that somebody opened or an operator, may give one more name.
fn require_few_names(
    state: &State,
    publisher: &PublicKey,
    opened_by: Option<OperatorId>,
) -> Result<(), Refusal> {
    let own = state.tallies.images_of(publisher);
    if own >= IMAGES_PER_PUBLISHER_MAX {
        let detail =
            format!("you have given {IMAGES_PER_PUBLISHER_MAX} names; use one of them again");
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    let together = opened_by.map_or(0, |operator| state.tallies.images_of_accounts(&operator));
    if own >= IMAGES_ALWAYS && together >= IMAGES_TOGETHER_MAX {
        let detail = format!(
            "the accounts that were opened by the same operator as yours have given \
             {IMAGES_TOGETHER_MAX} names; use one of yours again"
        );
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    Ok(())
}

/// Under which key and name the signer publishes.
struct Publisher<'s> {
    /// The first one of the operator, or of the account.
    key: &'s PublicKey,
    /// An operator's name; an account's id, which nobody can choose: so no account
    /// takes a name that is, or will be, an operator's.
    called: String,
    /// None if it is an operator.
    account: Option<&'s Account>,
}

fn publisher<'s>(state: &'s State, case: &Case<'s>) -> Result<Publisher<'s>, Refusal> {
    if let Some(operator) = state.operator(case.signer).and_then(|id| state.operators.get(&id)) {
        let (key, called) = (&operator.first_key, operator.name.to_string());
        return Ok(Publisher { key, called, account: None });
    }
    let account = acting(state, case)?;
    let (key, called) = (&account.key, account.id.to_string());
    Ok(Publisher { key, called, account: Some(account) })
}

/// The name stays taken, so that nobody can put another file under it; registering again offers it
/// again.
pub(crate) fn retire(state: &State, case: &Case<'_>, body: &ImageRetire) -> Ruling {
    let Some(image) = state.images.get(&body.name) else {
        return refuse(RefusalCode::NotFound, format!("no image is called {}", body.name));
    };
    if image.publisher != *publisher(state, case)?.key {
        let detail = format!("{} belongs to another publisher", body.name);
        return refuse(RefusalCode::NotAuthorized, detail);
    }
    require_generation(body.expected_generation, ("image", image.generation))?;
    if image.status == ImageStatus::Retired {
        return Ok(Vec::new()); // it is retired already
    }
    let generation = image.generation.next();
    let status = ImageStatus::Retired;
    let image = Image { status, generation, cause: case.cause, ..image.clone() };
    Ok(vec![Effect::Image(Box::new(image))])
}
