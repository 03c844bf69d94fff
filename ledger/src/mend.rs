//! What happens to a store before it is used: it is read by a child process, and one that is
//! damaged is put aside, so that this host recovers from its peers instead of staying down.
//!
//! Owns the mark of doubt beside the store, the judgement of the child's end, and the names of the
//! stores that were put aside. Never opens a store itself and never deletes the only copy of
//! anything: a damaged store is renamed, and only the oldest of several is removed. Called by
//! `program` before the daemon starts and after it has ended, and by the daemon once the store
//! is read.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;

use crate::exit::Exit;
use crate::limits::{
    DAMAGED_STORES_MAX, SCAN_LOOK_EVERY, SCAN_MESSAGE_BYTES_MAX, SCAN_WHOLE_BYTES_MAX,
    START_EXTENSION_US,
};
use crate::store::scan::Depth;

/// Why the store cannot be used, and cannot be replaced either.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// Broken: it is damaged, and nobody else has what it holds.
    #[error(
        "{found}; this cluster has one host only, so nobody else has its history: restore the \
         state directory `{directory}` from a copy, or found a new cluster"
    )]
    NobodyToRecoverFrom {
        /// What the scan said.
        found: String,
        /// Where.
        directory: PathBuf,
    },
    /// The child gave no verdict.
    #[error("the scan of the store gave no verdict ({status}): {said}")]
    NoVerdict {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// A file or process.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

impl MendError {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NobodyToRecoverFrom { .. } => Exit::Broken,
            Self::NoVerdict { .. } => Exit::Internal,
            Self::Io { .. } => Exit::Configuration,
        }
    }
}

fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> MendError {
    move |cause| MendError::Io { doing, cause }
}

/// Why a store is doubted whose ledger ended because of it. If all of it can be read all the same,
/// only writing meets the damage: it would end every start to come.
pub const FOUND_WHILE_IT_RAN: &str = "damage was found while the ledger ran";

/// The file beside the store that says: read all of it before it is used. It is there from the
/// beginning of a start until the store was read, and from the finding of damage on.
#[derive(Debug, Clone)]
pub struct Doubt {
    path: PathBuf,
}

impl Doubt {
    /// That of the store in `state_directory`.
    pub fn of(state_directory: &Path) -> Self {
        Self { path: state_directory.join("store.doubt") }
    }

    /// Why the store is doubted, if it is.
    fn reason(&self) -> Option<String> {
        let bytes = std::fs::read(&self.path).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// The next start reads all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn raise(&self, reason: &str) -> io::Result<()> {
        std::fs::write(&self.path, format!("{reason}\n"))
    }

    /// The store was read.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn lay(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the child found.
#[derive(Debug)]
enum Verdict {
    Whole,
    Damaged(String),
    /// Another process has the store open; opening it will say so.
    InUse,
}

/// Where the store of `state_directory` stands.
pub fn store_directory(state_directory: &Path) -> PathBuf {
    state_directory.join("store")
}

/// Has the store read by `scanner`, a command that [`crate::store::scan`]s to the depth which it is
/// given as its last argument, and puts it aside when it is damaged and this is one of several
/// `hosts`.
///
/// # Errors
/// [`MendError`].
pub fn before_start(
    state_directory: &Path,
    hosts: usize,
    scanner: Command,
) -> Result<(), MendError> {
    std::fs::create_dir_all(state_directory).map_err(doing("make the state directory"))?;
    let doubt = Doubt::of(state_directory);
    let directory = store_directory(state_directory);
    let file = directory.join("data.mdb");
    if let Ok(metadata) = std::fs::metadata(&file) {
        let length = metadata.len();
        let (depth, why) = depth_for(length, doubt.reason());
        if let Some(why) = &why {
            tracing::warn!(why, "the store is doubted: all of it is read");
        }
        let verdict = match scan_apart(scanner, depth)? {
            Verdict::Whole if hosts > 1 && why.as_deref() == Some(FOUND_WHILE_IT_RAN) => {
                let found = format!("{FOUND_WHILE_IT_RAN}, though all of it can be read");
                Verdict::Damaged(found)
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Whole => match why {
                Some(why) => tracing::warn!(
                    why,
                    "the store is whole: every record that was written can be read and is what was \
                     written; this host goes on with it"
                ),
                None => tracing::info!(depth = depth.name(), "the store was scanned and is whole"),
            },
            Verdict::InUse => return Ok(()),
            Verdict::Damaged(found) if hosts == 1 => {
                return Err(MendError::NobodyToRecoverFrom { found, directory });
            }
            Verdict::Damaged(found) => {
                let aside = put_aside(&directory).map_err(doing("put the damaged store aside"))?;
                tracing::error!(
                    found,
                    aside = %aside.display(),
                    "the store is damaged and was put aside: this host recovers from its peers; \
                     payloads that it had received and not yet passed on are in that copy only"
                );
            }
        }
    }
    doubt.raise("the last start ended before the store was read").map_err(doing("mark the start"))
}

/// How much is read, and why all of it, if there is a reason to doubt it. A page is a power of two
/// of at least 512 bytes; a file that ends within one was cut.
fn depth_for(length: u64, doubt: Option<String>) -> (Depth, Option<String>) {
    let over = length % 512;
    let cut = format!("its file ends {over} bytes into a page: its end was cut off");
    let why = doubt.or((over != 0).then_some(cut));
    let whole = why.is_some() || length <= SCAN_WHOLE_BYTES_MAX;
    (if whole { Depth::All } else { Depth::Newest }, why)
}

fn scan_apart(mut scanner: Command, depth: Depth) -> Result<Verdict, MendError> {
    let mut child = scanner
        .arg(depth.name())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(doing("start the scan of the store"))?;
    let status = until_ended(&mut child).map_err(doing("wait for the scan of the store"))?;
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut bytes = Vec::new();
        let reading = stderr.take(SCAN_MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
        reading.map_err(doing("read what the scan of the store found"))?;
        String::from_utf8_lossy(&bytes).trim_end().clone_into(&mut said);
    }
    verdict(status, said)
}

fn until_ended(child: &mut Child) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let extension = sd_notify::NotifyState::ExtendTimeoutUsec(START_EXTENSION_US);
        // Without systemd nobody waits for it; with it, a lost message means a later one.
        let _ = sd_notify::notify(&[extension]);
        std::thread::sleep(SCAN_LOOK_EVERY);
    }
}

fn verdict(status: ExitStatus, said: String) -> Result<Verdict, MendError> {
    // What the process dies of when it follows a damaged page, or LMDB asserts that there is none.
    const OF_DAMAGE: [Signal; 3] = [Signal::SIGBUS, Signal::SIGSEGV, Signal::SIGABRT];
    let exit = |code: Exit| status.code() == Some(code as i32);
    let died_of = status.signal().and_then(|signal| Signal::try_from(signal).ok());
    match died_of {
        Some(signal) if OF_DAMAGE.contains(&signal) => {
            let found = format!("the store is damaged: reading it ends in {signal}");
            Ok(Verdict::Damaged(found))
        }
        None if exit(Exit::Ok) => Ok(Verdict::Whole),
        None if exit(Exit::Damaged) => Ok(Verdict::Damaged(said)),
        None if exit(Exit::Configuration) => Ok(Verdict::InUse),
        _ => Err(MendError::NoVerdict { status, said }),
    }
}

/// Numbers of the stores that were put aside, in order.
fn numbers_aside(directory: &Path) -> io::Result<Vec<u64>> {
    let parent = directory.parent().expect("a store stands in the state directory");
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("store.damaged-"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Renames the store; of several that stand aside the oldest goes.
fn put_aside(directory: &Path) -> io::Result<PathBuf> {
    let place = |number: u64| directory.with_file_name(format!("store.damaged-{number}"));
    let numbers = numbers_aside(directory)?;
    let aside = place(numbers.last().map_or(1, |last| last.saturating_add(1)));
    std::fs::rename(directory, &aside)?;
    let parent = directory.parent().expect("a store stands in the state directory");
    std::fs::File::open(parent)?.sync_all()?;
    let surplus = (numbers.len() + 1).saturating_sub(DAMAGED_STORES_MAX);
    for number in numbers.into_iter().take(surplus) {
        std::fs::remove_dir_all(place(number))?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scanner that ends as `script` says, whatever it is asked.
    fn scanner(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        command
    }

    fn state_with_store() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store_directory(directory.path());
        std::fs::create_dir(&store).expect("makes");
        std::fs::write(store.join("data.mdb"), [0; 4096]).expect("writes");
        directory
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("reads");
        let name = |entry: io::Result<std::fs::DirEntry>| {
            entry.expect("reads").file_name().into_string().expect("text")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_reader_that_dies_of_the_store_tells_of_damage_and_one_that_is_killed_tells_nothing() {
        for script in ["kill -BUS $$", "kill -SEGV $$", "kill -ABRT $$", "exit 66"] {
            let state = state_with_store();
            before_start(state.path(), 4, scanner(script)).expect("puts aside");
            assert_eq!(names(state.path()), ["store.damaged-1", "store.doubt"], "{script}");
        }
        for script in ["kill -KILL $$", "kill -TERM $$", "exit 70"] {
            let state = state_with_store();
            let error = before_start(state.path(), 4, scanner(script)).expect_err("no verdict");
            assert_eq!(error.exit(), Exit::Internal);
            assert_eq!(names(state.path()), ["store"], "{script}");
        }
    }

    #[test]
    fn damage_that_only_a_writer_meets_does_not_end_every_start_to_come() {
        let state = state_with_store();
        Doubt::of(state.path()).raise(FOUND_WHILE_IT_RAN).expect("is raised");
        before_start(state.path(), 1, scanner("exit 0")).expect("nobody to recover from");
        assert_eq!(names(state.path()), ["store", "store.doubt"]);
        Doubt::of(state.path()).raise(FOUND_WHILE_IT_RAN).expect("is raised");
        before_start(state.path(), 4, scanner("exit 0")).expect("puts aside");
        assert_eq!(names(state.path()), ["store.damaged-1", "store.doubt"]);
    }

    #[test]
    fn a_single_host_keeps_its_damaged_store_where_it_is() {
        let state = state_with_store();
        let script = "echo the store is damaged: a record >&2; exit 66";
        let error = before_start(state.path(), 1, scanner(script)).expect_err("stops");
        assert!(error.to_string().starts_with("the store is damaged: a record; this cluster has"));
        assert_eq!(error.exit(), Exit::Broken);
        assert_eq!(names(state.path()), ["store"]);
    }

    #[test]
    fn only_the_newest_damaged_stores_are_kept() {
        let state = tempfile::tempdir().expect("a directory");
        for _ in 0..4 {
            let store = store_directory(state.path());
            std::fs::create_dir(&store).expect("makes");
            std::fs::write(store.join("data.mdb"), [0; 4096]).expect("writes");
            before_start(state.path(), 2, scanner("exit 66")).expect("puts aside");
        }
        let kept = names(state.path());
        assert_eq!(kept, ["store.damaged-3", "store.damaged-4", "store.doubt"]);
    }

    #[test]
    fn doubt_makes_the_next_start_read_everything() {
        let state = state_with_store();
        let file = store_directory(state.path()).join("data.mdb");
        let resize = |length| {
            let file = std::fs::File::options().write(true).open(&file).expect("opens");
            file.set_len(length).expect("resizes");
        };
        resize(SCAN_WHOLE_BYTES_MAX * 2);
        let asked = state.path().join("asked");
        let script = format!("echo $1 >> {}", asked.display());
        let mut expected = String::new();
        // The first start of a large store reads the newest records; it leaves its mark, and the
        // next one finds that nobody took it away.
        for depth in ["newest", "all", "all"] {
            before_start(state.path(), 4, scanner(&script)).expect("is whole");
            expected.push_str(depth);
            expected.push('\n');
            assert_eq!(std::fs::read_to_string(&asked).expect("reads"), expected);
        }
        Doubt::of(state.path()).lay().expect("is laid");
        before_start(state.path(), 4, scanner(&script)).expect("is whole");
        expected.push_str("newest\n");
        // A file that ends within a page is read whole.
        Doubt::of(state.path()).lay().expect("is laid");
        resize(SCAN_WHOLE_BYTES_MAX * 2 - 7);
        before_start(state.path(), 4, scanner(&script)).expect("is whole");
        expected.push_str("all\n");
        assert_eq!(std::fs::read_to_string(&asked).expect("reads"), expected);
    }
}
