//! What the agent and the one-shot helper `dagger-fetch` say to each other.
//!
//! Owns the shapes of one conversation over a Unix socket: the agent sends one [`FetchRequest`] as
//! a line of JSON, and with it the open file to fill; the helper answers with lines of
//! [`FetchNews`], of which the last is an end. Whoever goes away ends it. Never opens a connection:
//! the agent has no network, and the helper has no path, no key and no store.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use dagger_payload::id::ImageDigest;
use serde::{Deserialize, Serialize};

/// What is to be fetched, and from where it may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchRequest {
    /// What the bytes must be.
    pub digest: ImageDigest,
    /// The most bytes that are ever written.
    pub size_bytes: u64,
    /// Where they may be had, tried in this order.
    pub sources: Vec<FetchSource>,
    /// Addresses that are allowed although they are private, link-local or loopback.
    pub networks: Vec<AddressRange>,
    /// How long a source may send next to nothing.
    pub stall_wait_ms: u64,
}

/// A place where an image's bytes may be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
pub enum FetchSource {
    /// An `https://` address; its certificate is checked.
    Https {
        /// The address.
        url: String,
    },
    /// Another host of the cluster. By plain HTTP: its bytes are believed by their digest alone.
    Host {
        /// What it is called, for people.
        name: String,
        /// Where it serves images.
        address: SocketAddr,
        /// The session document that lets us read there, and its signature.
        session: (String, String),
    },
}

impl fmt::Display for FetchSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https { url } => formatter.write_str(url),
            Self::Host { name, address, .. } => write!(formatter, "host {name} ({address})"),
        }
    }
}

/// What the helper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "news")]
pub enum FetchNews {
    /// So far it has come.
    Progress {
        /// Bytes that are in the file.
        bytes_done: u64,
        /// Which of the request's sources is asked.
        source: usize,
    },
    /// A source did not serve.
    Trouble {
        /// Which.
        source: usize,
        /// Why.
        problem: FetchProblem,
    },
    /// The file holds the bytes that were asked for. Ends the conversation.
    Done {
        /// How many.
        bytes: u64,
    },
    /// No source serves; what is worth keeping is kept. Ends the conversation.
    Failed {
        /// Why, of the source that says most.
        problem: FetchProblem,
    },
}

/// Why something was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{}: {detail}", code.text())]
pub struct FetchProblem {
    /// The stable code.
    pub code: FetchCode,
    /// For people.
    pub detail: String,
}

/// The ways in which fetching fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchCode {
    /// The source is no address that may be asked.
    SourceMalformed,
    /// The source leads to an address that the operator does not allow.
    AddressRefused,
    /// A redirect leads away from https, or is none.
    RedirectRefused,
    /// The source redirects on and on.
    RedirectsTooMany,
    /// There is more than was registered.
    TooLarge,
    /// The bytes are others than were registered.
    DigestDiffers,
    /// The source has no such file now.
    NotThere,
    /// The name leads to no address now.
    ResolveFailed,
    /// Nobody answers.
    ConnectFailed,
    /// Who answers cannot prove who he is.
    TlsFailed,
    /// The source answers something else than the file.
    AnswerRefused,
    /// The source is busy.
    Busy,
    /// The bytes stopped coming.
    Stalled,
    /// The bytes come, but so slowly that others are asked first.
    TooSlow,
    /// The source ended before all had come.
    Truncated,
    /// The file cannot be read or written.
    FileFailed,
    /// There is no space for the file.
    DiskFull,
    /// The request is not in form.
    RequestMalformed,
    /// The helper cannot be started, or ended without a word.
    HelperFailed,
}

impl FetchCode {
    /// The code as it is written.
    pub fn text(self) -> &'static str {
        match self {
            Self::SourceMalformed => "source_malformed",
            Self::AddressRefused => "address_refused",
            Self::RedirectRefused => "redirect_refused",
            Self::RedirectsTooMany => "redirects_too_many",
            Self::TooLarge => "too_large",
            Self::DigestDiffers => "digest_differs",
            Self::NotThere => "not_there",
            Self::ResolveFailed => "resolve_failed",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::AnswerRefused => "answer_refused",
            Self::Busy => "busy",
            Self::Stalled => "stalled",
            Self::TooSlow => "too_slow",
            Self::Truncated => "truncated",
            Self::FileFailed => "file_failed",
            Self::DiskFull => "disk_full",
            Self::RequestMalformed => "request_malformed",
            Self::HelperFailed => "helper_failed",
        }
    }

    /// Whether the trouble is this host's own file: no other source changes that.
    pub fn is_of_the_file(self) -> bool {
        matches!(self, Self::FileFailed | Self::DiskFull)
    }

    /// Whether it speaks against a source: others are asked before it the next time. That it has
    /// not got something, or is busy, does not.
    pub fn is_the_sources_fault(self) -> bool {
        match self {
            Self::RedirectRefused
            | Self::RedirectsTooMany
            | Self::TooLarge
            | Self::DigestDiffers
            | Self::ResolveFailed
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::AnswerRefused
            | Self::Stalled
            | Self::TooSlow
            | Self::Truncated => true,
            Self::SourceMalformed
            | Self::AddressRefused
            | Self::NotThere
            | Self::Busy
            | Self::FileFailed
            | Self::DiskFull
            | Self::RequestMalformed
            | Self::HelperFailed => false,
        }
    }

    /// Whether asking the same source again gives the same answer.
    pub fn is_refusal(self) -> bool {
        match self {
            Self::SourceMalformed
            | Self::AddressRefused
            | Self::RedirectRefused
            | Self::RedirectsTooMany
            | Self::TooLarge
            | Self::DigestDiffers
            | Self::RequestMalformed => true,
            Self::NotThere
            | Self::ResolveFailed
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::AnswerRefused
            | Self::Busy
            | Self::Stalled
            | Self::TooSlow
            | Self::Truncated
            | Self::FileFailed
            | Self::DiskFull
            | Self::HelperFailed => false,
        }
    }
}

impl FetchProblem {
    /// A problem.
    pub fn new(code: FetchCode, detail: impl fmt::Display) -> Self {
        Self { code, detail: detail.to_string() }
    }
}

/// Addresses with a common beginning, written `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    address: IpAddr,
    prefix_length: u8,
}

/// The text is no range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range of addresses is written like 10.0.0.0/8 or fd00::/8")]
pub struct NoAddressRange;

impl AddressRange {
    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let unlike = own.to_bits() ^ other.to_bits();
                unlike.leading_zeros() >= u32::from(self.prefix_length)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let unlike = own.to_bits() ^ other.to_bits();
                unlike.leading_zeros() >= u32::from(self.prefix_length)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = NoAddressRange;

    fn from_str(text: &str) -> Result<Self, NoAddressRange> {
        let (address, prefix) = text.split_once('/').ok_or(NoAddressRange)?;
        let address: IpAddr = address.parse().map_err(|_| NoAddressRange)?;
        let prefix_length: u8 = prefix.parse().map_err(|_| NoAddressRange)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix_length > bits { Err(NoAddressRange) } else { Ok(Self { address, prefix_length }) }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_length)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = NoAddressRange;

    fn try_from(text: String) -> Result<Self, NoAddressRange> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_with_its_beginning_and_no_others() {
        let range = |text: &str| text.parse::<AddressRange>();
        let holds = |text, address: &str| range(text).unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "fe80::1"));
        assert!(holds("192.0.2.7/32", "192.0.2.7") && !holds("192.0.2.7/32", "192.0.2.6"));
        for text in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "a/8", "10.0.0.0/-1"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
