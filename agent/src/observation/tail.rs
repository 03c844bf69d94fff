//! Following a console file while it grows.
//!
//! Owns the place in the file, and the passage to the next file when whoever writes it has put the
//! full one aside. Never writes. Called by the API, once per reader.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::limits::{CONSOLE_FOLLOW_EVERY, CONSOLE_PART_BYTES};

/// A reader of one console file.
pub struct ConsoleTail {
    path: PathBuf,
    file: Option<File>,
}

impl ConsoleTail {
    /// From the last `history_bytes` of the file at `path` on; a file that is not there yet is
    /// waited for.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn open(path: PathBuf, history_bytes: u64) -> io::Result<Self> {
        let mut tail = Self { path, file: None };
        if let Some(mut file) = tail.find().await? {
            let length = file.metadata().await?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(history_bytes))).await?;
            tail.file = Some(file);
        }
        Ok(tail)
    }

    async fn find(&self) -> io::Result<Option<File>> {
        match File::open(&self.path).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What comes next, as soon as there is something.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn next(&mut self) -> io::Result<Bytes> {
        loop {
            let part = self.ready().await?;
            if !part.is_empty() {
                return Ok(part);
            }
            tokio::time::sleep(CONSOLE_FOLLOW_EVERY).await;
        }
    }

    /// What there is now, perhaps nothing.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn ready(&mut self) -> io::Result<Bytes> {
        let Some(file) = &mut self.file else {
            self.file = self.find().await?;
            return Ok(Bytes::new());
        };
        let mut part = vec![0; CONSOLE_PART_BYTES];
        let count = file.read(&mut part).await?;
        if count == 0 {
            let own = file.metadata().await?;
            // The old one has been read to its end, and nobody writes to it any more.
            match tokio::fs::metadata(&self.path).await {
                Ok(now) if (now.dev(), now.ino()) == (own.dev(), own.ino()) => {
                    let place = file.stream_position().await?;
                    if own.len() < place {
                        file.seek(SeekFrom::Start(0)).await?;
                    }
                }
                Ok(_) => self.file = None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        part.truncate(count);
        Ok(part.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn say(path: &std::path::Path, words: &str) {
        let mut file =
            std::fs::File::options().append(true).create(true).open(path).expect("opens");
        file.write_all(words.as_bytes()).expect("writes");
    }

    #[tokio::test]
    async fn a_reader_gets_the_history_then_what_is_said_and_follows_into_the_next_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("console.log");
        say(&path, "long ago, before");
        let mut tail = ConsoleTail::open(path.clone(), 6).await.expect("opens");
        assert_eq!(tail.next().await.expect("reads"), "before");
        say(&path, "now");
        assert_eq!(tail.next().await.expect("reads"), "now");
        say(&path, " last words");
        std::fs::rename(&path, directory.path().join("console.log.0")).expect("renames");
        say(&path, "first words");
        assert_eq!(tail.next().await.expect("reads"), " last words");
        assert_eq!(tail.next().await.expect("reads"), "first words");
        std::fs::File::options().write(true).truncate(true).open(&path).expect("truncates");
        assert!(tail.ready().await.expect("reads").is_empty());
        say(&path, "again");
        assert_eq!(tail.next().await.expect("reads"), "again");
    }

    #[tokio::test]
    async fn a_console_without_a_file_is_silent_until_there_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("console.log");
        let mut tail = ConsoleTail::open(path.clone(), 100).await.expect("opens");
        assert!(tail.ready().await.expect("reads").is_empty());
        say(&path, "hello");
        assert_eq!(tail.next().await.expect("reads"), "hello");
    }
}
