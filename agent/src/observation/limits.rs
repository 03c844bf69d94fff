//! The maxima of the observation's waits and queues. Called by the observation and whoever makes
//! its channels.

use std::time::Duration;

/// Changes at the hypervisor that may wait to be looked at; more than that, and everything is
/// listed.
pub const CHANGES_WAITING_MAX: usize = 1024;
/// Looks that the controller may have asked for.
pub const LOOKS_WAITING_MAX: usize = 4096;
/// How often everything is listed, in case an event was lost.
pub(super) const LISTING_EVERY: Duration = Duration::from_secs(60);
/// How long one look or listing may take.
pub(super) const CALL_WAIT_MAX: Duration = Duration::from_secs(15);
/// How long a connection may take to open, with the question whether KVM works.
pub(super) const CONNECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// Calls that may hang at the same time before no more are begun.
pub(super) const CALLS_HANGING_MAX: usize = 4;
/// The first pause before a lost hypervisor is tried again; it doubles.
pub(super) const RECONNECT_WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest pause before a lost hypervisor is tried again.
pub(super) const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often a console is read for the guest's host key.
pub(super) const CONSOLE_READ_EVERY: Duration = Duration::from_millis(500);
/// How often in all, for one start of one guest: ten minutes, since a large guest whose processor
/// is emulated takes minutes to start.
pub(super) const CONSOLE_READS_MAX: u32 = 1200;
/// How often in a row it may fail to be opened, other than by not being there.
pub(super) const CONSOLE_FAILURES_MAX: u32 = 20;
/// Consoles' files for which the helper is asked at the same time, by those who read over the API
/// and again by those who look for host keys; `dagger-console.socket` lets in some more, which are
/// just ending.
pub(super) const CONSOLE_ASKS_TOGETHER_MAX: usize = 4;
/// How long one waits for a turn to ask it.
pub(super) const CONSOLE_ASK_TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it may take to answer.
pub(super) const CONSOLE_ASK_WAIT_MAX: Duration = Duration::from_secs(5);
/// The last bytes of a console that are searched.
pub(super) const CONSOLE_BYTES_MAX: u64 = 64 * 1024;
/// Consoles that are opened at the same time, those included that hang.
pub(super) const CONSOLE_OPENS_TOGETHER_MAX: usize = 8;
/// How long opening one may take, its turn included.
pub(super) const CONSOLE_OPEN_WAIT_MAX: Duration = Duration::from_secs(8);
/// What was typed at one console and waits for the guest: messages of at most 4 KiB.
pub(super) const CONSOLE_INPUTS_MAX: usize = 16;
/// Bytes of a console file that are passed on at a time.
pub(super) const CONSOLE_PART_BYTES: usize = 16 * 1024;
/// Bytes of the kernel's word about console files that are taken at a time; more wait, up to its
/// own bound.
pub(super) const CONSOLE_EVENTS_BYTES: usize = 4096;
