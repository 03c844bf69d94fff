//! One run: commits of drawn payloads, judged twice and compared.

use std::collections::BTreeMap;

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, HostId, LedgerTime, OperatorId, ProtocolVersion, Round,
};
use dagger_payload::key::{PublicKey, Signature};
use dagger_payload::kind::KeyRole;
use dagger_payload::object::{Cause, Effect, Placement};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Release, Verdict, extend_prefix,
};
use dagger_payload::state_tree::{Author, Judgement};
use dagger_payload::volume::VolumeDisk;
use dagger_processor::judge::{Judge, LooksMax};
use dagger_processor::verify::{Verified, verify};

use super::changes;
use super::door;
use super::eviction::{leaving, lose};
use super::kinds;
use super::looks::waits;
use super::members::{decided, lapsed, vacated};
use super::people::{Scene, genesis};
use super::random::Random;
use super::state::{Asked, Model, Ruling};
use super::vms::{keep_apart, offer_next};

/// Payloads that may be sent a second time.
const SENT_MAX: usize = 64;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Which payloads are really signed and verified; it takes most of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    /// A few.
    Sample,
    /// All.
    All,
}

/// A judge, a model, and what happened so far.
pub(crate) struct Run {
    random: Random,
    seed: u64,
    signing: Signing,
    judge: Judge,
    scene: Scene,
    round: u64,
    /// Who takes part in the order now.
    awake: Vec<AuthorIndex>,
    sent: Vec<(SignedPayload, Verified)>,
    pub(crate) commits: u64,
    /// Epochs that were decided.
    pub(crate) epochs: usize,
    /// How often other rules were activated.
    pub(crate) versions: usize,
    pub(crate) judged: u64,
    pub(crate) lapsed: usize,
    /// How often an offer waited that had lapsed.
    pub(crate) waited: usize,
    /// Hosts that were silent after the last commit.
    silent: Vec<HostId>,
    /// How often the door was asked, too.
    pub(crate) asked: usize,
    /// How often the judge was changed for one that began from its snapshot.
    pub(crate) reborn: usize,
    /// VMs and volumes whose hosts left with their operator.
    pub(crate) lost: usize,
    /// How often each kind had each verdict.
    pub(crate) verdicts: BTreeMap<(&'static str, String), u64>,
}

impl Run {
    pub(crate) fn new(seed: u64, signing: Signing) -> Self {
        let genesis = genesis();
        let cluster = ClusterId::of(&genesis.to_bytes());
        let mut model = Model::found(genesis.clone(), cluster);
        model.now = LedgerTime(1_700_000_000_000);
        Self {
            random: Random::new(seed),
            seed,
            signing,
            judge: Judge::found(genesis, cluster).knowing(ProtocolVersion(u32::MAX)),
            scene: Scene::new(model),
            round: 0,
            awake: (0..4).map(AuthorIndex).collect(),
            epochs: 0,
            versions: 0,
            sent: Vec::new(),
            commits: 0,
            judged: 0,
            lapsed: 0,
            waited: 0,
            silent: Vec::new(),
            asked: 0,
            reborn: 0,
            lost: 0,
            verdicts: BTreeMap::new(),
        }
    }

    /// The same, where only so much may be looked at with a commit.
    pub(crate) fn looking_at(mut self, max: LooksMax) -> Self {
        self.scene.model.looked.max = max;
        Self { judge: self.judge.looking_at(max), ..self }
    }

    /// The same, where only so much may be written anew with a commit.
    pub(crate) fn rewriting(mut self, bytes_max: usize) -> Self {
        self.scene.model.rewritten.bytes_max = bytes_max;
        Self { judge: self.judge.rewriting(bytes_max), ..self }
    }

    /// One commit, judged twice.
    pub(crate) fn commit(&mut self) -> (OrderedCommit, CommitEnd) {
        self.pass_time();
        let count = self.random.of(&[0, 1, 1, 5, 30]);
        let drawn: Vec<_> = (0..count).map(|_| self.draw()).collect();
        let (payloads, verified): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
        let end = self.judge.end();
        let now = self.scene.model.now;
        let commit = OrderedCommit {
            index: end.index.next(),
            ledger_time: now,
            leader_round: Round(self.round),
            authors: self.awake.iter().map(|author| (*author, Round(self.round))).collect(),
            prefix_hash: extend_prefix(&end.prefix_hash, now, &payloads),
            payloads: payloads
                .into_iter()
                .map(|payload| OrderedPayload { author: AuthorIndex(0), payload })
                .collect(),
            first_position: end.position.next(),
        };
        let said = match &verified[..] {
            [alone] => Some(self.judge.admit(alone, now)),
            _ => None,
        };
        let silent = door::silent(&self.scene.model);
        let release = self.judge.apply(commit.clone(), &verified).expect("the next commit");
        self.compare(&commit, &verified, &release);
        if let (Some(said), [alone]) = (said, &release.releases[..])
            && silent == self.silent
            && silent == door::silent(&self.scene.model)
        {
            let context = format!("DAGGER_FIRST_SEED={} commit {}", self.seed, self.commits);
            door::compare(&said, alone, &context);
            self.asked += 1;
        }
        self.silent = door::silent(&self.scene.model);
        if self.random.happens(10) {
            let cluster = self.scene.model.cluster;
            if let Some(reborn) = door::reborn(&self.judge, genesis(), cluster) {
                let model = &self.scene.model;
                self.judge =
                    reborn.looking_at(model.looked.max).rewriting(model.rewritten.bytes_max);
                self.reborn += 1;
            }
        }
        self.commits += 1;
        (commit, release.end)
    }

    fn pass_time(&mut self) {
        let step = self.random.of(&[0, 10, 500, 2_000, 11_000]);
        let step = if self.random.happens(5) { DAY_MS / 3 } else { step };
        let step = if self.random.happens(2) { 31 * DAY_MS } else { step };
        self.scene.model.now = self.scene.model.now.plus_ms(step);
        self.round += self.random.of(&[1, 1, 5, 20]);
        let model = &self.scene.model;
        let begins = model.newest_epoch().begins_after == self.judge.end().index;
        if begins && model.commit > CommitIndex(0) {
            self.round = 1;
        }
        if begins || self.random.happens(50) {
            let seats = u16::try_from(model.seats.len()).expect("few");
            let awake = (0..seats).map(AuthorIndex);
            self.awake = awake.filter(|_| self.random.happens(850)).collect();
        }
    }

    fn draw(&mut self) -> (SignedPayload, Verified) {
        if !self.sent.is_empty() && self.random.happens(20) {
            return self.random.of(&self.sent);
        }
        let drawn = kinds::draw(&mut self.random);
        let is_shy = self.scene.model.looked.max != LooksMax::default();
        let asks = is_shy && self.random.happens(300);
        let kind = if asks { kinds::named("vm.create") } else { drawn };
        let (who, mut body) = (kind.draw)(&self.scene, &mut self.random);
        if is_shy {
            keep_apart(&mut body, &mut self.random);
        }
        let now = self.scene.model.now;
        let ahead = self.random.below(20_000);
        let not_after = match self.random.below(200) {
            0 => LedgerTime(now.0 - 1 - ahead),
            1 => now.plus_ms(DAY_MS + 1 + ahead),
            2 => now,
            3 => now.plus_ms(DAY_MS),
            _ => now.plus_ms(ahead),
        };
        let elsewhere = self.random.happens(5);
        let cluster = if elsewhere { ClusterId([9; 32]) } else { self.scene.model.cluster };
        let payload = Payload { cluster, signer: self.scene.key(who), not_after, body };
        let drawn = match self.random.below(200) {
            // The whole way: written, signed, read and verified.
            chance if chance < 4 || self.signing == Signing::All => {
                let mut signed = SignedPayload::sign(self.scene.secret(who), &payload);
                if chance == 0 {
                    signed.signature.0[0] ^= 1;
                }
                (signed.clone(), verify(&signed))
            }
            // What verifying would say, without its cost.
            _ => {
                let signed = SignedPayload {
                    signature_kind: SignatureKind::SshEd25519,
                    signature: Signature([0; 64]),
                    bytes: payload.to_bytes().into(),
                };
                let verified = Verified::of(&signed, Ok(Box::new(payload)));
                (signed, verified)
            }
        };
        if self.sent.len() < SENT_MAX {
            self.sent.push(drawn.clone());
        } else {
            let at = self.random.index(SENT_MAX);
            self.sent[at] = drawn.clone();
        }
        drawn
    }

    fn compare(&mut self, commit: &OrderedCommit, verified: &[Verified], release: &CommitRelease) {
        let context = format!("DAGGER_FIRST_SEED={} commit {}", self.seed, self.commits);
        let model = &mut self.scene.model;
        model.observe(commit);
        model.looked.begin();
        model.rewritten.begin();
        if !commit.payloads.is_empty() {
            let mut expired: Vec<_> = model
                .remembered
                .iter()
                .filter(|(_, judgement)| judgement.not_after < model.now)
                .map(|(digest, judgement)| (judgement.not_after, *digest))
                .collect();
            expired.sort();
            for (_, digest) in expired.into_iter().take(65_536) {
                model.remembered.remove(&digest);
            }
        }
        for (verified, release) in verified.iter().zip(&release.releases) {
            let ruling = judge_payload(model, verified, release);
            let ruling = ruling.map(|effects| put_all(effects, model));
            let name = verified.outcome.as_ref().map_or("unread", |read| read.body.kind());
            let verdict = ruling.as_ref().map_or_else(ToString::to_string, |_| "accepted".into());
            *self.verdicts.entry((name, verdict)).or_default() += 1;
            let judged = match &release.verdict {
                Verdict::Accepted => Ok(release.effects.clone()),
                Verdict::Refused(refusal) => Err(refusal.code),
            };
            assert_eq!(judged, ruling, "{context}: {verified:#?}");
            self.judged += 1;
        }
        let mut by_itself = put_all(vacated(model, commit.index), model);
        model.looked.begin();
        let (offers, waited) = lapse(model);
        self.lapsed += offers.len();
        self.waited += waited;
        by_itself.extend(offers);
        by_itself.extend(put_all(lapsed(model), model));
        by_itself.extend(put_all(decided(model, commit.index), model));
        by_itself.extend(put_all(leaving(model), model));
        let lost = lose(model);
        let is_lost = |effect: &Effect| match effect {
            Effect::VmChanged(vm) => matches!(vm.placement, Placement::Lost { .. }),
            Effect::Volume(volume) => volume.disk == VolumeDisk::Lost,
            _ => false,
        };
        self.lost += lost.iter().filter(|effect| is_lost(effect)).count();
        by_itself.extend(lost);
        assert_eq!(release.time_effects, by_itself, "{context}: what the order changed");
        self.epochs = model.epochs.len() - 1;
        self.versions = model.newest_epoch().protocol.0 as usize - 1;
        if !release.is_empty() {
            model.close(release);
        }
        assert_eq!(release.end.state_root, model.root(), "{context}: the root");
    }
}

fn judge_payload(model: &mut Model, verified: &Verified, release: &Release) -> Ruling {
    let payload = verified.outcome.as_ref().map_err(|Refusal { code, .. }| *code)?;
    let (digest, position) = (verified.digest, release.position);
    if model.remembered.contains_key(&digest) {
        return Err(RefusalCode::Duplicate);
    }
    changes::require(model, &payload.signer)?;
    if payload.cluster != model.cluster {
        return Err(RefusalCode::ClusterWrong);
    }
    let not_after = payload.not_after;
    if not_after < model.now {
        return Err(RefusalCode::Expired);
    }
    if not_after.0 - model.now.0 > DAY_MS {
        return Err(RefusalCode::NotAfterTooFar);
    }
    // A stranger's payload leaves no trace.
    let author = model.author(&payload.signer);
    let has_none = |author: Author| {
        let signer = (&payload.signer, &author);
        !has_room(model, signer, true) && !has_room(model, signer, false)
    };
    if author.is_some_and(has_none) {
        return Err(RefusalCode::TooManyRemembered);
    }
    let asked = Asked { signer: &payload.signer, cause: Cause { digest, position } };
    let ruling = (kinds::named(payload.body.kind()).judge)(model, &asked, &payload.body);
    let refused = ruling.as_ref().err().copied();
    if matches!(refused, Some(RefusalCode::AccountUnknown | RefusalCode::CommitFull)) {
        return ruling;
    }
    let Some(author) = author else { return ruling };
    if !has_room(model, (&payload.signer, &author), refused.is_some()) {
        return Err(RefusalCode::TooManyRemembered);
    }
    model.remembered.insert(digest, Judgement { position, not_after, refused, author });
    ruling.iter().for_each(|effects| changes::count(model, &payload.signer, effects));
    ruling
}

/// Whether one more payload of an author, a refused one or not, may be remembered.
fn has_room(model: &Model, (key, author): (&PublicKey, &Author), is_refused: bool) -> bool {
    let alike = || {
        let all = model.remembered.values();
        all.filter(|one| one.refused.is_some() == is_refused)
    };
    let own = alike().filter(|one| one.author == *author).count();
    let crowd = answered_for(model, author);
    let of_crowd = || alike().filter(|one| answered_for(model, &one.author) == crowd).count();
    let (own_max, always, together) =
        if is_refused { (1024, 16, 65_536) } else { (65_536, 64, 1_048_576) };
    // A quarter is for an account's owners.
    let is_owner = !matches!(author, Author::Account(_))
        || matches!(model.signing(key), Ok((_, KeyRole::Owner)));
    let (own_max, always) = match is_owner {
        true => (own_max, always),
        false => (own_max / 4 * 3, always / 4 * 3),
    };
    own < own_max && (crowd.is_none() || own < always || of_crowd() < together)
}

/// Whose accounts, or whose hosts, an author is one of.
pub(crate) fn answered_for(model: &Model, author: &Author) -> Option<(bool, OperatorId)> {
    match author {
        Author::Account(id) => Some((true, model.account(*id)?.opened_by)),
        Author::Host(id) => Some((false, model.host(*id)?.operator)),
        Author::Operator(_) => None,
    }
}

/// Puts what was ruled, and gives it as a release tells it.
pub(crate) fn put_all(effects: Vec<Effect>, model: &mut Model) -> Vec<Effect> {
    effects.iter().map(|effect| put(effect, model)).collect()
}

fn put(effect: &Effect, model: &mut Model) -> Effect {
    let told = model.told(effect);
    model.put(effect);
    told
}

/// Offers whose deadline has passed go to the next host, by deadline and VM, so many at a time;
/// and how many of them wait because too much was looked at.
fn lapse(model: &mut Model) -> (Vec<Effect>, usize) {
    let mut lapsed: Vec<_> = model
        .vms
        .iter()
        .filter_map(|vm| match vm.placement {
            Placement::Offered { deadline, .. } if deadline < model.now => Some((deadline, vm.id)),
            _ => None,
        })
        .collect();
    lapsed.sort();
    let (mut effects, mut waited) = (Vec::new(), 0);
    for (_, vm) in lapsed {
        let vm = model.vm(vm).expect("it stays");
        if effects.len() == 512 {
            break;
        } else if waits(model, vm) {
            waited += 1;
        } else {
            let effect = offer_next(model, vm).expect("it does not wait");
            effects.push(put(&effect, model));
        }
    }
    (effects, waited)
}
