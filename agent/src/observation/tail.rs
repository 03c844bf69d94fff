//! Following a console file while it grows.
//!
//! Owns the place in the file, the wait for more (the kernel's word, inotify(7)), and the passage
//! to the next file when whoever writes it has put the full one aside. Never writes. Called by the
//! API, once per reader.

use std::cmp::Ordering;
use std::io::{self, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::files::{ConsoleFile, is_same};
use super::limits::{CONSOLE_EVENTS_BYTES, CONSOLE_PART_BYTES};

/// A reader of one console file.
pub struct ConsoleTail {
    console: ConsoleFile,
    file: Option<File>,
    /// To open it may take longer than one waits at a time.
    opening: Option<JoinHandle<io::Result<Option<std::fs::File>>>>,
    changes: Option<Changes>,
}

/// What a look at the file showed.
enum Look {
    Said(Bytes),
    /// There is another file, or another place in it, to look at.
    Moved,
    Nothing,
}

impl ConsoleTail {
    /// From the last `history_bytes` of this file on; one that is not there yet is waited for.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn open(console: ConsoleFile, history_bytes: u64) -> io::Result<Self> {
        let mut tail = Self { console, file: None, opening: None, changes: None };
        if let Some(mut file) = tail.find().await? {
            let length = file.metadata().await?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(history_bytes))).await?;
            tail.file = Some(file);
        }
        Ok(tail)
    }

    async fn find(&mut self) -> io::Result<Option<File>> {
        let console = &self.console;
        let open = || {
            let console = console.clone();
            tokio::spawn(async move { console.open().await })
        };
        let opened = self.opening.get_or_insert_with(open).await;
        self.opening = None;
        Ok(opened??.map(File::from_std))
    }

    /// What comes next, as soon as there is something. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// It cannot be read or watched.
    pub async fn next(&mut self) -> io::Result<Bytes> {
        // Watched before it is read: what is written in between is announced.
        if self.changes.is_none() {
            self.changes = Some(Changes::watch(self.console.path())?);
        }
        loop {
            let part = self.ready().await?;
            if !part.is_empty() {
                return Ok(part);
            }
            if let Some(changes) = &self.changes {
                changes.next().await?;
            }
        }
    }

    /// What there is now, perhaps nothing.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn ready(&mut self) -> io::Result<Bytes> {
        loop {
            match self.look().await? {
                Look::Said(part) => return Ok(part),
                Look::Moved => {}
                Look::Nothing => return Ok(Bytes::new()),
            }
        }
    }

    async fn look(&mut self) -> io::Result<Look> {
        let Some(file) = &mut self.file else {
            self.file = self.find().await?;
            return Ok(if self.file.is_some() { Look::Moved } else { Look::Nothing });
        };
        let mut part = vec![0; CONSOLE_PART_BYTES];
        let count = file.read(&mut part).await?;
        if count > 0 {
            part.truncate(count);
            return Ok(Look::Said(part.into()));
        }
        let own = file.metadata().await?;
        match tokio::fs::metadata(self.console.path()).await {
            Ok(now) if is_same(&now, &own) => {
                match own.len().cmp(&file.stream_position().await?) {
                    Ordering::Equal => return Ok(Look::Nothing),
                    // The read may be one that was begun, and came back empty, before this.
                    Ordering::Greater => {}
                    Ordering::Less => {
                        file.seek(SeekFrom::Start(0)).await?;
                    }
                }
                Ok(Look::Moved)
            }
            // The old one has been read to its end, and nobody writes to it any more.
            Ok(_) => {
                self.file = None;
                Ok(Look::Moved)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Look::Nothing),
            Err(error) => Err(error),
        }
    }
}

/// The kernel's word that something happened in the file's directory, read as the stream of bytes
/// that it is: which file it was costs no more than a look.
struct Changes(pipe::Receiver);

impl Changes {
    fn watch(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let happens =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(directory, happens | AddWatchFlags::IN_ONLYDIR)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(descriptor)?))
    }

    /// Returns once something has happened since the last time.
    async fn next(&self) -> io::Result<()> {
        let mut events = [0; CONSOLE_EVENTS_BYTES];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;
    use std::time::Duration;

    use dagger_payload::id::VmId;

    use crate::hypervisor::cloud_hypervisor::Supervision;
    use crate::observation::ConsoleFiles;
    use crate::one_shot::HelperConfiguration;

    const VM: VmId = VmId([7; 16]);

    fn console(storage: &Path) -> (PathBuf, ConsoleFile) {
        let direct = HelperConfiguration { supervision: Supervision::Direct, ..Default::default() };
        let file = ConsoleFiles::new(storage, &direct).of(VM);
        std::fs::create_dir(file.path().parent().expect("a directory")).expect("makes it");
        (file.path().to_owned(), file)
    }

    fn say(path: &std::path::Path, words: &str) {
        let mut file =
            std::fs::File::options().append(true).create(true).open(path).expect("opens");
        file.write_all(words.as_bytes()).expect("writes");
    }

    #[tokio::test]
    async fn a_reader_gets_the_history_then_what_is_said_and_follows_into_the_next_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, console) = console(directory.path());
        say(&path, "long ago, before");
        let mut tail = ConsoleTail::open(console, 6).await.expect("opens");
        assert_eq!(tail.next().await.expect("reads"), "before");
        say(&path, "now");
        assert_eq!(tail.next().await.expect("reads"), "now");
        say(&path, " last words");
        std::fs::rename(&path, path.with_extension("log.0")).expect("renames");
        say(&path, "first words");
        assert_eq!(tail.next().await.expect("reads"), " last words");
        assert_eq!(tail.next().await.expect("reads"), "first words");
        std::fs::File::options().write(true).truncate(true).open(&path).expect("truncates");
        assert!(tail.ready().await.expect("reads").is_empty());
        say(&path, "again");
        assert_eq!(tail.next().await.expect("reads"), "again");
    }

    #[tokio::test]
    async fn a_reader_that_waits_hears_of_what_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, console) = console(directory.path());
        let mut tail = ConsoleTail::open(console, 0).await.expect("opens");
        for words in ["hello", "again"] {
            let mut waiting = Box::pin(tail.next());
            let early = tokio::time::timeout(Duration::from_millis(30), &mut waiting).await;
            assert!(early.is_err(), "nothing was said yet");
            say(&path, words);
            assert_eq!(waiting.await.expect("reads"), words);
        }
    }

    #[tokio::test]
    async fn a_console_without_a_file_is_silent_until_there_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, console) = console(directory.path());
        let mut tail = ConsoleTail::open(console, 100).await.expect("opens");
        assert!(tail.ready().await.expect("reads").is_empty());
        say(&path, "hello");
        assert_eq!(tail.next().await.expect("reads"), "hello");
    }
}
