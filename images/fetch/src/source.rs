//! One question to one source, by HTTP.
//!
//! Owns the way from a source to the body of its answer: addresses are checked at every hop, https
//! leads to https only, and a host of the cluster redirects nowhere. Never writes to the file.
//! Called by [`crate::fetch`].

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dagger_images::fetch::{FetchCode, FetchProblem, FetchRequest, FetchSource};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::addresses;
use crate::limits::{CONNECT_WAIT_MAX, HEAD_BYTES_MAX, REDIRECTS_MAX, STALL_WAIT_MAX};

/// A body, and where in the file it begins.
#[derive(Debug)]
pub struct Answer {
    /// The first byte's place.
    pub begins_at: u64,
    /// The rest.
    pub body: Incoming,
}

/// Asks sources.
pub struct Asker<'a> {
    request: &'a FetchRequest,
    tls: OnceLock<TlsConnector>,
}

impl<'a> Asker<'a> {
    /// For this request.
    pub fn new(request: &'a FetchRequest) -> Self {
        Self { request, tls: OnceLock::new() }
    }

    /// Asks a source for the file from this byte on.
    ///
    /// # Errors
    /// [`FetchProblem`].
    pub async fn ask(&self, source: &FetchSource, from: u64) -> Result<Answer, FetchProblem> {
        let response = match source {
            FetchSource::Host { address, session, .. } => {
                self.ask_host(*address, session, from).await?
            }
            FetchSource::Https { url } => self.ask_https(url, from).await?,
        };
        self.judge(response, from)
    }

    async fn ask_host(
        &self,
        address: SocketAddr,
        session: &(String, String),
        from: u64,
    ) -> Result<Response<Incoming>, FetchProblem> {
        addresses::check(address.ip(), &self.request.networks)?;
        let stream = connect(&[address]).await?;
        let path = format!("/v1/images/{}", self.request.digest);
        let request = Request::get(path)
            .header(header::HOST, address.to_string())
            .header("dagger-session", &session.0)
            .header("dagger-session-signature", &session.1);
        self.exchange(stream, request, from).await
    }

    async fn ask_https(&self, url: &str, from: u64) -> Result<Response<Incoming>, FetchProblem> {
        let mut uri = parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let host = uri.host().unwrap_or_default().to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let found = addresses::resolve(&host, port, &self.request.networks).await?;
            let stream = connect(&found).await?;
            let stream = self.secure(&host, stream).await?;
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let request = Request::get(path).header(header::HOST, authority);
            let response = self.exchange(stream, request, from).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            uri = redirected(&uri, response.headers())?;
        }
        let detail = format!("more than {REDIRECTS_MAX} redirects");
        Err(FetchProblem::new(FetchCode::RedirectsTooMany, detail))
    }

    async fn secure(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, FetchProblem> {
        let failed = |why: &dyn std::fmt::Display| {
            FetchProblem::new(FetchCode::TlsFailed, format!("{host}: {why}"))
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = ServerName::try_from(bare.unwrap_or(host).to_owned());
        let name = name.map_err(|error| failed(&error))?;
        let connector = match self.tls.get() {
            Some(connector) => connector.clone(),
            None => self.tls.get_or_init(connector).clone(),
        };
        let secured = tokio::time::timeout(CONNECT_WAIT_MAX, connector.connect(name, stream)).await;
        secured.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))
    }

    /// Sends the request and takes the answer's head.
    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: hyper::http::request::Builder,
        from: u64,
    ) -> Result<Response<Incoming>, FetchProblem> {
        let failed = |why: &dyn std::fmt::Display| {
            FetchProblem::new(FetchCode::AnswerRefused, format!("no answer in form: {why}"))
        };
        let mut request = request
            .header(header::USER_AGENT, concat!("dagger-fetch/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let request = request.body(Empty::<Bytes>::new());
        let request =
            request.map_err(|error| FetchProblem::new(FetchCode::SourceMalformed, error))?;
        let exchange = async {
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(HEAD_BYTES_MAX)
                .handshake(TokioIo::new(stream))
                .await?;
            // Ends with the answer's body, or when that is dropped.
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let patience = Duration::from_millis(self.request.stall_wait_ms).min(STALL_WAIT_MAX);
        match tokio::time::timeout(patience, exchange).await {
            Ok(answer) => answer.map_err(|error| failed(&error)),
            Err(_) => Err(FetchProblem::new(FetchCode::Stalled, "no answer comes")),
        }
    }

    /// Whether the answer is the file from where it was asked, or all of it.
    fn judge(&self, response: Response<Incoming>, from: u64) -> Result<Answer, FetchProblem> {
        let status = response.status();
        let problem = |code, detail: &str| FetchProblem::new(code, detail);
        let begins_at = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => first_byte(response.headers()).ok_or_else(|| {
                problem(FetchCode::AnswerRefused, "a part without saying which part")
            })?,
            // What is kept is not a beginning of what is there.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(problem(FetchCode::DigestDiffers, "it is no longer than what is kept"));
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                return Err(problem(FetchCode::NotThere, "it has no such file"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(problem(FetchCode::Busy, "it is busy"));
            }
            other => {
                let detail = format!("it answers {other}");
                return Err(FetchProblem::new(FetchCode::AnswerRefused, detail));
            }
        };
        if begins_at != 0 && begins_at != from {
            return Err(problem(FetchCode::AnswerRefused, "another part than was asked for"));
        }
        if response.headers().contains_key(header::CONTENT_ENCODING) {
            return Err(problem(FetchCode::AnswerRefused, "encoded, which was not asked for"));
        }
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let size = self.request.size_bytes;
        if length.is_some_and(|length| begins_at.saturating_add(length) > size) {
            let detail = format!("there is more than the {size} bytes that it may have");
            return Err(FetchProblem::new(FetchCode::TooLarge, detail));
        }
        Ok(Answer { begins_at, body: response.into_body() })
    }
}

/// The beginning in `Content-Range: bytes 10-19/20`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// An https address with a name and without a user.
fn parse(url: &str) -> Result<Uri, FetchProblem> {
    let refused = |why: &dyn std::fmt::Display| {
        FetchProblem::new(FetchCode::SourceMalformed, format!("{url}: {why}"))
    };
    let uri: Uri = url.parse().map_err(|error| refused(&error))?;
    let authority = uri.authority().ok_or_else(|| refused(&"it names no server"))?;
    if uri.scheme_str() != Some("https") {
        return Err(refused(&"not https"));
    }
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(refused(&"a user, or no server, in it"));
    }
    Ok(uri)
}

/// Where a redirect leads.
fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, FetchProblem> {
    let refused = |detail: String| FetchProblem::new(FetchCode::RedirectRefused, detail);
    let to = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
    let to = to.ok_or_else(|| refused("it redirects to nowhere".to_owned()))?;
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let whole = if to.starts_with("//") {
        format!("https:{to}")
    } else if to.starts_with('/') {
        format!("https://{authority}{to}")
    } else if to.contains("://") {
        to.to_owned()
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("https://{authority}{directory}/{to}")
    };
    parse(&whole).map_err(|problem| refused(problem.detail))
}

/// Connects to the first address that answers. The addresses are for the host's log alone: where a
/// name of its own network leads is not for everybody.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, FetchProblem> {
    let mut last = "no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT_WAIT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".to_owned(),
        }
        eprintln!("dagger-fetch: {address}: {last}");
    }
    Err(FetchProblem::new(FetchCode::ConnectFailed, last))
}

/// TLS 1.3 with the certificates that this host trusts; those that cannot be read vouch for nobody.
fn connector() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        eprintln!("dagger-fetch: certificates of this host: {error}");
    }
    roots.add_parsable_certificates(loaded.certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let configuration = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(configuration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_a_server_and_without_a_user_is_asked() {
        for url in ["http://a/b", "https://user@a/b", "https:///b", "file:///etc/passwd", "a"] {
            assert_eq!(parse(url).unwrap_err().code, FetchCode::SourceMalformed, "{url}");
        }
        assert!(parse("https://example.org:8443/a?b=c").is_ok());
    }

    #[test]
    fn redirects_lead_to_https_only_whatever_their_form() {
        let from = parse("https://a.example/x/y").unwrap();
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, location.parse().unwrap());
            redirected(&from, &headers).map(|uri| uri.to_string())
        };
        assert_eq!(to("/z").unwrap(), "https://a.example/z");
        assert_eq!(to("z?q").unwrap(), "https://a.example/x/z?q");
        assert_eq!(to("//b.example/z").unwrap(), "https://b.example/z");
        assert_eq!(to("https://b.example/z").unwrap(), "https://b.example/z");
        for location in ["http://a.example/z", "ftp://a/z", "https://u@b.example/", ""] {
            let problem = to(location);
            let refused = problem.is_err_and(|problem| problem.code == FetchCode::RedirectRefused);
            assert!(refused || location.is_empty(), "{location}");
        }
        assert_eq!(
            redirected(&from, &HeaderMap::new()).unwrap_err().code,
            FetchCode::RedirectRefused
        );
    }
}
