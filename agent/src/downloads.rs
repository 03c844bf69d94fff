//! Carries out downloads of images, each in a helper of its own that has the network.
//!
//! Owns the conversations with `dagger-fetch`: what it is asked, how far it has come, which places
//! have not served and are asked last, and the copy into the store of what it fetched. Never
//! decides what is fetched or when: the controller does. What was fetched stays where it is when
//! the agent ends, and the next try goes on there.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dagger_api::ImageDownload;
use dagger_images::fetch::{
    AddressRange, FetchCode, FetchNews, FetchProblem, FetchRequest, FetchSource,
};
use dagger_images::limits::IMAGE_FILE_BYTES_MAX;
use dagger_images::{Claim, ImageError, ImageStore, Incoming};
use dagger_payload::id::ImageDigest;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::actuator::store::StoredDisks;
use crate::controller::{FetchJob, FetchPlace, Fetched, Input};
use crate::handover::{Introduction, SightBoard};
use crate::limits::{DOWNLOAD_DOUBTED_MAX, DOWNLOAD_STALL_WAIT_MAX, DOWNLOAD_WORD_WAIT_MAX};
use crate::observation::Observation;
use crate::one_shot::{Conversation, HelperConfiguration, OneShot};

const NOT_REMOVED: &str = "what was fetched of an image cannot be removed";

/// What downloads on this host rest on.
#[derive(Debug, Clone, Default)]
pub struct DownloadConfiguration {
    /// Addresses that may be asked although they are private, link-local or loopback.
    pub networks: Vec<AddressRange>,
    /// How the helper is started.
    pub helpers: HelperConfiguration,
    /// Lets this host read at others.
    pub introduction: Introduction,
}

/// The downloads of one host.
pub(crate) struct Downloads {
    parts: Arc<Parts>,
    running: BTreeMap<ImageDigest, CancellationToken>,
}

struct Parts {
    configuration: DownloadConfiguration,
    helper: OneShot,
    store: Arc<ImageStore>,
    board: SightBoard,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
    doubted: Mutex<Doubted>,
}

/// Places that did not serve, the last one last: others are asked first.
#[derive(Debug, Default)]
struct Doubted(VecDeque<FetchPlace>);

impl Doubted {
    fn doubt(&mut self, place: &FetchPlace) {
        self.trust(place);
        self.0.push_back(place.clone());
        if self.0.len() > DOWNLOAD_DOUBTED_MAX {
            self.0.pop_front();
        }
    }

    fn trust(&mut self, place: &FetchPlace) {
        self.0.retain(|other| other != place);
    }

    /// Those that nobody doubts, in their order, and the others after them: who did not serve last,
    /// last.
    fn sort(&self, places: &mut [FetchPlace]) {
        places.sort_by_key(|place| self.0.iter().position(|other| other == place));
    }
}

impl Downloads {
    /// None yet; they fill the store of `disks`, and tell those whom the observation tells.
    pub(crate) fn new(
        configuration: DownloadConfiguration,
        disks: &StoredDisks,
        observation: &Observation,
        stop: &CancellationToken,
    ) -> Self {
        let parts = Parts {
            helper: OneShot::new("fetch", &configuration.helpers),
            configuration,
            store: disks.image_store(),
            board: observation.board.clone(),
            inputs: observation.inputs.clone(),
            stop: stop.clone(),
            doubted: Mutex::default(),
        };
        Self { parts: Arc::new(parts), running: BTreeMap::new() }
    }

    /// Begins a download; its end comes as [`Input::Fetched`].
    pub(crate) fn begin(&mut self, mut job: FetchJob) {
        self.parts.doubted().sort(&mut job.places);
        self.running.retain(|_, needless| !needless.is_cancelled());
        let needless = CancellationToken::new();
        self.running.insert(job.image, needless.clone());
        tracing::info!(image = %job.image, places = job.places.len(), "fetching an image");
        let parts = Arc::clone(&self.parts);
        tokio::spawn(async move {
            let image = job.image;
            let fetched = tokio::select! {
                fetched = parts.fetch(&job) => fetched,
                () = needless.cancelled() => parts.discard(image).await,
                () = parts.stop.cancelled() => return,
            };
            match &fetched {
                Fetched::Here => tracing::info!(%image, "fetched an image"),
                Fetched::Stopped => tracing::info!(%image, "stopped fetching an image"),
                Fetched::Unavailable(reason) | Fetched::Refused(reason) => {
                    tracing::warn!(%image, %reason, "an image was not fetched");
                }
            }
            parts.board.update(|contents| drop(contents.downloads.remove(&image)));
            // The half that does not listen any more is stopping.
            drop(parts.inputs.send(Input::Fetched(image, fetched)).await);
        });
    }

    /// Removes what an earlier try has left of an image that nobody needs any more.
    pub(crate) fn discard(&self, image: ImageDigest) {
        let store = Arc::clone(&self.parts.store);
        tokio::task::spawn_blocking(move || match store.discard_unfilled(image) {
            Ok(()) => tracing::info!(%image, "removed what came of an image that nobody needs"),
            Err(error) => tracing::warn!(%image, %error, "{NOT_REMOVED}"),
        });
    }

    /// Stops a download that nobody needs.
    pub(crate) fn stop(&mut self, image: ImageDigest) {
        if let Some(needless) = self.running.remove(&image) {
            needless.cancel();
        }
    }
}

impl Parts {
    fn doubted(&self) -> MutexGuard<'_, Doubted> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, job: &FetchJob) -> Fetched {
        match self.try_to(job).await {
            Ok(()) => Fetched::Here,
            Err(problem) if problem.code.is_refusal() => {
                Fetched::Refused(format!("image_refused: {problem}"))
            }
            // Its own code says what is to be done.
            Err(problem) if problem.code == FetchCode::DiskFull => {
                Fetched::Unavailable(problem.to_string())
            }
            Err(problem) => Fetched::Unavailable(format!("image_missing: {problem}")),
        }
    }

    async fn try_to(&self, job: &FetchJob) -> Result<(), FetchProblem> {
        let failed = |error: &dyn std::fmt::Display| {
            FetchProblem::new(FetchCode::FileFailed, error.to_string())
        };
        let (store, image) = (Arc::clone(&self.store), job.image);
        let request = self.request(job);
        let size_bytes = request.size_bytes;
        let incoming = tokio::task::spawn_blocking(move || store.incoming(image, size_bytes)).await;
        let incoming =
            incoming.map_err(|error| failed(&error))?.map_err(|error| not_kept(&error))?;
        let incoming = incoming.ok_or_else(|| {
            let detail = "another process of this host fetches it";
            FetchProblem::new(FetchCode::Busy, detail)
        })?;
        let conversation = self.helper.begin(&request, &[incoming.file().as_fd()]);
        let conversation = conversation
            .map_err(|error| FetchProblem::new(FetchCode::HelperFailed, error.to_string()))?;
        match self.follow(conversation, (job, &request), incoming.claim()).await {
            // What came of it lies in everybody's way, or is no beginning of what is wanted.
            Err(problem) if problem.code == FetchCode::DiskFull || problem.code.is_refusal() => {
                self.discard(image).await;
                return Err(problem);
            }
            followed => followed?,
        }
        let store = Arc::clone(&self.store);
        let taken = tokio::task::spawn_blocking(move || take_in(&store, incoming, image)).await;
        taken.map_err(|error| failed(&error))?.map_err(|error| not_kept(&error))
    }

    fn request(&self, job: &FetchJob) -> FetchRequest {
        let source = |place: &FetchPlace| match place {
            FetchPlace::Host { host, name, address } => FetchSource::Host {
                name: name.to_string(),
                address: *address,
                session: self.configuration.introduction.to(*host),
            },
            FetchPlace::Https(url) => FetchSource::Https { url: url.to_string() },
        };
        FetchRequest {
            digest: job.image,
            size_bytes: job.size_bytes.min(IMAGE_FILE_BYTES_MAX),
            sources: job.places.iter().map(source).collect(),
            networks: self.configuration.networks.clone(),
            stall_wait_ms: u64::try_from(DOWNLOAD_STALL_WAIT_MAX.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Listens until the helper has ended.
    async fn follow(
        &self,
        mut conversation: Conversation,
        (job, request): (&FetchJob, &FetchRequest),
        claim: Arc<Claim>,
    ) -> Result<(), FetchProblem> {
        let silent = |why: &dyn std::fmt::Display| {
            FetchProblem::new(FetchCode::HelperFailed, format!("the helper: {why}"))
        };
        let mut served = None;
        loop {
            let word =
                tokio::time::timeout(DOWNLOAD_WORD_WAIT_MAX, conversation.next::<FetchNews>())
                    .await;
            let word = word.map_err(|_| silent(&"it says nothing"))?;
            match word.map_err(|error| silent(&error))? {
                Some(FetchNews::Progress { bytes_done, source }) => {
                    served = job.places.get(source);
                    let source = request.sources.get(source).map(ToString::to_string);
                    let bytes_total = request.size_bytes;
                    let download = ImageDownload { bytes_done, bytes_total, source };
                    self.board.update(|contents| {
                        contents.downloads.insert(request.digest, download);
                    });
                    // What runs here grows meanwhile, and goes before.
                    let claim = Arc::clone(&claim);
                    let room = tokio::task::spawn_blocking(move || claim.require_room()).await;
                    room.map_err(|error| silent(&error))?.map_err(|error| not_kept(&error))?;
                }
                Some(FetchNews::Trouble { source, problem }) => {
                    if let Some(place) = job.places.get(source)
                        && problem.code.is_the_sources_fault()
                    {
                        self.doubted().doubt(place);
                    }
                    let source = request.sources.get(source).map(ToString::to_string);
                    tracing::info!(image = %request.digest, source, %problem,
                        "a source does not serve");
                }
                Some(FetchNews::Done { .. }) => {
                    served.into_iter().for_each(|place| self.doubted().trust(place));
                    return Ok(());
                }
                Some(FetchNews::Failed { problem }) => return Err(problem),
                None => return Err(silent(&"it ended without a word")),
            }
        }
    }

    /// Removes what has come of an image that nobody needs.
    async fn discard(&self, image: ImageDigest) -> Fetched {
        let store = Arc::clone(&self.store);
        let discarded = tokio::task::spawn_blocking(move || store.discard_incoming(image));
        if let Ok(Err(error)) = discarded.await {
            tracing::warn!(%image, %error, "{NOT_REMOVED}");
        }
        Fetched::Stopped
    }
}

/// Why the store does not keep what was fetched.
fn not_kept(error: &ImageError) -> FetchProblem {
    match error {
        ImageError::DigestDiffers { .. } => {
            let detail = "what was fetched is another file than was registered";
            FetchProblem::new(FetchCode::DigestDiffers, detail)
        }
        ImageError::NoRoom { .. } => {
            tracing::warn!(%error, "no room for an image that is to be fetched");
            // How full a host is, is its operator's.
            let detail = "no_room: this host has less room now than the image needs";
            FetchProblem::new(FetchCode::DiskFull, detail)
        }
        full if full.is_for_want_of_space() => FetchProblem::new(FetchCode::DiskFull, full),
        other => FetchProblem::new(FetchCode::FileFailed, other),
    }
}

/// Stores what was fetched; what is false is removed, so that nothing is added to it, and what
/// finds no room a second time does not keep it from others.
fn take_in(store: &ImageStore, incoming: Incoming, image: ImageDigest) -> Result<(), ImageError> {
    match store.take_in(&incoming, image) {
        Ok(()) => incoming.discard(),
        Err(error) => {
            let is_false =
                matches!(error, ImageError::DigestDiffers { .. } | ImageError::TooLarge { .. });
            if is_false || error.is_for_want_of_space() {
                incoming.discard()?;
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_not_serve_is_asked_last_until_he_does() {
        let place = |name: &str| FetchPlace::Https(format!("https://{name}").parse().unwrap());
        let order = |doubted: &Doubted| {
            let mut places = ["a", "b", "c"].map(place);
            doubted.sort(&mut places);
            places
        };
        let mut doubted = Doubted::default();
        assert_eq!(order(&doubted), ["a", "b", "c"].map(place));
        doubted.doubt(&place("a"));
        doubted.doubt(&place("b"));
        assert_eq!(order(&doubted), ["c", "a", "b"].map(place));
        doubted.doubt(&place("a"));
        assert_eq!(order(&doubted), ["c", "b", "a"].map(place));
        doubted.trust(&place("b"));
        assert_eq!(order(&doubted), ["b", "c", "a"].map(place));
        for number in 0..DOWNLOAD_DOUBTED_MAX {
            doubted.doubt(&place(&format!("n{number}")));
        }
        assert_eq!(order(&doubted), ["a", "b", "c"].map(place), "the oldest is forgotten");
    }
}
