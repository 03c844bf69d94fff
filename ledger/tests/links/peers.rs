//! What tests of links share: members' keys, listeners, and a peer that the test plays itself.
//!
//! Owns how a member dials. Never holds what a test looks at. Called by all of this folder.

use std::net::SocketAddr;

use bytes::Bytes;
use dagger_ledger::link::tls::Identity;
use dagger_payload::id::{AuthorIndex, ClusterId};
use dagger_payload::key::SecretKey;
use dagger_payload::peer::PeerMessage;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const CLUSTER: ClusterId = ClusterId([1; 32]);

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    (listener, address)
}

pub(crate) fn hello() -> Bytes {
    PeerMessage::Hello { version: 1, cluster: CLUSTER }.to_bytes().into()
}

/// Dials member 1 with a key of one's own.
pub(crate) async fn dial(
    own: &SecretKey,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let members = vec![(AuthorIndex(1), key(1).public_key())];
    let identity = Identity::new(own, members);
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    TlsConnector::from(identity.client(AuthorIndex(1))).connect(name, stream).await
}
