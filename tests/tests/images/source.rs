//! An https source under a test's control.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Bytes of each image.
pub(crate) const LENGTH: u64 = 8 << 20;

/// How long the server may take to listen.
const START_WAIT_MAX: Duration = Duration::from_secs(20);

/// The script that serves.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/source.py");

/// A raw image of its own kind.
pub(crate) fn raw_image(directory: &Path, kind: u8) -> PathBuf {
    let path = directory.join(format!("variant-{kind}"));
    let mut bytes = vec![0; usize::try_from(LENGTH).expect("small")];
    blake3::Hasher::new().update(&[kind]).finalize_xof().fill(&mut bytes);
    std::fs::write(&path, bytes).expect("writable");
    path
}

/// One server for one image at a time.
pub(crate) struct Source {
    directory: tempfile::TempDir,
    server: std::cell::RefCell<Option<Child>>,
}

impl Source {
    /// With a certificate, and serving nothing yet.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(directory.path())
            .output();
        let output = output.expect("openssl runs; it is in Debian's package openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { directory, server: std::cell::RefCell::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn certificate(&self) -> String {
        self.path().join("certificate.pem").display().to_string()
    }

    pub(crate) fn variant(&self, kind: u8) -> PathBuf {
        raw_image(self.path(), kind)
    }

    /// Serves this image from now on, forgets who asked before, and holds the line half-way.
    pub(crate) fn serve_variant(&self, kind: u8) {
        self.end();
        for name in ["port", "go", "asked"] {
            let _ = std::fs::remove_file(self.path().join(name));
        }
        std::fs::copy(self.variant(kind), self.path().join("image")).expect("writable");
        let server = Command::new("python3").arg(SCRIPT).arg(self.path()).spawn();
        *self.server.borrow_mut() = Some(server.expect("python3 is there"));
        let deadline = Instant::now() + START_WAIT_MAX;
        while !self.path().join("port").exists() {
            assert!(Instant::now() < deadline, "the source does not listen");
            std::thread::yield_now();
        }
    }

    /// An address at it.
    pub(crate) fn url(&self, path: &str) -> String {
        let port = std::fs::read_to_string(self.path().join("port")).expect("it listens");
        format!("https://localhost:{port}/{path}")
    }

    /// Sends the other half.
    pub(crate) fn go_on(&self) {
        std::fs::write(self.path().join("go"), "").expect("writable");
    }

    /// Who asked for what, and left.
    pub(crate) fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path().join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn end(&self) {
        if let Some(mut server) = self.server.borrow_mut().take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.end();
    }
}
