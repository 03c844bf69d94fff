//! Which file is handed out.
//!
//! Owns the opening: for reading only, of a file by its VM's name in the one directory, that is a
//! regular file and has no second name. The directory is the agent's, which may put anything there;
//! so whatever could stand for a file elsewhere is refused, by what was opened and not by a look
//! before. Called by `main`.

use std::fs::File;
use std::io;
use std::path::Path;

use dagger_images::consoles::{self, ConsoleFileAnswer, ConsoleFileRequest};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

/// Opens what is asked for in `directory`, or says why not.
pub fn open(directory: &Path, request: &ConsoleFileRequest) -> (ConsoleFileAnswer, Option<File>) {
    let path = consoles::path_in(directory, request.vm);
    match regular_file(&path) {
        Ok(file) => (ConsoleFileAnswer::Opened, Some(file)),
        Err(answer) => (answer, None),
    }
}

fn regular_file(path: &Path) -> Result<File, ConsoleFileAnswer> {
    let refused = |why: &str| {
        ConsoleFileAnswer::Refused(format!("console_file_refused: {}: {why}", path.display()))
    };
    let failed = |error: Errno| {
        let error = io::Error::from(error);
        ConsoleFileAnswer::Failed(format!("{}: {error}", path.display()))
    };
    // A pipe without a writer would wait for one, and a terminal become this process's own.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Err(ConsoleFileAnswer::Missing),
        Err(Errno::LOOP) => return Err(refused("it is a link")),
        // A socket has no reader.
        Err(Errno::NXIO) => return Err(refused("it is no regular file")),
        Err(error) => return Err(failed(error)),
    };
    let found = fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(refused("it is no regular file"));
    }
    if found.st_nlink != 1 {
        return Err(refused("it has another name, or none"));
    }
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use dagger_payload::id::VmId;
    use rustix::fs::{CWD, OFlags, fcntl_getfl};

    use super::*;

    const REQUEST: ConsoleFileRequest = ConsoleFileRequest { vm: VmId([7; 16]) };

    fn place() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("{}.log", REQUEST.vm));
        (directory, path)
    }

    /// Why the file that is there is refused.
    fn refusal(directory: &Path) -> String {
        match open(directory, &REQUEST) {
            (ConsoleFileAnswer::Refused(why), None) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_opened_to_be_read_and_for_nothing_else() {
        let (directory, path) = place();
        std::fs::write(&path, "login: ").unwrap();
        let (answer, file) = open(directory.path(), &REQUEST);
        assert_eq!(answer, ConsoleFileAnswer::Opened);
        let (mut file, mut said) = (file.unwrap(), String::new());
        file.read_to_string(&mut said).unwrap();
        assert_eq!(said, "login: ");
        assert_eq!(fcntl_getfl(&file).unwrap() & OFlags::ACCMODE, OFlags::RDONLY);
        assert!(file.write_all(b"x").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_missing_and_not_refused() {
        let (directory, _) = place();
        assert!(matches!(open(directory.path(), &REQUEST), (ConsoleFileAnswer::Missing, None)));
    }

    #[test]
    fn a_link_is_not_followed_wherever_it_leads() {
        let (directory, path) = place();
        std::fs::write(directory.path().join("secret"), "key").unwrap();
        for target in ["secret", "nothing", "/etc/passwd"] {
            symlink(target, &path).unwrap();
            assert!(refusal(directory.path()).contains("link"), "{target}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_that_has_another_name_is_refused() {
        let (directory, path) = place();
        std::fs::write(directory.path().join("secret"), "key").unwrap();
        std::fs::hard_link(directory.path().join("secret"), &path).unwrap();
        assert!(refusal(directory.path()).contains("another name"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let (directory, path) = place();
        std::fs::create_dir(&path).unwrap();
        assert!(refusal(directory.path()).contains("no regular file"));
        std::fs::remove_dir(&path).unwrap();
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR).unwrap();
        assert!(refusal(directory.path()).contains("no regular file"));
        std::fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(refusal(directory.path()).contains("no regular file"));
    }

    #[test]
    fn what_cannot_be_opened_is_neither_missing_nor_refused() {
        let (directory, _) = place();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(open(&file, &REQUEST), (ConsoleFileAnswer::Failed(_), None)));
    }
}
