//! The maxima that the filters of guests have, and the kernel keeps. Those of what answers guests
//! that ask for their address stand beside it. Called by the makers of rules.

/// Conversations of a guest, besides those over TCP, that are known at a time.
pub(crate) const BEGUN_MAX: u16 = 4096;
/// For how long they are known after the guest's last word.
pub(crate) const BEGUN_MINUTES: u8 = 3;
/// Questions for an address that a guest may ask in a second: a client asks twice when it starts,
/// and then in seconds.
pub(crate) const QUESTIONS_PER_SECOND_MAX: u8 = 4;
/// At once.
pub(crate) const QUESTIONS_AT_ONCE_MAX: u8 = 16;
/// Conversations that a guest may begin in a second, and others with it.
pub(crate) const BEGUN_PER_SECOND_MAX: u16 = 1000;
/// At once.
pub(crate) const BEGUN_AT_ONCE_MAX: u16 = 4000;
/// Lines of an operator's list that open or close networks.
pub(crate) const OUTWARD_WORDS_MAX: usize = 256;
