//! Runs `qemu-img`: no shell, no inherited environment, a deadline, and paths that it cannot take
//! for anything else.
//!
//! Owns the running only. Called by [`crate::disks`].

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::error::ImageError;
use crate::limits::{TOOL_LOOK_AGAIN_AFTER, TOOL_MESSAGE_BYTES_MAX, TOOL_WAIT_MAX};

/// A program that is run with fixed rules.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    wait_max: Duration,
}

impl Tool {
    /// Debian's `qemu-img`.
    pub fn qemu_img() -> Self {
        Self::new(Path::new("/usr/bin/qemu-img"), TOOL_WAIT_MAX)
    }

    /// A program at an absolute path, killed after `wait_max`.
    pub fn new(program: &Path, wait_max: Duration) -> Self {
        Self { program: program.to_owned(), wait_max }
    }

    /// The same program, killed after `wait_max`.
    #[must_use]
    pub fn within(&self, wait_max: Duration) -> Self {
        Self::new(&self.program, wait_max)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`ImageError::Tool`] if it cannot be run or ends badly, [`ImageError::ToolTooSlow`] after
    /// the deadline.
    pub fn run(&self, command: &mut Command) -> Result<(), ImageError> {
        self.run_into(command, Stdio::null())
    }

    /// Runs it to its end, with its answer going into `answer`.
    fn run_into(&self, command: &mut Command, answer: Stdio) -> Result<(), ImageError> {
        let failed = |message: String| ImageError::Tool { program: self.name(), message };
        let mut child = command
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(answer)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{error}; is qemu-utils installed?")))?;
        let deadline = Instant::now() + self.wait_max;
        let message = read_complaint(&mut child, self.wait_max);
        let Some(status) = wait_until(&mut child, deadline) else {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = self.wait_max.as_secs();
            return Err(ImageError::ToolTooSlow { program: self.name(), seconds });
        };
        if status.success() { Ok(()) } else { Err(failed(message)) }
    }

    /// Runs it to its end and gives its answer, which fits into a pipe or makes it too slow.
    ///
    /// # Errors
    /// Those of [`Tool::run`].
    pub fn ask(&self, mut command: Command) -> Result<String, ImageError> {
        let failed = |error: std::io::Error| {
            let message = format!("its answer does not read: {error}");
            ImageError::Tool { program: self.name(), message }
        };
        let (mut answer, writer) = std::io::pipe().map_err(failed)?;
        self.run_into(&mut command, writer.into())?;
        // It holds the other end of the pipe.
        drop(command);
        let mut text = String::new();
        answer.read_to_string(&mut text).map_err(failed)?;
        Ok(text)
    }

    /// A command for [`Tool::run`] and [`Tool::ask`].
    pub fn command(&self) -> Command {
        Command::new(&self.program)
    }

    fn name(&self) -> String {
        crate::files::name_of(&self.program).to_owned()
    }
}

/// What the child says until it closes its output, or until the wait is over: then the reader is
/// left to end with it.
fn read_complaint(child: &mut Child, wait_max: Duration) -> String {
    let Some(mut output) = child.stderr.take() else { return String::new() };
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = output.read(&mut piece) {
            let room = TOOL_MESSAGE_BYTES_MAX - kept.len();
            kept.extend_from_slice(&piece[..length.min(room)]);
        }
        let _ = sender.send(String::from_utf8_lossy(&kept).trim().to_owned());
    });
    receiver.recv_timeout(wait_max).unwrap_or_default()
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(TOOL_LOOK_AGAIN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_does_not_end_is_killed_at_its_deadline() {
        let tool = Tool::new(Path::new("/usr/bin/sleep"), Duration::from_millis(50));
        let error = tool.run(tool.command().arg("600")).unwrap_err();
        assert_eq!(error.code(), "disk_tool_too_slow");
    }

    #[test]
    fn a_tool_sees_nothing_of_our_environment_and_its_complaint_is_told() {
        let tool = Tool::new(Path::new("/bin/sh"), TOOL_WAIT_MAX);
        let script = "/usr/bin/env >&2; exit 3";
        let error = tool.run(tool.command().args(["-c", script])).unwrap_err().to_string();
        assert!(error.contains("LC_ALL=C") && !error.contains("CARGO"), "{error}");
    }

    #[test]
    fn a_long_complaint_is_cut() {
        let tool = Tool::new(Path::new("/bin/sh"), TOOL_WAIT_MAX);
        let script = "/usr/bin/head -c 1000000 /dev/zero | /usr/bin/tr '\\0' x >&2; exit 1";
        let error = tool.run(tool.command().args(["-c", script])).unwrap_err().to_string();
        assert!(error.len() < TOOL_MESSAGE_BYTES_MAX + 100);
    }
}
