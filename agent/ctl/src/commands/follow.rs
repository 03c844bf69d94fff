//! Follows a VM after its request was ordered, until it is where the user wants it.
//!
//! Owns the stages that are shown on the way, and trying SSH from where the developer sits. Never
//! changes anything. Called by `vm` and, for the VM that gets or loses a volume, by
//! `volume_follow`.

use std::net::Ipv4Addr;
use std::time::Instant;

use dagger_api::VmView;
use dagger_payload::id::VmId;
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::{Placement, VmState};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::commands::image::show_download;
use crate::failure::Failure;
use crate::limits::{BANNER_MAX, HOST_KEY_WAIT_MAX};
use crate::progress::Progress;
use crate::session::{Pause, Session};

/// Where the VM should get to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// It is ordered: look once.
    Ordered,
    /// The host has applied its generation.
    Applied,
    /// Seen running.
    Running,
    /// Seen stopped.
    Stopped,
    /// Seen paused.
    Paused,
    /// Its SSH server answers.
    Ssh,
    /// Gone.
    Deleted,
}

/// Which stages are worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Story {
    /// The VM is new: where it is placed, who accepts it.
    Creation,
    /// The VM exists: only the end.
    Change,
}

/// What was shown already.
struct Shown {
    story: Story,
    host: Option<String>,
    accepted: bool,
    fetching: bool,
    running: bool,
}

/// Follows the VM; `None` once it is gone.
pub(crate) async fn follow(
    session: &Session,
    id: VmId,
    (goal, story): (Goal, Story),
    deadline: Instant,
    progress: &Progress,
) -> Result<Option<VmView>, Failure> {
    let mut shown = Shown { story, host: None, accepted: false, fetching: false, running: false };
    let mut pause = Pause::new();
    let path = format!("/v1/vms/{id}");
    let mut last: Option<VmView> = None;
    loop {
        match session.client.get::<VmView>(&path).await {
            Ok(view) => {
                shown.tell(&view, progress);
                if reached(&view, goal)? {
                    return finish(session, view, (goal, story), deadline, progress)
                        .await
                        .map(Some);
                }
                let state = view.state;
                if last.replace(view).is_none_or(|before| before.state != state) {
                    pause.reset();
                }
            }
            Err(failure) if failure.has_code("not_found") && goal == Goal::Deleted => {
                progress.done("gone");
                return Ok(None);
            }
            // The agent folds releases a moment after the payload's verdict is known.
            Err(failure) if failure.has_code("not_found") => {}
            Err(failure) if failure.is_unavailable() => {}
            Err(failure) => return Err(failure),
        }
        if Instant::now() >= deadline {
            return Err(late(id, last.as_ref(), goal));
        }
        pause.wait().await;
    }
}

fn late(id: VmId, last: Option<&VmView>, goal: Goal) -> Failure {
    let state = last.map_or("not visible", |view| view.state.word());
    let why = last.and_then(|view| view.reason.as_ref());
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    let wanted = match goal {
        Goal::Ordered | Goal::Applied => "what was asked for",
        Goal::Running | Goal::Ssh => "running",
        Goal::Stopped => "stopped",
        Goal::Paused => "paused",
        Goal::Deleted => "deleted",
    };
    Failure::unavailable(
        "not_in_time",
        format!("VM {id} is {state}{why}; it did not get to {wanted} in time"),
        format!("It goes on by itself. `daggerctl vm why {id}` says what it waits for."),
    )
}

/// Whether the goal is reached; a VM that cannot get there is a failure.
fn reached(view: &VmView, goal: Goal) -> Result<bool, Failure> {
    if view.state == VmState::Degraded && !matches!(goal, Goal::Ordered | Goal::Deleted) {
        let reason = view.reason.clone().unwrap_or_else(|| "no reason is known".to_owned());
        return Err(Failure::refused(
            "degraded",
            format!("VM {} is degraded: {reason}", view.vm.name),
            format!("See `daggerctl vm why {}`.", view.vm.name),
        ));
    }
    Ok(match goal {
        Goal::Ordered => true,
        Goal::Applied => is_applied(view),
        Goal::Running | Goal::Ssh => view.state == VmState::Running,
        Goal::Stopped => view.state == VmState::Stopped,
        Goal::Paused => view.state == VmState::Paused,
        Goal::Deleted => view.state == VmState::Deleted,
    })
}

fn is_applied(view: &VmView) -> bool {
    let generation = view.vm.generation;
    let reported = view.vm.reported.as_ref().is_some_and(|report| {
        let done = match report.phase {
            ReportPhase::Running
            | ReportPhase::Stopped
            | ReportPhase::Paused
            | ReportPhase::Deleted => true,
            ReportPhase::Accepted | ReportPhase::Refused | ReportPhase::Degraded => false,
        };
        done && report.generation >= generation
    });
    reported || view.applied_generation.is_some_and(|applied| applied >= generation)
}

async fn finish(
    session: &Session,
    view: VmView,
    (goal, story): (Goal, Story),
    deadline: Instant,
    progress: &Progress,
) -> Result<VmView, Failure> {
    if goal == Goal::Deleted {
        progress.done("gone");
    }
    if goal == Goal::Stopped {
        progress.done("stopped");
    }
    if (goal, story) == (Goal::Running, Story::Change) {
        progress.done("running");
    }
    if goal == Goal::Ssh {
        let address = view.vm.address().ok_or_else(|| {
            let what = format!("VM {} runs; it has its address by DHCP alone", view.vm.name);
            Failure::refused("state_wrong", what, "Ask the site's DHCP server, or --wait running.")
        })?;
        wait_for_ssh(address, deadline, progress).await?;
        return Ok(wait_for_host_key(session, view, deadline, progress).await);
    }
    Ok(view)
}

/// Waits until an SSH server at `address` sends its banner (RFC 4253, section 4.2).
async fn wait_for_ssh(
    address: Ipv4Addr,
    deadline: Instant,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.working(format!("waiting for SSH at {address}"));
    let mut pause = Pause::new();
    loop {
        match tokio::time::timeout(BANNER_MAX, banner(address)).await {
            Ok(Ok(())) => {
                progress.done(format!("ssh ready at {address}"));
                return Ok(());
            }
            Ok(Err(_)) | Err(_) if Instant::now() < deadline => pause.wait().await,
            Ok(Err(error)) => return Err(no_ssh(address, &error.to_string())),
            Err(_) => return Err(no_ssh(address, "no answer")),
        }
    }
}

/// Waits a while until the VM's host has reported the guest's SSH host key, so that the first
/// log-in is checked. Not every guest shows one.
async fn wait_for_host_key(
    session: &Session,
    mut view: VmView,
    deadline: Instant,
    progress: &Progress,
) -> VmView {
    let deadline = deadline.min(Instant::now() + HOST_KEY_WAIT_MAX);
    let path = format!("/v1/vms/{}", view.vm.id);
    let mut pause = Pause::new();
    while view.vm.guest_host_key.is_none() && Instant::now() < deadline {
        progress.working("waiting for the report of its SSH host key");
        pause.wait().await;
        if let Ok(now) = session.client.get::<VmView>(&path).await {
            view = now;
        }
    }
    match &view.vm.guest_host_key {
        Some(_) => progress.done("its host key is in its host's signed report"),
        None => progress.done("no host key is reported: the first log-in cannot be checked"),
    }
    view
}

fn no_ssh(address: Ipv4Addr, why: &str) -> Failure {
    Failure::unavailable(
        "ssh_not_in_time",
        format!("the VM runs, but SSH at {address} did not answer from here in time: {why}"),
        "It may still be booting, or this machine has no route to its network.",
    )
}

async fn banner(address: Ipv4Addr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((address, 22)).await?;
    let mut start = [0; 4];
    stream.read_exact(&mut start).await?;
    if &start == b"SSH-" {
        Ok(())
    } else {
        Err(std::io::Error::other("what answers there is no SSH server"))
    }
}

impl Shown {
    /// Shows the stages that are new.
    fn tell(&mut self, view: &VmView, progress: &Progress) {
        if self.story == Story::Change {
            return;
        }
        let host = view.host_name.as_ref().map(ToString::to_string);
        if let Some(name) = &host
            && self.host != host
        {
            progress.done(format!("placed on {name}"));
            progress.working(format!("waiting for {name} to accept"));
            self.host.clone_from(&host);
            self.accepted = false;
        }
        let accepted = matches!(view.vm.placement, Placement::Accepted { .. });
        if let Some(name) = &host
            && accepted
            && !self.accepted
        {
            progress.done(format!("accepted by {name}"));
            progress.working(format!("{name} works on it"));
            self.accepted = true;
        }
        if let Some(download) = &view.image_download {
            let name = host.as_deref().unwrap_or("its host");
            if !self.fetching {
                progress.done(format!("{name} fetches the image"));
                self.fetching = true;
            }
            progress.working(format!("{name} fetches the image: {}", show_download(download)));
        }
        if view.state == VmState::Running && !self.running {
            progress.done("running");
            self.running = true;
        }
    }
}
