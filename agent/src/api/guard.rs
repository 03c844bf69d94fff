//! Who may speak to the API over TCP: programs of this host, or those behind a proxy whose name the
//! operator listed.
//!
//! Owns the check of `Host` (against DNS rebinding) and `Origin` (against other web sites); no CORS
//! header is ever sent. Called for every request that comes by TCP; over the Unix socket the file
//! system is the guard.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};

use super::problem::ApiProblem;

/// How a request came.
#[derive(Debug, Clone)]
pub enum Door {
    /// Over the Unix socket.
    Unix,
    /// Over TCP.
    Tcp(TcpDoor),
    /// Over the TCP socket for other hosts, which leads to image files and to nothing else. What is
    /// there needs a session, so that neither `Host` nor `Origin` says anything.
    Images,
}

/// What the TCP listener answers to.
#[derive(Debug, Clone)]
pub struct TcpDoor {
    /// Its own port.
    pub port: u16,
    /// Names besides the loopback ones, at any port: the proxy has its own.
    pub names: BTreeSet<String>,
}

impl TcpDoor {
    /// Checks `Host` and `Origin` of a request.
    ///
    /// # Errors
    /// `host_refused`, `origin_refused`, `request_malformed`.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiProblem> {
        if let Some(authority) = uri.authority()
            && !self.serves(authority)
        {
            return Err(ApiProblem::host(format!("{authority} is not served here")));
        }
        let host = only(headers, header::HOST)?
            .ok_or_else(|| ApiProblem::malformed("the Host header is missing"))?;
        let known = host.parse::<Authority>().is_ok_and(|host| self.serves(&host));
        if !known {
            return Err(ApiProblem::host(format!("{host} is not served here")));
        }
        match only(headers, header::ORIGIN)? {
            Some(origin) if !self.is_own_origin(origin) => {
                Err(ApiProblem::origin(format!("{origin} is a foreign origin")))
            }
            _ => Ok(()),
        }
    }

    fn is_own_origin(&self, origin: &str) -> bool {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority
            .and_then(|authority| authority.parse().ok())
            .is_some_and(|authority| self.serves(&authority))
    }

    fn serves(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().to_ascii_lowercase();
        if self.names.contains(&name) {
            return true;
        }
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let address = bare.unwrap_or(&name).parse::<IpAddr>();
        let loopback = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
        loopback && authority.port_u16().unwrap_or(80) == self.port
    }
}

fn only(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, ApiProblem> {
    let mut values = headers.get_all(&name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ApiProblem::malformed(format!("the {name} header stands twice")));
    }
    let text = first.map(|value| value.to_str());
    text.transpose().map_err(|_| ApiProblem::malformed(format!("the {name} header is not ASCII")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> TcpDoor {
        TcpDoor { port: 7480, names: BTreeSet::from(["cloud.example".to_owned()]) }
    }

    fn code(host: &str, origin: Option<&str>) -> Option<u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a header value"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a header value"));
        }
        let verdict = door().check(&Uri::from_static("/v1/cluster"), &headers);
        verdict.err().map(|problem| problem.status().as_u16())
    }

    #[test]
    fn loopback_names_with_our_port_and_listed_names_are_served() {
        for host in [
            "127.0.0.1:7480",
            "localhost:7480",
            "LOCALHOST:7480",
            "[::1]:7480",
            "127.1.2.3:7480",
            "cloud.example",
            "cloud.example:443",
        ] {
            assert_eq!(code(host, None), None, "{host}");
        }
    }

    #[test]
    fn other_names_ports_and_forms_are_refused() {
        for host in [
            "evil.example:7480",
            "localhost.evil.example:7480",
            "127.0.0.1.evil.example:7480",
            "localhost",
            "localhost:80",
            "192.168.0.1:7480",
            "0.0.0.0:7480",
            "user@localhost:7480",
            "evil.example@localhost:7480",
            "",
            "a b",
        ] {
            assert_eq!(code(host, None), Some(403), "{host}");
        }
    }

    #[test]
    fn foreign_origins_are_refused_and_the_own_one_is_not() {
        let own = "127.0.0.1:7480";
        assert_eq!(code(own, Some("http://127.0.0.1:7480")), None);
        assert_eq!(code(own, Some("https://cloud.example")), None);
        for origin in ["null", "https://evil.example", "http://localhost:3000", "file://"] {
            assert_eq!(code(own, Some(origin)), Some(403), "{origin}");
        }
    }
}
