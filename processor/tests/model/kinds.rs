//! The table of kinds. A new kind gets an entry in the file of its subject: how it is drawn, and
//! what the model makes of it.

use dagger_payload::kind::Body;

use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};
use super::{accounts, hosts, images, members, networks, reports, snapshots, vms, volumes};

/// One kind of payload.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// How often it is drawn, beside the others.
    pub(crate) weight: u64,
    /// Who signs what.
    pub(crate) draw: fn(&Scene, &mut Random) -> (Person, Body),
    /// What the model says, without changing anything.
    pub(crate) judge: fn(&Model, &Asked<'_>, &Body) -> Ruling,
}

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Kind> {
    let subjects = [
        accounts::KINDS,
        hosts::KINDS,
        images::KINDS,
        members::KINDS,
        vms::KINDS,
        networks::KINDS,
        volumes::KINDS,
        snapshots::KINDS,
        reports::KINDS,
    ];
    subjects.into_iter().flatten()
}

/// The kind that is called so.
pub(crate) fn named(name: &str) -> &'static Kind {
    all().find(|kind| kind.name == name).unwrap_or_else(|| panic!("the model has no {name}"))
}

/// One of them.
pub(crate) fn draw(random: &mut Random) -> &'static Kind {
    let mut left = random.below(all().map(|kind| kind.weight).sum());
    let drawn = all().find(|kind| {
        let is_it = left < kind.weight;
        left = left.saturating_sub(kind.weight);
        is_it
    });
    drawn.expect("below the sum of all")
}

/// The inner part of a body that is of this kind.
macro_rules! of_kind {
    ($body:expr, $kind:ident) => {
        match $body {
            dagger_payload::kind::Body::$kind(body) => body,
            other => panic!("{} is not {}", other.kind(), stringify!($kind)),
        }
    };
}
pub(crate) use of_kind;
