//! Servers on the network as sources: certificates and redirects.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dagger_images::fetch::{FetchCode, FetchRequest, FetchSource};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::support::{Helper, Server, contents, image, request, serve_file, take_head};

const LENGTH: usize = 1 << 20;

/// An authority that vouches for `localhost`, and a server's key.
struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(directory.path())
            .output()
            .expect("openssl runs; it is in Debian's package openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { directory }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// A server that answers each request by script, over TLS.
    fn server(&self, script: impl Fn(&str, &mut dyn Write) + Send + 'static) -> Server {
        let certificate = CertificateDer::from_pem_file(self.certificate()).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.directory.path().join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let configuration = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let configuration = Arc::new(configuration);
        Server::serve(move |stream, heads| {
            let connection = ServerConnection::new(Arc::clone(&configuration)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let head = take_head(&mut stream);
            if head.is_empty() {
                return;
            }
            heads.lock().unwrap().push(head.clone());
            script(&head, &mut stream);
            let _ = stream.flush();
            stream.conn.send_close_notify();
            let _ = stream.flush();
            let _ = stream.read(&mut [0]);
        })
    }
}

fn https(server: &Server, path: &str) -> FetchSource {
    FetchSource::Https { url: format!("https://localhost:{}{path}", server.address.port()) }
}

fn fetch(request: &FetchRequest, trusted: &Path) -> (Result<u64, FetchCode>, Vec<u8>) {
    let file = tempfile::tempfile().unwrap();
    let trusted = trusted.display().to_string();
    let (end, _) = Helper::start(request, &file, &[("SSL_CERT_FILE", &trusted)]).end();
    (end.map_err(|problem| problem.code), contents(&file))
}

/// Loopback as the name `localhost` has it: either family.
fn listed(bytes: &[u8], sources: Vec<FetchSource>) -> FetchRequest {
    let mut request = request(bytes, sources);
    request.networks.push("::1/128".parse().unwrap());
    request
}

fn redirect(location: &str) -> Vec<u8> {
    let head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    head.into_bytes()
}

#[test]
fn a_server_whose_certificate_counts_is_followed_to_the_file() {
    let (authority, bytes) = (Authority::new(), image(LENGTH));
    let served = bytes.clone();
    let server = authority.server(move |head, mut stream| {
        if head.starts_with("get /latest ") {
            stream.write_all(&redirect("/image")).unwrap();
        } else {
            serve_file(&served, head, &mut stream);
        }
    });
    let request = listed(&bytes, vec![https(&server, "/latest")]);
    let (end, got) = fetch(&request, &authority.certificate());
    assert_eq!(end, Ok(LENGTH as u64));
    assert!(got == bytes);
    assert!(server.heads.lock().unwrap().iter().all(|head| !head.contains("dagger-session")));
}

#[test]
fn a_server_that_nobody_vouches_for_is_told_nothing() {
    let authority = Authority::new();
    let server = authority.server(|_, _| {});
    let request = listed(&image(LENGTH), vec![https(&server, "/")]);
    let (end, _) = fetch(&request, &Authority::new().certificate());
    assert_eq!(end, Err(FetchCode::TlsFailed));
    assert!(server.heads.lock().unwrap().is_empty());
}

#[test]
fn a_redirect_to_an_address_that_is_not_listed_gets_no_connection() {
    // The server's own address is listed, alone; the redirect leads to another one of this host.
    let inner = TcpListener::bind("127.0.0.2:0").unwrap();
    inner.set_nonblocking(true).unwrap();
    let port = inner.local_addr().unwrap().port();
    let authority = Authority::new();
    for target in [format!("127.0.0.2:{port}"), "169.254.169.254".to_owned(), "10.0.0.1".to_owned()]
    {
        let location = format!("https://{target}/latest/meta-data");
        let server = authority.server(move |_, stream| {
            stream.write_all(&redirect(&location)).unwrap();
        });
        let mut request = listed(&image(LENGTH), vec![https(&server, "/")]);
        request.networks = vec!["127.0.0.1/32".parse().unwrap(), "::1/128".parse().unwrap()];
        let (end, _) = fetch(&request, &authority.certificate());
        assert_eq!(end, Err(FetchCode::AddressRefused), "{target}");
    }
    assert!(inner.accept().is_err());
}

#[test]
fn a_redirect_away_from_https_or_without_end_is_not_followed() {
    let authority = Authority::new();
    let plain = Server::start(|head, stream| serve_file(&image(LENGTH), head, stream));
    let away = format!("http://localhost:{}/", plain.address.port());
    let server = authority.server(move |_, stream| stream.write_all(&redirect(&away)).unwrap());
    let request = listed(&image(LENGTH), vec![https(&server, "/")]);
    let (end, _) = fetch(&request, &authority.certificate());
    assert_eq!(end, Err(FetchCode::RedirectRefused));
    assert!(plain.heads.lock().unwrap().is_empty());

    let circle = authority.server(|_, stream| stream.write_all(&redirect("/again")).unwrap());
    let request = listed(&image(LENGTH), vec![https(&circle, "/")]);
    let (end, _) = fetch(&request, &authority.certificate());
    assert_eq!(end, Err(FetchCode::RedirectsTooMany));
    assert_eq!(circle.heads.lock().unwrap().len(), 6);
}
