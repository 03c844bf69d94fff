//! Returns to silence: without work nothing travels but the rare exchange of what each host has. A
//! liar can make that exchange a little longer, by events that some hosts cannot accept, but never
//! makes an honest host speak on.

use std::collections::BTreeMap;

use dagger_payload::id::AuthorIndex;

use super::{End, Observed, Promise, Setting};

/// The kind of message ([`dagger_payload::peer::PeerMessage::kind`]) that may travel in silence.
const EXCHANGE: &str = "have";

/// Bytes that one host may spend on exchanges in the watched silence: a few dozen per peer each
/// half minute.
const EXCHANGE_BYTES_MAX: usize = 16 * 1024;
/// The same where there are liars, whose events may be offered and asked for in vain at each
/// exchange.
const LIARS_EXCHANGE_BYTES_MAX: usize = 256 * 1024;

/// See the module.
pub(super) struct ReturnsToSilence {
    silent: bool,
    liars: Vec<AuthorIndex>,
    exchanged_bytes: BTreeMap<AuthorIndex, usize>,
}

impl ReturnsToSilence {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { silent: false, liars: setting.liars.clone(), exchanged_bytes: BTreeMap::new() }
    }
}

impl Promise for ReturnsToSilence {
    fn name(&self) -> &'static str {
        "returns_to_silence"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::SilenceBegins => self.silent = true,
            Observed::Sends { kind, bytes } if self.silent => {
                *self.exchanged_bytes.entry(host).or_default() += bytes;
                if *kind != EXCHANGE && self.liars.is_empty() {
                    return Err(format!("sent {bytes} bytes ({kind}) though there is no work"));
                }
            }
            Observed::EventLeaves { event, .. } if self.silent => {
                let header = &event.header;
                if !self.liars.contains(&header.author) {
                    let (author, round) = (header.author, header.round);
                    return Err(format!("sent event {author}@{round} though there is no work"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fell(&mut self, host: AuthorIndex) {
        self.liars.push(host);
    }

    fn check_end(&mut self, _: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        let bytes_max =
            if self.liars.is_empty() { EXCHANGE_BYTES_MAX } else { LIARS_EXCHANGE_BYTES_MAX };
        let loud = |(_, bytes): &(&AuthorIndex, &usize)| **bytes > bytes_max;
        match self.exchanged_bytes.iter().find(loud) {
            None => Ok(()),
            Some((host, bytes)) => Err((*host, format!("exchanges took {bytes} bytes"))),
        }
    }
}
