//! TLS to a proxy that an operator has put before his agent's API.
//!
//! Owns who may vouch for the proxy: whom this machine trusts, and nobody else. Never speaks to an
//! agent itself, which has no certificate. Called by `endpoint`.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Shakes hands with the server that is called `name`.
pub(crate) async fn shake_hands(name: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    connector()?.connect(name, stream).await
}

/// TLS 1.3, with the certificates that this machine trusts; those that cannot be read vouch for
/// nobody.
fn connector() -> io::Result<TlsConnector> {
    static CONFIGURATION: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(known) = CONFIGURATION.get() {
        return Ok(Arc::clone(known).into());
    }
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let why = "this machine trusts no certificate: install ca-certificates";
        let errors = loaded.errors.iter().map(|error| format!("; {error}"));
        return Err(io::Error::other(format!("{why}{}", errors.collect::<String>())));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let configuration = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::clone(CONFIGURATION.get_or_init(|| Arc::new(configuration))).into())
}
