//! Hosts of the cluster as sources.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dagger_images::fetch::{FetchCode, FetchSource};

use super::support::{Helper, Server, contents, host, image, promise, request, serve_file};

const LENGTH: usize = 3 << 20;
/// So large that what is more than next to nothing is too slow for it.
const LARGE: usize = 60 << 20;
/// What a slow source sends at a time.
const DROP: usize = 8 * 1024;
const BETWEEN_DROPS: Duration = Duration::from_millis(100);

fn fails(server: &Server, stall_wait_ms: u64) -> (FetchCode, usize) {
    let (bytes, file) = (image(LENGTH), tempfile::tempfile().unwrap());
    let mut request = request(&bytes, vec![host(server.address)]);
    request.stall_wait_ms = stall_wait_ms;
    let (end, _) = Helper::start(&request, &file, &[]).end();
    (end.unwrap_err().code, contents(&file).len())
}

#[test]
fn a_host_is_asked_by_digest_with_our_session_and_its_bytes_are_the_files() {
    let bytes = image(LENGTH);
    let served = bytes.clone();
    let server = Server::start(move |head, stream| serve_file(&served, head, stream));
    let file = tempfile::tempfile().unwrap();
    let request = request(&bytes, vec![host(server.address)]);
    let (end, troubles) = Helper::start(&request, &file, &[]).end();
    assert_eq!((end, troubles), (Ok(LENGTH as u64), Vec::new()));
    assert!(contents(&file) == bytes);
    let heads = server.heads.lock().unwrap();
    assert!(heads[0].starts_with(&format!("get /v1/images/{} http/1.1\r\n", request.digest)));
    assert!(heads[0].contains("dagger-session: document\r\n"));
    assert!(heads[0].contains("dagger-session-signature: signature\r\n"));
}

#[test]
fn a_download_that_was_killed_goes_on_where_it_was() {
    let bytes = image(LENGTH);
    let (half, served) = (bytes[..LENGTH / 2].to_vec(), bytes.clone());
    let server = Server::start(move |head, stream| {
        if head.contains("range:") {
            serve_file(&served, head, stream);
        } else {
            promise(served.len(), &half, stream);
            // Holds the line until the helper is gone.
            let _ = stream.read(&mut [0]);
        }
    });
    let file = tempfile::tempfile().unwrap();
    let request = request(&bytes, vec![host(server.address)]);
    let mut helper = Helper::start(&request, &file, &[]);
    helper.wait_for(LENGTH as u64 / 2);
    helper.kill();
    let (end, _) = Helper::start(&request, &file, &[]).end();
    assert_eq!(end, Ok(LENGTH as u64));
    assert!(contents(&file) == bytes);
    assert_eq!(server.ranges(), [None, Some(format!("bytes={}-", LENGTH / 2))]);
}

#[test]
fn a_kept_part_that_is_false_is_fetched_again_before_anybody_is_blamed() {
    let bytes = image(LENGTH);
    let served = bytes.clone();
    let server = Server::start(move |head, stream| serve_file(&served, head, stream));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; LENGTH / 2]).unwrap();
    let (end, troubles) =
        Helper::start(&request(&bytes, vec![host(server.address)]), &file, &[]).end();
    assert_eq!((end, troubles), (Ok(LENGTH as u64), Vec::new()));
    assert!(contents(&file) == bytes);
    assert_eq!(server.ranges().len(), 2);
}

#[test]
fn what_is_whole_already_is_asked_of_nobody() {
    let bytes = image(LENGTH);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let (end, _) = Helper::start(&request(&bytes, Vec::new()), &file, &[]).end();
    assert_eq!(end, Ok(LENGTH as u64));
}

#[test]
fn other_bytes_are_refused_and_the_next_source_is_asked() {
    let bytes = image(LENGTH);
    let mut other = bytes.clone();
    other[LENGTH - 1] ^= 1;
    let liar = Server::start(move |head, stream| serve_file(&other, head, stream));
    let served = bytes.clone();
    let honest = Server::start(move |head, stream| serve_file(&served, head, stream));
    let file = tempfile::tempfile().unwrap();
    let sources = vec![host(liar.address), host(honest.address)];
    let (end, troubles) = Helper::start(&request(&bytes, sources), &file, &[]).end();
    assert_eq!(end, Ok(LENGTH as u64));
    assert!(contents(&file) == bytes);
    let codes: Vec<_> = troubles.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [FetchCode::DigestDiffers]);
    assert_eq!(fails(&liar, 20_000), (FetchCode::DigestDiffers, 0));
}

#[test]
fn not_a_byte_over_the_registered_size_is_written() {
    let announced = Server::start(|_, stream| promise(LENGTH + 1, &[], stream));
    assert_eq!(fails(&announced, 20_000), (FetchCode::TooLarge, 0));
    let unannounced = Server::start(|_, stream| {
        let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(head).and_then(|()| stream.write_all(&vec![1; LENGTH + 1]));
    });
    assert_eq!(fails(&unannounced, 20_000), (FetchCode::TooLarge, 0));
}

#[test]
fn a_source_that_ends_early_is_asked_for_the_rest() {
    let bytes = image(LENGTH);
    let (half, served) = (bytes[..LENGTH / 2].to_vec(), bytes.clone());
    let server = Server::start(move |head, stream| {
        if head.contains("range:") {
            serve_file(&served, head, stream);
        } else {
            promise(served.len(), &half, stream);
        }
    });
    let file = tempfile::tempfile().unwrap();
    let (end, _) = Helper::start(&request(&bytes, vec![host(server.address)]), &file, &[]).end();
    assert_eq!(end, Ok(LENGTH as u64));
    assert!(contents(&file) == bytes);
    let always = Server::start(|_, stream| promise(LENGTH, &[], stream));
    assert_eq!(fails(&always, 20_000), (FetchCode::Truncated, 0));
}

#[test]
fn a_source_that_stalls_is_left_and_what_it_sent_is_kept() {
    let silent = Server::start(|_, stream| {
        let _ = stream.read(&mut [0]);
    });
    assert_eq!(fails(&silent, 200), (FetchCode::Stalled, 0));
    let stuck = Server::start(|head, stream| {
        if !head.contains("range:") {
            promise(LENGTH, &image(LENGTH)[..1000], stream);
        }
        let _ = stream.read(&mut [0]);
    });
    assert_eq!(fails(&stuck, 200), (FetchCode::Stalled, 1000));
}

#[test]
fn a_host_that_has_it_not_is_busy_or_redirects_is_not_followed() {
    let secret = Server::start(|head, stream| serve_file(&image(LENGTH), head, stream));
    let elsewhere = format!("Location: http://{}/\r\n", secret.address);
    for (status, code) in [
        ("404 Not Found", FetchCode::NotThere),
        ("503 Service Unavailable", FetchCode::Busy),
        ("302 Found", FetchCode::AnswerRefused),
        ("401 Unauthorized", FetchCode::AnswerRefused),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\n{elsewhere}Content-Length: 0\r\n\r\n");
        let server = Server::start(move |_, stream| stream.write_all(answer.as_bytes()).unwrap());
        assert_eq!(fails(&server, 20_000), (code, 0), "{status}");
    }
    assert!(secret.heads.lock().unwrap().is_empty());
}

#[test]
fn addresses_that_the_operator_does_not_list_get_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("https://localhost:{}/image", address.port());
    let sources = vec![host(address), FetchSource::Https { url }];
    let mut request = request(&image(LENGTH), sources);
    request.networks.clear();
    let (end, troubles) = Helper::start(&request, &tempfile::tempfile().unwrap(), &[]).end();
    assert_eq!(end.unwrap_err().code, FetchCode::AddressRefused);
    assert!(troubles.iter().all(|problem| problem.code == FetchCode::AddressRefused));
    assert_eq!(troubles.len(), 2);
    assert!(listener.accept().is_err());
}

#[test]
fn nobody_at_a_listed_address_is_another_thing_than_a_refusal() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let request = request(&image(LENGTH), vec![host(gone)]);
    let (end, _) = Helper::start(&request, &tempfile::tempfile().unwrap(), &[]).end();
    let code = end.unwrap_err().code;
    assert_eq!((code, code.is_refusal()), (FetchCode::ConnectFailed, false));
}

#[test]
fn it_ends_when_whoever_asked_has_gone() {
    let silent = Server::start(|_, stream| {
        let _ = stream.read(&mut [0]);
    });
    let request = request(&image(LENGTH), vec![host(silent.address)]);
    let mut helper = Helper::start(&request, &tempfile::tempfile().unwrap(), &[]);
    helper.wait_for(0);
    assert_eq!(helper.leave(), Some(1));
}

/// Answers drop by drop, for as long as somebody listens.
fn drip(bytes: &[u8], stream: &mut TcpStream) {
    promise(bytes.len(), &[], stream);
    stream.set_read_timeout(Some(BETWEEN_DROPS)).unwrap();
    for piece in bytes.chunks(DROP) {
        // Nobody says anything; the end is another matter.
        let is_over = matches!(stream.read(&mut [0]), Ok(0));
        if is_over || stream.write_all(piece).is_err() {
            return;
        }
    }
}

#[test]
fn a_source_that_is_slow_for_so_large_an_image_is_left_for_one_that_is_not() {
    let bytes = image(LARGE);
    let (slowly, served) = (bytes.clone(), bytes.clone());
    let slow = Server::start(move |_, stream| drip(&slowly, stream));
    let quick = Server::start(move |head, stream| serve_file(&served, head, stream));
    let file = tempfile::tempfile().unwrap();
    let mut request = request(&bytes, vec![host(slow.address), host(quick.address)]);
    request.stall_wait_ms = 2_000;
    let (end, troubles) = Helper::start(&request, &file, &[]).end();
    assert_eq!(end, Ok(LARGE as u64));
    let codes: Vec<_> = troubles.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [FetchCode::TooSlow]);
    assert!(quick.ranges()[0].is_some(), "what has come is kept");
}

#[test]
fn a_slow_source_is_asked_again_when_nobody_else_has_served() {
    let bytes = image(LARGE);
    let (served, asked) = (bytes.clone(), AtomicUsize::new(0));
    let slow = Server::start(move |head, stream| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => drip(&served, stream),
        _ => serve_file(&served, head, stream),
    });
    let without = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let file = tempfile::tempfile().unwrap();
    let mut request = request(&bytes, vec![host(slow.address), host(without.address)]);
    request.stall_wait_ms = 2_000;
    let (end, troubles) = Helper::start(&request, &file, &[]).end();
    assert_eq!(end, Ok(LARGE as u64));
    let codes: Vec<_> = troubles.iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [FetchCode::TooSlow, FetchCode::NotThere]);
}
