//! The table of decoders: what reads bytes from outside, or bytes that a disk may have changed.
//!
//! Owns one entry for each: its samples, and what it must keep when it reads something. Whoever
//! adds a decoder adds an entry here. Called by the runner.

mod disk;
mod documents;
mod guests;
mod local;
mod peers;
mod proofs;

use dagger_payload::codec;

use super::mutate::Form;
use super::samples::World;

/// What a decoder made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was read.
    Accepted,
    /// It was refused.
    Refused,
}

/// A decoder.
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// How its inputs are written.
    pub form: Form,
    /// Inputs that it reads.
    pub samples: fn(&World) -> Vec<Vec<u8>>,
    /// Gives it an input.
    ///
    /// # Errors
    /// What it read breaks a promise.
    pub read: fn(&[u8]) -> Result<Answer, String>,
}

/// All decoders.
pub fn all() -> impl Iterator<Item = &'static Target> {
    let far = [documents::TARGETS, proofs::TARGETS, peers::TARGETS];
    let near = [local::TARGETS, disk::TARGETS, guests::TARGETS];
    far.into_iter().chain(near).flatten()
}

/// The decoder that is called so.
pub fn named(name: &str) -> Option<&'static Target> {
    all().find(|target| target.name == name)
}

/// What became of a result whose value has nothing more to keep.
fn answer<T, E>(result: Result<T, E>) -> Result<Answer, String> {
    Ok(if result.is_ok() { Answer::Accepted } else { Answer::Refused })
}

fn require(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// A type of which only canonical bytes count: written again, what was read gives the same bytes.
fn canonical<T>(bytes: &[u8]) -> Result<Answer, String>
where
    T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    let Ok(value) = codec::decode::<T>(bytes) else { return Ok(Answer::Refused) };
    require(codec::encode(&value) == bytes, "it takes bytes that it would write otherwise")?;
    Ok(Answer::Accepted)
}

/// A type that is read as it comes, between daemons of one host or behind a checksum: what was read
/// can be written, and read again as the same.
fn stable<T>(bytes: &[u8]) -> Result<Answer, String>
where
    T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    let Ok(value) = minicbor::decode::<T>(bytes) else { return Ok(Answer::Refused) };
    let written = codec::encode(&value);
    let again: T = minicbor::decode(&written).map_err(|_| "it cannot read what it writes")?;
    require(codec::encode(&again) == written, "it reads what it wrote as something else")?;
    Ok(Answer::Accepted)
}

/// Reads the bytes after the first one as the type that the first one names.
macro_rules! by_first_byte {
    ($bytes:expr, $read:ident: $($number:literal => $type:ty),* $(,)?) => {
        match $bytes.split_first() {
            $(Some(($number, rest)) => super::$read::<$type>(rest),)*
            _ => Ok(super::Answer::Refused),
        }
    };
}
use by_first_byte;

/// A sample for [`by_first_byte`].
fn numbered<T: minicbor::Encode<()>>(number: u8, value: &T) -> Vec<u8> {
    [&[number][..], &codec::encode(value)].concat()
}
