//! Tells the machines' half what is attested, in order of commits, and nothing else.
//!
//! Owns the mark: it is durable before anything that follows from it is told. What concerns this
//! host says [`Selection`]. Called once by the daemon.

use std::time::Instant;

use dagger_controller::selection::{Concerning, Selection};
use dagger_payload::id::{CommitIndex, HostId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Pauses;
use crate::handover::Order;
use crate::limits::{
    DISK_FULL_WAIT_MAX, DISK_FULL_WAIT_MIN, MARK_EVERY_MAX, ORDER_RELEASES_TOGETHER_MAX,
};
use crate::model::{LookProblem, SharedModel};
use crate::verify::mark::{Mark, MarkFile};
use crate::verify::reader::{Progress, Trust};

/// Tells orders from the model to `orders`.
pub struct OrderTeller {
    host: HostId,
    selection: Selection,
    model: SharedModel,
    orders: mpsc::Sender<Order>,
    mark_file: MarkFile,
    mark: Option<Mark>,
    written: Option<Instant>,
    reading: u64,
    told: CommitIndex,
    state: Told,
}

/// What the machines' half was told last about the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Nothing,
    CaughtUp,
    /// That, in an earlier reading of the history.
    CaughtUpBefore,
    Hold(String),
}

/// The machines' half is gone: the daemon is stopping.
struct NobodyListens;

impl OrderTeller {
    /// A teller for `host` that has told nothing; `mark` is what stands in `mark_file`.
    pub fn new(
        host: HostId,
        model: SharedModel,
        orders: mpsc::Sender<Order>,
        mark_file: MarkFile,
        mark: Option<Mark>,
    ) -> Self {
        Self {
            host,
            selection: Selection::new(host),
            model,
            orders,
            mark_file,
            mark,
            written: None,
            reading: 0,
            told: CommitIndex(0),
            state: Told::Nothing,
        }
    }

    /// Tells until `stop`, or until nobody listens.
    ///
    /// # Errors
    /// The mark cannot be written: acting without it could repeat what an older view asks for.
    pub async fn run(mut self, stop: CancellationToken) -> std::io::Result<()> {
        let done = stop.run_until_cancelled(self.tell_all()).await;
        done.unwrap_or(Ok(()))
    }

    async fn tell_all(&mut self) -> std::io::Result<()> {
        let mut news = self.model.subscribe();
        loop {
            let progress = news.borrow_and_update().clone();
            if self.tell_progress(&progress).await?.is_err() || news.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn tell_progress(
        &mut self,
        progress: &Progress,
    ) -> std::io::Result<Result<(), NobodyListens>> {
        if progress.reading != self.reading {
            self.reading = progress.reading;
            self.told = CommitIndex(0);
            self.selection = Selection::new(self.host);
            if self.state == Told::CaughtUp {
                self.state = Told::CaughtUpBefore;
            }
        }
        match &progress.trust {
            // What a quorum attested stays true while the ledger's history is read again, but more
            // may follow from it only when all of it is known.
            Trust::Reading(_) => Ok(Ok(())),
            Trust::Hold(why) => {
                let state = Told::Hold(why.clone());
                if self.state == state {
                    return Ok(Ok(()));
                }
                self.state = state;
                Ok(self.tell(Order::Hold(why.clone())).await)
            }
            Trust::CaughtUp => self.tell_attested(progress).await,
        }
    }

    async fn tell_attested(
        &mut self,
        progress: &Progress,
    ) -> std::io::Result<Result<(), NobodyListens>> {
        if self.state == Told::CaughtUpBefore && self.told < progress.attested {
            // Of what is over nothing may follow while it is told once more.
            self.state = Told::Nothing;
            let why = "the ledger's history is told again from its beginning";
            if self.tell(Order::Hold(why.to_owned())).await.is_err() {
                return Ok(Err(NobodyListens));
            }
        }
        while self.told < progress.attested {
            let releases = self.model.whole_after(self.told, ORDER_RELEASES_TOGETHER_MAX).await;
            let releases = match releases {
                Ok(releases) => releases,
                // The daemon is ending.
                Err(LookProblem::Broken(_)) => return std::future::pending().await,
                Err(LookProblem::Busy) => continue,
                // Of what was not begun nothing is attested; its progress is on its way here.
                Err(LookProblem::Unbegun) => return Ok(Ok(())),
            };
            let before = self.told;
            for release in &releases {
                let index = release.release().end.index;
                if index > progress.attested {
                    break;
                }
                let concerning = self.selection.concerning(release);
                self.keep_mark(progress, &concerning).await?;
                self.told = index;
                for order in concerning.into_orders() {
                    if self.tell(order).await.is_err() {
                        return Ok(Err(NobodyListens));
                    }
                }
            }
            if self.told == before {
                // The model was just begun again; its new progress is on its way here.
                return Ok(Ok(()));
            }
        }
        if self.state != Told::CaughtUp {
            self.state = Told::CaughtUp;
            return Ok(self.tell(Order::CaughtUp(progress.attested)).await);
        }
        Ok(Ok(()))
    }

    /// Writes the mark before something can follow from what concerns this host; when nothing can,
    /// only from time to time.
    async fn keep_mark(
        &mut self,
        progress: &Progress,
        concerning: &Concerning<'_>,
    ) -> std::io::Result<()> {
        let Some(fresh) = progress.attested_mark else {
            return Ok(());
        };
        if self.mark.is_some_and(|mark| mark.commit >= fresh.commit) {
            return Ok(());
        }
        let recent = self.written.is_some_and(|at| at.elapsed() < MARK_EVERY_MAX);
        if recent && concerning.is_nothing() {
            return Ok(());
        }
        self.write_mark(fresh).await?;
        self.mark = Some(fresh);
        self.written = Some(Instant::now());
        Ok(())
    }

    /// Where there is no room for it, that is waited for: nothing is told before it is written.
    async fn write_mark(&self, mark: Mark) -> std::io::Result<()> {
        let mut pauses = Pauses::between(DISK_FULL_WAIT_MIN, DISK_FULL_WAIT_MAX);
        let mut was_full = false;
        loop {
            let file = self.mark_file.clone();
            let written = tokio::task::spawn_blocking(move || file.write(&mark)).await;
            match written.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
                Err(error) if dagger_images::is_for_want_of_space(&error) => {
                    if !was_full {
                        error!(%error, "no orders are carried out: make room on the disk of the \
                            agent's state directory");
                    }
                    was_full = true;
                    tokio::time::sleep(pauses.next()).await;
                }
                written => return written,
            }
        }
    }

    async fn tell(&self, order: Order) -> Result<(), NobodyListens> {
        self.orders.send(order).await.map_err(|_| NobodyListens)
    }
}
