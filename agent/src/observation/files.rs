//! Opens the files in which hypervisors write what guests say.
//!
//! Owns the way to such a file: straight where it is the agent's own, as Cloud Hypervisor's are; by
//! the one-shot helper `dagger-console` where it is root's, as libvirt's daemon writes it, and
//! systemd runs the helpers. How many ask it at a time is bounded. Never writes. Called by who
//! looks for host keys and who follows a console.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dagger_images::consoles::{ConsoleFileAnswer, ConsoleFileRequest, path_in};
use dagger_images::limits::CONSOLE_FILE_ANSWER_BYTES_MAX;
use dagger_payload::id::VmId;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::limits::{CONSOLE_ASK_TURN_WAIT_MAX, CONSOLE_ASK_WAIT_MAX, CONSOLE_ASKS_TOGETHER_MAX};
use crate::actuator::store::console_directory;
use crate::one_shot::{HelperConfiguration, OneShot};

/// The console files of this host. Clones share the turns at the helper.
#[derive(Debug, Clone)]
pub struct ConsoleFiles {
    directory: PathBuf,
    helper: Option<OneShot>,
    asking: Arc<Semaphore>,
}

/// The file of one console.
#[derive(Debug, Clone)]
pub struct ConsoleFile {
    files: ConsoleFiles,
    vm: VmId,
    path: PathBuf,
}

impl ConsoleFiles {
    /// Those below `storage_directory`.
    pub fn new(storage_directory: &Path, helpers: &HelperConfiguration) -> Self {
        let helper = OneShot::by_systemd("console", helpers);
        Self::in_directory(console_directory(storage_directory), helper)
    }

    fn in_directory(directory: PathBuf, helper: Option<OneShot>) -> Self {
        let asking = Arc::new(Semaphore::new(CONSOLE_ASKS_TOGETHER_MAX));
        Self { directory, helper, asking }
    }

    /// The file of this VM's console, which need not be there.
    pub fn of(&self, vm: VmId) -> ConsoleFile {
        ConsoleFile { files: self.clone(), vm, path: path_in(&self.directory, vm) }
    }
}

impl ConsoleFile {
    /// Where it is. Its metadata is for everybody who may search the directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it to read; `None` if it is not there.
    ///
    /// # Errors
    /// It cannot be opened, or not now; never of the kind `NotFound`.
    pub(super) async fn open(&self) -> io::Result<Option<File>> {
        let path = self.path.clone();
        match spawn_blocking(move || File::open(path)).await? {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => match &self.files.helper {
                Some(helper) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.ask(helper.clone()).await
                }
                _ => Err(error),
            },
        }
    }

    async fn ask(&self, helper: OneShot) -> io::Result<Option<File>> {
        let turn = Arc::clone(&self.files.asking).acquire_owned();
        let busy = |_| io::Error::other("too many consoles are opened at once");
        let turn = timeout(CONSOLE_ASK_TURN_WAIT_MAX, turn).await.map_err(busy)?;
        let turn = turn.map_err(io::Error::other)?;
        let request = ConsoleFileRequest { vm: self.vm };
        let bounds = (CONSOLE_ASK_WAIT_MAX, CONSOLE_FILE_ANSWER_BYTES_MAX);
        // Whoever asks may go away; the turn ends with the asking.
        let answer = spawn_blocking(move || {
            let answer = helper.ask_for_file(&request, bounds);
            drop(turn);
            answer
        });
        // A helper that is not there is no file that is not there.
        let unasked = |error| io::Error::other(format!("dagger-console: {error}"));
        match answer.await?.map_err(unasked)? {
            (ConsoleFileAnswer::Opened, Some(file)) => Ok(Some(file)),
            (ConsoleFileAnswer::Opened, None) => {
                Err(io::Error::other("dagger-console: no file came with the answer"))
            }
            (ConsoleFileAnswer::Missing, _) => Ok(None),
            (ConsoleFileAnswer::Refused(why) | ConsoleFileAnswer::Failed(why), _) => {
                Err(io::Error::other(why))
            }
        }
    }
}

/// Whether these are of one file.
pub(super) fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    const VM: VmId = VmId([7; 16]);

    /// A helper that says `words` to whoever asks first, with the file of the console as often
    /// beside them as `times` says.
    fn helper(directory: &Path, words: &str, times: usize) -> (ConsoleFile, OneShot) {
        let socket = directory.join("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let console = ConsoleFiles::in_directory(directory.to_owned(), None).of(VM);
        std::fs::write(console.path(), "login: ").unwrap();
        let file = File::open(console.path()).unwrap();
        let words = words.to_owned();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            assert_eq!(request, format!("{{\"vm\":\"{VM}\"}}\n"));
            say(&stream, &words, &vec![file.as_fd(); times]);
        });
        (console, OneShot::at(socket))
    }

    fn say(mut stream: &UnixStream, words: &str, files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
        // The file comes with the first bytes, and the words need not come at once.
        let (first, rest) = words.as_bytes().split_at(1);
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(stream, &[IoSlice::new(first)], &mut control, flags).unwrap();
        // Who has heard enough may be gone.
        let _ = stream.write_all(rest);
    }

    async fn asked(words: &str, times: usize) -> io::Result<Option<File>> {
        let directory = tempfile::tempdir().unwrap();
        let (console, helper) = helper(directory.path(), words, times);
        console.ask(helper).await
    }

    #[tokio::test]
    async fn a_file_of_somebody_elses_comes_open_from_the_helper() {
        let mut said = String::new();
        let file = asked("\"opened\"\n", 1).await.unwrap().expect("a file");
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        (&file).read_to_string(&mut said).unwrap();
        assert_eq!(said, "login: ");
    }

    #[tokio::test]
    async fn a_file_that_is_missing_is_none_and_everything_else_is_an_error() {
        assert!(asked("\"missing\"\n", 0).await.unwrap().is_none());
        let long = format!("{{\"refused\":\"{}\"}}\n", "x".repeat(CONSOLE_FILE_ANSWER_BYTES_MAX));
        for (words, times, part) in [
            ("{\"refused\":\"console_file_refused: a link\"}\n", 0, "console_file_refused: a link"),
            ("{\"failed\":\"input/output error\"}\n", 0, "input/output error"),
            ("\"opened\"\n", 0, "no file came"),
            ("\"opened\"\n", 2, "more than one file"),
            ("\"opened\"\n", 5, "more than one file"),
            ("nonsense\n", 1, "dagger-console: "),
            (&long, 0, "it says over"),
        ] {
            let error = asked(words, times).await.expect_err(words);
            assert!(error.to_string().contains(part), "{words}: {error}");
            assert_ne!(error.kind(), io::ErrorKind::NotFound, "{words}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_no_file_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let console = ConsoleFiles::in_directory(directory.path().to_owned(), None).of(VM);
        let away = OneShot::at(directory.path().join("console.sock"));
        let error = console.ask(away).await.expect_err("nobody is there");
        assert_ne!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("dagger-console: "), "{error}");
    }
}
