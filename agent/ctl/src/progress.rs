//! Shows how far something has come, on standard error: a spinner for people at a terminal, plain
//! lines elsewhere.
//!
//! Owns how stages look. Never writes to standard output and never decides. Called while a command
//! waits.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::limits::SPINNER_TURN;
use crate::output::Format;

/// Stages of one piece of work.
pub(crate) struct Progress {
    started: Instant,
    look: Look,
}

enum Look {
    /// A terminal: one moving line, and a lasting line for each stage that is done.
    Spinner(ProgressBar),
    /// A log file or a pipe: one line for each stage that is done.
    Lines,
    /// A program reads us (`--json`): silence.
    Silent,
}

impl Progress {
    /// Starts to show progress.
    pub(crate) fn new(format: Format) -> Self {
        let look = match format {
            Format::Json => Look::Silent,
            Format::Text if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::new_spinner();
                let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.enable_steady_tick(SPINNER_TURN);
                Look::Spinner(bar)
            }
            Format::Text => Look::Lines,
        };
        Self { started: Instant::now(), look }
    }

    /// What is being waited for now.
    pub(crate) fn working(&self, text: impl Into<String>) {
        if let Look::Spinner(bar) = &self.look {
            bar.set_message(text.into());
        }
    }

    /// A stage that is done.
    pub(crate) fn done(&self, text: impl AsRef<str>) {
        let seconds = self.started.elapsed().as_secs_f32();
        let line = format!("{seconds:6.1}s  {}", text.as_ref());
        match &self.look {
            Look::Spinner(bar) => bar.suspend(|| say(&line)),
            Look::Lines => say(&line),
            Look::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Look::Spinner(bar) = &self.look {
            bar.finish_and_clear();
        }
    }
}

/// One line on standard error; a reader that went away is nobody's problem here.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
