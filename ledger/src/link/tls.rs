//! TLS 1.3 with raw ed25519 public keys on both sides (RFC 7250): a link's identity is its member's
//! ledger key.
//!
//! Owns the two TLS configurations and the verifiers that accept exactly the keys of those who are
//! members at the moment of a handshake. No certificate, authority, name or clock takes part.
//! Called by the link's sessions.

use std::sync::{Arc, RwLock};

use dagger_payload::id::AuthorIndex;
use dagger_payload::key::{PublicKey, SecretKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureScheme,
};
use zeroize::Zeroizing;

/// `SubjectPublicKeyInfo` of an ed25519 key, up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// `PrivateKeyInfo` version 1 of an ed25519 key, up to the seed (RFC 8410, section 7): every
/// library reads version 1.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

fn spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], key.as_bytes()].concat()
}

/// A member and its key, as TLS shows it.
type MemberKey = (AuthorIndex, Vec<u8>);

/// Members and their keys, as of now.
#[derive(Debug, Default, Clone)]
struct Known(Arc<RwLock<Vec<MemberKey>>>);

impl Known {
    fn find(&self, accepts: impl Fn(AuthorIndex, &[u8]) -> bool) -> Option<AuthorIndex> {
        let members = self.0.read().expect("no holder of this lock panics");
        let found = members.iter().find(|(author, spki)| accepts(*author, spki))?;
        Some(found.0)
    }
}

/// Whose keys may be at the other end.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// That of the member that was dialled.
    One(AuthorIndex),
    /// Those of members with lower indexes.
    Below(AuthorIndex),
}

/// The keys that may be at the other end.
#[derive(Debug)]
struct Members {
    known: Known,
    whose: Whose,
    provider: Arc<CryptoProvider>,
}

impl Members {
    fn check(&self, presented: &CertificateDer<'_>) -> Result<(), Error> {
        let accepts = |author| match self.whose {
            Whose::One(member) => author == member,
            Whose::Below(limit) => author < limit,
        };
        let found = self.known.find(|author, spki| accepts(author) && spki == presented.as_ref());
        match found {
            Some(_) => Ok(()),
            None => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(presented.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
    }
}

fn tls12_refused() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme))
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(presented).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _presented: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_refused()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Members {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(presented).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _presented: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_refused()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, presented, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// This ledger's side of every link.
pub struct Identity {
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    known: Known,
}

impl Identity {
    /// The identity of the member that signs with `key` among `members`.
    pub fn new(key: &SecretKey, members: Vec<(AuthorIndex, PublicKey)>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let seed = key.to_seed();
        let pkcs8 = Zeroizing::new([&PKCS8_PREFIX[..], &seed[..]].concat());
        let signing = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))
            .expect("32 bytes are an ed25519 seed");
        let presented = CertificateDer::from(spki(&key.public_key()));
        let key = Arc::new(CertifiedKey::new(vec![presented], signing));
        let identity = Self { key, provider, known: Known::default() };
        identity.set_members(members);
        identity
    }

    /// From now on these members' keys pass, and no others; links that are up are not touched.
    pub fn set_members(&self, members: Vec<(AuthorIndex, PublicKey)>) {
        let members = members.into_iter().map(|(author, key)| (author, spki(&key)));
        *self.known.0.write().expect("no holder of this lock panics") = members.collect();
    }

    fn accepting(&self, whose: Whose) -> Arc<Members> {
        let (known, provider) = (self.known.clone(), self.provider.clone());
        Arc::new(Members { known, whose, provider })
    }

    /// For dialling `peer`: no other key passes.
    pub fn client(&self, peer: AuthorIndex) -> Arc<ClientConfig> {
        let mut configuration = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.accepting(Whose::One(peer)))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        configuration.enable_sni = false;
        configuration.resumption = Resumption::disabled();
        Arc::new(configuration)
    }

    /// For accepting members whose index is below `me`, as of the moment of each handshake.
    pub fn server(&self, me: AuthorIndex) -> Arc<ServerConfig> {
        let mut configuration = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_client_cert_verifier(self.accepting(Whose::Below(me)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        configuration.session_storage = Arc::new(NoServerSessionStorage {});
        configuration.send_tls13_tickets = 0;
        Arc::new(configuration)
    }

    /// The member whose key the other end has proven to hold.
    pub fn author_of(&self, presented: Option<&[CertificateDer<'_>]>) -> Option<AuthorIndex> {
        let presented = presented?.first()?.as_ref();
        self.known.find(|_, spki| spki == presented)
    }
}
