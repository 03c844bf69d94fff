//! A member that the test plays itself, on real TCP with real TLS.
//!
//! Owns how it dials. Never decides what it says. Called by tests of hostile members.

use std::io;

use bytes::Bytes;
use dagger_ledger::link::frames;
use dagger_ledger::link::tls::Identity;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId};
use dagger_payload::peer::PeerMessage;
use futures_util::SinkExt;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::key;

/// A link of the first member, who as the lowest dials all others.
pub async fn link(
    genesis: &Genesis,
    cluster: ClusterId,
    to: AuthorIndex,
) -> io::Result<TlsStream<TcpStream>> {
    let host = genesis.host(to).expect("a member");
    let identity = Identity::new(&key(10), vec![(to, host.ledger_key.clone())]);
    let stream = TcpStream::connect(host.address).await?;
    let name = ServerName::from(host.address.ip());
    let mut stream = TlsConnector::from(identity.client(to)).connect(name, stream).await?;
    let hello = PeerMessage::Hello { version: 1, cluster };
    frames::writer(&mut stream).send(Bytes::from(hello.to_bytes())).await?;
    Ok(stream)
}
