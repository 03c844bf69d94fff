//! Maxima that concern the ledger alone; those that cross a package border stand in
//! `dagger_payload::limits`. Called by all parts of the daemon.

use std::time::Duration;

use dagger_ledger_core::{
    SUSPENDED_BYTES_MAX, SUSPENDED_BYTES_OF_OTHERS_MAX, TWINS_BYTES_PER_AUTHOR_MAX,
};
use dagger_payload::limits::{
    FRAME_BYTES_MAX, MEMBERS_MAX, PAYLOAD_BYTES_MAX, UNORDERED_BYTES_MAX,
};

/// TLS handshake and `Hello` together.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(5);
/// From the first byte of a frame to its last.
pub const FRAME_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take to take one frame before the link is given up.
pub const SEND_WAIT_MAX: Duration = Duration::from_secs(15);
/// Connections that are not yet authenticated, from all addresses.
pub const HANDSHAKES_MAX: usize = 64;
/// Connections that are not yet authenticated, from one address.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 16;
/// Frames that may wait for one peer; more drop the link, and a new one starts with what the peer
/// lacks.
pub const PEER_QUEUE_FRAMES_MAX: usize = 8192;
/// Bytes that may wait for one peer.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that may wait for all peers that vote; each has an equal share, which no other peer takes.
pub const QUEUES_OF_VOTERS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bytes that may wait for all other peers together; each has an equal share of them.
pub const QUEUES_OF_OTHERS_BYTES_MAX: usize = 128 * 1024 * 1024;
/// The least share: where more peers than that is enough for have no vote, who comes first has it.
pub const QUEUE_SHARE_BYTES_MIN: usize = 2 * FRAME_BYTES_MAX;
/// First wait before dialling again.
pub const REDIAL_WAIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait before dialling again. It is what a host that comes back may wait for its peers:
/// where the others are too few without it, so long the cluster stands still.
pub const REDIAL_WAIT_MAX: Duration = Duration::from_millis(500);
/// A link that lived shorter than this does not reset the wait before dialling again.
pub const LINK_SETTLED: Duration = Duration::from_secs(5);
/// Silence of a link, in seconds, after which the kernel asks whether the peer's host is alive.
pub const KEEPALIVE_IDLE_SECONDS: u32 = 5;
/// Seconds between two such questions.
pub const KEEPALIVE_INTERVAL_SECONDS: u32 = 3;
/// Unanswered questions after which the link is dead: a dead host is noticed within 14 seconds.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Unacknowledged bytes make a link dead after this many milliseconds.
pub const UNACKNOWLEDGED_MS_MAX: u32 = 14_000;
/// Digests of accepted events that are remembered, so that a second copy costs no verification.
pub const KNOWN_EVENTS_MAX: usize = 64 * 1024;

/// How long a payload may wait to be ordered before its host takes in little more.
pub const UNORDERED_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes of all payloads that may wait unordered on one host meanwhile.
pub const UNORDERED_BYTES_WHEN_LATE_MAX: usize = 8 * 1024 * 1024;

/// Bytes of frames of one peer that may wait for the core; more are not read.
pub const RECEIVED_BYTES_PER_PEER_MAX: usize = 2 * FRAME_BYTES_MAX;
/// The same of all peers without a vote together.
pub const RECEIVED_OF_OTHERS_BYTES_MAX: usize = 64 * FRAME_BYTES_MAX;
/// Answers to one peer that may wait for a write: what is sent at once then fits its queue.
pub const ANSWERS_WAITING_PER_PEER_MAX: usize = PEER_QUEUE_FRAMES_MAX / 2;
/// Bytes of them.
pub const ANSWERS_WAITING_BYTES_PER_PEER_MAX: usize = PEER_QUEUE_BYTES_MAX / 2;
/// Inputs that may wait for the core.
pub const CORE_INPUTS_MAX: usize = 4096;
/// Inputs that the core takes before its outputs are carried out: one write then covers them all.
pub const CORE_INPUTS_PER_TURN_MAX: usize = 256;
/// How long events of peers may wait for a write that something waits for.
pub const HELD_WAIT_MAX: Duration = Duration::from_millis(2);
/// Bytes of them.
pub const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests that may wait for the writer.
pub const WRITER_REQUESTS_MAX: usize = 1024;
/// Bytes that one commit of the store covers at most (the request that crosses it still joins).
pub const COMMIT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// First wait before a commit that found the store full is tried again.
pub const STORE_FULL_WAIT_MIN: Duration = Duration::from_millis(250);
/// Longest such wait.
pub const STORE_FULL_WAIT_MAX: Duration = Duration::from_secs(5);
/// Room on the disk that the store leaves untouched, in bytes.
pub const STORE_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Room that the store must have beyond what a peer sends unproven, in bytes.
pub const FETCH_RESERVE_BYTES: u64 = 4 * STORE_RESERVE_BYTES;
/// A store of so many bytes is read whole before every start; of a larger one the newest records,
/// unless it is doubted.
pub const SCAN_WHOLE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of what the scan of the store says that are taken over.
pub const SCAN_MESSAGE_BYTES_MAX: u64 = 4096;
/// Damaged stores that stand aside.
pub const DAMAGED_STORES_MAX: usize = 2;
/// Read transactions at a time: more than there are threads, 512 that may block and those that may
/// not, for each of them may read.
pub const STORE_READERS_MAX: u32 = 1024;
/// Records that are read from the store in one go.
pub const STORE_PAGE_RECORDS: usize = 256;

/// Commits that are sent to the processor before its answer to the first of them.
pub const JUDGING_WINDOW: usize = 32;
/// Commits of a cluster without a judge whose releases share one durable write.
pub const OPAQUE_COMMITS_PER_WRITE_MAX: usize = 256;
/// Places of ordered payloads that are kept in memory before they go to their table: some 20 MiB.
pub const PLACES_IN_MEMORY_MAX: usize = 128 * 1024;
/// Into how many stretches the digests are divided, one of which goes to the table at a time.
pub const PLACE_STRETCHES: usize = 64;
/// A snapshot is asked for when this many bytes were ordered since the last one, or as many as that
/// one has.
pub const SNAPSHOT_WORK_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// What a commit without payloads counts in that, in bytes.
pub const SNAPSHOT_COMMIT_BYTES: u64 = 256;
/// Bytes of a snapshot that share one durable write.
pub const SNAPSHOT_WRITE_BYTES: usize = 8 * 1024 * 1024;
/// Whole snapshots that are kept: one may be read while a newer one comes.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Bytes of one part of a snapshot on its way to another ledger; a frame holds it.
pub const PART_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
/// Bytes of one piece of what may be larger than a part.
pub const PIECE_BYTES_MAX: usize = PART_BYTES_MAX / 2;
/// Bytes of one page of past releases: what the releases of one commit may take.
pub const PAST_PAGE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of one handover with what shows its voters: a quorum of headers of 128, and as many ways
/// through the state.
pub const HANDOVER_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of one frontier: how its epoch began, and in each round that can still be ordered one
/// event of each of 128 members and as many twins, which take less than 64 bytes each.
pub fn frontier_bytes_max(collection_depth_rounds: u64) -> u64 {
    let members = u64::try_from(MEMBERS_MAX).expect("few");
    HANDOVER_BYTES_MAX + (collection_depth_rounds + 1) * members * 2 * 64
}
/// How long a peer may take to send one part.
pub const PART_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes of one offer: a quorum of headers of 128, each with 128 parents of at most 48 bytes.
pub const OFFER_BYTES_MAX: usize = 640 * 1024;
/// Offers of peers without a vote that are kept until they are looked at.
pub const OFFERS_OF_OTHERS_MAX: usize = 16;
/// How long offers of other peers are waited for after the first.
pub const OFFERS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Between a transfer that failed and the next.
pub const TRANSFER_REST: Duration = Duration::from_secs(1);
/// How long one peer may be waited for in one transfer, if it sends nothing.
pub const TRANSFER_PATIENCE: Duration = Duration::from_secs(20);
/// How much longer for each part that it sends.
pub const PART_PATIENCE: Duration = Duration::from_millis(500);
/// And for each second's worth of bytes.
pub const TRANSFER_BYTES_PER_SECOND_MIN: u64 = 256 * 1024;
/// How long a proof waits for a quorum to attest its state.
pub const PROOF_WAIT_MAX: Duration = Duration::from_secs(10);
/// Proofs that are sought at the same time; the processor holds as many for the next checkpoint.
pub const PROOFS_SOUGHT_MAX: usize = dagger_bus::limits::PROOFS_WAITING_MAX / 2;
/// Between two tries to find a state that a quorum attests, in a cluster that never rests.
pub const PROOF_REST: Duration = Duration::from_millis(20);
/// Events that are searched for headers that attest a snapshot.
pub const EVIDENCE_EVENTS_MAX: usize = 8192;
/// Bytes of events after which the headers that stay of them are written.
pub const PRUNE_READ_BYTES: usize = 4 * 1024 * 1024;
/// Requests of one connection that are answered together.
pub const REQUESTS_TOGETHER_MAX: usize = 256;
/// Forks that the status names.
pub const FORKS_SHOWN_MAX: usize = 512;
/// Admissions under way at the processor.
pub const ADMISSIONS_MAX: usize = 1024;
/// Attestations of one author that wait for this host's own judge.
pub const ATTESTATIONS_WAITING_MAX: usize = 256;
/// Commits whose judged ends are kept in memory for comparing attestations.
pub const JUDGED_ENDS_IN_MEMORY: usize = 4096;
/// First and longest wait before connecting to the processor again.
pub const PROCESSOR_WAIT_MIN: Duration = Duration::from_millis(100);
/// See [`PROCESSOR_WAIT_MIN`].
pub const PROCESSOR_WAIT_MAX: Duration = Duration::from_secs(2);
/// Frames from the store that may wait for one peer; the reader of the store waits for room.
pub const STORED_FRAMES_MAX: usize = 16;
/// Bytes from the store for one peer, from before they are read until they are sent.
pub const STORED_BYTES_PER_PEER_MAX: usize = 2 * FRAME_BYTES_MAX;
/// The same for all peers without a vote together.
pub const STORED_OF_OTHERS_BYTES_MAX: usize = 128 * FRAME_BYTES_MAX;
/// Reads, for all peers together, of what is put together from many records or may be large.
pub const LARGE_READS_MAX: usize = 2;
/// Those of them that only peers that vote may have.
pub const LARGE_READS_OF_VOTERS: usize = 1;
/// Frames that are written to a link before it is flushed.
pub const SEND_FRAMES_PER_FLUSH: usize = 64;
/// Newest commits that are kept in memory for the judge.
pub const COMMITS_IN_MEMORY: usize = 1024;
/// Bytes of payloads in them.
pub const COMMITS_IN_MEMORY_BYTES: usize = 32 * 1024 * 1024;
/// Answers from the store to one peer's requests for single events that may be under way.
pub const SMALL_TRANSFERS_PER_PEER_MAX: usize = 4;
/// Newest releases that are kept in memory for the streams.
pub const RELEASES_IN_MEMORY: usize = 1024;
/// Bytes of payloads in them.
pub const RELEASES_IN_MEMORY_BYTES: usize = 16 * 1024 * 1024;
/// Events that are read from the store in one go.
pub const STORE_PAGE_EVENTS: usize = 32;
/// Bytes of them, if they are more than one.
pub const STORE_PAGE_EVENTS_BYTES: usize = FRAME_BYTES_MAX - 1024;
/// Judged commits without content after which the mark of what is stored moves on.
pub const UNMARKED_COMMITS_MAX: u64 = 16;
/// Releases that are read from the store in one go for one stream.
pub const STORE_PAGE_RELEASES: usize = 32;
/// Bytes after which no more are read in the same go.
pub const STORE_PAGE_RELEASES_BYTES: usize = 8 * 1024 * 1024;
/// Payloads of a host without a vote that are on their way to members at a time.
pub const FORWARDS_MAX: usize = 512;
/// Payloads that one member was handed and has not answered for.
pub const FORWARDS_UNANSWERED_PER_MEMBER_MAX: usize = 64;
/// How long a member may take to answer for a payload before another is asked.
pub const FORWARD_ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a payload may stay unordered after a member took it, before another is asked.
pub const FORWARD_ORDERED_WAIT_MAX: Duration = Duration::from_secs(20);
/// Before the next member is asked when one cannot take a payload now.
pub const FORWARD_REST: Duration = Duration::from_millis(500);
/// How often a host without a vote looks through its pool.
pub const FORWARD_LOOK_EVERY: Duration = Duration::from_secs(10);
/// Receipts of members that wait to be read.
pub const RECEIPTS_WAITING_MAX: usize = 1024;
/// Payloads that peers handed over and that wait for the door, of all peers.
pub const HANDED_WAITING_MAX: usize = 1024;
/// The same, of one peer, or its equal share where that is less; more are dropped, and their sender
/// asks another member.
pub const HANDED_WAITING_PER_PEER_MAX: usize = FORWARDS_UNANSWERED_PER_MEMBER_MAX;
/// Payloads of one peer that were taken here and are not ordered.
pub const HANDED_UNORDERED_PER_PEER_MAX: usize = 4096;
/// Bytes of them.
pub const HANDED_UNORDERED_BYTES_PER_PEER_MAX: usize = 16 * 1024 * 1024;
/// How long each part of an orderly stop may take.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often the child is looked after, and systemd told that the start goes on.
pub const SCAN_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much longer systemd shall wait, counted from each look.
pub const START_EXTENSION_US: u32 = 60_000_000;
/// Pause before a request is handed again to a writer whose queue is full.
pub const WRITER_FULL_PAUSE: Duration = Duration::from_millis(1);
/// Shortest sleep of the driver: a wake-up that is due already comes after it.
pub const DRIVER_SLEEP_MIN: Duration = Duration::from_millis(1);

/// Memory that the service may take (`MemoryMax` of `dagger-ledger.service`).
pub const MEMORY_BYTES_MAX: usize = 4 * 1024 * 1024 * 1024;
/// Links to peers without a vote that the sum below is made for; each further one may hold
/// [`LINK_BYTES_MAX`] more.
pub const OTHERS_LINKED_USUALLY_MAX: usize = 256;
/// What one link holds besides: a frame that is being read, one that is being written, and TLS.
pub const LINK_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX + 128 * 1024;
/// What one read of [`LARGE_READS_MAX`] holds: a handover or a usual frontier, read and written.
pub const LARGE_READ_BYTES_MAX: usize = 16 * 1024 * 1024;

// What others may make this host hold, all at once, where 128 vote: some 3 GiB (see `decisions.md`,
// "One budget for all links"). The rest is for what is ordered: the graph, commits and the store.
const OF_VOTERS: usize = QUEUES_OF_VOTERS_BYTES_MAX
    + MEMBERS_MAX
        * (STORED_BYTES_PER_PEER_MAX
            + RECEIVED_BYTES_PER_PEER_MAX
            + OFFER_BYTES_MAX
            + LINK_BYTES_MAX);
const OF_OTHERS: usize = QUEUES_OF_OTHERS_BYTES_MAX
    + STORED_OF_OTHERS_BYTES_MAX
    + RECEIVED_OF_OTHERS_BYTES_MAX
    + OFFERS_OF_OTHERS_MAX * OFFER_BYTES_MAX
    + OTHERS_LINKED_USUALLY_MAX * LINK_BYTES_MAX;
const OF_CORE: usize = SUSPENDED_BYTES_MAX
    + SUSPENDED_BYTES_OF_OTHERS_MAX
    + MEMBERS_MAX / 3 * TWINS_BYTES_PER_AUTHOR_MAX;
const OF_ALL: usize = OF_VOTERS
    + OF_OTHERS
    + OF_CORE
    + LARGE_READS_MAX * LARGE_READ_BYTES_MAX
    + UNORDERED_BYTES_MAX
    + HANDED_WAITING_MAX * PAYLOAD_BYTES_MAX
    + COMMITS_IN_MEMORY_BYTES
    + RELEASES_IN_MEMORY_BYTES;
const _: () = assert!(OF_ALL <= MEMORY_BYTES_MAX / 4 * 3);
const _: () = assert!(MEMBERS_MAX * QUEUE_SHARE_BYTES_MIN <= QUEUES_OF_VOTERS_BYTES_MAX);
