//! The processor's configuration file, and the genesis that it names.
//!
//! Owns the file's shape and its reading, which is all done before the sandbox closes. Called by
//! `main`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dagger_payload::genesis::{Genesis, GenesisMode};
use dagger_payload::id::ClusterId;
use serde::Deserialize;

/// `processor.toml`. Relative paths count from the file's own directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The genesis document.
    pub genesis: PathBuf,
    /// Its signatures.
    pub genesis_signatures: PathBuf,
    /// What is logged: a filter of tracing, such as `info`.
    #[serde(default = "default_log")]
    pub log: String,
    /// Where to listen when no socket was handed over.
    #[serde(default)]
    pub sockets: Sockets,
}

/// Paths of the sockets that the processor binds when none is handed over.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// For the ledger.
    pub ledger: Option<PathBuf>,
    /// For the agent, who fetches the seal key here.
    pub seal: Option<PathBuf>,
}

fn default_log() -> String {
    "info".to_owned()
}

impl Configuration {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, or has an unknown key.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let mut configuration: Self = toml::from_str(&text)
            .with_context(|| format!("the configuration {} is refused", path.display()))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        for path in [&mut configuration.genesis, &mut configuration.genesis_signatures]
            .into_iter()
            .chain(&mut configuration.sockets.ledger)
            .chain(&mut configuration.sockets.seal)
        {
            *path = directory.join(&*path);
        }
        Ok(configuration)
    }

    /// Reads the genesis and checks every operator's signature.
    ///
    /// # Errors
    /// It cannot be read, contradicts itself, is not signed, or is not for judging.
    pub fn read_genesis(&self) -> anyhow::Result<(Genesis, ClusterId)> {
        let bytes = std::fs::read(&self.genesis)
            .with_context(|| format!("cannot read {}", self.genesis.display()))?;
        let signatures = std::fs::read_to_string(&self.genesis_signatures)
            .with_context(|| format!("cannot read {}", self.genesis_signatures.display()))?;
        let (genesis, cluster) = Genesis::read_signed(&bytes, &signatures)?;
        match genesis.mode {
            GenesisMode::Judged => Ok((genesis, cluster)),
            GenesisMode::Opaque => {
                anyhow::bail!("the genesis has mode `opaque`: there is nothing to judge")
            }
        }
    }
}
