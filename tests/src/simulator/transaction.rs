//! How a copy-on-write store commits: data, sync, a record that refers to it, sync; and what a
//! power cut in between leaves.
//!
//! Owns the bytes of one transaction on a device. Never keeps anything. Called by `disk` at the
//! moment of a crash. Source: the order in which LMDB writes its pages.

use dagger_ledger::store::{Change, Table};

use super::device::{Device, PowerCut, SECTOR_BYTES};
use super::disk::PersistPoint;
use super::random::Random;

/// The two slots of the record that refers to the newest transaction stand first.
const DATA_SECTOR: usize = 2;
const META_BYTES: usize = 24;

/// Commits `changes` as far as `point`, cuts the power, and reads the device again: what the cut
/// did, and the changes if they became part of the store.
pub(super) fn interrupt(
    changes: &[Change],
    point: PersistPoint,
    random: &mut Random,
) -> (PowerCut, Option<Vec<Change>>) {
    let mut device = Device::default();
    device.write(0, &meta(1, 0));
    device.sync();
    let data = to_bytes(changes);
    let length = u64::try_from(data.len()).expect("a length fits into 64 bits");
    device.write(DATA_SECTOR, &data);
    if point >= PersistPoint::DataSynced {
        device.sync();
    }
    if point >= PersistPoint::Meta {
        device.write(1, &meta(2, length));
    }
    if point >= PersistPoint::MetaSynced {
        device.sync();
    }
    let cut = device.cut_power(random);
    let newest = (0..DATA_SECTOR).filter_map(|slot| read_meta(&device.read(slot, META_BYTES)));
    let survived = match newest.max() {
        Some((2, length)) => {
            let length = usize::try_from(length).expect("it was a length");
            Some(from_bytes(&device.read(DATA_SECTOR, length)))
        }
        _ => None,
    };
    (cut, survived)
}

fn meta(number: u64, length: u64) -> [u8; META_BYTES] {
    let mut meta = [0; META_BYTES];
    meta[..8].copy_from_slice(&number.to_be_bytes());
    meta[8..16].copy_from_slice(&length.to_be_bytes());
    let checksum = *blake3::hash(&meta[..16]).as_bytes();
    meta[16..].copy_from_slice(&checksum[..8]);
    meta
}

fn read_meta(bytes: &[u8]) -> Option<(u64, u64)> {
    let whole = bytes[16..] == blake3::hash(&bytes[..16]).as_bytes()[..8];
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
    whole.then(|| (number(&bytes[..8]), number(&bytes[8..16])))
}

fn to_bytes(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut field = |field: &[u8]| {
        let length = u32::try_from(field.len()).expect("records are small");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(field);
    };
    for change in changes {
        match change {
            Change::Put { table, key, value } => {
                field(table.name().as_bytes());
                field(key);
                field(b"put");
                field(value);
            }
            Change::PutNew { table, key, value } => {
                field(table.name().as_bytes());
                field(key);
                field(b"put new");
                field(value);
            }
            Change::Delete { table, key } => {
                field(table.name().as_bytes());
                field(key);
                field(b"delete");
                field(&[]);
            }
        }
    }
    bytes
}

fn from_bytes(mut bytes: &[u8]) -> Vec<Change> {
    let mut field = || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        Some(field.to_vec())
    };
    let mut changes = Vec::new();
    while let (Some(name), Some(key), Some(kind), Some(value)) =
        (field(), field(), field(), field())
    {
        let Some(table) = Table::ALL.into_iter().find(|table| table.name().as_bytes() == name)
        else {
            break;
        };
        changes.push(match kind.as_slice() {
            b"put" => Change::Put { table, key, value },
            b"put new" => Change::PutNew { table, key, value },
            _ => Change::Delete { table, key },
        });
    }
    changes
}

const _: () = assert!(META_BYTES <= SECTOR_BYTES);
