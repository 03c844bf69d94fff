//! The one table of maxima that cross a package border. Package-local bounds live in that package's
//! own `limits.rs`. Called by whoever reads bytes from outside; checked before anything is
//! allocated.

/// A payload document, in bytes, without its signature.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Nesting of JSON objects and arrays in a payload or genesis document.
pub const JSON_DEPTH_MAX: usize = 8;
/// Largest integer a payload may carry: the largest that every JSON reader represents exactly.
pub const JSON_INTEGER_MAX: u64 = (1 << 53) - 1;
/// The genesis document, in bytes.
pub const GENESIS_BYTES_MAX: usize = 256 * 1024;
/// An event's body (its payload records), in bytes.
pub const EVENT_BODY_BYTES_MAX: usize = 960 * 1024;
/// An event's header, in bytes: 128 parents of at most 64 bytes, and room to spare.
pub const EVENT_HEADER_BYTES_MAX: usize = 16 * 1024;
/// Payloads in one event.
pub const EVENT_PAYLOADS_MAX: usize = 16 * 1024;
/// One frame between two ledgers, in bytes: an event with both parts full fits.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Members (hosts that vote) in one committee.
pub const MEMBERS_MAX: usize = 128;
/// Seats that a cluster gives in all its life: one for each host and for each new ledger key.
pub const SEATS_MAX: usize = 1024;
/// Of these, the last ones: only hosts that vote get them, for new ledger keys.
pub const SEATS_KEPT_FOR_VOTERS: usize = 16;
/// Seats that the hosts of one operator get in all his life.
pub const SEATS_PER_OPERATOR_MAX: usize = 64;
/// Of these, the last ones: only hosts that vote get them, for new ledger keys.
pub const SEATS_PER_OPERATOR_KEPT_FOR_VOTERS: usize = 16;
/// Operators that a cluster has in all its life.
pub const OPERATORS_MAX: usize = 1024;
/// Proposals of one operator that may wait for approvals or for an epoch.
pub const PROPOSALS_PER_OPERATOR_MAX: usize = 8;
/// How long a proposal waits for approvals, in ledger milliseconds: 30 days.
pub const PROPOSAL_LIFE_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;
/// Accounts that one operator opens in all his life: he was the first to grant a key something.
pub const ACCOUNTS_PER_OPERATOR_MAX: usize = 16 * 1024;
/// Names of images that one publisher may give; a retired image keeps its name.
pub const IMAGES_PER_PUBLISHER_MAX: usize = 1024;
/// Names that all accounts give that one operator opened: no image is ever forgotten, and each is
/// up to some 5 KiB on every host.
pub const IMAGES_TOGETHER_MAX: usize = 16 * 1024;
/// Names that one account may give however many the others have.
pub const IMAGES_ALWAYS: usize = 2;
/// VMs of an account that no host has: they count against no grant, and with so many nobody gets
/// another one.
pub const HOMELESS_VMS_PER_ACCOUNT_MAX: usize = 64;
/// VMs, volumes and snapshots of one account.
pub const OBJECTS_PER_ACCOUNT_MAX: usize = 10_000;
/// VMs, volumes and snapshots that stand on the hosts of one operator, whoever has them.
pub const OBJECTS_PER_OPERATOR_MAX: usize = 20_000;
/// Bytes of the VMs among them, as they are kept. With so many no further one is taken; the last
/// one may go beyond it.
pub const VM_BYTES_PER_OPERATOR_MAX: usize = 64 * 1024 * 1024;
/// Accepted payloads of one author (an operator, a host or an account) that are remembered at a
/// time, each until its own `not_after`.
pub const ACCEPTED_REMEMBERED_PER_AUTHOR_MAX: usize = 64 * 1024;
/// The same for refused ones.
pub const REFUSED_REMEMBERED_PER_AUTHOR_MAX: usize = 1024;
/// Accepted payloads that are remembered at a time of all accounts that one operator opened; the
/// same for all his hosts.
pub const ACCEPTED_REMEMBERED_TOGETHER_MAX: usize = 1024 * 1024;
/// The same for refused ones.
pub const REFUSED_REMEMBERED_TOGETHER_MAX: usize = 64 * 1024;
/// Accepted payloads of one account or host that are remembered however many the others have.
pub const ACCEPTED_REMEMBERED_ALWAYS: usize = 64;
/// The same for refused ones.
pub const REFUSED_REMEMBERED_ALWAYS: usize = 16;
/// Expired payloads that are forgotten with one commit: some 4 us each.
pub const FORGOTTEN_PER_COMMIT_MAX: usize = 64 * 1024;
/// VMs and volumes of hosts that left against their operator's will, of which one commit says that
/// they are lost: a commit is one message.
pub const LOST_PER_COMMIT_MAX: usize = 1024;
/// Offers that lapse with one commit; the others lapse with the next ones.
pub const LAPSED_PER_COMMIT_MAX: usize = 512;
/// Events that one `Want` may name.
pub const WANT_EVENTS_MAX: usize = 256;
/// How far `not_after_ms` may lie ahead of ledger time, in milliseconds.
pub const NOT_AFTER_AHEAD_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Bytes of one account's payloads that may wait unordered on one host.
pub const UNORDERED_BYTES_PER_ACCOUNT_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one key's payloads that may wait unordered on one host, whoever holds it: an operator,
/// a host's agent, or somebody of an account.
pub const UNORDERED_BYTES_PER_SIGNER_MAX: usize = 4 * 1024 * 1024;
/// Bytes of all payloads that may wait unordered on one host.
pub const UNORDERED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// SSH keys that a VM may be created with.
pub const VM_SSH_KEYS_MAX: usize = 16;
/// One guest SSH key line, in bytes.
pub const SSH_KEY_LINE_BYTES_MAX: usize = 2048;
/// Public user-data of a VM, in bytes.
pub const USER_DATA_BYTES_MAX: usize = 32 * 1024;
/// Labels on one object, and bytes of one label value.
pub const LABELS_MAX: usize = 32;
/// Bytes of one label value.
pub const LABEL_VALUE_BYTES_MAX: usize = 128;
/// Sources that an image may name, and bytes of one.
pub const IMAGE_SOURCES_MAX: usize = 8;
/// Bytes of one image source.
pub const IMAGE_SOURCE_BYTES_MAX: usize = 512;
/// A kernel that is booted directly, in bytes.
pub const KERNEL_BYTES_MAX: u64 = 256 << 20;
/// An initial RAM disk, in bytes.
pub const INITRD_BYTES_MAX: u64 = 1 << 30;
/// A kernel's command line, in bytes: what Linux reads on x86-64, without its end.
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;
/// Virtual CPUs of one VM.
pub const VM_CPUS_MAX: u32 = 256;
/// Memory of one VM, in MiB.
pub const VM_MEMORY_MIB_MAX: u64 = 4 * 1024 * 1024;
/// Disk of one VM, in GiB.
pub const VM_DISK_GIB_MAX: u64 = 64 * 1024;
/// Size of one volume, in GiB.
pub const VOLUME_GIB_MAX: u64 = 64 * 1024;
/// Volumes that one VM may use: each takes one of the guest's PCI slots.
pub const VM_VOLUMES_MAX: u8 = 8;
/// Snapshots that one volume may have. Each is a whole file of its own, which lies over no other:
/// so no chain of files is ever longer than one.
pub const VOLUME_SNAPSHOTS_MAX: usize = 16;
/// Rules of what may begin a conversation with one VM.
pub const VM_ALLOW_MAX: usize = 32;
/// Ports of its host that may lead to one VM.
pub const VM_FORWARDS_MAX: u8 = 8;
/// Network cards of one VM.
pub const VM_CARDS_MAX: u8 = 4;
/// Name servers that one guest is told of.
pub const NAMESERVERS_MAX: usize = 8;
/// Bridges that one host may offer to guests.
pub const HOST_BRIDGES_MAX: usize = 16;
/// Wishes of one VM to be kept apart from others.
pub const VM_APART_MAX: usize = 8;
/// How long a session may live, in milliseconds of its host's time.
pub const SESSION_LIFE_MS_MAX: u64 = 600_000;
/// A session's document, and its signature's text, in bytes.
pub const SESSION_BYTES_MAX: usize = 1024;
/// Keys of an account.
pub const ACCOUNT_KEYS_MAX: usize = 16;
/// Hosts that a dry run names.
pub const PREDICTION_HOSTS_MAX: usize = 256;
/// Reason text in a report or a refusal, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// How long a placed host may take to accept, in ledger milliseconds, before the next host is
/// tried.
pub const ACCEPTANCE_MS_MAX: u64 = 10_000;
/// A host that has been behind for longer than this is no candidate for placement. Ledger
/// milliseconds.
pub const HOST_SILENCE_MS_MAX: u64 = 10_000;
/// Rounds that the newest ordered event of a host may be below the committed leader before the host
/// counts as behind.
pub const HOST_BEHIND_ROUNDS_MAX: u64 = 16;

/// One chunk of a snapshot, in bytes; one object may cross it, and still a frame holds it.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Chunks of one snapshot: four gibibytes, some ten million objects.
pub const SNAPSHOT_CHUNKS_MAX: u32 = 16 * 1024;
/// Handovers that a proof may show: each costs its reader a quorum of signatures.
pub const HANDOVERS_SHOWN_MAX: usize = 1024;
/// One release in an exported history, in bytes: what the bus carries as one message.
pub const RELEASE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of payloads in one commit, counted as in an event, where the genesis says nothing else.
/// Part of the consensus: it never changes, else hosts of two versions order otherwise. Where
/// a third of 128 members lies, two commits a round remain, which take more than the liars make: so
/// what honest members make is ordered.
pub const COMMIT_BYTES_DEFAULT: usize = 24 * 1024 * 1024;
/// The least that a genesis may say: with less a third of the largest cluster could make more than
/// is ordered, if it lies.
pub const COMMIT_BYTES_MIN: usize = 20 * 1024 * 1024;
/// The most that a genesis may say: a commit, and what is released of it, is one message.
pub const COMMIT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes that a commit adds to the chain over everything judged, its effects above all. With so
/// many no further payload changes anything; the last one may go beyond it.
pub const COMMIT_CHANGES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of these bytes, what payloads of one operator, of his hosts and of the accounts that he opened
/// add: so that one alone keeps nobody else from changing something with the same commit.
pub const COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX: usize = 16 * 1024 * 1024;
/// Bytes of objects that are written anew with a commit for payloads of one operator, of his hosts
/// and of the accounts that he opened, where only what changed is told: a VM has up to 64 KiB, and
/// some 300 are told of its change. With so many none of these payloads changes anything more; the
/// last one may go beyond it. Writing so much takes some 0.4 s, and as many changes as a commit has
/// room for stay below it, where VMs are as long as they mostly are.
pub const COMMIT_REWRITTEN_BYTES_PER_OPERATOR_MAX: usize = 128 * 1024 * 1024;

/// VMs of one account that are looked at with one commit, to find hosts for VMs that are to be kept
/// apart from them. With so many no further search begins; the last one may go beyond it. A look
/// at a VM with the longest labels takes some 4 us: 0.4 s.
pub const COMMIT_LOOKS_PER_ACCOUNT_MAX: usize = 100_000;
/// The same for all accounts that one operator opened: 0.9 s, and as much again for offers that
/// lapse, so that ten such operators end no judge by its watchdog.
pub const COMMIT_LOOKS_TOGETHER_MAX: usize = 200_000;

const _: () = assert!(EVENT_BODY_BYTES_MAX + EVENT_HEADER_BYTES_MAX + 1024 <= FRAME_BYTES_MAX);
const _: () = assert!(EVENT_BODY_BYTES_MAX <= COMMIT_BYTES_MIN);
const _: () = assert!(COMMIT_BYTES_MIN <= COMMIT_BYTES_DEFAULT);
const _: () = assert!(COMMIT_BYTES_DEFAULT <= COMMIT_BYTES_MAX);
// Three leaders a round; of those that lie, and withhold what they show together later, the slots
// are skipped: two of three are left where a third of the members lies.
const _: () = assert!(2 * COMMIT_BYTES_MIN >= (MEMBERS_MAX - 1) / 3 * EVENT_BODY_BYTES_MAX);
// Each payload of a commit takes 80 bytes of it at least, and a refusal of one by name some 600.
const _: () = assert!(2 * COMMIT_BYTES_MAX + 2 * COMMIT_CHANGES_BYTES_MAX < RELEASE_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX + 256 <= EVENT_BODY_BYTES_MAX);
const _: () = assert!(UNORDERED_BYTES_PER_SIGNER_MAX <= UNORDERED_BYTES_MAX / 16);
const _: () = assert!(MEMBERS_MAX * 64 <= EVENT_HEADER_BYTES_MAX);
const _: () = assert!(SEATS_PER_OPERATOR_KEPT_FOR_VOTERS < SEATS_PER_OPERATOR_MAX);
const _: () = assert!(SEATS_KEPT_FOR_VOTERS + MEMBERS_MAX < SEATS_MAX);
