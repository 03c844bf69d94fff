//! Where each registered image's file may be had.
//!
//! Owns the merge: several names may stand for one file, and each names places of its own. None
//! takes away what another says; a name that is retired, or given to another file, takes its own
//! places with it. The order is that of registration, so that nobody can push the places of an
//! earlier name behind the maximum. Called by the controller only.

use std::collections::BTreeMap;

use dagger_payload::id::ImageDigest;
use dagger_payload::name::{ImageName, ImageSource};
use dagger_payload::object::{Image, ImageStatus};

use super::limits::IMAGE_SOURCES_TRIED_MAX;

/// One name's places.
type Registration = (ImageName, Vec<ImageSource>);

/// The places of all images.
#[derive(Debug, Default, Clone)]
pub(super) struct Sources {
    /// Which file each offered name stands for.
    names: BTreeMap<ImageName, ImageDigest>,
    /// By file, in order of registration.
    places: BTreeMap<ImageDigest, Vec<Registration>>,
    /// The largest size that any name gave a file, also one that is retired now: its VMs stay. The
    /// digest says what is in it.
    sizes: BTreeMap<ImageDigest, u64>,
}

impl Sources {
    /// Takes the new version of a registered image.
    pub(super) fn take(&mut self, image: Image) {
        let size = self.sizes.entry(image.digest).or_default();
        *size = image.size_bytes.max(*size);
        let is_same = self.names.get(&image.name) == Some(&image.digest);
        if !is_same || image.status == ImageStatus::Retired {
            self.forget(&image.name);
        }
        if image.status == ImageStatus::Retired {
            return;
        }
        self.names.insert(image.name.clone(), image.digest);
        let registrations = self.places.entry(image.digest).or_default();
        match registrations.iter_mut().find(|(name, _)| *name == image.name) {
            Some((_, sources)) => *sources = image.sources,
            None => registrations.push((image.name, image.sources)),
        }
    }

    fn forget(&mut self, name: &ImageName) {
        let Some(digest) = self.names.remove(name) else { return };
        let Some(registrations) = self.places.get_mut(&digest) else { return };
        registrations.retain(|(other, _)| other != name);
        if registrations.is_empty() {
            self.places.remove(&digest);
        }
    }

    /// The most bytes that the file may have.
    pub(super) fn size_bytes(&self, digest: &ImageDigest) -> u64 {
        self.sizes.get(digest).copied().unwrap_or_default()
    }

    /// The places of one file, each once, at most [`IMAGE_SOURCES_TRIED_MAX`].
    pub(super) fn of(&self, digest: &ImageDigest) -> Vec<ImageSource> {
        let mut merged = Vec::new();
        let all = self.places.get(digest).into_iter().flatten();
        for source in all.flat_map(|(_, sources)| sources) {
            if merged.len() == IMAGE_SOURCES_TRIED_MAX {
                break;
            }
            if !merged.contains(source) {
                merged.push(source.clone());
            }
        }
        merged
    }
}
