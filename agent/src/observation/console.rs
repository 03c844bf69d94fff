//! Finds the SSH host key that a guest shows on its serial console, so that the first log-in can be
//! checked.
//!
//! Owns the reading of console files and the grammar of that one line. What a guest says there is
//! only taken for what the guest says of itself. Started by [`crate::machines`] for each guest that
//! was switched on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use dagger_payload::id::VmId;
use dagger_payload::name::SshKeyLine;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::limits::{CONSOLE_BYTES_MAX, CONSOLE_READ_EVERY, CONSOLE_READS_MAX};
use crate::controller::Input;

/// The beginning of the line, as our guest images print it.
const LINE_BEGINNING: &str = "dagger-guest: ssh=ready host_key=";

/// Reads one guest's console.
#[derive(Debug, Clone)]
pub struct ConsoleReader {
    /// Whose.
    pub vm: VmId,
    /// The file.
    pub path: PathBuf,
    /// To the controller.
    pub inputs: mpsc::Sender<Input>,
}

impl ConsoleReader {
    /// Reads until the key shows, `stop` is cancelled, or it has taken too long: not every guest
    /// shows one.
    pub async fn run(self, stop: CancellationToken) {
        for _ in 0..CONSOLE_READS_MAX {
            if stop.run_until_cancelled(tokio::time::sleep(CONSOLE_READ_EVERY)).await.is_none() {
                return;
            }
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || read_end(&path)).await;
            match read {
                Ok(Ok(text)) => {
                    if let Some(key) = find_host_key(&text) {
                        let _ = self.inputs.send(Input::GuestHostKey(self.vm, key)).await;
                        return;
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Err(error)) => {
                    tracing::debug!(vm = %self.vm, %error, "the console cannot be read");
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The key of the last whole line that shows one.
pub fn find_host_key(console: &str) -> Option<SshKeyLine> {
    let (whole, _) = console.rsplit_once('\n')?;
    whole.lines().rev().find_map(|line| {
        let (_, key) = line.split_once(LINE_BEGINNING)?;
        key.trim_end().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBd0cmFuc3BhcmVudGx5IG5vdCBhIHJlYWwga2V5";

    #[test]
    fn the_last_key_that_a_guest_shows_on_a_whole_line_is_found() {
        let line = format!("[ 1.2] {LINE_BEGINNING}{KEY}\r\n");
        let older = line.replace("AAAAIBd0", "AAAAIAd0");
        let found = find_host_key(&format!("boot\r\n{older}{line}login: "));
        assert_eq!(found.unwrap().as_str(), KEY);
    }

    #[test]
    fn a_line_that_is_cut_or_no_key_is_not_taken() {
        let line = format!("{LINE_BEGINNING}{KEY}");
        assert_eq!(find_host_key(&line), None);
        assert_eq!(find_host_key(&format!("{LINE_BEGINNING}ssh-ed25519 $(reboot)\n")), None);
    }
}
