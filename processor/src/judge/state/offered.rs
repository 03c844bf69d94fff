//! Which files publishers offer: whether a new VM may be made of one takes one search.
//!
//! Owns that names do not count: whoever gives a file a thousand of them, or names it with a
//! thousand sizes, makes nobody's search longer. Decides nothing. Kept in step by the state; read
//! by the rules of VMs.

use std::collections::BTreeMap;
use std::ops::Bound;

use dagger_payload::id::ImageDigest;
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{ImageFormat, VmImage};
use dagger_payload::object::{Image, ImageStatus};

use super::KeyBytes;

/// A file as a publisher offers it. By publisher and format, so that those of one stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Offer {
    digest: ImageDigest,
    publisher: KeyBytes,
    format: ImageFormat,
    virtual_size_bytes: u64,
}

impl Offer {
    fn of(image: &Image) -> Self {
        Self {
            digest: image.digest,
            publisher: KeyBytes::from(&image.publisher),
            format: image.format,
            virtual_size_bytes: image.virtual_size_bytes,
        }
    }
}

/// All that is offered, and under how many names.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    names: BTreeMap<Offer, usize>,
}

#[cfg(test)]
thread_local! {
    /// How many searches were made.
    static SEARCHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn count_search() {
    #[cfg(test)]
    SEARCHED.set(SEARCHED.get() + 1);
}

impl Offered {
    /// Takes in the present version of a name; one that is retired offers nothing.
    pub(super) fn add(&mut self, image: &Image) {
        if image.status == ImageStatus::Offered {
            *self.names.entry(Offer::of(image)).or_default() += 1;
        }
    }

    /// Takes out the version of a name that was present before.
    pub(super) fn remove(&mut self, image: &Image) {
        let offer = Offer::of(image);
        if image.status == ImageStatus::Offered
            && let Some(names) = self.names.get_mut(&offer)
        {
            *names -= 1;
            if *names == 0 {
                self.names.remove(&offer);
            }
        }
    }

    /// Whether `publisher` offers the file exactly as `named` says.
    pub(crate) fn has(&self, named: &VmImage, publisher: &PublicKey) -> bool {
        count_search();
        self.names.contains_key(&Offer {
            digest: named.digest,
            publisher: KeyBytes::from(publisher),
            format: named.format,
            virtual_size_bytes: named.virtual_size_bytes,
        })
    }

    /// In which formats `publisher` offers the file with this digest, each once. One search for
    /// each steps over all its sizes.
    pub(crate) fn formats(
        &self,
        digest: &ImageDigest,
        publisher: &PublicKey,
    ) -> impl Iterator<Item = ImageFormat> {
        let (digest, publisher) = (*digest, KeyBytes::from(publisher));
        // Before all others.
        let first = Offer { digest, publisher, format: ImageFormat::Raw, virtual_size_bytes: 0 };
        let mut from = Bound::Included(first);
        std::iter::from_fn(move || {
            count_search();
            let (next, _) = self.names.range((from, Bound::Unbounded)).next()?;
            if (next.digest, next.publisher) != (digest, publisher) {
                return None;
            }
            from = Bound::Excluded(Offer { virtual_size_bytes: u64::MAX, ..*next });
            Some(next.format)
        })
    }
}

#[cfg(test)]
mod tests;
