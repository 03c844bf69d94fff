//! Returns to silence: without work nothing travels but the rare exchange of what each host has.

use std::collections::BTreeMap;

use dagger_payload::id::AuthorIndex;

use super::{End, Observed, Promise};

/// The only kind that may travel then.
pub const EXCHANGE: &str = "have";

/// See the module.
#[derive(Default)]
pub(super) struct ReturnsToSilence {
    silent: bool,
    exchanged_bytes: BTreeMap<AuthorIndex, usize>,
}

/// Bytes that one host may spend on exchanges in the watched silence: a few dozen per peer each half minute.
const EXCHANGE_BYTES_MAX: usize = 16 * 1024;

impl Promise for ReturnsToSilence {
    fn name(&self) -> &'static str {
        "returns_to_silence"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::SilenceBegins => self.silent = true,
            Observed::Sends { kind, bytes } if self.silent && *kind == EXCHANGE => {
                *self.exchanged_bytes.entry(host).or_default() += bytes;
            }
            Observed::Sends { kind, bytes } if self.silent => {
                return Err(format!("sent {bytes} bytes ({kind}) though there is no work"));
            }
            _ => {}
        }
        Ok(())
    }

    fn check_end(&mut self, _: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        let loud = |(_, bytes): &(&AuthorIndex, &usize)| **bytes > EXCHANGE_BYTES_MAX;
        match self.exchanged_bytes.iter().find(loud) {
            None => Ok(()),
            Some((host, bytes)) => Err((*host, format!("exchanges took {bytes} bytes"))),
        }
    }
}
