//! Typing at a domain's serial console over a libvirt stream.
//!
//! Owns the stream and the thread that empties it: what the guest says is read from its console
//! file, but a stream that nobody reads fills up and stops. Called by the implementation.

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::stream::Stream;

use crate::hypervisor::{ConsoleInput, HypervisorError};

/// Bytes that are taken from the stream at a time.
const EMPTIED_BYTES: usize = 4096;

/// An open console.
pub(super) struct DomainConsole {
    stream: Stream,
}

impl DomainConsole {
    /// Opens the first serial device of `domain`.
    pub(super) fn open(connection: &Connect, domain: &Domain) -> Result<Self, Error> {
        let stream = Stream::new(connection, 0)?;
        domain.open_console(None, &stream, 0)?;
        let heard = stream.clone();
        // Ends when the stream does: with the guest, the connection, or this console.
        let emptying = move || {
            let mut bytes = [0; EMPTIED_BYTES];
            while heard.recv(&mut bytes).is_ok_and(|count| count > 0) {}
        };
        let spawned = std::thread::Builder::new().name("console-out".to_owned()).spawn(emptying);
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread reads a console's stream; typing may stop");
        }
        Ok(Self { stream })
    }
}

impl ConsoleInput for DomainConsole {
    fn write(&mut self, bytes: &[u8]) -> Result<(), HypervisorError> {
        let mut left = bytes;
        while !left.is_empty() {
            let sent = self.stream.send(left);
            let sent = sent.map_err(|error| HypervisorError::Failed(error.to_string()))?;
            let sent = usize::try_from(sent).unwrap_or(0);
            if sent == 0 {
                return Err(HypervisorError::Failed("the console takes nothing".to_owned()));
            }
            left = left.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for DomainConsole {
    fn drop(&mut self) {
        // Wakes the other thread; a stream that has ended already has nothing to abort.
        let _ = self.stream.clone().abort();
    }
}
