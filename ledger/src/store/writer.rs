//! The one thread that writes: it joins all requests that wait into one commit, so that one durable
//! write covers many.
//!
//! Owns the order of writes, the witness file and what a full store means: payloads are sent back,
//! everything else waits and is tried again. A failing disk is never tried again: the reason is
//! handed to the daemon, which stops. Called by driver and delivery through [`WriterHandle`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use dagger_ledger_core::interface::WriteNumber;
use tokio::sync::{oneshot, watch};

use super::records::InstanceId;
use super::witness::{Signed, Testimony, Witness};
use super::{Change, Store, StoreError};
use crate::exit::{Stop, StopHandle};
use crate::limits::{
    COMMIT_BYTES_MAX, STORE_FULL_WAIT_MAX, STORE_FULL_WAIT_MIN, WRITER_FULL_PAUSE,
    WRITER_REQUESTS_MAX,
};

/// Who waits for a write.
pub enum Waiter {
    /// The core, for this number.
    Core {
        /// The number.
        number: WriteNumber,
        /// How far this host has signed with it, if it signs or begins an epoch.
        signed: Option<Signed>,
    },
    /// Delivery: the answer comes when it is durable. Tried again while the store is full.
    Delivery(oneshot::Sender<()>),
    /// Users' payloads: sent back at once when the store is full.
    Submission(oneshot::Sender<Result<(), StoreFull>>),
}

/// The store has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is full")]
pub struct StoreFull;

struct Request {
    changes: Vec<Change>,
    waiter: Waiter,
}

/// The way to the writer.
#[derive(Clone)]
pub struct WriterHandle {
    requests: SyncSender<Request>,
    durable: watch::Receiver<WriteNumber>,
    full: Arc<AtomicBool>,
}

/// The writer is gone: the daemon stops.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the writer has stopped")]
pub struct WriterGone;

impl WriterHandle {
    /// Hands over changes; blocks while too much waits. From async code see
    /// [`WriterHandle::store`].
    ///
    /// # Errors
    /// [`WriterGone`].
    pub fn write(&self, changes: Vec<Change>, waiter: Waiter) -> Result<(), WriterGone> {
        self.requests.send(Request { changes, waiter }).map_err(|_| WriterGone)
    }

    async fn hand_over(&self, changes: Vec<Change>, waiter: Waiter) -> Result<(), WriterGone> {
        let mut request = Request { changes, waiter };
        // Rarely full: the writer takes all that waits with each commit.
        loop {
            match self.requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => request = back,
                Err(TrySendError::Disconnected(_)) => return Err(WriterGone),
            }
            tokio::time::sleep(WRITER_FULL_PAUSE).await;
        }
    }

    /// Makes delivery's changes durable, however long a full store takes to get room.
    ///
    /// # Errors
    /// [`WriterGone`].
    pub async fn store(&self, changes: Vec<Change>) -> Result<(), WriterGone> {
        let (answer, durable) = oneshot::channel();
        self.hand_over(changes, Waiter::Delivery(answer)).await?;
        durable.await.map_err(|_| WriterGone)
    }

    /// Makes submissions durable, all or none of them.
    ///
    /// # Errors
    /// Outer: [`WriterGone`]; inner: [`StoreFull`], and nothing is kept.
    pub async fn submit(&self, changes: Vec<Change>) -> Result<Result<(), StoreFull>, WriterGone> {
        let (answer, durable) = oneshot::channel();
        self.hand_over(changes, Waiter::Submission(answer)).await?;
        durable.await.map_err(|_| WriterGone)
    }

    /// The core's newest durable write; changes wake whoever watches.
    pub fn durable(&self) -> watch::Receiver<WriteNumber> {
        self.durable.clone()
    }

    /// Whether the last commit found no room.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

struct Writer {
    store: Arc<dyn Store>,
    witness: Witness,
    instance: InstanceId,
    requests: Receiver<Request>,
    durable: watch::Sender<WriteNumber>,
    full: Arc<AtomicBool>,
}

/// Starts the writer on its own thread. It ends when the last handle is dropped, after everything
/// handed over is durable.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    store: Arc<dyn Store>,
    witness: Witness,
    instance: InstanceId,
    stop: StopHandle,
) -> std::io::Result<(WriterHandle, std::thread::JoinHandle<()>)> {
    let (sender, requests) = sync_channel(WRITER_REQUESTS_MAX);
    let (durable, watched) = watch::channel(WriteNumber(0));
    let full = Arc::new(AtomicBool::new(false));
    let handle = WriterHandle { requests: sender, durable: watched, full: full.clone() };
    let mut writer = Writer { store, witness, instance, requests, durable, full };
    let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
        if let Err(cause) = writer.run() {
            stop.stop(Stop::Broken(Box::new(cause)));
        }
    })?;
    Ok((handle, thread))
}

/// Requests that one commit covers.
#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    bytes: usize,
    /// The newest write of the core in it, and how far this host has signed with it.
    core: Option<(WriteNumber, Option<Signed>)>,
    delivery: Vec<oneshot::Sender<()>>,
    /// Kept apart, so that a full store can send them back.
    submitted: Vec<Change>,
    submitters: Vec<oneshot::Sender<Result<(), StoreFull>>>,
}

impl Group {
    fn add(&mut self, mut request: Request) {
        self.bytes += request.changes.iter().map(Change::size_bytes).sum::<usize>();
        match request.waiter {
            Waiter::Core { number, signed } => {
                let earlier = self.core.and_then(|(_, signed)| signed);
                self.core = Some((number, signed.max(earlier)));
                self.changes.append(&mut request.changes);
            }
            Waiter::Delivery(answer) => {
                self.delivery.push(answer);
                self.changes.append(&mut request.changes);
            }
            Waiter::Submission(answer) => {
                self.submitters.push(answer);
                self.submitted.append(&mut request.changes);
            }
        }
    }

    fn is_full(&self) -> bool {
        let waiters = self.delivery.len() + self.submitters.len();
        self.bytes >= COMMIT_BYTES_MAX || waiters >= WRITER_REQUESTS_MAX
    }

    /// Sends the submissions back; what is left must be written, however long it takes.
    fn refuse_submissions(&mut self) {
        self.submitted.clear();
        for answer in self.submitters.drain(..) {
            // A submitter who has gone away needs no answer.
            let _ = answer.send(Err(StoreFull));
        }
    }
}

impl Writer {
    fn run(&mut self) -> Result<(), StoreError> {
        while let Ok(first) = self.requests.recv() {
            let mut group = Group::default();
            group.add(first);
            while !group.is_full() {
                let Ok(request) = self.requests.try_recv() else {
                    break;
                };
                group.add(request);
            }
            self.commit(group)?;
        }
        Ok(())
    }

    fn commit(&mut self, mut group: Group) -> Result<(), StoreError> {
        let mut wait = STORE_FULL_WAIT_MIN;
        loop {
            // Submissions first: what the core has packed meanwhile does not come back.
            let submitted = group.submitted.len();
            group.submitted.append(&mut group.changes);
            let committed = self.store.commit(&group.submitted);
            group.changes = group.submitted.split_off(submitted);
            match committed {
                Ok(()) => break,
                Err(StoreError::Full(reason)) => {
                    if !self.full.swap(true, Ordering::Relaxed) {
                        tracing::error!(reason, "the store is full: nothing new is accepted");
                    }
                    group.refuse_submissions();
                    if group.changes.is_empty() {
                        return Ok(());
                    }
                    self.wait_for_room(&mut group, wait);
                    wait = (wait * 2).min(STORE_FULL_WAIT_MAX);
                }
                Err(broken) => return Err(broken),
            }
        }
        if self.full.swap(false, Ordering::Relaxed) {
            tracing::info!("the store has room again");
        }
        self.testify(&group)?;
        self.answer(group);
        Ok(())
    }

    /// Waits; submissions that come meanwhile are sent back at once, and what else comes joins the
    /// group within its bounds.
    fn wait_for_room(&self, group: &mut Group, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if group.is_full() {
                std::thread::sleep(left);
                return;
            }
            match self.requests.recv_timeout(left) {
                Ok(request) => {
                    group.add(request);
                    group.refuse_submissions();
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return;
                }
            }
        }
    }

    /// The witness learns of own events after the store and before anyone else.
    fn testify(&mut self, group: &Group) -> Result<(), StoreError> {
        let Some((_, Some(signed))) = group.core else {
            return Ok(());
        };
        let testimony = Testimony { instance: self.instance, signed };
        self.witness.write(&testimony).map_err(|cause| StoreError::Failed {
            doing: "write the witness file",
            cause: Box::new(cause),
        })
    }

    fn answer(&self, group: Group) {
        // Whoever no longer waits for an answer has gone away; what he wrote stays.
        for answer in group.delivery {
            let _ = answer.send(());
        }
        for answer in group.submitters {
            let _ = answer.send(Ok(()));
        }
        if let Some((number, _)) = group.core {
            self.durable.send_replace(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dagger_payload::id::{Epoch, Round};

    use crate::exit;
    use crate::store::Table;
    use crate::store::memory::{Fault, MemoryStore};

    fn put(key: &[u8]) -> Change {
        let (table, key, value) = (Table::Pool, key.to_vec(), b"value".to_vec());
        Change::Put { table, key, value }
    }

    struct Bench {
        store: Arc<MemoryStore>,
        writer: WriterHandle,
        reasons: exit::StopReceiver,
        directory: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        let (witness, _) = Witness::open(&directory.path().join("witness")).expect("opens");
        let store = Arc::new(MemoryStore::default());
        let (stop, reasons) = exit::channel();
        let instance = InstanceId([1; 16].into());
        let (writer, _) = start(store.clone(), witness, instance, stop).expect("starts");
        Bench { store, writer, reasons, directory }
    }

    #[tokio::test]
    async fn a_full_store_sends_submissions_back_and_keeps_everything_else_until_there_is_room() {
        let bench = bench();
        bench.store.fail_next(Fault::Full);
        assert_eq!(bench.writer.submit(vec![put(b"a")]).await.expect("answers"), Err(StoreFull));
        assert!(bench.writer.is_full());
        assert!(!bench.store.contains(Table::Pool, b"a").expect("reads"));
        bench.store.fail_next(Fault::Full);
        bench.writer.store(vec![put(b"b")]).await.expect("is kept in the end");
        assert!(bench.store.contains(Table::Pool, b"b").expect("reads"));
        assert!(!bench.writer.is_full());
        assert_eq!(bench.writer.submit(vec![put(b"c")]).await.expect("answers"), Ok(()));
    }

    #[tokio::test]
    async fn after_a_failed_commit_nobody_gets_an_answer_and_the_daemon_is_told_to_stop() {
        let mut bench = bench();
        bench.store.fail_next(Fault::Sync);
        assert!(bench.writer.submit(vec![put(b"a")]).await.is_err());
        let reason = bench.reasons.wait().await;
        assert_eq!(reason.exit(), exit::Exit::Damaged);
        assert!(
            bench.writer.submit(vec![put(b"b")]).await.is_err(),
            "a failed disk is not tried again"
        );
    }

    #[tokio::test]
    async fn the_witness_knows_an_own_round_before_its_write_is_called_durable() {
        let bench = bench();
        let mut durable = bench.writer.durable();
        for number in 1..=3 {
            let last = Some(Signed { epoch: Epoch(1), round: Round(number * 10) });
            let number = WriteNumber(number);
            let waiter = Waiter::Core { number, signed: last };
            bench.writer.write(vec![put(b"x")], waiter).expect("writes");
            durable.wait_for(|durable| *durable >= number).await.expect("becomes durable");
            let path = bench.directory.path().join("witness");
            let (_, testimony) = Witness::open(&path).expect("opens");
            assert_eq!(testimony.map(|seen| seen.signed), last);
        }
    }
}
