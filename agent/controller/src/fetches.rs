//! Images that have to come from elsewhere: one download for all VMs that wait for it.
//!
//! Owns which images are fetched, from where, and when again: a few at a time, the others when one
//! has ended; after a failure not before a wait that doubles. What was fetched is believed only
//! when the step that makes sure of the image finds it. Decides nothing about a VM but that it
//! waits. Called by the controller only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dagger_api::IMAGE_ENDPOINT_LABEL;
use dagger_payload::id::{AccountId, HostId, ImageDigest, VmId};
use dagger_payload::kind::{ImageFormat, VmImage};
use dagger_payload::name::{ImageSource, Name};
use dagger_payload::object::{Host, HostDuty, Wanted};

use super::limits::{
    FETCH_HOSTS_MAX, FETCH_WAIT_FIRST, FETCH_WAIT_MAX, FETCHES_PER_ACCOUNT_MAX,
    FETCHES_TOGETHER_MAX, QCOW2_BYTES_MORE_MAX,
};
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

/// A download that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The most bytes that it may bring.
    size_bytes: u64,
    /// For whose VM it was begun: what one account has fetched keeps no other from it.
    account: AccountId,
    state: RunState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Wanted,
    Stopping,
}

#[derive(Debug, Clone)]
struct Failed {
    tries: u32,
    not_before: Monotonic,
    reason: String,
    /// Whether something of it may lie here, for the next try to go on with.
    is_kept: bool,
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

    fn next(&self, now: Monotonic, image: ImageDigest, account: AccountId) -> Next {
        if self.running.contains_key(&image) {
            return Next::Wait("image_coming: it is being fetched");
        }
        match self.failed.get(&image) {
            Some(failed) if failed.not_before > now => {
                Next::Later(failed.not_before, failed.reason.clone())
            }
            _ if self.has_no_place(account) => {
                Next::Wait("image_coming: other images are fetched first")
            }
            _ => Next::Begin,
        }
    }

    fn has_no_place(&self, account: AccountId) -> bool {
        let own = self.running.values().filter(|run| run.account == account).count();
        own >= FETCHES_PER_ACCOUNT_MAX || self.running.len() >= FETCHES_TOGETHER_MAX
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
            // Where all are asked each time, another one goes first.
            let step = if hosts.len() > FETCH_HOSTS_MAX { FETCH_HOSTS_MAX } else { 1 };
            let begin = tries.wrapping_mul(step) % hosts.len();
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
                let (reason, is_kept) =
                    (reason.clone(), matches!(fetched, Fetched::Unavailable(_)));
                self.failed.insert(image, Failed { tries, not_before, reason, is_kept });
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
        let wanted = self.entries.get(&vm).and_then(|entry| entry.wanted.as_ref());
        let Some(account) = wanted.map(|wanted| wanted.vm.account) else { return };
        let next = self.fetches.next(now, image, account);
        let places = if matches!(next, Next::Begin) { self.places(image) } else { Vec::new() };
        let size_bytes = self.size_bytes_wanted(image);
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
                let run = Run { size_bytes, account, state: RunState::Wanted };
                self.fetches.running.insert(image, run);
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
        let run = self.fetches.running.remove(&image);
        let not_before = self.fetches.end(now, image, fetched);
        let waiting: Vec<_> = self.awaiting().collect();
        for (vm, awaited) in waiting {
            let size_bytes = self.size_bytes_for(vm, awaited);
            let Some(entry) = self.entries.get_mut(&vm) else { continue };
            if awaited == image {
                entry.missing_image = None;
                // It was fetched for others, to whom less of it was allowed.
                let may_be_larger = run.is_some_and(|run| run.size_bytes < size_bytes);
                match fetched {
                    // What is here now is looked at by the step itself.
                    Fetched::Here | Fetched::Stopped => {}
                    Fetched::Unavailable(reason) => {
                        entry.fail_until(not_before, Step::Image, reason.clone());
                    }
                    Fetched::Refused(reason) if may_be_larger => {
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

    /// The most bytes of an image that is fetched for those who wait for it.
    fn size_bytes_wanted(&self, image: ImageDigest) -> u64 {
        let waiting = self.awaiting().filter(|(_, awaited)| *awaited == image);
        waiting.map(|(vm, _)| self.size_bytes_for(vm, image)).max().unwrap_or_default()
    }

    /// The most bytes of an image that is fetched for this VM: what was registered, but no more
    /// than fits the disk that it is judged by.
    fn size_bytes_for(&self, vm: VmId, image: ImageDigest) -> u64 {
        let wanted = self.entries.get(&vm).and_then(|entry| entry.wanted.as_ref());
        let mut images = wanted.into_iter().flat_map(|wanted| wanted.vm.images());
        let used = images.find(|used| used.digest == image);
        used.map_or(0, file_bytes_max).min(self.sources.size_bytes(&image))
    }

    /// Stops what nobody waits for any more, and has removed what came of that earlier.
    pub(super) fn stop_needless_fetches(&mut self, now: Monotonic, outputs: &mut Vec<Output>) {
        let fetches = &self.fetches;
        if fetches.running.is_empty() && fetches.failed.is_empty() {
            return;
        }
        let awaited: BTreeSet<_> = self.awaiting().map(|(_, image)| image).collect();
        for (image, run) in &mut self.fetches.running {
            if run.state == RunState::Wanted && !awaited.contains(image) {
                run.state = RunState::Stopping;
                outputs.push(Output::StopFetching(*image));
            }
        }
        let wanted = self.entries.values().filter_map(|entry| entry.wanted.as_ref());
        let wanted = wanted.filter(|wanted| wanted.vm.wanted != Wanted::Deleted);
        let needed: BTreeSet<_> =
            wanted.flat_map(|wanted| wanted.vm.images()).map(|image| image.digest).collect();
        let Fetches { running, failed, .. } = &mut self.fetches;
        failed.retain(|image, failed| {
            if needed.contains(image) || running.contains_key(image) {
                return true;
            }
            if std::mem::take(&mut failed.is_kept) {
                outputs.push(Output::DiscardFetched(*image));
            }
            // Whoever asks for it anew does not ask too soon.
            failed.not_before > now
        });
    }
}

/// The most bytes that the file of an image may have whose contents take so many: a qcow2 file has
/// tables besides, which with the smallest clusters are a thirty-second part.
fn file_bytes_max(image: &VmImage) -> u64 {
    let bytes = image.virtual_size_bytes;
    match image.format {
        ImageFormat::Qcow2 => bytes.saturating_add(bytes / 16).saturating_add(QCOW2_BYTES_MORE_MAX),
        ImageFormat::Raw | ImageFormat::Kernel | ImageFormat::Initrd => bytes,
    }
}
