//! An API behind a proxy with TLS. The proxy is the test's: it answers every request alike.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use assert_cmd::cargo::CommandCargoExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate for `localhost` that vouches for itself; its path.
fn make_certificate(directory: &Path) -> PathBuf {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(directory)
        .output()
        .expect("openssl runs; it is in Debian's package openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory.join("certificate.pem")
}

/// Up to the empty line; empty if the client leaves before.
fn take_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    String::from_utf8(head).expect("text")
}

/// Serves an empty list to everybody; the port, and the heads of what was asked.
fn serve(directory: &Path) -> (u16, mpsc::Receiver<String>) {
    let certificate = CertificateDer::from_pem_file(directory.join("certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let configuration = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let configuration = Arc::new(configuration);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (asked, heads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&configuration)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let _ = asked.send(take_head(&mut stream));
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n[]",
            );
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (port, heads)
}

fn list_hosts(api: &str, trusted: &Path) -> Output {
    Command::cargo_bin("daggerctl")
        .expect("built")
        .args(["--api", api, "--json", "host", "ls"])
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

#[test]
fn a_proxy_is_asked_by_its_name_if_this_machine_trusts_its_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let certificate = make_certificate(directory.path());
    let (port, heads) = serve(directory.path());
    let api = format!("https://localhost:{port}");
    let output = list_hosts(&api, &certificate);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
    let head = heads.recv().expect("it was asked");
    assert!(head.starts_with("GET /v1/hosts HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: localhost:{port}\r\n")), "{head}");
}

#[test]
fn a_proxy_whose_certificate_nobody_vouches_for_or_is_anothers_is_told_nothing() {
    let [own, other] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let certificate = make_certificate(own.path());
    let stranger = make_certificate(other.path());
    let (port, heads) = serve(own.path());
    for (api, trusted) in [
        (format!("https://localhost:{port}"), &stranger),
        (format!("https://127.0.0.1:{port}"), &certificate),
    ] {
        let output = list_hosts(&api, trusted);
        assert_eq!(output.status.code(), Some(3), "{api}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("certificate"), "{complaint}");
    }
    assert!(heads.try_iter().all(|head| head.is_empty()));
    // No certificate at all vouches for nobody.
    let output = list_hosts(&format!("https://localhost:{port}"), Path::new("/dev/null"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("trusts no certificate"), "{complaint}");
}
