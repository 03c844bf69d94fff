//! The genesis document: who founds a cluster, signed by all of its operators; its digest is the
//! cluster's name.
//!
//! Owns its JSON shape, its checks and its signature file. Never changes after founding. Called by
//! all daemons at start and by `daggerctl cluster`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::committee::Committee;
use crate::id::{AuthorIndex, ClusterId, HostId, OperatorId};
use crate::key::PublicKey;
use crate::limits::{
    COMMIT_BYTES_DEFAULT, COMMIT_BYTES_MAX, COMMIT_BYTES_MIN, GENESIS_BYTES_MAX, MEMBERS_MAX,
};
use crate::name::Name;
use crate::sshsig::{self, Namespace};
use crate::strict_json;

/// Whether payloads are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenesisMode {
    /// Every payload is judged: the only mode that agents join.
    Judged,
    /// Payloads are ordered but not judged; for benchmarks of the ledger alone.
    Opaque,
}

/// An operator: who owns hosts and grants their use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisOperator {
    /// What the operator is called.
    pub name: Name,
    /// The operator's key.
    pub key: PublicKey,
}

/// A founding member: a host whose ledger votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisHost {
    /// What the host is called.
    pub name: Name,
    /// Name of its operator.
    pub operator: Name,
    /// Signs its events and authenticates its links.
    pub ledger_key: PublicKey,
    /// Where its ledger listens, `address:port`.
    pub address: std::net::SocketAddr,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// Version of this shape: 1.
    pub dagger: u64,
    /// 32 random hex digits, so that two clusters of the same members differ.
    pub nonce: String,
    /// What the cluster is called.
    pub name: Name,
    /// Whether payloads are judged.
    pub mode: GenesisMode,
    /// Founding operators.
    pub operators: Vec<GenesisOperator>,
    /// Founding members; a member's index is its place in this list.
    pub hosts: Vec<GenesisHost>,
    /// Rounds behind the committed leader below which events can no longer be ordered.
    pub collection_depth_rounds: u64,
    /// Commits between a decision on membership and the first commit of the next epoch.
    pub handover_distance_commits: u64,
    /// Bytes of payloads in one commit, as they are counted for an event; without it
    /// [`COMMIT_BYTES_DEFAULT`]. The same on every host, whatever version it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_bytes_max: Option<usize>,
}

/// Why a genesis was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// Too large, not strict JSON, or not this shape.
    #[error("the genesis document is malformed: {0}")]
    Malformed(String),
    /// The parts contradict each other.
    #[error("the genesis document contradicts itself: {0}")]
    Inconsistent(String),
    /// A signature block that is none, or by nobody of this document.
    #[error("the genesis signature file: {0}")]
    Signature(String),
    /// An operator's signature is missing.
    #[error("operator {0} has not signed; sign with `ssh-keygen -Y sign -n dagger-genesis`")]
    Unsigned(Name),
}

impl Genesis {
    /// The exact bytes that operators sign.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data always writes");
        bytes.push(b'\n');
        bytes
    }

    /// Reads and checks a document (not its signatures).
    ///
    /// # Errors
    /// [`GenesisError::Malformed`] and [`GenesisError::Inconsistent`].
    pub fn read(bytes: &[u8]) -> Result<Self, GenesisError> {
        if bytes.len() > GENESIS_BYTES_MAX {
            return Err(GenesisError::Malformed("over 256 KiB".to_owned()));
        }
        let malformed = |error: &dyn std::fmt::Display| GenesisError::Malformed(error.to_string());
        let text = strict_json::check(bytes).map_err(|error| malformed(&error))?;
        let genesis: Self = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        genesis.check()?;
        Ok(genesis)
    }

    fn check(&self) -> Result<(), GenesisError> {
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(GenesisError::Inconsistent(what.to_owned())) }
        };
        require(self.dagger == 1, "dagger must be 1")?;
        let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let nonce = self.nonce.len() == 32 && self.nonce.bytes().all(is_hex);
        require(nonce, "nonce must be 32 lower-case hex digits")?;
        require((1..=MEMBERS_MAX).contains(&self.hosts.len()), "1 to 128 hosts")?;
        require(
            (8..=10_000).contains(&self.collection_depth_rounds),
            "collection_depth_rounds must be 8 to 10000",
        )?;
        require(
            (1..=1_000).contains(&self.handover_distance_commits),
            "handover_distance_commits must be 1 to 1000",
        )?;
        require(
            (COMMIT_BYTES_MIN..=COMMIT_BYTES_MAX).contains(&self.commit_bytes_max()),
            "commit_bytes_max must be 20971520 to 33554432",
        )?;
        let operators: BTreeSet<_> = self.operators.iter().map(|operator| &operator.name).collect();
        require(operators.len() == self.operators.len(), "operators' names must differ")?;
        let hosts: BTreeSet<_> = self.hosts.iter().map(|host| &host.name).collect();
        require(hosts.len() == self.hosts.len(), "hosts' names must differ")?;
        let owned = self.hosts.iter().all(|host| operators.contains(&host.operator));
        require(owned, "a host names an operator that is not listed")?;
        let operator_keys = self.operators.iter().map(|operator| &operator.key);
        let keys: BTreeSet<_> =
            operator_keys.chain(self.hosts.iter().map(|host| &host.ledger_key)).collect();
        let count = self.operators.len() + self.hosts.len();
        require(keys.len() == count, "no key may stand twice")
    }

    /// Checks that every operator signed `bytes`. `signatures` is a text of one or more armoured
    /// SSHSIG blocks.
    ///
    /// # Errors
    /// [`GenesisError::Signature`] and [`GenesisError::Unsigned`].
    pub fn check_signatures(&self, bytes: &[u8], signatures: &str) -> Result<(), GenesisError> {
        const END: &str = "-----END SSH SIGNATURE-----";
        let mut signed = BTreeSet::new();
        for block in signatures.split_inclusive(END).map(str::trim).filter(|b| !b.is_empty()) {
            let read = sshsig::from_armor(block, Namespace::Genesis)
                .map_err(|error| GenesisError::Signature(error.to_string()))?;
            if !sshsig::verifies(&read.signer, Namespace::Genesis, bytes, &read.signature) {
                let detail = format!("{} did not sign this document", read.signer);
                return Err(GenesisError::Signature(detail));
            }
            signed.insert(read.signer);
        }
        match self.operators.iter().find(|operator| !signed.contains(&operator.key)) {
            Some(operator) => Err(GenesisError::Unsigned(operator.name.clone())),
            None => Ok(()),
        }
    }

    /// Reads a document and checks it with its signatures: what daemons do at start.
    ///
    /// # Errors
    /// Any [`GenesisError`].
    pub fn read_signed(bytes: &[u8], signatures: &str) -> Result<(Self, ClusterId), GenesisError> {
        let genesis = Self::read(bytes)?;
        genesis.check_signatures(bytes, signatures)?;
        Ok((genesis, ClusterId::of(bytes)))
    }

    /// The founding committee.
    pub fn committee(&self) -> Committee {
        Committee::new(self.hosts.len()).expect("checked when read")
    }

    /// Bytes of payloads in one commit.
    pub fn commit_bytes_max(&self) -> usize {
        self.commit_bytes_max.unwrap_or(COMMIT_BYTES_DEFAULT)
    }

    /// The member at `author`.
    pub fn host(&self, author: AuthorIndex) -> Option<&GenesisHost> {
        self.hosts.get(usize::from(author.0))
    }

    /// The index of the member whose ledger key is `key`.
    pub fn author_of(&self, key: &PublicKey) -> Option<AuthorIndex> {
        let at = self.hosts.iter().position(|host| host.ledger_key == *key)?;
        u16::try_from(at).ok().map(AuthorIndex)
    }
}

impl GenesisHost {
    /// The host's id.
    pub fn id(&self) -> HostId {
        HostId::of(&self.ledger_key)
    }
}

impl GenesisOperator {
    /// The operator's id.
    pub fn id(&self) -> OperatorId {
        OperatorId::of(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;
    use zeroize::Zeroizing;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([byte; 32]))
    }

    fn genesis() -> Genesis {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test"),
            mode: GenesisMode::Judged,
            operators: vec![GenesisOperator { name: name("op1"), key: key(1).public_key() }],
            hosts: vec![GenesisHost {
                name: name("host1"),
                operator: name("op1"),
                ledger_key: key(2).public_key(),
                address: "127.0.0.1:7400".parse().expect("an address"),
            }],
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        }
    }

    #[test]
    fn a_genesis_counts_only_with_every_operators_signature_over_its_bytes() {
        let bytes = genesis().to_bytes();
        let sign = |key: &SecretKey| {
            let signature = sshsig::sign(key, Namespace::Genesis, &bytes);
            sshsig::to_armor(&key.public_key(), Namespace::Genesis, &signature)
        };
        assert!(Genesis::read_signed(&bytes, &sign(&key(1))).is_ok());
        let by_stranger = Genesis::read_signed(&bytes, &sign(&key(3)));
        assert_eq!(
            by_stranger.expect_err("refused"),
            GenesisError::Unsigned(genesis().operators[0].name.clone())
        );
        let mut other = bytes.clone();
        other.pop();
        assert!(matches!(
            Genesis::read_signed(&other, &sign(&key(1))),
            Err(GenesisError::Signature(_))
        ));
    }

    #[test]
    fn how_large_a_commit_is_stands_in_the_genesis_or_is_what_it_always_was_and_has_a_range() {
        let unsaid = genesis();
        let bytes = unsaid.to_bytes();
        assert!(!String::from_utf8_lossy(&bytes).contains("commit_bytes_max"));
        assert_eq!(Genesis::read(&bytes).expect("reads").commit_bytes_max(), 24 << 20);
        for (said, is_taken) in [
            (COMMIT_BYTES_MIN - 1, false),
            (COMMIT_BYTES_MIN, true),
            (24 << 20, true),
            (COMMIT_BYTES_MAX, true),
            (COMMIT_BYTES_MAX + 1, false),
        ] {
            let genesis = Genesis { commit_bytes_max: Some(said), ..genesis() };
            let read = Genesis::read(&genesis.to_bytes());
            assert_eq!(read.as_ref().ok(), Some(&genesis).filter(|_| is_taken), "{said}");
            if let Err(error) = read {
                let range = format!("{COMMIT_BYTES_MIN} to {COMMIT_BYTES_MAX}");
                assert!(error.to_string().contains(&range), "{error}");
            }
        }
    }

    #[test]
    fn a_genesis_that_contradicts_itself_is_refused() {
        let mut twice = genesis();
        twice.hosts.push(twice.hosts[0].clone());
        assert!(Genesis::read(&twice.to_bytes()).is_err());
        let mut foreign = genesis();
        foreign.hosts[0].operator = "op2".parse().expect("a name");
        assert!(Genesis::read(&foreign.to_bytes()).is_err());
    }
}
