//! The strict subset of JSON in which signed documents are written, so that every reader in every
//! language sees the same thing: no duplicate keys at any level, plain ASCII keys without escapes,
//! integers from 0 to 2^53-1 and no other number, bounded nesting and size, UTF-8, at most one
//! trailing newline.
//!
//! Owns that grammar only. Never gives a document a meaning: `serde_json` does, after this check
//! passed. Called by payload and genesis parsing. Source: RFC 8259, narrowed.

use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_MAX};

/// What breaks the subset, and at which byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {rule}")]
pub struct StrictJsonError {
    /// Offset of the first byte that is wrong.
    pub at: usize,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Checks that `bytes` are one document in the strict subset; returns the text without the trailing
/// newline.
///
/// # Errors
/// The first rule that is broken, and where.
pub fn check(bytes: &[u8]) -> Result<&str, StrictJsonError> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| StrictJsonError {
        at: error.valid_up_to(),
        rule: "a document is UTF-8",
    })?;
    let mut scanner = Scanner { bytes, at: 0 };
    scanner.skip_space();
    scanner.value(0)?;
    scanner.skip_space();
    if scanner.at != bytes.len() {
        return scanner.wrong("nothing may follow the document but one newline");
    }
    Ok(text)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn wrong<T>(&self, rule: &'static str) -> Result<T, StrictJsonError> {
        Err(StrictJsonError { at: self.at, rule })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn take(&mut self, wanted: u8, rule: &'static str) -> Result<(), StrictJsonError> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        self.wrong(rule)
    }

    /// One value; recursion is bounded by `JSON_DEPTH_MAX`.
    fn value(&mut self, depth: usize) -> Result<(), StrictJsonError> {
        match self.peek() {
            Some(b'{' | b'[') if depth == JSON_DEPTH_MAX => {
                self.wrong("objects and arrays nest at most 8 deep")
            }
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string(Escapes::Allowed).map(|_| ()),
            Some(b'0'..=b'9') => self.integer(),
            Some(b'-') => self.wrong("numbers are integers from 0 to 2^53-1"),
            Some(_) => self.word(),
            None => self.wrong("the document ends too early"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), StrictJsonError> {
        self.take(b'{', "expected an object")?;
        self.skip_space();
        let mut keys = std::collections::BTreeSet::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let start = self.at;
            let key = self.string(Escapes::Refused)?;
            if !keys.insert(key) {
                self.at = start;
                return self.wrong("a key stands twice in one object");
            }
            self.skip_space();
            self.take(b':', "expected ':' after a key")?;
            self.skip_space();
            self.value(depth + 1)?;
            self.skip_space();
            if self.peek() == Some(b'}') {
                self.at += 1;
                return Ok(());
            }
            self.take(b',', "expected ',' or '}'")?;
            self.skip_space();
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), StrictJsonError> {
        self.take(b'[', "expected an array")?;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.skip_space();
            if self.peek() == Some(b']') {
                self.at += 1;
                return Ok(());
            }
            self.take(b',', "expected ',' or ']'")?;
            self.skip_space();
        }
    }

    fn string(&mut self, escapes: Escapes) -> Result<&'a [u8], StrictJsonError> {
        self.take(b'"', "expected a string in double quotes")?;
        let start = self.at;
        loop {
            match (self.peek(), escapes) {
                (None, _) => return self.wrong("the document ends within a string"),
                (Some(b'"'), _) => {
                    self.at += 1;
                    return Ok(&self.bytes[start..self.at - 1]);
                }
                (Some(0..0x20), _) => return self.wrong("control characters are escaped"),
                (Some(b'\\' | 0x80..), Escapes::Refused) => {
                    return self.wrong("keys are plain ASCII without escapes");
                }
                // What follows the backslash is serde_json's to judge; here only `\"` matters.
                (Some(b'\\'), Escapes::Allowed) => self.at += 2,
                (Some(_), _) => self.at += 1,
            }
        }
    }

    fn integer(&mut self) -> Result<(), StrictJsonError> {
        let start = self.at;
        let mut number: u64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
            self.at += 1;
        }
        let leading_zero = self.bytes[start] == b'0' && self.at - start > 1;
        let continues = matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        if leading_zero || continues || number > JSON_INTEGER_MAX {
            self.at = start;
            return self.wrong("numbers are integers from 0 to 2^53-1");
        }
        Ok(())
    }

    fn word(&mut self) -> Result<(), StrictJsonError> {
        for word in ["true", "false", "null"] {
            if self.bytes[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(());
            }
        }
        self.wrong("expected a value")
    }
}

#[derive(Clone, Copy)]
enum Escapes {
    Allowed,
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_outside_the_subset_are_refused() {
        let deep = format!("{}1{}", "[".repeat(9), "]".repeat(9));
        for text in [
            "",
            "{",
            "{\"a\":1,\"a\":2}",
            "{\"x\":{\"a\":1,\"a\":2}}",
            "{\"\\u0061\":1}",
            "{\"é\":1}",
            "{\"a\":1.0}",
            "{\"a\":1e3}",
            "{\"a\":-1}",
            "{\"a\":01}",
            "{\"a\":9007199254740992}",
            "{\"a\":1}\n\n x",
            "{\"a\":1}{",
            "{\"a\":\"x",
            "{\"a\":\"\\",
            "{\"a\" 1}",
            "[1,]",
            "nul",
            deep.as_str(),
        ] {
            assert!(check(text.as_bytes()).is_err(), "{text:?} was accepted");
        }
        assert!(check(b"\"\xff\"").is_err());
    }

    #[test]
    fn ordinary_documents_pass() {
        for text in
            ["{}", "{\"a\":[1,{\"b\":\"\\\"é\"}],\"c\":null}\n", " [ ] ", "9007199254740991"]
        {
            assert!(check(text.as_bytes()).is_ok(), "{text:?} was refused");
        }
    }
}
