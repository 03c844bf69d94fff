//! Rules about text alone: sizes, the module's own words at its top, and words that promise work.
//!
//! Called by the tidy tests.

use super::source::Source;
use super::tokens::Words as Rust;
use super::{Finding, Size, Words};

/// Files and lines of Rust are short enough to be read. What cannot be wrapped may be longer: a
/// literal, or a comment that is one address.
pub fn sizes(source: &Source, words: &Rust, size: &Size) -> Vec<Finding> {
    let mut found = Vec::new();
    let lines = source.text.lines().count();
    if lines > size.file_lines_max {
        let message = format!("{lines} lines; at most {}: split it", size.file_lines_max);
        found.push(Finding::about(&source.path, message));
    }
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        let comment = line.trim_start().starts_with("//");
        let fixed = if comment { is_address(line) } else { words.has_literal(index + 1) };
        if columns > size.line_columns_max && !fixed {
            let message = format!("{columns} columns; at most {}", size.line_columns_max);
            found.push(Finding::at(&source.path, index + 1, message));
        }
    }
    found
}

/// The lines of documents fit a terminal.
pub fn document_lines(source: &Source, size: &Size) -> Vec<Finding> {
    if !size.documents.contains(&source.path) {
        return Vec::new();
    }
    let columns = source.text.lines().map(|line| line.chars().count());
    let long = columns.enumerate().filter(|(_, columns)| *columns > size.document_columns_max);
    long.map(|(index, columns)| {
        let message = format!("{columns} columns; at most {}", size.document_columns_max);
        Finding::at(&source.path, index + 1, message)
    })
    .collect()
}

fn is_address(comment: &str) -> bool {
    comment.contains("://") && comment.split_whitespace().count() <= 3
}

/// Every module begins with what it owns, what it never does and who calls it.
pub fn module_documentation(source: &Source) -> Vec<Finding> {
    if !source.is_rust() || source.text.starts_with("//! ") {
        return Vec::new();
    }
    let message = "begins without `//!`: say what it owns, what it never does and who calls it";
    vec![Finding::at(&source.path, 1, message)]
}

/// No word that promises work, in any text.
pub fn words(source: &Source, words: &Words) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut here = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        if let Some(word) = here.find(|word| words.comments.iter().any(|banned| banned == word)) {
            let message = format!("`{word}`: do it, or open an issue, or leave it out");
            found.push(Finding::at(&source.path, index + 1, message));
        }
    }
    found
}

/// A script that nothing names is dead.
pub fn dead_scripts(sources: &[Source]) -> Vec<Finding> {
    let scripts = sources.iter().filter(|source| source.path.starts_with("scripts/"));
    let unnamed = scripts.filter(|script| {
        let mut others = sources.iter().filter(|other| other.path != script.path);
        !others.any(|other| other.text.contains(&script.path))
    });
    unnamed.map(|script| Finding::about(&script.path, "nothing names this script")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Rules;

    fn size() -> Size {
        let documents = vec!["A.md".to_owned()];
        Size { file_lines_max: 3, line_columns_max: 20, document_columns_max: 30, documents }
    }

    fn sizes_of(text: &str) -> Vec<usize> {
        let source = Source::new("a/src/b.rs", text);
        let found = sizes(&source, &Rust::of(&source).unwrap(), &size());
        found.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_long_file_and_a_long_line_are_found_where_they_are() {
        assert_eq!(sizes_of("//! B.\n\nfn b() {}\n// much too long a line\n"), [0, 4]);
    }

    #[test]
    fn what_cannot_be_wrapped_may_be_long() {
        let address = "//! https://example.org/a/very/long/address\n";
        let literal = "const A: &str = \"begins\nand goes on in a long line\";\n";
        for text in [address, literal] {
            assert!(sizes_of(text).is_empty(), "{text}");
        }
        let prose = "//! see also the long https://example.org/ here\n";
        let comment = "// not a \"literal\" at all\n";
        for text in [prose, comment, "fn a_very_long_name_of_nothing() {}\n"] {
            assert_eq!(sizes_of(text), [1], "{text}");
        }
    }

    #[test]
    fn a_long_line_of_a_document_is_found_and_of_no_other_text() {
        let text = format!("short\n{}\n{}\n", "é".repeat(30), "x".repeat(31));
        let found = document_lines(&Source::new("A.md", &text), &size());
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
        assert!(document_lines(&Source::new("decisions.md", &text), &size()).is_empty());
    }

    #[test]
    fn a_module_without_its_own_words_is_found() {
        assert_eq!(module_documentation(&Source::new("b.rs", "use a;\n")).len(), 1);
        assert_eq!(module_documentation(&Source::new("b.rs", "//! B.\n")).len(), 0);
        assert_eq!(module_documentation(&Source::new("b.md", "B\n")).len(), 0);
    }

    #[test]
    fn words_that_promise_work_are_found_in_any_text() {
        let rules = Rules::of_this_tree();
        for word in &rules.words.comments {
            let text = format!("fine\n# {word}: later\n");
            let found = words(&Source::new("Makefile", &text), &rules.words);
            assert_eq!(found.first().map(|found| found.line), Some(2), "{word}");
        }
        assert!(words(&Source::new("a.md", "mktemp XXXXXX"), &rules.words).is_empty());
    }

    #[test]
    fn a_script_that_nothing_names_is_found() {
        let makefile = Source::new("Makefile", "demo:\n\tscripts/used.sh\n");
        let used = Source::new("scripts/used.sh", "");
        let unused = Source::new("scripts/unused.sh", "scripts/unused.sh: usage");
        let found = dead_scripts(&[makefile, used, unused]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "scripts/unused.sh");
    }
}
