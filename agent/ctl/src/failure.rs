//! What went wrong, told as: what it is, its stable code, what to do next; and the exit code that
//! says its class.
//!
//! Owns exit codes and the wording of errors. Never retries. Called by every command; `main` prints
//! it.

use dagger_api::{Problem, QuorumProblem};
use dagger_payload::refusal::{Refusal, RefusalCode};

/// Exit codes. Scripts may rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// The outside said no: the same request will be refused again.
    Refused = 1,
    /// The command line itself is wrong.
    Usage = 2,
    /// A check was made and found something, which is printed.
    Found = 4,
    /// Nobody answered, or not in time: the same request may work later.
    Unavailable = 3,
    /// This program or the machine broke an assumption.
    Broken = 70,
}

/// What is told about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    /// Stable code, snake_case.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) what: String,
    /// Which rule was broken, if the cluster refused.
    pub(crate) rule: Option<String>,
    /// What to do next.
    pub(crate) advice: String,
    /// Who is missing, for `no_quorum`.
    pub(crate) quorum: Option<QuorumProblem>,
}

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// One of the classes.
    Told(ExitCode, Box<Told>),
    /// Whoever reads our output has closed it: end quietly.
    OutputClosed,
    /// A check found something and has printed it.
    Found,
    /// A program that we ran for the user ended with this code, having told why itself.
    Child(u8),
}

impl Failure {
    fn new(
        class: ExitCode,
        code: &str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let told = Told {
            code: code.to_owned(),
            what: what.into(),
            rule: None,
            advice: advice.into(),
            quorum: None,
        };
        Self::Told(class, Box::new(told))
    }

    /// The command line is wrong.
    pub(crate) fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, "usage", what, advice)
    }

    /// The outside said no.
    pub(crate) fn refused(code: &str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(ExitCode::Refused, code, what, advice)
    }

    /// Nobody answered, or not in time.
    pub(crate) fn unavailable(
        code: &str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Unavailable, code, what, advice)
    }

    /// An assumption does not hold.
    pub(crate) fn broken(what: impl Into<String>) -> Self {
        let advice =
            "This is a defect of daggerctl or of this machine; please report the text above.";
        Self::new(ExitCode::Broken, "broken", what, advice)
    }

    /// A file could not be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        let what = format!("{}: {error}", path.display());
        Self::new(ExitCode::Refused, "file", what, "Check the path and its permissions.")
    }

    /// Whether it is of the class that may pass by itself.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Told(ExitCode::Unavailable, _))
    }

    /// Whether it carries this stable code.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        matches!(self, Self::Told(_, told) if told.code == code)
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Told(class, _) => *class as u8,
            Self::OutputClosed => 0,
            Self::Found => ExitCode::Found as u8,
            Self::Child(code) => *code,
        }
    }

    /// The text for people; empty when there is nothing to say.
    pub(crate) fn to_text(&self) -> String {
        let Self::Told(_, told) = self else {
            return String::new();
        };
        let mut text = format!("error: {} [{}]", told.what, told.code);
        if let Some(quorum) = &told.quorum {
            let missing: Vec<_> = quorum.missing.iter().map(|name| name.as_str()).collect();
            text.push_str(&format!(
                "\n  quorum: have {}, need {}, missing {}",
                quorum.have,
                quorum.need,
                missing.join(", ")
            ));
        }
        if let Some(rule) = &told.rule {
            text.push_str("\n  the rule: ");
            text.push_str(rule);
        }
        if !told.advice.is_empty() {
            text.push_str("\n  what to do: ");
            text.push_str(&told.advice);
        }
        text
    }

    /// The same as a JSON object.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        let Self::Told(class, told) = self else {
            return None;
        };
        let mut value = serde_json::json!({
            "error": told.what,
            "detail": told.what,
            "code": told.code,
            "advice": told.advice,
            "exit_code": *class as u8,
        });
        if let Some(rule) = &told.rule {
            value["rule"] = rule.as_str().into();
        }
        if let Some(quorum) = &told.quorum {
            value["quorum"] = serde_json::json!(quorum);
        }
        Some(value)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let class = match problem.status {
            503 | 504 | 429 => ExitCode::Unavailable,
            500..=599 => ExitCode::Broken,
            _ => ExitCode::Refused,
        };
        let told = Told {
            code: problem.code,
            what: problem.detail,
            rule: problem.rule,
            advice: problem.advice,
            quorum: problem.quorum,
        };
        Self::Told(class, Box::new(told))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code: RefusalCode = refusal.code;
        let told = Told {
            code: code.as_str().to_owned(),
            what: refusal.detail,
            rule: Some(code.rule().to_owned()),
            advice: code.advice().to_owned(),
            quorum: None,
        };
        Self::Told(ExitCode::Refused, Box::new(told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_what_is_wrong_its_code_and_what_to_do() {
        let mut problem = Problem {
            type_uri: String::new(),
            title: "no quorum".into(),
            status: 503,
            code: "no_quorum".into(),
            detail: "changes need 3 hosts".into(),
            rule: None,
            advice: "Start the missing hosts.".into(),
            quorum: Some(QuorumProblem {
                have: 2,
                need: 3,
                missing: vec!["host3".parse().expect("a name")],
            }),
        };
        let failure = Failure::from(problem.clone());
        assert_eq!(failure.exit_code(), 3);
        let text = failure.to_text();
        for part in [
            "changes need 3 hosts",
            "[no_quorum]",
            "have 2, need 3, missing host3",
            "what to do: Start",
        ] {
            assert!(text.contains(part), "{text}");
        }
        (problem.status, problem.rule) = (422, Some("As agreed.".into()));
        let refused = Failure::from(problem);
        assert_eq!(refused.exit_code(), 1);
        assert!(refused.to_text().contains("\n  the rule: As agreed.\n  what to do: "));
        let own = Failure::from(Refusal::new(RefusalCode::Protected, "web-1 is protected"));
        assert!(own.to_text().contains(RefusalCode::Protected.rule()));
        assert_eq!(own.to_json().expect("told")["rule"], RefusalCode::Protected.rule());
        assert_eq!(Failure::usage("x", "y").exit_code(), 2);
    }
}
