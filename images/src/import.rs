//! Which files of this host somebody else's word may have copied into the store.
//!
//! Owns that rule: a source that the ordered history names is believed by nobody, so it is opened
//! only below a directory that the host's operator listed, through no link, and only if it is a
//! regular file. Reads nothing itself. Called by the agent's actuator.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// The directories from which sources may be imported.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImportDirectories {
    directories: Vec<PathBuf>,
}

/// Why a source was not opened. Says nothing about files outside the directories.
#[derive(Debug, thiserror::Error)]
pub enum SourceRefusal {
    /// It is below none of them.
    #[error("it lies in no directory from which this host's operator lets images be imported")]
    Outside,
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// It leads out of the directory, is reached through a link, or is no regular file.
    #[error("it is no regular file, or reached through a link")]
    Irregular,
    /// The file system refused.
    #[error("it cannot be opened: {0}")]
    File(io::Error),
}

impl ImportDirectories {
    /// These directories; none of them has to exist.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// Opens the regular file that `source` names.
    ///
    /// # Errors
    /// [`SourceRefusal`].
    pub fn open(&self, source: &Path) -> Result<File, SourceRefusal> {
        let below = |directory: &PathBuf| Some((directory.clone(), source.strip_prefix(directory)));
        let (directory, rest) = self
            .directories
            .iter()
            .filter_map(below)
            .find_map(|(directory, rest)| Some((directory, rest.ok()?)))
            .ok_or(SourceRefusal::Outside)?;
        // The directory is the operator's own word: links in it are his.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(directory);
        let opened = opened.map_err(SourceRefusal::of)?;
        let how =
            OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS,
            );
        let file = openat2(&opened, rest, how).map_err(|errno| SourceRefusal::of(errno.into()))?;
        let file = File::from(file);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            Ok(_) => Err(SourceRefusal::Irregular),
            Err(error) => Err(SourceRefusal::File(error)),
        }
    }
}

impl SourceRefusal {
    fn of(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR) => Self::Missing,
            Some(Errno::EXDEV | Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => Self::Irregular,
            _ => Self::File(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_below_a_listed_directory_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("import/below")).unwrap();
        fs::create_dir(at("import-not")).unwrap();
        for path in ["secret", "import/image", "import/below/image", "import-not/image"] {
            fs::write(at(path), path).unwrap();
        }
        symlink(at("secret"), at("import/link")).unwrap();
        symlink(root.path(), at("import/out")).unwrap();
        symlink("image", at("import/inner")).unwrap();
        nix::unistd::mkfifo(&at("import/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let listed = ImportDirectories::new(vec![at("import")]);
        for path in ["import/image", "import/below/image"] {
            let mut text = String::new();
            listed.open(&at(path)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, path);
        }
        for path in ["secret", "import-not/image", "nothing"] {
            assert!(matches!(listed.open(&at(path)), Err(SourceRefusal::Outside)), "{path}");
        }
        let irregular = [
            "import/link",
            "import/inner",
            "import/out/secret",
            "import/../secret",
            "import/below",
            "import/pipe",
        ];
        for path in irregular {
            assert!(matches!(listed.open(&at(path)), Err(SourceRefusal::Irregular)), "{path}");
        }
        let missing = listed.open(&at("import/nothing"));
        assert!(matches!(missing, Err(SourceRefusal::Missing)));
        let none = ImportDirectories::default();
        assert!(matches!(none.open(&at("import/image")), Err(SourceRefusal::Outside)));
    }

    #[test]
    fn a_link_in_the_operators_own_path_is_his_to_make() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("disk")).unwrap();
        fs::write(root.path().join("disk/image"), "x").unwrap();
        symlink("disk", root.path().join("import")).unwrap();
        let listed = ImportDirectories::new(vec![root.path().join("import")]);
        assert!(listed.open(&root.path().join("import/image")).is_ok());
        assert!(listed.open(&root.path().join("disk/image")).is_err());
    }
}
