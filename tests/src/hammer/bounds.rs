//! What this machine can do at most, measured alone and in the same run: no figure of a ledger
//! means anything without it.
//!
//! Owns four short measurements. Called by the run, before the ledgers start.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use dagger_payload::key::{Domain, SecretKey};
use serde::Serialize;

/// How long each is measured.
const EACH: Duration = Duration::from_millis(500);
/// Bytes that are hashed or sent at a time.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Bytes that each durable write appends.
const PAGE_BYTES: usize = 4096;

/// The machine's bounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bounds {
    /// Signatures verified on one core, one by one.
    pub verify_strict_per_s: f64,
    /// BLAKE3 over 1 MiB on one core.
    pub blake3_gb_per_s: f64,
    /// Appends of 4 KiB, each followed by fdatasync(2), on the stores' file system.
    pub fsync_per_s: f64,
    /// One TCP connection over loopback.
    pub loopback_gb_per_s: f64,
}

/// Counts how often `step` goes in [`EACH`], as a rate.
fn rate(mut step: impl FnMut() -> std::io::Result<()>) -> std::io::Result<f64> {
    let begin = Instant::now();
    let mut steps: u32 = 0;
    while begin.elapsed() < EACH {
        step()?;
        steps += 1;
    }
    Ok(f64::from(steps) / begin.elapsed().as_secs_f64())
}

/// From blocks a second to gigabytes a second.
fn gigabytes(blocks: f64) -> f64 {
    blocks * f64::from(u32::try_from(BLOCK_BYTES).expect("a mebibyte")) / 1e9
}

/// Measures all; `directory` is on the stores' file system.
pub(super) fn measure(directory: &Path) -> std::io::Result<Bounds> {
    let key = SecretKey::from_seed(&[9; 32].into());
    let (public, message) = (key.public_key(), [5; 32]);
    let signature = key.sign_in(Domain::Event, &message);
    let verify_strict_per_s = rate(|| {
        assert!(public.verifies_in(Domain::Event, &message, &signature), "it was just made");
        Ok(())
    })?;
    let block = vec![5; BLOCK_BYTES];
    let hashed = rate(|| {
        std::hint::black_box(blake3::hash(std::hint::black_box(&block)));
        Ok(())
    })?;
    Ok(Bounds {
        verify_strict_per_s,
        blake3_gb_per_s: gigabytes(hashed),
        fsync_per_s: fsync(&directory.join("fsync"))?,
        loopback_gb_per_s: gigabytes(loopback(&block)?),
    })
}

fn fsync(path: &Path) -> std::io::Result<f64> {
    let (file, page, mut offset) = (File::create(path)?, [5; PAGE_BYTES], 0);
    let synced = rate(|| {
        file.write_all_at(&page, offset)?;
        offset += u64::try_from(PAGE_BYTES).expect("a page");
        file.sync_data()
    });
    std::fs::remove_file(path)?;
    synced
}

fn loopback(block: &[u8]) -> std::io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiving, _) = listener.accept()?;
    let receiver = std::thread::spawn(move || {
        let mut buffer = vec![0; BLOCK_BYTES];
        while receiving.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let sent = rate(|| sending.write_all(block))?;
    drop(sending);
    receiver.join().expect("reading does not panic").map(|()| sent)
}
