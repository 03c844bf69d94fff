//! One run: commits of drawn payloads, judged twice and compared.

use std::collections::BTreeMap;

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, HostId, LedgerTime, OperatorId, ProtocolVersion, Round,
};
use dagger_payload::key::Signature;
use dagger_payload::kind::KeyRole;
use dagger_payload::object::{Cause, Effect, Placement};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Release, Verdict, extend_prefix,
};
use dagger_payload::state_tree::{Author, Judgement};
use dagger_payload::volume::VolumeDisk;
use dagger_processor::judge::Judge;
use dagger_processor::verify::{Verified, verify};

use super::door;
use super::eviction::{leaving, lose};
use super::kinds;
use super::members::{decided, lapsed, vacated};
use super::people::{Scene, genesis};
use super::random::Random;
use super::state::{Asked, Model, Ruling};
use super::vms::offer_next;

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
            silent: Vec::new(),
            asked: 0,
            reborn: 0,
            lost: 0,
            verdicts: BTreeMap::new(),
        }
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
                self.judge = reborn;
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
        let kind = kinds::draw(&mut self.random);
        let (who, body) = (kind.draw)(&self.scene, &mut self.random);
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
        let offers = lapse(model);
        self.lapsed += offers.len();
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
    let asked = Asked { signer: &payload.signer, cause: Cause { digest, position } };
    let ruling = (kinds::named(payload.body.kind()).judge)(model, &asked, &payload.body);
    let refused = ruling.as_ref().err().copied();
    if refused == Some(RefusalCode::AccountUnknown) {
        return ruling;
    }
    // A stranger's payload leaves no trace.
    let Some(author) = model.author(&payload.signer) else { return ruling };
    let of_author = model.remembered.values().filter(|one| one.author == author);
    let alike = of_author.filter(|one| one.refused.is_some() == refused.is_some()).count();
    let (most, always, together) =
        if refused.is_some() { (1024, 16, 65_536) } else { (65_536, 64, 1_048_576) };
    // A quarter is for an account's owners.
    let is_owner = !matches!(author, Author::Account(_))
        || matches!(model.signing(&payload.signer), Ok((_, KeyRole::Owner)));
    let (most, always) = match is_owner {
        true => (most, always),
        false => (most / 4 * 3, always / 4 * 3),
    };
    if alike >= most {
        return Err(RefusalCode::TooManyRemembered);
    }
    let crowd = answered_for(model, &author);
    let of_crowd = model.remembered.values().filter(|one| {
        one.refused.is_some() == refused.is_some() && answered_for(model, &one.author) == crowd
    });
    if crowd.is_some() && alike >= always && of_crowd.count() >= together {
        return Err(RefusalCode::TooManyRemembered);
    }
    model.remembered.insert(digest, Judgement { position, not_after, refused, author });
    ruling
}

/// Whose accounts, or whose hosts, an author is one of.
fn answered_for(model: &Model, author: &Author) -> Option<(bool, OperatorId)> {
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

/// Offers whose deadline has passed go to the next host, by deadline and VM, so many at a time.
fn lapse(model: &mut Model) -> Vec<Effect> {
    let mut lapsed: Vec<_> = model
        .vms
        .iter()
        .filter_map(|vm| match vm.placement {
            Placement::Offered { deadline, .. } if deadline < model.now => Some((deadline, vm.id)),
            _ => None,
        })
        .collect();
    lapsed.sort();
    let next = |(_, vm)| {
        let effect = offer_next(model, model.vm(vm).expect("it stays"));
        put(&effect, model)
    };
    lapsed.into_iter().take(512).map(next).collect()
}
