//! Images that have to come from elsewhere: one download for all VMs that wait for it.
//!
//! Owns which images are fetched, from where, and when again: a few at a time, the others when one
//! has ended; after a failure not before a wait that doubles. What was fetched is believed only
//! when the step that makes sure of the image finds it. Decides nothing about a VM but that it
//! waits. Called by the controller only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dagger_api::IMAGE_ENDPOINT_LABEL;
use dagger_payload::id::{HostId, ImageDigest, VmId};
use dagger_payload::name::{ImageSource, Name};
use dagger_payload::object::{Host, HostDuty, Wanted};

use super::limits::{FETCH_HOSTS_MAX, FETCH_WAIT_FIRST, FETCH_WAIT_MAX, FETCHES_TOGETHER_MAX};
use super::{Controller, Monotonic, Output, Step};

/// One image to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchJob {
    /// Which.
    pub image: ImageDigest,
    /// The most bytes that it may have.
    pub size_bytes: u64,
    /// Where it may be had, in this order.
    pub places: Vec<FetchPlace>,
}

/// A place from where an image may be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchPlace {
    /// Another host of the cluster.
    Host {
        /// Which.
        host: HostId,
        /// What it is called.
        name: Name,
        /// Where it serves images, by its operator's word.
        address: SocketAddr,
    },
    /// An `https://` address.
    Https(ImageSource),
}

/// How fetching an image ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is in the store.
    Here,
    /// Not now; the reason begins with a stable code and a colon.
    Unavailable(String),
    /// What the places have is not what was registered.
    Refused(String),
    /// It was stopped because nobody needed it.
    Stopped,
}

/// What is known of fetching.
#[derive(Debug, Default, Clone)]
pub(super) struct Fetches {
    /// Where other hosts serve images.
    endpoints: BTreeMap<HostId, (Name, SocketAddr)>,
    /// What is fetched now.
    running: BTreeMap<ImageDigest, Run>,
    /// What did not work, until it does.
    failed: BTreeMap<ImageDigest, Failed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Wanted,
    Stopping,
}

#[derive(Debug, Clone)]
struct Failed {
    tries: u32,
    not_before: Monotonic,
    reason: String,
}

/// What is to be done for an image that is missing.
enum Next {
    Begin,
    Wait(&'static str),
    Later(Monotonic, String),
}

impl Fetches {
    /// Takes the new version of another host.
    pub(super) fn take_host(&mut self, host: &Host) {
        let label = host.labels.iter().find(|(name, _)| name.as_str() == IMAGE_ENDPOINT_LABEL);
        let address = label.and_then(|(_, value)| value.as_str().parse().ok());
        match (address, host.duty) {
            (Some(address), HostDuty::Open | HostDuty::Draining) => {
                self.endpoints.insert(host.id, (host.name.clone(), address));
            }
            (None, _) | (_, HostDuty::Left) => {
                self.endpoints.remove(&host.id);
            }
        }
    }

    fn next(&self, now: Monotonic, image: ImageDigest) -> Next {
        if self.running.contains_key(&image) {
            return Next::Wait("image_coming: it is being fetched");
        }
        match self.failed.get(&image) {
            Some(failed) if failed.not_before > now => {
                Next::Later(failed.not_before, failed.reason.clone())
            }
            _ if self.running.len() >= FETCHES_TOGETHER_MAX => {
                Next::Wait("image_coming: other images are fetched first")
            }
            _ => Next::Begin,
        }
    }

    /// Hosts that may have the image, in an order of its own for each image, others with each try.
    fn hosts(&self, image: ImageDigest) -> impl Iterator<Item = FetchPlace> {
        let distance = |host: &HostId| -> [u8; 16] {
            std::array::from_fn(|index| host.0[index] ^ image.0[index])
        };
        let mut hosts: Vec<_> = self.endpoints.iter().collect();
        hosts.sort_by_key(|(host, _)| distance(host));
        let tries = self.failed.get(&image).map_or(0, |failed| failed.tries as usize);
        if !hosts.is_empty() {
            let begin = tries.wrapping_mul(FETCH_HOSTS_MAX) % hosts.len();
            hosts.rotate_left(begin);
        }
        hosts.into_iter().take(FETCH_HOSTS_MAX).map(|(host, (name, address))| FetchPlace::Host {
            host: *host,
            name: name.clone(),
            address: *address,
        })
    }

    /// Takes the end of a download; when it may be tried again.
    fn end(&mut self, now: Monotonic, image: ImageDigest, fetched: &Fetched) -> Monotonic {
        self.running.remove(&image);
        match fetched {
            Fetched::Here => {
                self.failed.remove(&image);
                now
            }
            Fetched::Stopped => now,
            Fetched::Unavailable(reason) | Fetched::Refused(reason) => {
                let tries = self.failed.get(&image).map_or(1, |failed| failed.tries + 1);
                let doubled = FETCH_WAIT_FIRST * 2_u32.saturating_pow((tries - 1).min(16));
                let not_before = now.plus(doubled.min(FETCH_WAIT_MAX));
                self.failed.insert(image, Failed { tries, not_before, reason: reason.clone() });
                not_before
            }
        }
    }
}

impl Controller {
    /// A VM's image is not here: it waits until that is fetched.
    pub(super) fn await_image(
        &mut self,
        now: Monotonic,
        (vm, image): (VmId, ImageDigest),
        outputs: &mut Vec<Output>,
    ) {
        let next = self.fetches.next(now, image);
        let places = if matches!(next, Next::Begin) { self.places(image) } else { Vec::new() };
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        match next {
            Next::Wait(reason) => entry.reason = Some(reason.to_owned()),
            Next::Later(at, reason) => {
                entry.missing_image = None;
                entry.fail_until(at, Step::Image, reason);
                self.advance(now, vm, outputs);
            }
            Next::Begin if places.is_empty() => {
                // There is nothing to wait for but that somebody brings it.
                if let Some((_, reason)) = entry.missing_image.take() {
                    entry.fail(now, Step::Image, reason);
                }
                self.advance(now, vm, outputs);
            }
            Next::Begin => {
                entry.reason = Some("image_coming: it is being fetched".to_owned());
                self.fetches.running.insert(image, Run::Wanted);
                let size_bytes = self.sources.size_bytes(&image);
                outputs.push(Output::Fetch(Box::new(FetchJob { image, size_bytes, places })));
            }
        }
    }

    fn places(&self, image: ImageDigest) -> Vec<FetchPlace> {
        let https = self.sources.of(&image).into_iter();
        let https = https.filter(|source| source.as_str().starts_with("https://"));
        self.fetches.hosts(image).chain(https.map(FetchPlace::Https)).collect()
    }

    /// A download ended: those that wait for it go on, and so do those that wait for its place.
    pub(super) fn take_fetched(
        &mut self,
        now: Monotonic,
        image: ImageDigest,
        fetched: &Fetched,
        outputs: &mut Vec<Output>,
    ) {
        let not_before = self.fetches.end(now, image, fetched);
        let waiting: Vec<_> = self.awaiting().collect();
        for (vm, awaited) in waiting {
            let Some(entry) = self.entries.get_mut(&vm) else { continue };
            if awaited == image {
                entry.missing_image = None;
                match fetched {
                    // What is here now is looked at by the step itself.
                    Fetched::Here | Fetched::Stopped => {}
                    Fetched::Unavailable(reason) => {
                        entry.fail_until(not_before, Step::Image, reason.clone());
                    }
                    Fetched::Refused(reason) => entry.give_up(Step::Image, reason.clone()),
                }
            }
            self.advance(now, vm, outputs);
        }
    }

    /// Which VMs wait for which image.
    fn awaiting(&self) -> impl Iterator<Item = (VmId, ImageDigest)> {
        self.entries.iter().filter_map(|(vm, entry)| {
            let (image, _) = entry.missing_image.as_ref()?;
            let wanted = entry.wanted.as_ref()?;
            (wanted.vm.wanted != Wanted::Deleted).then_some((*vm, *image))
        })
    }

    /// Stops what nobody waits for any more.
    pub(super) fn stop_needless_fetches(&mut self, outputs: &mut Vec<Output>) {
        if self.fetches.running.is_empty() {
            return;
        }
        let awaited: BTreeSet<_> = self.awaiting().map(|(_, image)| image).collect();
        for (image, run) in &mut self.fetches.running {
            if *run == Run::Wanted && !awaited.contains(image) {
                *run = Run::Stopping;
                outputs.push(Output::StopFetching(*image));
            }
        }
    }
}
