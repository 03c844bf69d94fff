//! One real socket: messages arrive whole and in order, lies about length and form end the
//! conversation.

use std::os::unix::fs::PermissionsExt;

use dagger_bus::ledger::{Consumed, Open, Opened, Purpose};
use dagger_bus::{BusError, Connection, listener};
use dagger_payload::id::{ClusterId, CommitIndex, HostId};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

#[tokio::test]
async fn messages_arrive_whole_and_in_order_and_the_end_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = listener::bind(&path).expect("bound");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut agent = Connection::connect(&path).await.expect("connected");
    let (stream, _) = listener.accept().await.expect("accepted");
    let mut ledger = Connection::new(stream);
    let cluster = ClusterId([1; 32]);
    let purpose = Purpose::Releases { after: CommitIndex(3), window: 8 };
    agent.sender.send(&Open { cluster, purpose }).await.expect("sent");
    let open: Open = ledger.receiver.receive().await.expect("received");
    assert!(matches!(open.purpose, Purpose::Releases { after: CommitIndex(3), window: 8 }));
    ledger.sender.send(&Opened { cluster, host: HostId([2; 16]) }).await.expect("sent");
    let opened: Opened = agent.receiver.receive().await.expect("received");
    assert_eq!((opened.cluster, opened.host), (cluster, HostId([2; 16])));
    for commit in 1..100 {
        agent.sender.feed(&Consumed { commit: CommitIndex(commit) }).await.expect("queued");
    }
    agent.sender.flush().await.expect("sent");
    for commit in 1..100 {
        let consumed: Consumed = ledger.receiver.receive().await.expect("received");
        assert_eq!(consumed.commit, CommitIndex(commit));
    }
    drop(agent);
    assert!(matches!(ledger.receiver.receive::<Open>().await, Err(BusError::Closed)));
}

#[tokio::test]
async fn a_frame_over_the_limit_or_of_another_form_ends_the_conversation() {
    for frame in [&[0xff, 0xff, 0xff, 0xff, 0][..], &[0, 0, 0, 2, 0xff, 0xff][..]] {
        let (mut liar, stream) = UnixStream::pair().expect("a pair");
        liar.write_all(frame).await.expect("written");
        let mut connection = Connection::new(stream);
        let received = connection.receiver.receive::<Open>().await;
        assert!(matches!(received, Err(BusError::Io(_) | BusError::Malformed)), "{received:?}");
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_served_one_or_a_file_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let served = listener::bind(&path).expect("bound");
    assert!(listener::bind(&path).is_err());
    drop(served);
    drop(listener::bind(&path).expect("the stale one is replaced"));
    let file = directory.path().join("file");
    std::fs::write(&file, "kept").expect("written");
    assert!(listener::bind(&file).is_err());
    assert_eq!(std::fs::read(&file).expect("there"), b"kept");
}
