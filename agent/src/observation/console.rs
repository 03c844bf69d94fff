//! Finds the SSH host key that a guest shows on its serial console, so that the first log-in can be
//! checked.
//!
//! Owns the reading of console files and the grammar of what shows a key: one line of our small
//! guest, or the block that cloud-init prints at a machine's first boot. Other words may stand
//! between its lines, or in them. What a guest says there is only taken for what the guest says of
//! itself. Started by [`crate::machines`] for each guest that
//! was switched on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::sync::Arc;

use dagger_payload::id::VmId;
use dagger_payload::name::SshKeyLine;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::files::{ConsoleFile, is_same};
use super::limits::{
    CONSOLE_BYTES_MAX, CONSOLE_FAILURES_MAX, CONSOLE_READ_EVERY, CONSOLE_READS_MAX,
};
use crate::controller::Input;

/// The beginning of the line, as our small guest prints it.
const LINE_BEGINNING: &str = "dagger-guest: ssh=ready host_key=";
/// The lines around the keys, as cloud-init's module `keys_to_console` prints them.
const BLOCK_BEGINNING: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const BLOCK_END: &str = "-----END SSH HOST KEY KEYS-----";

/// A kind of host key, and what of its base64 is always the same.
struct Kind {
    name: &'static str,
    /// Type and, where there is one, curve.
    beginning: &'static str,
    /// Characters from the shortest to the longest key.
    characters: RangeInclusive<usize>,
}

/// The kinds that are taken, the best first. A key that other words broke into fits none of them.
const KINDS: [Kind; 5] = [
    Kind { name: "ssh-ed25519", beginning: "AAAAC3NzaC1lZDI1NTE5AAAAI", characters: 68..=68 },
    Kind {
        name: "ecdsa-sha2-nistp256",
        beginning: "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAAB",
        characters: 140..=140,
    },
    Kind {
        name: "ecdsa-sha2-nistp384",
        beginning: "AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAAB",
        characters: 184..=184,
    },
    Kind {
        name: "ecdsa-sha2-nistp521",
        beginning: "AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAAC",
        characters: 232..=232,
    },
    // From 2048 to 8192 bits, with the exponent that everybody uses.
    Kind { name: "ssh-rsa", beginning: "AAAAB3NzaC1yc2EAAAADAQAB", characters: 372..=1396 },
];

/// Reads one guest's console.
#[derive(Debug, Clone)]
pub struct ConsoleReader {
    /// Whose.
    pub vm: VmId,
    /// The file.
    pub file: ConsoleFile,
    /// To the controller.
    pub inputs: mpsc::Sender<Input>,
}

impl ConsoleReader {
    /// Reads until the key shows, `stop` is cancelled, or it has taken too long: not every guest
    /// shows one.
    pub async fn run(self, stop: CancellationToken) {
        let (mut open, mut failures) = (None, 0);
        for _ in 0..CONSOLE_READS_MAX {
            if stop.run_until_cancelled(tokio::time::sleep(CONSOLE_READ_EVERY)).await.is_none() {
                return;
            }
            match self.read_end(&mut open).await {
                Ok(text) => {
                    failures = 0;
                    if let Some(key) = find_host_key(&text) {
                        let _ = self.inputs.send(Input::GuestHostKey(self.vm, key)).await;
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(vm = %self.vm, %error, "the console cannot be read");
                    (open, failures) = (None, failures + 1);
                    if failures > CONSOLE_FAILURES_MAX {
                        return;
                    }
                }
            }
        }
    }

    /// The last that was said, and nothing where there is no file. The file stays open between two
    /// looks: to open it may cost a process.
    async fn read_end(&self, open: &mut Option<Arc<File>>) -> io::Result<String> {
        if let (Some(file), Ok(now)) = (&*open, tokio::fs::metadata(self.file.path()).await)
            && !is_same(&now, &file.metadata()?)
        {
            *open = None;
        }
        if open.is_none() {
            *open = self.file.open().await?.map(Arc::new);
        }
        let Some(file) = open.clone() else { return Ok(String::new()) };
        tokio::task::spawn_blocking(move || read_end(&file)).await?
    }
}

fn read_end(mut file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The key that was shown last, by a whole line or a whole block; of a block's keys the best.
pub fn find_host_key(console: &str) -> Option<SshKeyLine> {
    let (whole, _) = console.rsplit_once('\n')?;
    let mut shown = None;
    let mut block: Option<Vec<(usize, SshKeyLine)>> = None;
    for line in whole.lines() {
        if line.contains(BLOCK_BEGINNING) {
            block = Some(Vec::new());
        } else if line.contains(BLOCK_END) {
            let keys = block.take().unwrap_or_default();
            let best = keys.into_iter().min_by_key(|(rank, _)| *rank);
            shown = best.map(|(_, key)| key).or(shown);
        } else if let Some((_, key)) = line.split_once(LINE_BEGINNING) {
            shown = key_in(key).map(|(_, key)| key).or(shown);
        } else if let Some(keys) = &mut block {
            keys.extend(key_in(line));
        }
    }
    shown
}

/// The key that stands in a line, without what the guest says about it, and its rank.
fn key_in(line: &str) -> Option<(usize, SshKeyLine)> {
    let mut words = line.split_whitespace();
    let rank = words.by_ref().find_map(|word| KINDS.iter().position(|kind| kind.name == word))?;
    let (kind, key) = (&KINDS[rank], words.next()?);
    let fits = key.starts_with(kind.beginning)
        && key.len().is_multiple_of(4)
        && kind.characters.contains(&key.len());
    fits.then(|| format!("{} {key}", kind.name).parse().ok().map(|key| (rank, key)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::ConsoleFiles;
    use crate::one_shot::HelperConfiguration;

    #[tokio::test]
    async fn a_file_that_stays_is_opened_once_and_the_next_one_is_found() {
        let storage = tempfile::tempdir().unwrap();
        let vm = VmId([7; 16]);
        let file = ConsoleFiles::new(storage.path(), &HelperConfiguration::default()).of(vm);
        let path = file.path().to_owned();
        let reader = ConsoleReader { vm, file, inputs: mpsc::channel(1).0 };
        let mut open = None;
        assert_eq!(reader.read_end(&mut open).await.unwrap(), "", "there is none yet");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "boot").unwrap();
        assert_eq!(reader.read_end(&mut open).await.unwrap(), "boot");
        let first = Arc::clone(open.as_ref().unwrap());
        std::fs::write(&path, "boot, login: ").unwrap();
        assert_eq!(reader.read_end(&mut open).await.unwrap(), "boot, login: ");
        assert!(Arc::ptr_eq(&first, open.as_ref().unwrap()));
        std::fs::rename(&path, path.with_extension("log.0")).unwrap();
        assert_eq!(reader.read_end(&mut open).await.unwrap(), "boot, login: ");
        std::fs::write(&path, "more").unwrap();
        assert_eq!(reader.read_end(&mut open).await.unwrap(), "more");
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIfIOPEQsiFf4wGEFp77wpsEx4PJOeSJWZ+GBGvdg2fM";

    #[test]
    fn the_last_key_that_a_guest_shows_on_a_whole_line_is_found() {
        let line = format!("[ 1.2] {LINE_BEGINNING}{KEY}\r\n");
        let older = line.replace("AAAAIIfI", "AAAAIAfI");
        let found = find_host_key(&format!("boot\r\n{older}{line}login: "));
        assert_eq!(found.unwrap().as_str(), KEY);
    }

    /// As Debian 12's cloud-init prints it at a first boot.
    fn block() -> String {
        let ecdsa = format!(
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB{}= root@web-1",
            "B".repeat(87)
        );
        let rsa = format!("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ{} root@web-1", "D".repeat(506));
        format!(
            "<14>Nov 29 02:54:00 cloud-init: 256 SHA256:abc root@web-1 (ED25519)\r\n\
             {BLOCK_BEGINNING}\r\n{ecdsa}\r\n{KEY} root@web-1\r\n{rsa}\r\n{BLOCK_END}\r\n"
        )
    }

    #[test]
    fn the_best_key_of_the_block_that_cloud_init_prints_is_found() {
        assert_eq!(find_host_key(&block()).unwrap().as_str(), KEY);
        let without = block().replace("ssh-ed25519 ", "ssh-ed448 ");
        assert!(find_host_key(&without).unwrap().as_str().starts_with("ecdsa-sha2-nistp256 "));
        let only_rsa = without.replace("ecdsa-", "ecd\u{1b}[0m-");
        assert!(find_host_key(&only_rsa).unwrap().as_str().starts_with("ssh-rsa "));
    }

    #[test]
    fn a_block_counts_once_it_is_whole_and_what_stands_between_does_not_count() {
        let block = block();
        let (cut, _) = block.split_once(BLOCK_END).unwrap();
        assert_eq!(find_host_key(cut), None, "a better key may follow");
        let outside = format!("{BLOCK_END}\r\n{KEY}\r\n{BLOCK_END}\r\n");
        assert_eq!(find_host_key(&outside), None);
        // The kernel speaks whenever it likes.
        let between = block.replace("root@web-1\r\n", "root@web-1\r\n[   99.1] eth0: link up\r\n");
        assert_eq!(find_host_key(&between).unwrap().as_str(), KEY);
        let prefixed = block.replace("ssh-ed25519 ", "[   99.1] cloud-init[367]: ssh-ed25519 ");
        assert_eq!(find_host_key(&prefixed).unwrap().as_str(), KEY);
        // Where it breaks into a key, that key is none.
        for rubbish in ["\r\n[   99.1] x\r\n", "[99.1] x", "AAAA", "\u{fffd}", " "] {
            let broken = block.replace("AAAAIIfI", &format!("AAAAII{rubbish}fI"));
            let found = find_host_key(&broken).unwrap();
            assert!(found.as_str().starts_with("ecdsa-"), "{rubbish:?} gave {found}");
        }
    }

    #[test]
    fn a_guest_that_prints_rubbish_shows_no_key() {
        let endless = format!("{BLOCK_BEGINNING}\n").repeat(2000);
        assert_eq!(find_host_key(&endless), None);
        let empty = format!("{BLOCK_BEGINNING}\nssh-rsa AAAA\nssh-ed25519\n{BLOCK_END}\n");
        assert_eq!(find_host_key(&empty), None);
        // One that showed a key before still has it.
        assert_eq!(find_host_key(&(block() + &empty)).unwrap().as_str(), KEY);
    }

    #[test]
    fn a_line_that_is_cut_or_no_key_is_not_taken() {
        let line = format!("{LINE_BEGINNING}{KEY}");
        assert_eq!(find_host_key(&line), None);
        assert_eq!(find_host_key(&format!("{LINE_BEGINNING}ssh-ed25519 $(reboot)\n")), None);
    }
}
