//! Where an agent listens: a Unix socket or a TCP address, or a proxy before it.
//!
//! Owns the text form of `--api` and opening a connection. Never sends a request. Called by
//! `client`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::limits::{CONNECT_MAX, ENDPOINTS_MAX};
use crate::tls;

/// Where a server listens that names no port.
const HTTPS_PORT: u16 = 443;

/// One agent's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `unix:/path/api.sock`
    Unix(PathBuf),
    /// `http://address:port`; the text after `http://`.
    Tcp(String),
    /// `https://name` or `https://name:port`: a proxy before it; what comes after `https://`.
    Tls(Authority),
}

/// Any kind of stream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}
impl Stream for TlsStream<TcpStream> {}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: needs a path, for example unix:/run/dagger/api.sock".to_owned());
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Some(authority) = text.strip_prefix("http://") {
            let authority = authority.strip_suffix('/').unwrap_or(authority);
            let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) || authority.contains('/') {
                let rule = "an address is http://HOST:PORT, for example http://127.0.0.1:7480";
                return Err(format!("{text:?}: {rule}"));
            }
            return Ok(Self::Tcp(authority.to_owned()));
        }
        if let Some(authority) = text.strip_prefix("https://") {
            let authority = authority.strip_suffix('/').unwrap_or(authority);
            let is_name = |read: &Authority| {
                let has_port = read.port().is_some_and(|port| port.as_str().parse::<u16>().is_ok());
                let is_whole = read.host().len() == authority.len() || has_port;
                is_whole && !read.host().is_empty() && !authority.contains('@')
            };
            let read = authority.parse::<Authority>().ok().filter(is_name);
            return read.map(Self::Tls).ok_or_else(|| {
                let rule = "an address is https://HOST or https://HOST:PORT, without a path";
                format!("{text:?}: {rule}")
            });
        }
        Err(format!(
            "{text:?} is no address of an agent; write unix:/path/api.sock, http://127.0.0.1:7480 or \
             https://HOST"
        ))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(authority) => write!(formatter, "http://{authority}"),
            Self::Tls(authority) => write!(formatter, "https://{authority}"),
        }
    }
}

/// Several addresses, separated by commas.
pub(crate) fn parse_list(text: &str) -> Result<Vec<Endpoint>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let endpoints = parts.map(str::parse).collect::<Result<Vec<_>, _>>()?;
    match endpoints.len() {
        0 => Err("no address of an agent is given".to_owned()),
        1..=ENDPOINTS_MAX => Ok(endpoints),
        _ => Err(format!("at most {ENDPOINTS_MAX} addresses")),
    }
}

impl Endpoint {
    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(authority) => authority,
            Self::Tls(authority) => authority.as_str(),
        }
    }

    /// Opens a connection within its deadline.
    pub(crate) async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let connecting = async {
            Ok::<Box<dyn Stream>, std::io::Error>(match self {
                Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Self::Tcp(authority) => Box::new(TcpStream::connect(authority.as_str()).await?),
                Self::Tls(authority) => {
                    // An IPv6 address stands in brackets there, and in nothing else.
                    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                    let port = authority.port_u16().unwrap_or(HTTPS_PORT);
                    let stream = TcpStream::connect((host, port)).await?;
                    Box::new(tls::shake_hands(host, stream).await?)
                }
            })
        };
        tokio::time::timeout(CONNECT_MAX, connecting)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_prints_and_others_are_refused() {
        for text in [
            "unix:/run/dagger/api.sock",
            "http://127.0.0.1:7480",
            "http://[::1]:7480",
            "https://dagger.example",
            "https://dagger.example:8443",
            "https://[2001:db8::1]",
            "https://[2001:db8::1]:8443",
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "/run/x",
            "http://h",
            "http://h:1/x",
            "http://h:x",
            "https://",
            "https://:443",
            "https://h/x",
            "https://h:x",
            "https://h:",
            "https://u@h",
            "https://h?q",
            "ftp://h",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?} was accepted");
        }
        let list = parse_list("unix:/a, http://127.0.0.1:1/").expect("a list");
        assert_eq!(list.len(), 2);
        assert!(parse_list(" , ").is_err());
    }
}
