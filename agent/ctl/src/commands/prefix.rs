//! The first digits of an id, as tables show them, in place of all of them.
//!
//! Owns when a text is taken for such digits, and that it stands for one id alone. Never asks an
//! agent. Called by the commands that take ids.

use std::fmt::Display;

use crate::failure::Failure;

/// Fewer digits are a name, or a slip of the finger.
const DIGITS_MIN: usize = 8;

/// Whether `text` may be the first digits of an id.
pub(crate) fn is_prefix(text: &str) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() >= DIGITS_MIN && text.as_bytes().iter().all(is_digit)
}

/// The one that begins with `digits`, if any does; several are a failure.
pub(crate) fn only<T: Display>(
    digits: &str,
    ids: impl IntoIterator<Item = T>,
) -> Result<Option<T>, Failure> {
    let mut found: Vec<T> =
        ids.into_iter().filter(|id| id.to_string().starts_with(digits)).collect();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        count => {
            let what = format!("{count} ids begin with {digits}");
            Err(Failure::refused("name_ambiguous", what, "Give more digits."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_that_a_table_shows_stand_for_the_id_and_for_no_two() {
        let ids = ["5df715fdb6eb0001", "5df715fdb6ec0002", "0000000000000003"];
        assert_eq!(only("5df715fdb6eb", ids).expect("one"), Some(ids[0]));
        assert_eq!(only("77777777", ids).expect("none"), None);
        let failure = only("5df715fd", ids).expect_err("two");
        assert!(failure.has_code("name_ambiguous"));
        assert!(failure.to_text().contains("2 ids begin with 5df715fd"), "{}", failure.to_text());
    }

    #[test]
    fn names_and_few_digits_are_no_ids() {
        assert!(is_prefix("5df715fd") && is_prefix("5df715fdb6eb"));
        for name in ["5df715f", "web-1", "deadbeeg", "DEADBEEF", ""] {
            assert!(!is_prefix(name), "{name}");
        }
    }
}
