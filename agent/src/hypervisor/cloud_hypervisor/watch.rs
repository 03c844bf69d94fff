//! Watches all machines of this host: announces what happens to them, and keeps what their guests
//! say.
//!
//! Owns one thread. It follows the machines' directories: the closing of an event file says that
//! the process ended, by whatever means, since the kernel closes it. That it is written says
//! nothing here: guests have their processes write as much as they like, which is cut off. It also
//! holds each guest's serial line and appends what comes to the console file: the line takes one
//! client, ends at every reboot and is not kept by anybody else. Never asks or changes a machine.
//! Started by the implementation, ends when that is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dagger_payload::id::VmId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::events::ending;
use super::limits::{
    CONSOLE_FILE_BYTES_MAX, CONSOLE_LINE_WAIT_MAX, CONSOLE_READ_BYTES, CONSOLE_TRIES_MAX,
    CONSOLE_WRITE_WAIT_MAX, WATCH_READS_TOGETHER_MAX, WATCH_TICK, WRITTEN_BYTES_MAX,
    WRITTEN_LOOK_EVERY,
};
use super::place::{EVENTS, Place, SERIAL};
use super::socket::connect_to;
use crate::hypervisor::announcer::Announcer;
use crate::hypervisor::{Change, ConsoleInput, HypervisorError};

/// Lives as long as the watch is wanted.
pub(super) struct Watch {
    writers: Writers,
    _end: UnixStream,
}

/// The serial lines that are held now, for typing.
#[derive(Clone, Default)]
pub(super) struct Writers(Arc<Held>);

#[derive(Default)]
struct Held {
    lines: Mutex<BTreeMap<VmId, UnixStream>>,
    comes: Condvar,
}

impl Writers {
    fn set(&self, vm: VmId, line: Option<UnixStream>) {
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match line {
            Some(line) => drop(lines.insert(vm, line)),
            None => drop(lines.remove(&vm)),
        }
        drop(lines);
        self.0.comes.notify_all();
    }

    /// The line of a machine that runs. One that has just been started or reset has none for a
    /// moment: the watch has to hear of it first.
    fn line(&self, vm: VmId, wait_max: Duration) -> io::Result<UnixStream> {
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |lines: &mut BTreeMap<_, _>| !lines.contains_key(&vm);
        let waited = self.0.comes.wait_timeout_while(lines, wait_max, waits);
        let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the serial line is not held");
        lines.get(&vm).ok_or_else(gone)?.try_clone()
    }
}

/// Typing at one guest's serial line, whichever connection holds it.
pub(super) struct LineInput {
    writers: Writers,
    vm: VmId,
}

impl LineInput {
    /// Typing at the serial line of `vm`, which is waited for.
    ///
    /// # Errors
    /// It is not held in time.
    pub(super) fn open(writers: Writers, vm: VmId) -> io::Result<Self> {
        writers.line(vm, CONSOLE_LINE_WAIT_MAX).map(|_| Self { writers, vm })
    }
}

impl ConsoleInput for LineInput {
    fn write(&mut self, bytes: &[u8]) -> Result<(), HypervisorError> {
        let failed = |error: &dyn std::fmt::Display| HypervisorError::Failed(error.to_string());
        let line = self.writers.line(self.vm, CONSOLE_LINE_WAIT_MAX);
        let line = line.map_err(|error| failed(&error))?;
        write_all(&line, bytes).map_err(|error| failed(&error))
    }
}

/// Writes to a line that does not block, within the longest wait.
fn write_all(mut line: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match line.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLOUT)];
                let wait = PollTimeout::try_from(CONSOLE_WRITE_WAIT_MAX);
                if nix::poll::poll(&mut fds, wait.unwrap_or(PollTimeout::ZERO))? == 0 {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest takes nothing"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A guest's serial line.
#[derive(Default)]
struct Line {
    stream: Option<UnixStream>,
    /// Tries that are left before its next appearance.
    tries: u32,
    /// Whether what was said last could not be kept.
    unkept: bool,
}

impl Line {
    /// One that is to be connected.
    fn fresh() -> Self {
        Self { tries: CONSOLE_TRIES_MAX, ..Self::default() }
    }
}

struct Watcher {
    run_directory: PathBuf,
    consoles: PathBuf,
    announcer: Announcer,
    inotify: Inotify,
    root: WatchDescriptor,
    machines: BTreeMap<WatchDescriptor, VmId>,
    lines: BTreeMap<VmId, Line>,
    writers: Writers,
    /// Whose events were cut off since they were closed last: the cut closes them too.
    cut: BTreeSet<VmId>,
    /// When it was looked last how much was written.
    looked: Option<Instant>,
    end: UnixStream,
}

impl Watch {
    /// Begins to watch; machines that run already are found.
    pub(super) fn start(
        run_directory: &Path,
        consoles: PathBuf,
        announcer: Announcer,
    ) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        let root = inotify.add_watch(run_directory, appears)?;
        let (ours, end) = UnixStream::pair()?;
        let writers = Writers::default();
        let mut watcher = Watcher {
            run_directory: run_directory.to_owned(),
            consoles,
            announcer,
            inotify,
            root,
            machines: BTreeMap::new(),
            lines: BTreeMap::new(),
            writers: writers.clone(),
            cut: BTreeSet::new(),
            looked: None,
            end,
        };
        watcher.find_machines()?;
        std::thread::Builder::new().name("machine-watch".to_owned()).spawn(move || {
            if let Err(error) = watcher.run() {
                // Looks go on without it: everything is listed once a minute anyway.
                tracing::error!(%error, "machines are not watched any more");
                watcher.announcer.announce(Change::ConnectionLost(error.to_string()));
            }
        })?;
        Ok(Self { writers, _end: ours })
    }

    /// What types at serial lines.
    pub(super) fn writers(&self) -> Writers {
        self.writers.clone()
    }
}

impl Watcher {
    fn run(&mut self) -> io::Result<()> {
        loop {
            if self.looked.is_none_or(|looked| looked.elapsed() >= WRITTEN_LOOK_EVERY) {
                self.looked = Some(Instant::now());
                self.cut_off();
            }
            if !self.wait()? {
                return Ok(());
            }
            self.follow()?;
            self.read_lines();
        }
    }

    /// Cuts off what processes have written too much of.
    fn cut_off(&mut self) {
        for vm in self.machines.values() {
            match Place::of(&self.run_directory, *vm).cut(WRITTEN_BYTES_MAX) {
                Ok(true) => drop(self.cut.insert(*vm)),
                Ok(false) => {}
                Err(error) => tracing::warn!(%vm, %error, "what its process writes is not cut off"),
            }
        }
    }

    /// Waits until something is to be done; `false` when the watch is not wanted any more.
    fn wait(&self) -> io::Result<bool> {
        let streams = self.lines.values().filter_map(|line| line.stream.as_ref());
        let mut fds = vec![
            PollFd::new(self.end.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(streams.map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        let retrying = self.lines.values().any(|line| line.stream.is_none() && line.tries > 0);
        let tick = |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let timeout = match (retrying, self.machines.is_empty()) {
            (true, _) => tick(WATCH_TICK),
            (false, false) => tick(WRITTEN_LOOK_EVERY),
            (false, true) => PollTimeout::NONE,
        };
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(fds[0].revents().is_none_or(|events| events.is_empty()))
    }

    /// Takes what happened in the directories, or its beginning.
    fn follow(&mut self) -> io::Result<()> {
        for _ in 0..WATCH_READS_TOGETHER_MAX {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.find_machines()?;
                    self.announcer.miss();
                } else if event.wd == self.root {
                    // Not so for definitions, which lie there too.
                    if event.mask.contains(AddWatchFlags::IN_ISDIR) {
                        self.find_machines()?;
                    }
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    if let Some(vm) = self.machines.remove(&event.wd) {
                        self.lines.remove(&vm);
                        self.cut.remove(&vm);
                        self.writers.set(vm, None);
                    }
                } else if let (Some(vm), Some(name)) = (self.machines.get(&event.wd), &event.name) {
                    self.take(*vm, name.as_encoded_bytes(), event.mask);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, vm: VmId, name: &[u8], mask: AddWatchFlags) {
        if name == EVENTS.as_bytes() {
            if mask.contains(AddWatchFlags::IN_CLOSE_WRITE) && !self.cut.remove(&vm) {
                let how = ending(&Place::of(&self.run_directory, vm)).describe();
                tracing::info!(%vm, how, "the machine's process ended");
            }
            self.announcer.announce(Change::Machine(vm));
        } else if name == SERIAL.as_bytes() && mask.contains(AddWatchFlags::IN_CREATE) {
            self.lines.insert(vm, Line::fresh());
        }
    }

    /// Watches machines' directories that are not watched yet. Adding one twice gives the same
    /// descriptor.
    fn find_machines(&mut self) -> io::Result<()> {
        let happens = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_CLOSE_WRITE;
        for entry in fs::read_dir(&self.run_directory)? {
            let entry = entry?;
            let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match self.inotify.add_watch(&entry.path(), happens | AddWatchFlags::IN_ONLYDIR) {
                Ok(descriptor) => {
                    if self.machines.insert(descriptor, vm).is_none()
                        && Place::of(&self.run_directory, vm).serial().exists()
                    {
                        self.lines.insert(vm, Line::fresh());
                    }
                }
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_lines(&mut self) {
        for (vm, line) in &mut self.lines {
            let place = Place::of(&self.run_directory, *vm);
            if line.stream.is_none() && line.tries > 0 {
                line.tries -= 1;
                line.stream = connect_to(&place.serial()).ok();
                let typing = line.stream.as_ref().and_then(|stream| stream.try_clone().ok());
                self.writers.set(*vm, typing);
            }
            let Some(stream) = &mut line.stream else { continue };
            match copy(stream, &place, &self.consoles.join(format!("{vm}.log"))) {
                Ok(Flow::Waits) => {}
                Ok(Flow::Kept) => line.unkept = false,
                // A full disk passes; a line that is given up would take typing with it.
                Ok(Flow::Unkept(error)) => {
                    if !std::mem::replace(&mut line.unkept, true) {
                        tracing::warn!(%vm, %error, "what the guest says is not kept");
                    }
                }
                Ok(Flow::Ended) => {
                    *line = Line::fresh();
                    self.writers.set(*vm, None);
                }
                Err(error) => {
                    tracing::warn!(%vm, %error, "the guest's serial line has failed");
                    *line = Line::fresh();
                    self.writers.set(*vm, None);
                }
            }
        }
    }
}

/// What a serial line may still give.
enum Flow {
    /// Nothing for now.
    Waits,
    /// Something that the console file has now.
    Kept,
    /// Something that it could not take, and that is lost.
    Unkept(io::Error),
    /// Nothing more.
    Ended,
}

/// Appends what the guest has said to its console file; a guest that never stops gets its turn
/// again.
fn copy(stream: &mut UnixStream, place: &Place, console: &Path) -> io::Result<Flow> {
    let mut bytes = [0; CONSOLE_READ_BYTES];
    let count = match stream.read(&mut bytes) {
        Ok(0) => return Ok(Flow::Ended),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flow::Waits),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Flow::Ended),
        Err(error) => return Err(error),
    };
    // What a machine says that is just being removed is nobody's any more.
    if !place.is_defined() {
        return Ok(Flow::Kept);
    }
    Ok(keep(console, &bytes[..count]).map_or_else(Flow::Unkept, |()| Flow::Kept))
}

fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.len() > CONSOLE_FILE_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let mut file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}
