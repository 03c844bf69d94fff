//! The HTTP server: one request at a time, ten connections, and a narrow reading of HTTP.
//!
//! Owns the transport's refusals; what is asked is answered by the monitor. Called by `main`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::machine::{Answer, Monitor};

/// Connections at the same time.
const CONNECTIONS_MAX: usize = 10;
/// Bytes of a body.
const BODY_BYTES_MAX: usize = 51_200;

/// What is asked without a body.
const WITHOUT_BODY: [&str; 9] = [
    "vm.boot",
    "vm.shutdown",
    "vm.reboot",
    "vm.pause",
    "vm.resume",
    "vm.power-button",
    "vm.nmi",
    "vm.delete",
    "vmm.shutdown",
];

pub(crate) async fn serve(listener: UnixListener, monitor: Rc<RefCell<Monitor>>) {
    let open = Rc::new(Cell::new(0));
    while let Ok((mut stream, _)) = listener.accept().await {
        if open.get() == CONNECTIONS_MAX {
            let _ = stream.write_all(b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n").await;
            continue;
        }
        open.set(open.get() + 1);
        let (monitor, open) = (Rc::clone(&monitor), Rc::clone(&open));
        tokio::task::spawn_local(async move {
            let _ = converse(stream, &monitor).await;
            open.set(open.get() - 1);
        });
    }
}

async fn converse(stream: UnixStream, monitor: &RefCell<Monitor>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(usize::MAX);
            }
            chunked |= line.starts_with("transfer-encoding:");
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = if chunked || length > BODY_BYTES_MAX {
            let text = "All previous unanswered requests will be dropped.";
            Answer { status: 400, body: Some(serde_json::json!({ "error": text })), ends: false }
        } else {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            answer(method, path, &body, monitor)
        };
        let body = answer.body.map(|body| body.to_string()).unwrap_or_default();
        let head = match answer.status {
            204 => "HTTP/1.1 204 \r\nServer: contract\r\nConnection: keep-alive\r\n\r\n".to_owned(),
            status => format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n", body.len()),
        };
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        if answer.ends {
            monitor.borrow_mut().power_off();
        }
        if chunked {
            return Ok(());
        }
    }
}

fn answer(method: &str, path: &str, body: &[u8], monitor: &RefCell<Monitor>) -> Answer {
    let Some(name) = path.strip_prefix("/api/v1/") else {
        return Answer { status: 404, body: None, ends: false };
    };
    if method == "PUT" && WITHOUT_BODY.contains(&name) && !body.is_empty() {
        return Answer::error(400, &["Error from API", "Bad Request"]);
    }
    monitor.borrow_mut().answer(method, name, body)
}
