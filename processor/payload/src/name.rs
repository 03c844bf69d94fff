//! Names that people type: lower-case ASCII, so that no two that look alike differ.
//!
//! Owns their grammar and their limits. A name is written once in memory, however many objects
//! carry it. Never resolves a name. Called by payload parsing, API and command line.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::{
    COMMAND_LINE_BYTES_MAX, IMAGE_SOURCE_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX,
    SSH_KEY_LINE_BYTES_MAX,
};

/// A text that breaks the grammar of what it should name; the message says the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseNameError(pub &'static str);

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|c| plain(c) || *c == b'-')
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(ParseNameError($rule)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                encoder.str(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                decoder: &mut minicbor::Decoder<'b>,
                _: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                decoder.str()?.parse().map_err(|_| minicbor::decode::Error::message($rule))
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                string_schema("", $rule)
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::ToSchema for $name {}
    };
}

text_newtype!(
    /// Name of a VM, host, operator, region or cluster: the grammar of one DNS label.
    Name,
    is_label,
    "a name is 1 to 63 of a-z, 0-9 and '-', and starts and ends with a letter or digit"
);
text_newtype!(
    /// Name of an image: `publisher/name`, both with the grammar of a [`Name`], dots allowed in the
    /// second.
    ImageName,
    |text| text.split_once('/').is_some_and(|(publisher, name)| {
        is_label(publisher) && name.len() <= 63 && name.split('.').all(is_label)
    }),
    "an image is called publisher/name, both of a-z, 0-9 and '-'; the second may have dots"
);
impl ImageName {
    /// The part before the slash.
    pub fn publisher(&self) -> &str {
        self.0.split_once('/').map_or("", |(publisher, _)| publisher)
    }
}

text_newtype!(
    /// Value of a label: printable ASCII, at most 128 bytes.
    LabelValue,
    |text| text.len() <= LABEL_VALUE_BYTES_MAX && text.bytes().all(|c| (b' '..=b'~').contains(&c)),
    "a label value is at most 128 printable ASCII characters"
);
text_newtype!(
    /// What a kernel is told at its start: one line of printable ASCII, at most 2047 bytes.
    CommandLine,
    |text| {
        (1..=COMMAND_LINE_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|c| (b' '..=b'~').contains(&c))
    },
    "a command line is 1 to 2047 printable ASCII characters"
);
text_newtype!(
    /// One line of an `authorized_keys` file without options: type, base64, perhaps a comment.
    SshKeyLine,
    is_ssh_key_line,
    "an SSH key is one line: its type (ssh-ed25519, ecdsa-..., sk-..., ssh-rsa), base64, a comment"
);
text_newtype!(
    /// Where an image may be fetched from: an `https://` address or the absolute path of a local
    /// file.
    ImageSource,
    |text| {
        text.len() <= IMAGE_SOURCE_BYTES_MAX
            && text.bytes().all(|c| (b'!'..=b'~').contains(&c))
            && (text.starts_with("https://") || text.starts_with('/'))
    },
    "an image source is an https:// address or an absolute path, in printable ASCII without spaces"
);

fn is_ssh_key_line(text: &str) -> bool {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let base64 = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=');
    let mut fields = text.splitn(3, ' ');
    text.len() <= SSH_KEY_LINE_BYTES_MAX
        && text.bytes().all(|c| (b' '..=b'~').contains(&c))
        && fields.next().is_some_and(|kind| TYPES.contains(&kind))
        && fields.next().is_some_and(|key| key.len() >= 32 && key.bytes().all(base64))
}

/// Labels of an object; the number is checked by [`labels_are_within_limits`].
pub type Labels = BTreeMap<Name, LabelValue>;

/// Whether `labels` are few enough.
pub fn labels_are_within_limits(labels: &Labels) -> bool {
    labels.len() <= LABELS_MAX
}

/// An OpenAPI string with an optional pattern and a description.
#[cfg(feature = "schema")]
pub(crate) fn string_schema(
    pattern: &str,
    description: &str,
) -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    let pattern = (!pattern.is_empty()).then(|| pattern.to_owned());
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(pattern)
        .description(Some(description))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_lower_case_ascii_are_refused() {
        for text in ["", "Web", "wéb", "-web", "web-", "a_b", "a.b", &"x".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was accepted");
        }
        assert!("web-1".parse::<Name>().is_ok());
        assert!("debian/debian-12.5".parse::<ImageName>().is_ok());
        assert!("debian".parse::<ImageName>().is_err());
    }

    #[test]
    fn an_ssh_key_line_with_a_line_break_or_options_is_refused() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000 me";
        assert!(key.parse::<SshKeyLine>().is_ok());
        assert!(format!("{key}\nssh-rsa A").parse::<SshKeyLine>().is_err());
        assert!(format!("command=\"x\" {key}").parse::<SshKeyLine>().is_err());
    }
}
