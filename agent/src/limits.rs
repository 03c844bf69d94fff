//! Maxima of the agent: of its ledger-facing half, of the machines' half, and of what passes
//! between them. What only one neighbourhood needs (actuator, observation, network, each
//! hypervisor) stands in a `limits.rs` there. Maxima that cross a package border stand in
//! `dagger_payload::limits`. Called by all modules.

use std::time::Duration;

/// Shortest pause before another daemon is tried again.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// Longest pause before another daemon is tried again.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a ledger whose view is too old is listened to before it is asked again from the start
/// of the conversation.
pub const OLD_VIEW_WAIT_MAX: Duration = Duration::from_secs(5);
/// Releases that may be under way to this agent.
pub const RELEASE_WINDOW: u32 = 128;
/// Headers of one piece of evidence that are looked at: two for each of the most members a cluster
/// may have.
pub const EVIDENCE_HEADERS_MAX: usize = 2 * dagger_payload::limits::MEMBERS_MAX;

/// Released commit ends with which members' attestations can be compared; 7 MB.
pub const CHAIN_ENDS_MAX: usize = 64 * 1024;
/// The newest releases that are kept in memory for those who follow them.
pub const RELEASES_TAIL_MAX: usize = 256;
/// Bytes of them.
pub const RELEASES_TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Items of the release stream that are taken in together, with one write to the archive: half of
/// what may be under way, so that the rest comes meanwhile.
pub const RELEASES_WRITTEN_TOGETHER_MAX: usize = RELEASE_WINDOW as usize / 2;
/// Bytes of them, but for the last one.
pub const RELEASES_WRITTEN_TOGETHER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of releases that are read from the archive at once, unless one alone has more.
pub const RELEASES_TOGETHER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Deleted VMs that are read with them, to say what was changed of which VM; the last release may
/// need more.
pub const GONE_VMS_TOGETHER_MAX: usize = 64;
/// The largest archive of the history, in bytes: address space, and room on the disk only as it is
/// used.
pub const ARCHIVE_MAP_BYTES: usize = 1 << 40;
/// Room on the disk that the archive leaves untouched, in bytes: twice what the ledger leaves,
/// which needs the disk more, and so does the journal.
pub const ARCHIVE_RESERVE_BYTES: u64 = 128 * 1024 * 1024;
/// Who looks up a few records of the archive at the same time.
pub const ARCHIVE_LOOKS_TOGETHER_MAX: usize = 32;
/// Accounts for which perhaps very many of them are read at the same time, one walk for each.
pub const ARCHIVE_WALKS_TOGETHER_MAX: usize = 3;
/// The same for operators, of whom each may have both.
pub const ARCHIVE_OPERATOR_WALKS_TOGETHER_MAX: usize = 2;
/// Read transactions of the archive: those above, the writer's own, and some to spare.
pub const ARCHIVE_READERS_MAX: u32 = 64;
/// How long one waits for a turn to look.
pub const ARCHIVE_LOOK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Shortest pause before what found no room on the disk of the state directory is written again.
pub const DISK_FULL_WAIT_MIN: Duration = Duration::from_millis(500);
/// Longest one.
pub const DISK_FULL_WAIT_MAX: Duration = Duration::from_secs(15);
/// Steps of a VM's history in one answer.
pub const HISTORY_STEPS_MAX: usize = 1000;
/// Bytes of the documents in it, but for the last one.
pub const HISTORY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Commits of an account that are looked up at once.
pub const USAGE_COMMITS_TOGETHER_MAX: usize = 256;

/// How long a report stays valid, in ledger milliseconds.
pub const REPORT_VALID_MS: u64 = 60 * 60 * 1000;
/// VMs whose reports may wait to be ordered at the same time.
pub const REPORTS_UNORDERED_MAX: usize = 16 * 1024;
/// Reports that are submitted at the same time.
pub const REPORTS_SUBMITTED_TOGETHER_MAX: usize = 16;
/// How long a received report may stay unordered before the same bytes are submitted once more.
pub const REPORT_ORDER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes of a report's reason; longer ones are cut.
pub const REPORT_REASON_BYTES_MAX: usize = dagger_payload::limits::REASON_BYTES_MAX;

/// Connections that each of the API's sockets serves at a time.
pub const API_CONNECTIONS_MAX: usize = 512;
/// Requests (other than event streams and long polls, which only wait) that are worked on at the
/// same time, of those that came over TCP and again of those that came over the Unix socket. Until
/// its body is there a request is not worked on.
pub const API_REQUESTS_TOGETHER_MAX: usize = 128;
/// How long a request's head may take to arrive.
pub const API_HEAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a request's body may take to arrive.
pub const API_BODY_WAIT_MAX: Duration = Duration::from_secs(10);
/// What is taken, and thrown away, of a body that is refused for its length.
pub const API_REFUSED_BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long an API client may take nothing of an answer.
pub const API_WRITE_WAIT_MAX: Duration = Duration::from_secs(20);
/// Bytes of one request's head.
pub const API_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a body that is not a payload.
pub const API_SMALL_BODY_BYTES_MAX: usize = 16 * 1024;
/// How long a request may be worked on, long polls and event streams aside.
pub const API_WORK_WAIT_MAX: Duration = Duration::from_secs(35);
/// How long importing an image file may take.
pub const API_IMPORT_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long an import waits for its image to be registered.
pub const API_IMPORT_REGISTER_WAIT_MAX: Duration = Duration::from_secs(10);
/// Image imports at the same time.
pub const API_IMPORTS_TOGETHER_MAX: usize = 2;
/// Image files that are sent to other hosts at the same time.
pub const API_IMAGE_STREAMS_MAX: usize = 16;
/// Those of them that are sent to one host, by its key.
pub const API_IMAGE_STREAMS_PER_KEY_MAX: usize = 2;
/// Connections that the door for other hosts serves at a time for one address.
pub const API_IMAGE_CONNECTIONS_PER_ADDRESS_MAX: usize = 16;
/// Bytes of an image file that are read at a time.
pub const API_IMAGE_PIECE_BYTES: usize = 256 * 1024;
/// How long sending one may take; who was not done asks for the rest.
pub const API_IMAGE_STREAM_WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// How long sending a VM's file may take.
pub const API_EXPORT_STREAM_WAIT_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Long polls at the same time; connections are left for all else.
pub const API_POLLS_MAX: usize = 256;
/// Those of them that wait for a payload that this host does not know: anybody may ask for any.
pub const API_POLLS_FOR_UNKNOWN_MAX: usize = 64;
/// Longest long poll.
pub const API_POLL_WAIT_MAX: Duration = Duration::from_secs(60);
/// Long poll when the caller names no time.
pub const API_POLL_WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// How often a long poll asks the ledger about a payload that is not judged yet.
pub const API_POLL_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long answers that ask the ledger for its status wait for it.
pub const API_STATUS_WAIT_MAX: Duration = Duration::from_secs(3);
/// Payloads of one part of the log, where the reader does not say how many.
pub const LOG_ENTRIES_DEFAULT: usize = 100;
/// Payloads of one part of the log.
pub const LOG_ENTRIES_MAX: usize = 1000;
/// Payloads that are looked at for one part, most of which its reader may not see.
pub const LOG_LOOKED_AT_MAX: usize = 100_000;
/// Payloads that are read for it at once.
pub const LOG_PIECE_MAX: usize = 256;
/// Bytes of them, but for the last one.
pub const LOG_PIECE_BYTES_MAX: usize = 1024 * 1024;
/// Commits of an exported history that are written down at once.
pub const API_HISTORY_TOGETHER_MAX: usize = 16;
/// Event streams at the same time.
pub const EVENT_STREAMS_MAX: usize = 128;
/// Of them for one account.
pub const EVENT_STREAMS_PER_ACCOUNT_MAX: usize = 8;
/// Events that wait for one reader of the event stream.
pub const EVENT_STREAM_WAITING_MAX: usize = 64;
/// How long a reader of the event stream may take for one event before the stream is cut.
pub const EVENT_STREAM_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often a quiet event stream carries a comment, so that both ends notice a dead connection.
pub const EVENT_STREAM_COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Readers of consoles at the same time, operators aside.
pub const CONSOLES_MAX: usize = 64;
/// Of them for one account.
pub const CONSOLES_PER_ACCOUNT_MAX: usize = 8;
/// Readers of consoles at the same time who are operators, or sit at the host itself.
pub const CONSOLES_OF_OPERATORS_MAX: usize = 16;
/// How long the hypervisor may take to open a console.
pub const CONSOLE_OPEN_WAIT_MAX: Duration = Duration::from_secs(10);
/// What a guest has said before, where the reader does not say how much he wants; in bytes.
pub const CONSOLE_HISTORY_BYTES_DEFAULT: u64 = 16 * 1024;
/// The most of it.
pub const CONSOLE_HISTORY_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of one message that is typed at a console.
pub const CONSOLE_MESSAGE_BYTES_MAX: usize = 4096;
/// Bytes of why a sitting at a console ended: a WebSocket's close has room for no more (RFC 6455).
pub const CONSOLE_REASON_BYTES_MAX: usize = 123;
/// How often a console's reader is asked for a sign of life.
pub const CONSOLE_PING_EVERY: Duration = Duration::from_secs(20);
/// How long the other side of a console is waited for once the sitting has ended.
pub const CONSOLE_CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long he may give none.
pub const CONSOLE_SILENCE_MAX: Duration = Duration::from_secs(70);
/// Why a machine was stopped by hand, in bytes.
pub const LOCAL_STOP_REASON_BYTES_MAX: usize = 256;
/// How long a stop by hand may take to be written down.
pub const LOCAL_STOP_TAKE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long its answer waits for the machine to be off: longer than a guest may take.
pub const LOCAL_STOP_WAIT_MAX: Duration = Duration::from_secs(45);
/// How often it is looked meanwhile.
pub const LOCAL_STOP_LOOK_EVERY: Duration = Duration::from_millis(100);
/// `Retry-After` of an answer that says "not now", in seconds.
pub const RETRY_AFTER_SECONDS: u64 = 2;
/// How long open requests may take to end when the daemon stops.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often it is looked whether the guest at whose console somebody sits still runs.
pub const CONSOLE_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Commits that are looked up at a time for a stream of events.
pub const EVENT_COMMITS_TOGETHER_MAX: usize = 16;
/// Pause after the system could not give a connection (no descriptors left, for one).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a source of an image may send next to nothing.
pub const DOWNLOAD_STALL_WAIT_MAX: Duration = Duration::from_secs(30);
/// Places that are remembered because they did not serve.
pub const DOWNLOAD_DOUBTED_MAX: usize = 256;
/// How long the helper that fetches may say nothing: before it asks anybody it hashes what is kept.
pub const DOWNLOAD_WORD_WAIT_MAX: Duration = Duration::from_secs(30 * 60);
/// Copies of disks that are made or handed out at the same time.
pub const EXPORTS_TOGETHER_MAX: usize = 1;
/// Orders that may wait for the controller.
pub const ORDERS_WAITING_MAX: usize = 1024;
/// Requests for consoles that may wait.
pub const CONSOLE_REQUESTS_WAITING_MAX: usize = 16;
/// Stops by hand that may wait.
pub const LOCAL_STOPS_WAITING_MAX: usize = 16;
/// Reports that may wait to be submitted.
pub const REPORTS_WAITING_MAX: usize = 1024;
/// Releases in which orders are looked for between two looks at the progress.
pub const ORDER_RELEASES_TOGETHER_MAX: usize = 256;
/// How far the mark of what was acted on may lag behind commits that do not concern this host.
pub const MARK_EVERY_MAX: Duration = Duration::from_secs(1);
/// What may wait for the controller besides orders.
pub const INPUTS_WAITING_MAX: usize = 1024;
/// Orders that are taken before the board is written again.
pub const ORDERS_TOGETHER_MAX: usize = 256;
/// Looks at what this host has free at the same time: one that hangs holds up no other.
pub const ROOM_LOOKS_TOGETHER_MAX: usize = 8;
/// How long steps under way may take to end when the agent stops.
pub const STEPS_END_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long the journal may have no space before the agent gives up, which its service manager
/// then starts again.
pub const JOURNAL_SPACE_WAIT_MAX: Duration = Duration::from_secs(600);
/// How often it is tried meanwhile.
pub const JOURNAL_SPACE_LOOK_EVERY: Duration = Duration::from_secs(2);
/// Proposals that nothing can come of any more, and that are still shown.
pub const PAST_PROPOSALS_SHOWN_MAX: usize = 32;
/// Open files that may go with a request to a helper, or come with its answer.
pub const HELPER_FILES_MAX: usize = 1;
/// Bytes of one line that a helper says.
pub const HELPER_LINE_BYTES_MAX: usize = 64 * 1024;
/// How long a helper may take to take its request.
pub const HELPER_REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long the service manager may take to answer: it can hang on a unit in uninterruptible sleep.
pub const SERVICE_MANAGER_WAIT_MAX: Duration = Duration::from_secs(10);
/// The least time for which one waits for a word of a helper: none at all means for ever.
pub const HELPER_READ_WAIT_MIN: Duration = Duration::from_millis(1);
/// The service manager's watchdog is told no more often.
pub const WATCHDOG_EVERY_MIN: Duration = Duration::from_millis(100);
