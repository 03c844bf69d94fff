//! Licences of the libraries that we build with.
//!
//! Called by the tidy tests.

use spdx::{Expression, ParseMode};

use super::arrows::Metadata;
use super::{Finding, Licences};

/// Every library's licence is on the list, or on its own exception.
pub fn licences(metadata: &Metadata, rules: &Licences) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in metadata.others() {
        let exception = rules.exceptions.get(&package.name);
        let licence = package.license.as_deref().unwrap_or_default();
        if let Some(refusal) = refusal(licence, rules, exception.map(String::as_str)) {
            let place = format!("{} {}", package.name, package.version);
            found.push(Finding::about(&place, refusal));
        }
    }
    for name in rules.exceptions.keys() {
        if !metadata.others().any(|package| package.name == *name) {
            found.push(Finding::about(name, "is used no longer and needs no exception"));
        }
    }
    found
}

fn refusal(licence: &str, rules: &Licences, exception: Option<&str>) -> Option<String> {
    // Old manifests write `MIT/Apache-2.0` and `LGPL-2.1`, which SPDX has since given other forms.
    let Ok(expression) = Expression::parse_mode(licence, ParseMode::LAX) else {
        return Some(format!("licence `{licence}` is no SPDX expression"));
    };
    let allowed = expression.evaluate(|wanted| {
        let name = wanted.license.to_string();
        rules.allowed.contains(&name) || exception == Some(name.as_str())
    });
    (!allowed).then(|| format!("licence `{licence}` is not on the list in rules.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::Rules;

    #[test]
    fn a_licence_is_judged_as_the_expression_that_it_is() {
        let rules = Rules::of_this_tree().licences;
        for fine in
            ["MIT", "MIT/Apache-2.0", "MIT OR GPL-3.0", "(MIT OR Apache-2.0) AND Unicode-3.0"]
        {
            assert_eq!(refusal(fine, &rules, None), None);
        }
        for wrong in ["", "GPL-3.0", "MIT AND GPL-3.0", "LGPL-2.1", "SSPL-1.0", "my own"] {
            assert!(refusal(wrong, &rules, None).is_some(), "{wrong}");
        }
        assert_eq!(refusal("LGPL-2.1", &rules, Some("LGPL-2.1")), None);
    }
}
