//! Turns valid bytes into nearly valid ones: what a decoder must refuse, or read as what it says.
//!
//! Owns the changes: of bits, of places, of numbers, of lengths in CBOR, of tokens in text. Every
//! one follows from the generator alone. Called by the runner.

use crate::simulator::random::Random;

/// No input grows beyond this: more than any frame or document may have.
pub const INPUT_BYTES_MAX: usize = 1024 * 1024 + 4096;
/// Changes of one input.
const CHANGES_MAX: u64 = 6;
/// Copies of one part.
const COPIES_MAX: usize = 400;
/// Nesting that one change brings in.
const NESTING_MAX: usize = 20_000;
const EDGES: [u64; 16] = [
    0,
    1,
    0x17,
    0x18,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    (1 << 53) - 1,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "00",
    "-1",
    "1.0",
    "1e9",
    "4294967295",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "18446744073709551615",
    "18446744073709551616",
];
const TOKENS: [&str; 12] =
    ["{", "}", "[", "]", "\"", ",", ":", "null", "\\", "\\u0061", "\u{e9}", "\n"];

/// In what the bytes are written: decides which changes are worth making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// CBOR, also inside of its byte strings.
    Cbor,
    /// JSON, base64, PEM.
    Text,
    /// Fields at fixed places.
    Fixed,
}

/// An input that follows from `random`: one of `samples` with some changes, now and then one as it
/// is, now and then bytes without any form.
pub(super) fn input(random: &mut Random, form: Form, samples: &[Vec<u8>]) -> Vec<u8> {
    if random.happens(15) {
        let length = random.index(300);
        return (0..length).map(|_| byte(random)).collect();
    }
    let mut bytes = samples[random.index(samples.len())].clone();
    for _ in 0..random.below(CHANGES_MAX + 1) {
        change(random, form, &mut bytes, samples);
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}

fn byte(random: &mut Random) -> u8 {
    random.bits().to_be_bytes()[0]
}

fn change(random: &mut Random, form: Form, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.extend_from_slice(&samples[random.index(samples.len())]);
        return;
    }
    let (at, other) = (random.index(bytes.len()), random.index(samples.len()));
    match (random.below(12), form) {
        (0, _) => bytes[at] ^= 1 << random.below(8),
        (1, _) => bytes[at] = byte(random),
        (2, _) => cut(random, bytes),
        (3, _) => stretch(random, bytes),
        (4, _) => swap(random, bytes),
        (5, _) => splice(random, bytes, &samples[other]),
        (6, _) => overwrite_number(random, bytes),
        (_, Form::Cbor) => cbor_head(random, bytes),
        (7 | 8, Form::Text) => digits(random, bytes),
        (9 | 10, Form::Text) => token(random, bytes),
        (_, Form::Text) => nest(random, bytes),
        (_, Form::Fixed) => overwrite_number(random, bytes),
    }
}

/// A part of `bytes`, mostly a short one.
fn part(random: &mut Random, bytes: &[u8]) -> std::ops::Range<usize> {
    let begin = random.index(bytes.len());
    let longest = if random.happens(800) { 40 } else { bytes.len() };
    begin..(begin + 1 + random.index(longest)).min(bytes.len())
}

fn cut(random: &mut Random, bytes: &mut Vec<u8>) {
    if random.happens(500) {
        bytes.truncate(random.index(bytes.len()));
    } else {
        bytes.drain(part(random, bytes));
    }
}

fn stretch(random: &mut Random, bytes: &mut Vec<u8>) {
    let part = part(random, bytes);
    let copies = if random.happens(800) { 1 } else { 1 + random.index(COPIES_MAX) };
    let copies = copies.min(INPUT_BYTES_MAX / part.len().max(1));
    let more = bytes[part.clone()].repeat(copies);
    bytes.splice(part.end..part.end, more);
}

fn swap(random: &mut Random, bytes: &mut [u8]) {
    let (one, other) = (part(random, bytes), part(random, bytes));
    let length = one.len().min(other.len());
    let one_bytes = bytes[one.start..one.start + length].to_vec();
    bytes.copy_within(other.start..other.start + length, one.start);
    bytes[other.start..other.start + length].copy_from_slice(&one_bytes);
}

fn splice(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    if other.is_empty() {
        return;
    }
    let taken = part(random, other);
    let at = part(random, bytes);
    let taken = if random.happens(300) { taken.start..other.len() } else { taken };
    bytes.splice(at, other[taken].iter().copied());
}

/// A number at the edge of some range, or one beside it.
fn edge(random: &mut Random) -> u64 {
    let edge = random.choose(&EDGES);
    match random.below(4) {
        0 => edge.wrapping_add(1),
        1 => edge.wrapping_sub(1),
        _ => edge,
    }
}

fn overwrite_number(random: &mut Random, bytes: &mut [u8]) {
    let width = random.choose(&[1_usize, 2, 4, 8]).min(bytes.len());
    let at = random.index(bytes.len() - width + 1);
    let number = edge(random).to_be_bytes();
    bytes[at..at + width].copy_from_slice(&number[8 - width..]);
}

/// A head of a CBOR item: where it stands, how long it is, its kind, its number.
struct Head {
    at: usize,
    bytes: usize,
    major: u8,
    argument: u64,
}

/// The heads in `bytes`, also those within byte strings, as far as they can be read.
fn heads(bytes: &[u8]) -> Vec<Head> {
    let mut heads = Vec::new();
    let mut at = 0;
    while at < bytes.len() && heads.len() < 10_000 {
        let (major, short) = (bytes[at] >> 5, bytes[at] & 0x1f);
        let width = match short {
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => 0,
        };
        let Some(argument) = bytes.get(at + 1..at + 1 + width) else { break };
        let wide = argument.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let argument = if width == 0 { u64::from(short) } else { wide };
        heads.push(Head { at, bytes: 1 + width, major, argument });
        at += 1 + width;
        // Texts are skipped; byte strings mostly hold CBOR again, or nothing that looks like it.
        if major == 3 {
            at = at.saturating_add(usize::try_from(argument).unwrap_or(usize::MAX));
        }
    }
    heads
}

/// Another length, number or kind at one head, in the shortest form or in a longer one.
fn cbor_head(random: &mut Random, bytes: &mut Vec<u8>) {
    let heads = heads(bytes);
    let Some(head) = (!heads.is_empty()).then(|| &heads[random.index(heads.len())]) else {
        return;
    };
    let argument = match random.below(5) {
        0 => head.argument.wrapping_add(1),
        1 => head.argument.wrapping_sub(1),
        2 => head.argument,
        _ => edge(random),
    };
    let major = if random.happens(150) { byte(random) >> 5 } else { head.major };
    let shortest = match argument {
        0..=23 => 0,
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    let width = if random.happens(150) { 8 } else { shortest };
    let short = match width {
        0 => u8::try_from(argument).expect("below 24"),
        1 => 24,
        2 => 25,
        4 => 26,
        _ => 27,
    };
    // Now and then a length that is left open.
    let short = if random.happens(30) { 31 } else { short };
    let argument = argument.to_be_bytes();
    let written = [&[major << 5 | short], &argument[8 - width..]].concat();
    bytes.splice(head.at..head.at + head.bytes, written);
}

fn digits(random: &mut Random, bytes: &mut Vec<u8>) {
    let from = random.index(bytes.len());
    let Some(begin) = (from..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) else { return };
    let length = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = random.choose(&NUMBERS);
    bytes.splice(begin..begin + length, number.bytes());
}

fn token(random: &mut Random, bytes: &mut Vec<u8>) {
    let token = random.choose(&TOKENS);
    let at = part(random, bytes);
    let at = if random.happens(500) { at.start..at.start } else { at };
    bytes.splice(at, token.bytes());
}

fn nest(random: &mut Random, bytes: &mut Vec<u8>) {
    let depth = if random.happens(900) { random.index(12) } else { random.index(NESTING_MAX) };
    let open = random.choose(&["[", "{\"a\":", "\""]);
    let at = random.index(bytes.len());
    bytes.splice(at..at, open.repeat(depth).into_bytes());
}
