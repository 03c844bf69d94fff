//! The judge: what every ordered payload means. A pure state machine: no I/O, clock, float,
//! randomness or hash-map order, total over all inputs, the same on every host.
//!
//! Owns the order of checks and who may sign what kind. Each rule lives in the file of its subject;
//! a rule looks at the state and returns the new versions of objects, which only
//! [`state::State::absorb`] takes in. Called by the daemon for each commit, and by admission for a
//! prediction.

mod accounts;
mod burdens;
mod changes;
mod digest_map;
mod epochs;
mod estate;
mod eviction;
mod hosts;
mod images;
mod looks;
mod made_of;
mod members;
mod memory;
mod neighbours;
mod networks;
mod placement;
mod reports;
mod rooms;
mod silence;
pub mod snapshot;
mod snapshots;
mod state;
mod tallies;
mod traces;
mod tree;
mod vms;
mod volumes;

use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::handover::{EpochEnd, NextMembers};
use dagger_payload::id::{
    AccountId, ClusterId, CommitIndex, Generation, LedgerTime, OperatorId, PayloadDigest, Position,
    ProtocolVersion,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::Body;
use dagger_payload::limits::{LAPSED_PER_COMMIT_MAX, NOT_AFTER_AHEAD_MS_MAX};
use dagger_payload::object::{Cause, Effect, HostDuty};
use dagger_payload::payload::Payload;
use dagger_payload::prediction::HostOutlook;
use dagger_payload::proof::JudgedProof;
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Release, Verdict, extend_prefix_by,
    initial_prefix,
};
use dagger_payload::roster::Roster;
use dagger_payload::snapshot::HistoryRecord;
use dagger_payload::state_tree::{Author, Judgement, Subject};

use crate::verify::{Newborn, Verified};
use changes::Changes;
use looks::Looks;
pub use looks::LooksMax;
use memory::Share;
use state::{Signing, State};
use traces::{HasRoom, bounded, leaves_trace, require_any_room};

/// What so many payloads need is fetched together; it stays near the processor until they are
/// judged.
const FETCHED_TOGETHER: usize = 16;

/// What a rule needs to know about the payload in hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) signer: &'a PublicKey,
    pub(crate) cause: Cause,
    pub(crate) now: LedgerTime,
    /// The last judged commit: the payload is in the one after it.
    pub(crate) judged: CommitIndex,
    /// The account for which the signer signs, and in which role.
    pub(crate) signing: Option<Signing>,
    /// The VM that the payload makes, if it makes one.
    pub(crate) newborn: Option<Newborn>,
    /// What its commit has looked at so far.
    pub(crate) looks: &'a Looks,
}

/// Who signs a payload, if it is anybody.
#[derive(Debug, Default, Clone, Copy)]
struct Signer {
    /// For an account.
    signing: Option<Signing>,
    author: Option<Author>,
    /// Who answers for it.
    operator: Option<OperatorId>,
}

/// What a rule decides: new versions of objects, or why not.
pub(crate) type Ruling = Result<Vec<Effect>, Refusal>;

/// A commit that the judge cannot take. Never the fault of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Not the next one.
    #[error("commit {expected} comes next")]
    OutOfOrder {
        /// The next one.
        expected: CommitIndex,
    },
    /// Positions or the prefix hash do not follow from what was judged before: the ledger is
    /// broken.
    #[error("the commit does not continue the judged history")]
    Discontinuous,
    /// Not one verified payload for each ordered one.
    #[error("the verified payloads are not those of the commit")]
    Mismatched,
    /// The commit is to be judged by rules that this build does not know: it judges no further.
    #[error("version {needs} of the rules counts from here on: this host needs an upgrade")]
    UpgradeNeeded {
        /// The version of the rules.
        needs: ProtocolVersion,
    },
}

/// The judge of one cluster.
#[derive(Debug)]
pub struct Judge {
    state: State,
    end: CommitEnd,
    /// The last commit end that changed anything.
    changed: CommitEnd,
    record: HistoryRecord,
    /// What payloads have changed with the commit in hand.
    changes: Changes,
    /// The newest rules that it knows.
    protocol_max: ProtocolVersion,
    looks_max: LooksMax,
}

impl Judge {
    /// The judge before the first commit.
    pub fn found(genesis: Genesis, cluster: ClusterId) -> Self {
        let mut state = State::found(&genesis, cluster);
        let end = CommitEnd {
            index: CommitIndex(0),
            position: Position(0),
            prefix_hash: initial_prefix(&cluster),
            state_root: state.root(),
        };
        Self::at(state, end)
    }

    /// One that stands where everything up to `end` is judged.
    fn at(state: State, end: CommitEnd) -> Self {
        let (record, changes) = (HistoryRecord::default(), Changes::default());
        let (protocol_max, looks_max) = (ProtocolVersion::KNOWN, LooksMax::default());
        Self { state, end, changed: end, record, changes, protocol_max, looks_max }
    }

    /// The same judge, of a build that knows other rules: in a test, one that comes later.
    pub fn knowing(self, protocol_max: ProtocolVersion) -> Self {
        Self { protocol_max, ..self }
    }

    /// The same judge with other maxima: in a test, such as are reached soon.
    pub fn looking_at(self, looks_max: LooksMax) -> Self {
        Self { looks_max, ..self }
    }

    /// The same where so many bytes may be written anew for one operator with a commit.
    pub fn rewriting(self, bytes_max: usize) -> Self {
        Self { changes: Changes::new(bytes_max), ..self }
    }

    /// The last judged commit end.
    pub fn end(&self) -> CommitEnd {
        self.end
    }

    /// How much the last judged commit added to the chain over everything judged.
    pub fn changed_bytes(&self) -> usize {
        self.record.size_bytes()
    }

    /// The cluster whose payloads it judges.
    pub fn cluster(&self) -> ClusterId {
        self.state.cluster
    }

    /// Ledger time of the last judged commit.
    pub fn ledger_time(&self) -> LedgerTime {
        self.state.time
    }

    /// Where the epoch ends: from the commit that decides it to the epoch's last one.
    pub fn epoch_end(&self) -> Option<EpochEnd> {
        epochs::end(&self.state, self.end.index)
    }

    /// All seats.
    pub fn roster(&self) -> &Roster {
        &self.state.roster
    }

    /// The earliest ledger time at which something will change by itself.
    pub fn next_deadline(&self) -> Option<LedgerTime> {
        // What has passed while the epoch ended is decided with the next one's first commit; hosts
        // of a removed operator leave then, too.
        let judged = self.end.index;
        if epochs::is_deciding_due(&self.state, judged) || eviction::is_due(&self.state, judged) {
            return Some(self.state.time);
        }
        self.state.next_deadline()
    }

    /// Judges the next commit, whose payloads go on into the release. `verified` has one entry for
    /// each, in order, as `verify` makes it of that payload.
    ///
    /// # Errors
    /// [`CommitError`]; nothing has changed then.
    pub fn apply(
        &mut self,
        commit: OrderedCommit,
        verified: &[Verified],
    ) -> Result<CommitRelease, CommitError> {
        let expected = self.end.index.next();
        if commit.index != expected {
            return Err(CommitError::OutOfOrder { expected });
        }
        let epoch = *self.state.epoch_at(commit.index);
        if epoch.protocol > self.protocol_max {
            return Err(CommitError::UpgradeNeeded { needs: epoch.protocol });
        }
        if verified.len() != commit.payloads.len() {
            return Err(CommitError::Mismatched);
        }
        let leaves = verified.iter().map(|verified| verified.leaf);
        let prefix_hash = extend_prefix_by(&self.end.prefix_hash, commit.ledger_time, leaves);
        let continues = commit.first_position == self.end.position.next()
            && prefix_hash == commit.prefix_hash
            && commit.ledger_time >= self.state.time;
        if !continues {
            return Err(CommitError::Discontinuous);
        }
        self.state.observe(&commit, &epoch);
        if !commit.payloads.is_empty() {
            self.state.forget_expired();
        }
        let payloads = commit.payloads.len();
        self.changes.begin();
        let looks = Looks::new(self.looks_max);
        self.record.begin(&self.state.history, commit.index, commit.ledger_time, payloads);
        let mut releases = Vec::with_capacity(payloads);
        let (index, ledger_time, position) =
            (commit.index, commit.ledger_time, commit.last_position());
        let placed = (commit.first_position.0..).map(Position).zip(commit.payloads);
        for (at, ((position, ordered), each)) in placed.zip(verified).enumerate() {
            if at.is_multiple_of(FETCHED_TOGETHER) {
                self.state.fetch(&verified[at..payloads.min(at + FETCHED_TOGETHER)]);
            }
            releases.push(self.release(position, ordered, each, &looks));
        }
        let time_effects = self.pass(index);
        let end = CommitEnd { index, position, prefix_hash, state_root: self.end.state_root };
        let mut release = CommitRelease { end, ledger_time, releases, time_effects };
        if !release.is_empty() {
            self.record.effects(&release.time_effects);
            self.state.history = self.record.hash();
            self.state.note_order();
        }
        release.end.state_root = self.state.root();
        self.end = release.end;
        if !release.is_empty() {
            self.changed = self.end;
        }
        Ok(release)
    }

    fn release(
        &mut self,
        position: Position,
        ordered: OrderedPayload,
        verified: &Verified,
        looks: &Looks,
    ) -> Release {
        let payload = verified.outcome.as_ref();
        let signer = payload.map(|payload| self.signer(&payload.signer)).unwrap_or_default();
        let (verdict, effects) = match self.judge((verified, &signer), position, looks) {
            Ok(effects) => (Verdict::Accepted, effects),
            Err(refusal) => (Verdict::Refused(refusal), Vec::new()),
        };
        let (digest, before) = (verified.digest, self.record.size_bytes());
        self.record.judged(position, &digest, &verdict);
        self.record.begin_effects(effects.len());
        let newborn = verified.newborn.as_ref();
        let operator = signer.operator;
        let told = effects.into_iter().map(|effect| self.take_in(effect, newborn, operator));
        let effects = told.collect();
        self.changes.tell(operator, self.record.size_bytes() - before);
        Release { position, digest, ordered, verdict, effects }
    }

    fn signer(&self, key: &PublicKey) -> Signer {
        let signing = self.state.signing(key);
        let author = self.state.author(key, signing);
        let operator = author.and_then(|author| self.state.answering(&author));
        Signer { signing, author, operator }
    }

    /// Takes in what a payload made for which `operator` answers, and writes down what is told of
    /// it, which this gives.
    fn take_in(
        &mut self,
        effect: Effect,
        newborn: Option<&Newborn>,
        operator: Option<OperatorId>,
    ) -> Effect {
        let Effect::Vm(vm) = &effect else {
            self.state.absorb(&effect, self.record.effect(&effect));
            return effect;
        };
        if let Some(newborn) = newborn.filter(|newborn| newborn.id == vm.id) {
            self.state.absorb_newborn(vm, self.record.effect(&effect), newborn);
            return effect;
        }
        let rewritten_bytes = self.state.absorb_alone(&effect);
        self.changes.rewrite(operator, rewritten_bytes);
        let told = effect.told();
        self.record.effect(&told);
        told
    }

    /// Remembers the payload and says what the rules make of it; nothing is absorbed yet.
    fn judge(
        &mut self,
        (verified, signer): (&Verified, &Signer),
        position: Position,
        looks: &Looks,
    ) -> Ruling {
        let payload = verified.outcome.as_ref().map_err(Clone::clone)?;
        let now = self.state.time;
        if self.state.remembers(&verified.digest) {
            let detail = "these bytes were ordered before";
            return Err(Refusal::new(RefusalCode::Duplicate, detail));
        }
        let Signer { signing, author, operator } = *signer;
        self.changes.require_room(operator, self.record.size_bytes())?;
        let cause = Cause { digest: verified.digest, position };
        let (judged, newborn) = (self.end.index, verified.newborn);
        let case = Case { signer: &payload.signer, cause, now, judged, signing, newborn, looks };
        let share = Share::from(signing);
        let ruling = self.ruling(&case, author, payload, &|author, refused| {
            self.state.has_room(author, refused, share)
        });
        // Refused payloads are remembered too: what was refused once is not accepted by sending it
        // again.
        if let Some(author) = author.filter(|_| leaves_trace(&ruling)) {
            let not_after = payload.not_after;
            let refused = ruling.as_ref().err().map(|refusal| refusal.code);
            let judgement = Judgement { position, not_after, refused, author };
            self.state.remember(verified.digest, &verified.place, judgement);
        }
        ruling
    }

    /// What the rules say about a payload now, without changing anything. What has expired and is
    /// not forgotten yet is in nobody's way: mostly it will be when the payload is judged.
    pub(crate) fn rule(
        &self,
        digest: &PayloadDigest,
        payload: &Payload,
        now: LedgerTime,
    ) -> Ruling {
        let looks = Looks::new(self.looks_max);
        let case = self.case(digest, payload, now, &looks);
        let author = self.state.author(&payload.signer, case.signing);
        self.ruling(&case, author, payload, &|author, refused| {
            self.state.has_room(author, refused, Share::from(case.signing))
                || self.state.has_expired(now)
        })
    }

    /// What the rules say, unless too much of the author is remembered.
    fn ruling(
        &self,
        case: &Case<'_>,
        author: Option<Author>,
        payload: &Payload,
        has_room: HasRoom<'_>,
    ) -> Ruling {
        let rules = require_any_room(author, has_room);
        let rules = self.require_meant(case, payload).and(rules);
        bounded(author, rules.and_then(|()| self.rule_on(case, payload)), has_room)
    }

    /// Whether the payload is meant for this cluster, now.
    fn require_meant(&self, case: &Case<'_>, payload: &Payload) -> Result<(), Refusal> {
        if payload.cluster != self.state.cluster {
            let detail = format!("this is cluster {}", self.state.cluster);
            return Err(Refusal::new(RefusalCode::ClusterWrong, detail));
        }
        check_time(payload, case.now)
    }

    fn rule_on(&self, case: &Case<'_>, payload: &Payload) -> Ruling {
        let state = &self.state;
        match &payload.body {
            Body::HostJoin(body) => hosts::join(state, case, body),
            Body::HostDrain(body) => hosts::set_duty(state, case, body, HostDuty::Draining),
            Body::HostResume(body) => hosts::set_duty(state, case, body, HostDuty::Open),
            Body::HostLeave(body) => hosts::leave(state, case, body),
            Body::HostRotateLedgerKey(body) => hosts::rotate_ledger_key(state, case, body),
            Body::OperatorPropose(body) => members::propose(state, case, body),
            Body::OperatorApprove(body) => members::approve(state, case, body),
            Body::OperatorWithdraw(body) => members::withdraw(state, case, body),
            Body::OperatorRotateKey(body) => members::rotate_key(state, case, body),
            Body::AccountGrant(body) => accounts::grant(state, case, body),
            Body::AccountRevoke(body) => accounts::revoke(state, case, body),
            Body::AccountAddKey(body) => accounts::add_key(state, case, body),
            Body::AccountRemoveKey(body) => accounts::remove_key(state, case, body),
            Body::AccountRotateKey(body) => accounts::rotate_key(state, case, body),
            Body::ImageRegister(body) => images::register(state, case, body),
            Body::ImageRetire(body) => images::retire(state, case, body),
            Body::VmCreate(body) => vms::create(state, case, body),
            Body::VmStart(body) => vms::start(state, case, body),
            Body::VmStop(body) => vms::stop(state, case, body),
            Body::VmPause(body) => vms::pause(state, case, body),
            Body::VmResume(body) => vms::resume(state, case, body),
            Body::VmReboot(body) => vms::reboot(state, case, body),
            Body::VmResize(body) => vms::resize(state, case, body),
            Body::VmProtect(body) => vms::protect(state, case, body),
            Body::VmNetwork(body) => networks::reach(state, case, body),
            Body::VmDelete(body) => vms::delete(state, case, body),
            Body::VolumeCreate(body) => volumes::create(state, case, body),
            Body::VolumeAttach(body) => volumes::attach(state, case, body),
            Body::VolumeDetach(body) => volumes::detach(state, case, body),
            Body::VolumeSnapshot(body) => snapshots::take(state, case, body),
            Body::VolumeRestore(body) => snapshots::restore(state, case, body),
            Body::VolumeClone(body) => snapshots::clone(state, case, body),
            Body::SnapshotDelete(body) => snapshots::delete(state, case, body),
            Body::ReportSnapshot(body) => snapshots::report(state, case, body),
            Body::VolumeGrow(body) => volumes::grow(state, case, body),
            Body::VolumeProtect(body) => volumes::protect(state, case, body),
            Body::VolumeDelete(body) => volumes::delete(state, case, body),
            Body::ReportVm(body) => reports::report(state, case, body),
            Body::ReportVolume(body) => volumes::report(state, case, body),
        }
    }

    /// A payload as if it were ordered next.
    fn case<'a>(
        &self,
        digest: &PayloadDigest,
        payload: &'a Payload,
        now: LedgerTime,
        looks: &'a Looks,
    ) -> Case<'a> {
        Case {
            signer: &payload.signer,
            cause: Cause { digest: *digest, position: self.end.position.next() },
            now,
            judged: self.end.index,
            signing: self.state.signing(&payload.signer),
            newborn: Newborn::of(digest, payload),
            looks,
        }
    }

    /// What follows from the order itself, after the payloads of `commit`.
    fn pass(&mut self, commit: CommitIndex) -> Vec<Effect> {
        // Counted apart from what payloads ask for, which could keep offers waiting for ever.
        let looks = Looks::new(self.looks_max);
        let mut effects = self.absorbed(epochs::vacated(&self.state, commit));
        effects.extend(self.lapse_offers(&looks));
        effects.extend(self.absorbed(members::lapsed(&self.state, self.state.time)));
        effects.extend(self.absorbed(epochs::decide(&self.state, commit)));
        effects.extend(self.absorbed(eviction::leaving(&self.state, commit)));
        effects.extend(self.lose_stranded(&looks));
        effects
    }

    /// Takes in what no payload made, and gives what is told of it: no VM is made so.
    fn absorbed(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        effects.iter().for_each(|effect| _ = self.state.absorb_alone(effect));
        self.state.find_stranded();
        effects.into_iter().map(Effect::told).collect()
    }

    /// Offers that no host accepted in time go to the next host: so many at a time, for a commit is
    /// one message. One for which too much would be looked at stays due, and those after it go on.
    fn lapse_offers(&mut self, looks: &Looks) -> Vec<Effect> {
        let (now, mut effects, mut due) = (self.state.time, Vec::new(), None);
        while effects.len() < LAPSED_PER_COMMIT_MAX {
            due = self.state.lapsed_after(due, now);
            let Some((_, id)) = due else { break };
            let Some((account, seeks)) = self.state.seeker(&id) else { continue };
            if seeks && looks.are_spent(&self.state, &account) {
                continue;
            }
            let Some(vm) = self.state.vm(&id) else { continue };
            let Ok(effect) = vms::offer_next(&self.state, looks, vm, now) else { continue };
            self.state.absorb_alone(&effect);
            effects.push(effect.told());
        }
        effects
    }

    /// What is on hosts that have left is lost, or offered to others: one after another, since what
    /// becomes of one changes what there is for the next.
    fn lose_stranded(&mut self, looks: &Looks) -> Vec<Effect> {
        let mut effects = Vec::new();
        for stranded in eviction::stranded(&self.state) {
            let lost = eviction::lose(&self.state, looks, stranded);
            effects.extend(self.absorbed(lost));
        }
        effects
    }

    /// What speaks for and against each host, when `payload` asks for a new VM.
    pub(crate) fn outlook(
        &self,
        digest: &PayloadDigest,
        payload: &Payload,
        now: LedgerTime,
    ) -> Vec<HostOutlook> {
        let Body::VmCreate(body) = &payload.body else { return Vec::new() };
        let looks = Looks::default();
        let case = self.case(digest, payload, now, &looks);
        let newborn = vms::newborn(&self.state, &case, body);
        let Ok((vm, means)) = newborn else { return Vec::new() };
        placement::outlook(&self.state, &vm, means, now)
    }

    /// What stands under `subject` after the last commit that changed anything.
    pub fn prove(&mut self, subject: &Subject) -> JudgedProof {
        JudgedProof { end: self.changed, state: self.state.prove(subject) }
    }

    /// Who votes in the next epoch, with the way to them from the root; after the last commit of
    /// this one, and only then.
    pub fn next_members(&mut self) -> Option<NextMembers> {
        let last = self.epoch_end().filter(|end| end.last == self.end.index)?;
        let epoch = self.state.newest_epoch().epoch;
        let members = self.state.prove(&Subject::Epoch(epoch));
        let seats = last.committee.authors();
        let seats =
            seats.map(|author| (author, self.state.prove(&Subject::Seat(author)))).collect();
        Some(NextMembers { epoch, members, seats })
    }

    pub(crate) fn remembers(&self, digest: &PayloadDigest) -> bool {
        self.state.remembers(digest)
    }

    /// The account that signs a payload, unless an operator or a host does.
    pub(crate) fn account_of(&self, payload: &Payload) -> Option<AccountId> {
        self.state.account_id(&payload.signer)
    }
}

fn check_time(payload: &Payload, now: LedgerTime) -> Result<(), Refusal> {
    if payload.not_after < now {
        let late = now.0 - payload.not_after.0;
        let detail = format!("not_after_ms passed {late} ms of ledger time ago");
        return Err(Refusal::new(RefusalCode::Expired, detail));
    }
    if payload.not_after > now.plus_ms(NOT_AFTER_AHEAD_MS_MAX) {
        let detail = format!("ledger time is {now}; not_after_ms may be a day ahead");
        return Err(Refusal::new(RefusalCode::NotAfterTooFar, detail));
    }
    Ok(())
}

/// Refuses a change of another version of a thing than the signer saw.
pub(crate) fn require_generation(
    expected: Option<Generation>,
    (thing, now): (&str, Generation),
) -> Result<(), Refusal> {
    match expected.filter(|expected| *expected != now) {
        Some(expected) => {
            let detail = format!("generation {expected} expected, the {thing} is at {now}");
            refuse(RefusalCode::Conflict, detail)
        }
        None => Ok(()),
    }
}

pub(crate) fn refuse<T>(code: RefusalCode, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, detail))
}
