//! Starts the helper, and servers that answer by script.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dagger_images::fetch::{FetchNews, FetchProblem, FetchRequest, FetchSource};
use dagger_payload::id::ImageDigest;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// How long a test waits for the helper's next word.
const WORD_WAIT_MAX: Duration = Duration::from_secs(20);

/// Bytes that look like nothing else.
pub(crate) fn image(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"an image").finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn request(bytes: &[u8], sources: Vec<FetchSource>) -> FetchRequest {
    FetchRequest {
        digest: ImageDigest(*blake3::hash(bytes).as_bytes()),
        size_bytes: bytes.len() as u64,
        sources,
        networks: vec!["127.0.0.0/8".parse().unwrap()],
        stall_wait_ms: 20_000,
    }
}

pub(crate) fn host(address: SocketAddr) -> FetchSource {
    let session = ("document".to_owned(), "signature".to_owned());
    FetchSource::Host { name: "host2".to_owned(), address, session }
}

/// A helper at work.
pub(crate) struct Helper {
    child: Child,
    words: BufReader<UnixStream>,
}

impl Helper {
    pub(crate) fn start(request: &FetchRequest, file: &File, environment: &[(&str, &str)]) -> Self {
        let (own, theirs) = UnixStream::pair().unwrap();
        own.set_read_timeout(Some(WORD_WAIT_MAX)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_dagger-fetch"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .envs(environment.iter().copied())
            .spawn()
            .unwrap();
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let flags = SendFlags::empty();
        let sent = rustix::net::sendmsg(&own, &[IoSlice::new(&line)], &mut control, flags).unwrap();
        (&own).write_all(&line[sent..]).unwrap();
        Self { child, words: BufReader::new(own) }
    }

    /// What it says next; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<FetchNews> {
        let mut line = String::new();
        let length = self.words.read_line(&mut line).unwrap();
        (length > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Waits until so much is in the file.
    pub(crate) fn wait_for(&mut self, bytes: u64) {
        loop {
            match self.next().expect("it still fetches") {
                FetchNews::Progress { bytes_done, .. } if bytes_done >= bytes => return,
                FetchNews::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// What it comes to, and what was said of each source.
    pub(crate) fn end(mut self) -> (Result<u64, FetchProblem>, Vec<FetchProblem>) {
        let mut troubles = Vec::new();
        loop {
            match self.next().expect("it says how it ends") {
                FetchNews::Progress { .. } => {}
                FetchNews::Trouble { problem, .. } => troubles.push(problem),
                FetchNews::Done { bytes } => return (Ok(bytes), troubles),
                FetchNews::Failed { problem } => return (Err(problem), troubles),
            }
        }
    }

    /// Goes away without a word; how the helper takes it.
    pub(crate) fn leave(mut self) -> Option<i32> {
        self.words.get_ref().shutdown(Shutdown::Both).unwrap();
        self.child.wait().unwrap().code()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is in the file.
pub(crate) fn contents(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A server on loopback that gives each request's head to a script; it ends with the test.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The heads of the requests so far.
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Plain: the script writes the whole answer.
    pub(crate) fn start(script: impl Fn(&str, &mut TcpStream) + Send + 'static) -> Self {
        Self::serve(move |mut stream, heads| {
            let head = take_head(&mut stream);
            heads.lock().unwrap().push(head.clone());
            script(&head, &mut stream);
        })
    }

    /// Whatever is done with a connection.
    pub(crate) fn serve(work: impl Fn(TcpStream, &Mutex<Vec<String>>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::default());
        let told = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                work(stream.unwrap(), &told);
            }
        });
        Self { address, heads }
    }

    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        let heads = self.heads.lock().unwrap();
        let range = |head: &String| {
            let line = head.lines().find_map(|line| line.strip_prefix("range: "))?;
            Some(line.to_owned())
        };
        heads.iter().map(range).collect()
    }
}

pub(crate) fn take_head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|length| length == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

/// Answers as a good server does, with a part where one is asked for.
pub(crate) fn serve_file(bytes: &[u8], head: &str, stream: &mut impl Write) {
    let from = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let from: usize = from.map_or(0, |from| from.parse().unwrap());
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let range = format!("Content-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    let length = bytes.len() - from;
    let head = format!("HTTP/1.1 {status}\r\n{range}\r\nContent-Length: {length}\r\n\r\n");
    // The helper may have gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes[from..]));
}

/// Answers with some of what it announces, and holds the line.
pub(crate) fn promise(announced: usize, sent: &[u8], stream: &mut impl Write) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent));
    let _ = stream.flush();
}
