//! Sizes, spans of time and labels as people type them.
//!
//! Owns their grammar. Never rounds: what does not fit the unit of its field is refused. Called by
//! clap.

use std::time::Duration;

use dagger_payload::limits::NOT_AFTER_AHEAD_MS_MAX;
use dagger_payload::name::{LabelValue, Name};

const KIB: u64 = 1024;

/// A size such as `64KiB`, in bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no size; write for example 4GiB or 512MiB"))?;
    let factor = match unit {
        "KiB" => KIB,
        "MiB" => KIB.pow(2),
        "GiB" => KIB.pow(3),
        "TiB" => KIB.pow(4),
        "" => return Err(format!("{text:?} has no unit; write {text}MiB or {text}GiB")),
        _ => return Err(format!("unit {unit:?} is unknown; use KiB, MiB, GiB or TiB")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

fn whole(text: &str, unit_bytes: u64, unit: &str) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if bytes == 0 || bytes % unit_bytes != 0 {
        return Err(format!("{text:?} is no whole number of {unit} above 0"));
    }
    Ok(bytes / unit_bytes)
}

/// Memory such as `4GiB`, in MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
    whole(text, KIB.pow(2), "MiB")
}

/// Disk such as `20GiB`, in GiB.
pub(crate) fn disk_gib(text: &str) -> Result<u64, String> {
    whole(text, KIB.pow(3), "GiB")
}

/// A span such as `300s`, `10m`, `12h` or `30d`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time; write for example 300s, 10m, 12h or 30d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = number.checked_mul(seconds).filter(|total| *total > 0);
    total.map(Duration::from_secs).ok_or_else(wrong)
}

/// For how long a signed request counts: a span of at most 24 hours.
pub(crate) fn validity(text: &str) -> Result<Duration, String> {
    let span = span(text)?;
    match milliseconds(span) <= NOT_AFTER_AHEAD_MS_MAX {
        true => Ok(span),
        false => Err(format!("{text:?} is too long: a signed request counts for at most 24h")),
    }
}

/// A label `key=value`.
pub(crate) fn label(text: &str) -> Result<(Name, LabelValue), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is no label; write key=value"))?;
    let key = key.parse().map_err(|error| format!("label {key:?}: {error}"))?;
    let value = value.parse().map_err(|error| format!("label {text:?}: {error}"))?;
    Ok((key, value))
}

/// Milliseconds of a span, saturating.
pub(crate) fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes as people read them: `1.5 GiB`.
pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10);
    while tenths >= 10 * KIB && unit + 1 < UNITS.len() {
        tenths /= KIB;
        unit += 1;
    }
    if unit == 0 || tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Memory in MiB as people read it.
pub(crate) fn show_mib(mebibytes: u64) -> String {
    shown(mebibytes, KIB.pow(2), "MiB")
}

/// Disk in GiB as people read it.
pub(crate) fn show_gib(gibibytes: u64) -> String {
    shown(gibibytes, KIB.pow(3), "GiB")
}

/// In the largest unit in which it is whole, as it was typed; nothing is rounded away.
fn shown(count: u64, unit_bytes: u64, unit: &str) -> String {
    let bytes = count.saturating_mul(unit_bytes);
    let larger = [("TiB", KIB.pow(4)), ("GiB", KIB.pow(3))];
    let whole = larger
        .iter()
        .find(|(_, size)| bytes > 0 && *size > unit_bytes && bytes.is_multiple_of(*size));
    match whole {
        Some((name, size)) => format!("{} {name}", bytes / size),
        None => format!("{count} {unit}"),
    }
}

/// Ledger time as a UTC date.
pub(crate) fn show_time(time: dagger_payload::id::LedgerTime) -> String {
    i64::try_from(time.0)
        .ok()
        .and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok())
        .map_or_else(|| format!("{} ms", time.0), |timestamp| format!("{timestamp:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units_and_never_rounded() {
        assert_eq!(memory_mib("4GiB"), Ok(4096));
        assert_eq!(memory_mib("512MiB"), Ok(512));
        assert_eq!(disk_gib("20GiB"), Ok(20));
        assert_eq!(disk_gib("1TiB"), Ok(1024));
        for wrong in ["4", "4GB", "GiB", "-1GiB", "4 GiB", "", "0GiB", "1.5GiB"] {
            assert!(memory_mib(wrong).is_err(), "{wrong:?} was accepted");
        }
        assert!(disk_gib("512MiB").is_err());
        assert!(memory_mib("99999999999999999999GiB").is_err());
        assert!(memory_mib("18446744073709551615TiB").is_err());
    }

    #[test]
    fn spans_need_a_unit_and_a_number_above_zero() {
        assert_eq!(span("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(span("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "300", "s", "0s", "1w", "-1s", "é"] {
            assert!(span(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn a_signed_request_counts_for_a_day_at_most() {
        assert_eq!(validity("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["86401s", "25h", "30d"] {
            let told = validity(wrong).expect_err("too long");
            assert!(told.contains("at most 24h"), "{told}");
        }
    }

    #[test]
    fn what_was_typed_is_shown_so_again() {
        let shown = [show_mib(4096), show_mib(512), show_mib(1536), show_mib(0), show_gib(2048)];
        assert_eq!(shown, ["4 GiB", "512 MiB", "1536 MiB", "0 MiB", "2 TiB"]);
        assert_eq!(show_gib(100), "100 GiB");
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(show_bytes(512), "512 B");
        assert_eq!(show_bytes(1024 * 1024 * 1536), "1.5 GiB");
        assert_eq!(show_bytes(20 << 30), "20 GiB");
    }
}
