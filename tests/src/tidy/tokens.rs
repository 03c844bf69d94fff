//! Rules about Rust's words: unsafe code, macros that promise work, sleeping tests, what pure logic
//! and what one file alone may name.
//!
//! Owns the reading of Rust into words; comments and literals are none. Called by the tidy tests.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::source::Source;
use super::{Finding, Rules, within};

/// Where a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// In what is shipped.
    Product,
    /// Under `#[cfg(test)]`.
    Test,
}

/// One identifier, mark or bracket.
#[derive(Debug, Clone)]
pub struct Word {
    /// As written; groups give their brackets as two words.
    pub text: String,
    /// From 1.
    pub line: usize,
    /// Whether only tests see it.
    pub region: Region,
}

/// The words of one file.
#[derive(Debug)]
pub struct Words {
    path: String,
    test_file: bool,
    words: Vec<Word>,
    literal_lines: BTreeSet<usize>,
}

impl Words {
    /// Reads `source`.
    ///
    /// # Errors
    /// A finding: it is not Rust that can be read.
    pub fn of(source: &Source) -> Result<Self, Finding> {
        let stream: TokenStream = source.text.parse().map_err(|error: proc_macro2::LexError| {
            let line = error.span().start().line;
            Finding::at(&source.path, line, "cannot be read as Rust")
        })?;
        let mut words = Vec::new();
        flatten(stream.clone(), Region::Product, &mut words);
        let mut literal_lines = BTreeSet::new();
        lines_of_literals(stream, &mut literal_lines);
        let (path, test_file) = (source.path.clone(), source.is_test());
        Ok(Self { path, test_file, words, literal_lines })
    }

    /// Whether a literal or a documenting comment covers any of `line`.
    pub fn has_literal(&self, line: usize) -> bool {
        self.literal_lines.contains(&line)
    }

    /// The words in their order.
    pub fn all(&self) -> &[Word] {
        &self.words
    }

    fn text(&self, index: usize) -> &str {
        self.words.get(index).map_or("", |word| &word.text)
    }

    fn follows(&self, index: usize, expected: &[&str]) -> bool {
        expected.iter().enumerate().all(|(step, text)| self.text(index + 1 + step) == *text)
    }

    fn after_path(&self, index: usize) -> bool {
        index > 0 && matches!(self.text(index - 1), ":" | ".")
    }

    fn find(
        &self,
        is: impl Fn(usize, &Word) -> bool,
        message: impl Fn(&Word) -> String,
    ) -> Vec<Finding> {
        let hits = self.words.iter().enumerate().filter(|(index, word)| is(*index, word));
        hits.map(|(_, word)| Finding::at(&self.path, word.line, message(word))).collect()
    }

    /// Unsafe code stands only where C is called.
    pub fn unsafe_code(&self, rules: &Rules) -> Vec<Finding> {
        if rules.unsafe_code.contains_key(&self.path) {
            return Vec::new();
        }
        self.find(
            |_, word| word.text == "unsafe",
            |_| {
                "unsafe code; only files in `unsafe_code` of rules.toml may, where C is called"
                    .into()
            },
        )
    }

    /// No macro that promises work.
    pub fn promising_macros(&self, rules: &Rules) -> Vec<Finding> {
        self.find(
            |index, word| {
                rules.words.macros.contains(&word.text)
                    && self.text(index + 1) == "!"
                    && matches!(self.text(index + 2), "(" | "[" | "{")
            },
            |word| format!("`{}!` must not be committed", word.text),
        )
    }

    /// Tests wait for what they mean.
    pub fn sleeping_tests(&self, rules: &Rules) -> Vec<Finding> {
        if rules.sleeping_tests.contains_key(&self.path) {
            return Vec::new();
        }
        self.find(
            |index, word| {
                (self.test_file || word.region == Region::Test)
                    && matches!(word.text.as_str(), "sleep" | "sleep_until")
                    && self.text(index + 1) == "("
            },
            |_| "a test that sleeps: wait for the event itself, with a deadline".into(),
        )
    }

    /// Some crates are named in one place only.
    pub fn only_in(&self, rules: &Rules) -> Vec<Finding> {
        self.find(
            |index, word| {
                rules.only_in.get(&word.text).is_some_and(|places| !within(&self.path, places))
                    && !self.after_path(index)
                    && (self.follows(index, &[":", ":"])
                        || self.text(index.wrapping_sub(1)) == "use")
            },
            |word| {
                format!("only {} may name `{}`", rules.only_in[&word.text].join(", "), word.text)
            },
        )
    }

    /// Pure logic knows no clock, file, thread, socket, chance, float or hash map.
    pub fn purity(&self, rules: &Rules) -> Vec<Finding> {
        if !within(&self.path, &rules.pure.paths) || self.test_file {
            return Vec::new();
        }
        self.find(
            |_, word| word.region == Region::Product && rules.pure.forbidden.contains(&word.text),
            |word| format!("pure logic names `{}`: take what it gives as an input", word.text),
        )
    }

    /// Waits have their length, and queues, retries and groups their maximum, in a `limits.rs`:
    /// there somebody sees them all. A number of bytes may belong to a format, and stands beside
    /// it.
    pub fn bounds(&self, rules: &Rules) -> Vec<Finding> {
        let is_elsewhere = self.test_file || self.path.contains("benches/");
        if is_elsewhere || self.path.ends_with("/limits.rs") {
            return Vec::new();
        }
        let known = rules.bounds_elsewhere.get(&self.path);
        self.find(
            |index, word| {
                word.region == Region::Product
                    && (self.is_length_of_time(index) || self.is_maximum(index))
                    && known.is_none_or(|known| !known.contains_key(&word.text))
            },
            |word| format!("`{}` is a bound: it stands in the package's `limits.rs`", word.text),
        )
    }

    /// `Duration::from_secs(3)`, with a number and not with a name.
    fn is_length_of_time(&self, index: usize) -> bool {
        self.text(index) == "Duration"
            && self.follows(index, &[":", ":"])
            && self.text(index + 3).starts_with("from_")
            && self.follows(index + 3, &["(", "\""])
    }

    /// The name in `const NAME_MAX: usize`.
    fn is_maximum(&self, index: usize) -> bool {
        const NUMBERS: [&str; 5] = ["u8", "u16", "u32", "u64", "usize"];
        let name = self.text(index);
        index > 0
            && self.text(index - 1) == "const"
            && name.ends_with("_MAX")
            && !name.ends_with("_BYTES_MAX")
            && self.text(index + 1) == ":"
            && NUMBERS.contains(&self.text(index + 2))
    }

    /// The identifiers that occur.
    pub fn identifiers(&self) -> BTreeSet<&str> {
        self.words.iter().map(|word| word.text.as_str()).collect()
    }
}

/// Exceptions that nothing needs any longer.
pub fn stale_exceptions(all: &[Words], rules: &Rules) -> Vec<Finding> {
    let mut found = Vec::new();
    let lists = [("unsafe_code", &rules.unsafe_code), ("sleeping_tests", &rules.sleeping_tests)];
    for (list, (path, _)) in
        lists.iter().flat_map(|(list, entries)| entries.iter().map(move |entry| (list, entry)))
    {
        let word = if *list == "unsafe_code" { "unsafe" } else { "sleep" };
        let needed = all.iter().any(|words| {
            words.path == *path && words.words.iter().any(|at| at.text.starts_with(word))
        });
        if !needed {
            found.push(Finding::about(path, format!("needs no exception in `{list}` any longer")));
        }
    }
    for (path, names) in &rules.bounds_elsewhere {
        let here = all.iter().find(|words| words.path == *path);
        for name in names.keys() {
            let is_needed = here.is_some_and(|words| {
                (0..words.words.len()).any(|at| words.text(at) == name && words.is_maximum(at))
            });
            if !is_needed {
                let message =
                    format!("`{name}` needs no exception in `bounds_elsewhere` any longer");
                found.push(Finding::about(path, message));
            }
        }
    }
    found
}

fn lines_of_literals(stream: TokenStream, lines: &mut BTreeSet<usize>) {
    for tree in stream {
        match tree {
            TokenTree::Literal(literal) => {
                let span = literal.span();
                lines.extend(span.start().line..=span.end().line);
            }
            TokenTree::Group(group) => lines_of_literals(group.stream(), lines),
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

fn flatten(stream: TokenStream, region: Region, words: &mut Vec<Word>) {
    // Set between `#[cfg(test)]` and the end of what it stands before.
    let mut test_only = false;
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |text: &str| {
            words.push(Word { text: text.to_owned(), line, region });
        };
        match tree {
            TokenTree::Ident(identifier) => push(&identifier.to_string()),
            TokenTree::Punct(mark) => {
                test_only &= mark.as_char() != ';';
                push(&mark.as_char().to_string());
            }
            TokenTree::Literal(_) => push("\""),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open);
                let attribute = group.delimiter() == Delimiter::Bracket
                    && group.stream().to_string().replace(' ', "") == "cfg(test)";
                let inside = if test_only { Region::Test } else { region };
                flatten(group.stream(), inside, words);
                let line = group.span_close().start().line;
                words.push(Word { text: close.to_owned(), line, region });
                test_only |= attribute;
                test_only &= group.delimiter() != Delimiter::Brace;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(path: &str, text: &str) -> Words {
        Words::of(&Source::new(path, text)).unwrap()
    }

    fn lines(found: &[Finding]) -> Vec<usize> {
        found.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn unsafe_code_is_found_but_not_in_comments_and_literals() {
        let rules = Rules::of_this_tree();
        let text = "// unsafe\nfn a() -> &str { \"unsafe\" }\nfn b() { unsafe { c() } }\n";
        assert_eq!(lines(&words("a/src/lib.rs", text).unsafe_code(&rules)), [3]);
        let allowed = rules.unsafe_code.keys().next().unwrap();
        assert!(words(allowed, text).unsafe_code(&rules).is_empty());
    }

    #[test]
    fn macros_that_promise_work_are_found() {
        let rules = Rules::of_this_tree();
        for name in &rules.words.macros {
            let text = format!("fn a() {{\n    {name}!()\n}}\n");
            assert_eq!(lines(&words("a.rs", &text).promising_macros(&rules)), [2], "{name}");
            let compared = format!("fn a({name}: u8) -> bool {{ {name} != (1) }}\n");
            assert!(words("a.rs", &compared).promising_macros(&rules).is_empty());
        }
    }

    #[test]
    fn a_sleep_is_found_in_tests_and_only_there() {
        let rules = Rules::of_this_tree();
        let text =
            "fn a() { sleep(1); }\n#[cfg(test)]\nmod tests {\n    fn b() { thread::sleep(2) }\n}\n";
        assert_eq!(lines(&words("a/src/a.rs", text).sleeping_tests(&rules)), [4]);
        assert_eq!(lines(&words("a/tests/a.rs", text).sleeping_tests(&rules)), [1, 4]);
        let after = "#[cfg(test)]\nuse x;\nfn a() { sleep(1); }\n";
        assert!(words("a/src/a.rs", after).sleeping_tests(&rules).is_empty());
    }

    #[test]
    fn a_crate_is_found_where_it_may_not_be_named() {
        let rules = Rules::of_this_tree();
        for text in ["use lmdb;\n", "use lmdb::Error;\n", "fn a() -> lmdb::Error { b() }\n"] {
            assert_eq!(lines(&words("ledger/src/a.rs", text).only_in(&rules)), [1], "{text}");
            assert!(words("ledger/src/store/lmdb.rs", text).only_in(&rules).is_empty());
        }
        let own_module = "mod lmdb;\nuse crate::store::lmdb::Store;\n";
        assert!(words("ledger/src/a.rs", own_module).only_in(&rules).is_empty());
    }

    #[test]
    fn a_clock_in_pure_logic_is_found() {
        let rules = Rules::of_this_tree();
        let text = "use std::{fmt, time::Instant};\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_eq!(lines(&words("ledger/core/src/a.rs", text).purity(&rules)), [1]);
        assert!(words("ledger/src/a.rs", text).purity(&rules).is_empty());
    }

    #[test]
    fn a_bound_is_found_outside_of_limits_and_tests() {
        let rules = Rules::of_this_tree();
        let text = "const A: Duration = Duration::from_secs(3);\npub const B_MAX: usize = 4;\n\
                    fn c() { sleep(std::time::Duration::from_millis(1)); }\n\
                    const D_BYTES_MAX: usize = 8;\nfn e(x: u64) { Duration::from_secs(x); }\n\
                    const F_MAX: &str = \"\";\n#[cfg(test)]\nmod tests { const G_MAX: u8 = 1; }\n";
        assert_eq!(lines(&words("a/src/b.rs", text).bounds(&rules)), [1, 2, 3]);
        for path in ["a/src/limits.rs", "a/src/b/limits.rs", "a/tests/b.rs", "a/benches/b.rs"] {
            assert!(words(path, text).bounds(&rules).is_empty(), "{path}");
        }
        let (path, names) = rules.bounds_elsewhere.iter().next().expect("there are some");
        let allowed = format!("const {}: usize = 1;\n", names.keys().next().expect("it has one"));
        assert!(words(path, &allowed).bounds(&rules).is_empty());
        assert_eq!(lines(&words(path, text).bounds(&rules)), [1, 2, 3]);
    }

    #[test]
    fn an_exception_that_nothing_needs_is_found() {
        let rules = Rules::of_this_tree();
        let found = stale_exceptions(&[], &rules);
        let bounds: usize = rules.bounds_elsewhere.values().map(|names| names.len()).sum();
        assert_eq!(found.len(), rules.unsafe_code.len() + rules.sleeping_tests.len() + bounds);
    }
}
