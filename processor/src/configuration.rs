//! The processor's configuration file, and the genesis that it names.
//!
//! Owns the file's shape and its reading, which is all done before the sandbox closes. Called by
//! `main`.

use std::path::{Path, PathBuf};

use dagger_bus::setup::{self, SetupError};
use dagger_payload::genesis::Genesis;
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
    pub fn read(path: &Path) -> Result<Self, SetupError> {
        let mut configuration: Self = setup::read_configuration(path)?;
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
    pub fn read_genesis(&self) -> Result<(Genesis, ClusterId), SetupError> {
        setup::read_judged_genesis(&self.genesis, &self.genesis_signatures)
    }
}
