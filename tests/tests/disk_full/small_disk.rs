//! A file system of a few MiB, in a mount namespace of the test's own, that is filled to the page.
//!
//! Owns the mount and the ballast in it. Needs root. Called by the operations.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// What it holds.
const BYTES: u64 = 16 << 20;
/// How many files and directories it may have.
const FILES: u64 = 256;
/// What space is given out by.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// What of the small disk is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// All pages but this many.
    Pages(u64),
    /// All files.
    Files,
}

/// The file system; gone when this is.
pub(crate) struct SmallDisk {
    directory: TempDir,
    bytes: u64,
}

impl SmallDisk {
    /// An empty one, which nobody sees but this thread and what it starts.
    pub(crate) fn new() -> Self {
        Self::holding(BYTES)
    }

    /// One of so many bytes.
    pub(crate) fn holding(bytes: u64) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own needs root");
        let nothing: Option<&str> = None;
        let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, "/", nothing, all, nothing).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={bytes},nr_inodes={FILES}");
        let kind = Some("tmpfs");
        mount(kind, directory.path(), kind, MsFlags::empty(), Some(size.as_str())).unwrap();
        fs::create_dir(directory.path().join("ballast")).unwrap();
        Self { directory, bytes }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn pages_free(&self) -> u64 {
        statvfs(self.path()).unwrap().blocks_available()
            * statvfs(self.path()).unwrap().fragment_size()
            / PAGE_BYTES
    }

    /// Uses it up.
    pub(crate) fn fill(&self, lack: Lack) {
        match lack {
            Lack::Pages(left) => {
                let file = File::create(self.ballast().join("pages")).unwrap();
                let bytes = (self.pages_free() - left) * PAGE_BYTES;
                let bytes = i64::try_from(bytes).unwrap();
                fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
                assert_eq!(self.pages_free(), left);
            }
            Lack::Files => {
                let names = 0..FILES;
                let made = names
                    .take_while(|name| File::create(self.ballast().join(name.to_string())).is_ok());
                assert!(made.count() > 0);
            }
        }
    }

    /// Becomes so small that this many pages are left: for one that is too large to be filled.
    pub(crate) fn shrink(&self, left: u64) {
        let there = statvfs(self.path()).unwrap();
        let used = (there.blocks() - there.blocks_free()) * there.fragment_size();
        assert!(used > 0, "a size of 0 is none");
        self.resize(used + left * PAGE_BYTES);
        assert_eq!(self.pages_free(), left);
    }

    /// As large as it was.
    pub(crate) fn grow(&self) {
        self.resize(self.bytes);
    }

    fn resize(&self, bytes: u64) {
        let (nothing, size): (Option<&str>, _) = (None, format!("size={bytes}"));
        let again = MsFlags::MS_REMOUNT;
        mount(nothing, self.path(), nothing, again, Some(size.as_str())).unwrap();
    }

    /// Somebody has made room: at once, also if a child that another thread has just begun still
    /// holds the file.
    pub(crate) fn free(&self) {
        for entry in fs::read_dir(self.ballast()).unwrap() {
            let path = entry.unwrap().path();
            File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
            fs::remove_file(path).unwrap();
        }
    }

    /// All files but the ballast, each with the digest of its bytes.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, blake3::Hash> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path == self.ballast() {
                    continue;
                }
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let digest = blake3::hash(&fs::read(&path).unwrap());
                    files.insert(path, digest);
                }
            }
        }
        files
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}
