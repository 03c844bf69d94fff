//! What goes to standard output: tables and lines for people, JSON for programs.
//!
//! Owns the choice between the two and what a closed pipe means. Never writes to standard error
//! (progress and failures do). Called by every command.

use std::io::Write;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::failure::Failure;

/// Who reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A person.
    Text,
    /// A program (`--json`).
    Json,
}

/// Writes to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Who reads it.
    pub(crate) format: Format,
}

impl Output {
    /// Writes bytes as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::broken(format!("standard output: {error}")),
        })
    }

    /// Writes one line.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.bytes(format!("{}\n", text.as_ref()).as_bytes())
    }

    /// Writes `value` as indented JSON.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.bytes(json_text(value)?.as_bytes())
    }

    /// Writes `value` as one line of JSON, for streams.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::broken(format!("cannot write JSON: {error}")))?;
        self.line(text)
    }

    /// JSON of `value`, or else what `text` makes of it.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(value),
            Format::Text => self.line(text(value).trim_end()),
        }
    }
}

/// The bytes that `--json` writes: indented, with a newline at the end.
pub(crate) fn json_text<T: Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::broken(format!("cannot write JSON: {error}")))?;
    Ok(text + "\n")
}

/// A table without lines; `nothing` is what is said instead of an empty one.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    nothing: &str,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    let mut count = 0;
    for row in rows {
        table.add_row(row);
        count += 1;
    }
    if count == 0 {
        return nothing.to_owned();
    }
    let trimmed: Vec<_> = table
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned())
        .collect();
    trimmed.join("\n")
}

/// Lines `name: value`, aligned; pairs with an empty value are left out.
pub(crate) fn facts<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = pairs.iter().map(|(name, value)| format!("{name:<width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}
