//! Says which input a decoder hangs on, and ends the program: a hang could not be reported
//! otherwise.
//!
//! Owns one thread. Called by the runner.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{INPUT_WAIT_MAX, command};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After this an input is not slow: it hangs.
const HANG: Duration = Duration::from_secs(12);
const _: () = assert!(HANG.as_millis() > 2 * INPUT_WAIT_MAX.as_millis());

type Current = Option<(&'static str, u64, Instant)>;

pub(super) struct Watch {
    current: Arc<Mutex<Current>>,
    /// Its end ends the thread.
    _alive: SyncSender<()>,
}

impl Watch {
    pub(super) fn start() -> Self {
        let current = Arc::new(Mutex::new(Current::None));
        let (alive, ended) = sync_channel::<()>(1);
        let watched = Arc::clone(&current);
        std::thread::spawn(move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = *watched.lock().expect("nobody panics with it");
                let hangs = now.filter(|(_, _, since)| since.elapsed() > HANG);
                if let Some((target, seed, _)) = hangs {
                    eprintln!("{target}, seed {seed}: no answer within {HANG:?}");
                    eprintln!("again: {}", command(target, seed));
                    std::process::abort();
                }
            }
        });
        Self { current, _alive: alive }
    }

    pub(super) fn begin(&self, target: &'static str, seed: u64) {
        let now = Some((target, seed, Instant::now()));
        *self.current.lock().expect("nobody panics with it") = now;
    }
}
