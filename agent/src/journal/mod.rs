//! What this host means to do with each VM, durable before it does it (R5).
//!
//! Owns one JSON file per VM: written whole under another name, synced, renamed, its directory
//! synced. Never decides, and never acts on a machine. The controller makes the records, the
//! actuator writes them before each step, the machines' half when something has to be kept without
//! one; at the start all are read. A file that does not read is set aside: its VM is adopted again
//! from what is seen.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use dagger_controller::record::{DiskMark, Evidence, Halt, Record};
use dagger_payload::id::{HostId, VmId};

/// A record's file, in bytes: ten times what the largest record takes.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// The directory of records.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
    host: HostId,
    /// Held by who writes: a step that was begun before may be written down after what came later.
    writing: Arc<Mutex<()>>,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Records by VM.
    pub records: BTreeMap<VmId, Record>,
    /// Files that did not read and where they are now, each with the reason.
    pub set_aside: Vec<(PathBuf, String)>,
}

impl Journal {
    /// Opens or makes the directory of `host`, and removes what a crash left half-written.
    ///
    /// # Errors
    /// The directory cannot be made, read or written.
    pub fn open(directory: PathBuf, host: HostId) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "partial") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { directory, host, writing: Arc::default() })
    }

    /// Reads all records; what does not read is renamed to `*.damaged` and reported.
    ///
    /// # Errors
    /// The directory cannot be read, or a damaged file not be renamed.
    pub fn read_all(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path, self.host) {
                Ok(record) => {
                    found.records.insert(record.vm, record);
                }
                Err(reason) => {
                    let aside = path.with_extension("damaged");
                    fs::rename(&path, &aside)?;
                    found.set_aside.push((aside, reason));
                }
            }
        }
        Ok(found)
    }

    /// Makes `record` durable; when this returns, it survives a power cut. What was said once and
    /// for all about its VM stays, also if `record` is the older one: its operator's word, while
    /// that counts, and evidence.
    ///
    /// # Errors
    /// Any failed write or sync: the caller must not act, and must not try the sync again.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path(record.vm);
        let partial = path.with_extension("partial");
        let mut record = record.clone();
        // One that does not read has nothing to keep; the start of the agent sets such aside.
        if let Ok(there) = read(&path, self.host) {
            record.keep_words_of(&there);
        }
        let bytes = serde_json::to_vec_pretty(&record)?;
        if let Err(error) = write_new(&partial, &bytes).and_then(|()| fs::rename(&partial, &path)) {
            // A start removes it too; until then it would take space that others may need.
            let _ = fs::remove_file(&partial);
            return Err(error);
        }
        self.sync_directory()
    }

    /// Forgets a VM that is gone.
    ///
    /// # Errors
    /// The file cannot be removed; that it is not there is none.
    pub fn forget(&self, vm: VmId) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_file(self.path(vm)) {
            Ok(()) => self.sync_directory(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.directory.join(format!("{vm}.json"))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// A file of its own each time: a sync that failed is never tried again on the same one.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// One record, with everything checked that the file can get wrong.
fn read(path: &Path, host: HostId) -> Result<Record, String> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let named = path.file_stem().and_then(|stem| stem.to_str()).map(str::parse::<VmId>);
    if named != Some(Ok(record.vm)) {
        return Err("it speaks of another VM than its name".to_owned());
    }
    if record.host != host {
        return Err("another host wrote it".to_owned());
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{Generation, HostId, PayloadDigest};
    use dagger_payload::kind::StopManner;

    use super::*;
    use crate::controller::Step;

    fn record() -> Record {
        Record::new(HostId([1; 16]), VmId([2; 16]), Generation(3), PayloadDigest([4; 32]))
    }

    #[test]
    fn a_record_reads_back_as_written_and_is_gone_when_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().join("journal"), HostId([1; 16])).unwrap();
        journal.write(&record()).unwrap();
        let found = journal.read_all().unwrap();
        assert_eq!(found.records.get(&record().vm), Some(&record()));
        journal.forget(record().vm).unwrap();
        journal.forget(record().vm).unwrap();
        assert!(journal.read_all().unwrap().records.is_empty());
    }

    #[test]
    fn an_older_record_that_is_written_later_takes_no_operators_word_away() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().to_owned(), HostId([1; 16])).unwrap();
        let written = || journal.read_all().unwrap().records.remove(&record().vm).unwrap();
        let (manner, reason) = (StopManner::Forced, "smoke".to_owned());
        let halt = Halt { generation: Generation(3), manner, reason };
        let stopped = Record { halted_at: Some(halt.clone()), ..record() };
        journal.write(&stopped).unwrap();
        // As of a step that was begun before the word, and waited for its turn.
        journal.write(&Record { step: Some(Step::Start), ..record() }).unwrap();
        assert_eq!((written().halted_at, written().step), (Some(halt), Some(Step::Start)));
        let mut newer = stopped;
        newer.take_up(Generation(4), PayloadDigest([5; 32]));
        journal.write(&newer).unwrap();
        assert_eq!(written().halted_at, None);
    }

    #[test]
    fn many_write_about_one_vm_and_every_record_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().to_owned(), HostId([1; 16])).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| journal.write(&record()).unwrap()));
            }
        });
        let found = journal.read_all().unwrap();
        assert_eq!((found.records.len(), found.set_aside.len()), (1, 0));
    }

    #[test]
    fn a_damaged_or_misnamed_record_is_set_aside_and_the_others_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().to_owned(), HostId([1; 16])).unwrap();
        journal.write(&record()).unwrap();
        let whole = fs::read(journal.path(record().vm)).unwrap();
        fs::write(journal.path(VmId([9; 16])), &whole).unwrap();
        fs::write(journal.path(VmId([8; 16])), &whole[..whole.len() / 2]).unwrap();
        let found = journal.read_all().unwrap();
        assert_eq!(found.records.len(), 1);
        assert_eq!(found.set_aside.len(), 2);
        assert!(journal.read_all().unwrap().set_aside.is_empty());
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join(format!("{}.partial", VmId([2; 16])));
        fs::write(&partial, b"{").unwrap();
        Journal::open(directory.path().to_owned(), HostId([1; 16])).unwrap();
        assert!(!partial.exists());
    }
}
