//! Questions, one after the other, until nobody asks.
//!
//! Owns the loop, its end, and the counts of what became of questions. Nothing that a guest says
//! ends it. Called by the program.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::answer::answer;
use super::limits::{IDLE_MAX, TELL_EVERY};
use super::message::{Kind, Question};
use super::socket::{GuestSocket, Heard};
use super::taps::offer_of;

/// When to end.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// Once nobody has asked for a while: another is started with the next question.
    WhenIdle,
    /// Once the other end of this is gone.
    With(BorrowedFd<'a>),
}

/// What became of questions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    answered: u64,
    refused: u64,
    unanswered: u64,
    malformed: u64,
    elsewhere: u64,
    failed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, refused, unanswered, malformed, elsewhere, failed } = self;
        write!(
            out,
            "{answered} answered, {refused} refused another address, {unanswered} wanted no \
             answer, {malformed} malformed, {elsewhere} by no guest's tap, {failed} not sent"
        )
    }
}

impl Tally {
    /// Whether there is something besides answers, which are what is expected.
    fn is_odd(&self) -> bool {
        self.refused + self.malformed + self.failed > 0
    }
}

/// Answers until the end.
///
/// # Errors
/// The socket is broken.
pub fn serve(socket: &GuestSocket, end: End<'_>) -> io::Result<()> {
    let (mut tally, mut told) = (Tally::default(), Instant::now());
    while wait(socket, end)? {
        let Some(heard) = socket.hear()? else { continue };
        one(socket, &heard, &mut tally);
        if tally.is_odd() && told.elapsed() >= TELL_EVERY {
            eprintln!("dagger-dhcp: {tally}");
            (tally, told) = (Tally::default(), Instant::now());
        }
    }
    if tally != Tally::default() {
        eprintln!("dagger-dhcp: {tally}");
    }
    Ok(())
}

/// Waits for a question; `false` at the end.
fn wait(socket: &GuestSocket, end: End<'_>) -> io::Result<bool> {
    let (owner, wait_max) = match end {
        End::WhenIdle => (None, PollTimeout::try_from(IDLE_MAX).unwrap_or(PollTimeout::MAX)),
        End::With(owner) => (Some(owner), PollTimeout::NONE),
    };
    let mut watched = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    watched.extend(owner.map(|owner| PollFd::new(owner, PollFlags::POLLIN)));
    match poll(&mut watched, wait_max) {
        // Nobody ever writes there: whatever happens to it is its end.
        Ok(_) if watched.get(1).and_then(PollFd::any) == Some(true) => Ok(false),
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn one(socket: &GuestSocket, Heard { interface, bytes }: &Heard, tally: &mut Tally) {
    let Some(offer) = offer_of(*interface, socket) else {
        tally.elsewhere += 1;
        return;
    };
    let Some(question) = Question::read(bytes) else {
        tally.malformed += 1;
        return;
    };
    let Some(answer) = answer(&question, &offer) else {
        tally.unanswered += 1;
        return;
    };
    let bytes = question.answer(answer.kind, &offer);
    let sent = bytes.map(|bytes| socket.say(&bytes, (*interface, offer.gateway()), answer.to));
    match (sent, answer.kind) {
        (Some(Ok(())), Kind::Refusal) => tally.refused += 1,
        (Some(Ok(())), _) => tally.answered += 1,
        // The tap may be gone; the guest asks again.
        (Some(Err(_)) | None, _) => tally.failed += 1,
    }
}
