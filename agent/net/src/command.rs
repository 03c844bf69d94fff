//! Runs `ip` and `nft`.
//!
//! Owns where they are and how their failures read. Never passes anything on a command line that
//! came with a request: both are told by their standard input. Called by [`crate::apply`].

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where distributions put them.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// How much of what a program complains of is told.
const WORDS_BYTES_MAX: usize = 400;

/// A program that is told what to do by its standard input.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    /// `ip -batch -`.
    Ip,
    /// `nft -f -`.
    Nft,
}

impl Program {
    fn words(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Ip => ("ip", ["-batch", "-"]),
            Self::Nft => ("nft", ["-f", "-"]),
        }
    }

    /// Tells it `script` and gives what it said.
    ///
    /// # Errors
    /// It is not there, or did not do it.
    pub fn tell(self, script: &str) -> io::Result<String> {
        let (name, arguments) = self.words();
        let mut child = Command::new(find(name)?)
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // It reads all of it before it says much: a script is far smaller than a pipe.
        let written =
            child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(script.as_bytes()));
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let mut words = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
            return Err(io::Error::other(format!("{name}: {}", words.trim())));
        }
        written?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn find(name: &str) -> io::Result<PathBuf> {
    let places = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{name} is not installed on this host"))
    })
}
