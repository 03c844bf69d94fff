//! What the three daemons of a host say to each other.

use bytes::Bytes;
use dagger_bus::judging::{self, Admission, AdmissionOutcome, Admit, Asked, Judge, Judged, Then};
use dagger_bus::judging::{Restore, Restored};
use dagger_bus::ledger::{
    self, Answer as LedgerAnswer, Call, Consumed, Request, Response, Standing, StreamItem,
    Unavailable,
};
use dagger_bus::seal::SealKey;
use dagger_payload::id::{CommitIndex, HostId, Position, ProtocolVersion};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::super::mutate::Form;
use super::super::samples::{NOW, World, key};
use super::{Answer, Target, by_first_byte, numbered};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "bus-ledger", form: Form::Cbor, samples: to_ledger, read: ledger_frame },
    Target { name: "bus-judging", form: Form::Cbor, samples: to_processor, read: judging_frame },
];

fn ledger_frame(bytes: &[u8]) -> Result<Answer, String> {
    by_first_byte!(bytes, stable:
        0 => ledger::Open,
        1 => ledger::Opened,
        2 => Request,
        3 => Response,
        4 => StreamItem,
        5 => Consumed,
        6 => SealKey,
    )
}

fn judging_frame(bytes: &[u8]) -> Result<Answer, String> {
    by_first_byte!(bytes, stable:
        0 => judging::Open,
        1 => judging::Opened,
        2 => Restore,
        3 => Restored,
        4 => Admit,
        5 => Admission,
        6 => Judge,
        7 => Judged,
    )
}

fn to_ledger(world: &World) -> Vec<Vec<u8>> {
    let (cluster, host) = (world.cluster, HostId([7; 16]));
    let (digest, document) = (world.lived[0].digest(), world.text());
    let (commit, position) = (CommitIndex(7), Position(9));
    let requests = [
        Call::Submit { payload: world.lived[0].clone() },
        Call::Look { digest },
        Call::Status {},
        Call::Evidence { commit },
        Call::Predict { document },
    ];
    let AdmissionOutcome::Predicted { prediction } = world.predicted.clone() else {
        panic!("the world predicts");
    };
    let refusal = Refusal::new(RefusalCode::Expired, "late");
    let missing = world.genesis.hosts.iter().map(|host| host.name.clone()).collect();
    let reason = Unavailable::NoQuorum { have: 2, need: 3, missing };
    let answers = [
        LedgerAnswer::Receipt { digest, standing: Standing::Received {} },
        LedgerAnswer::Standing { standing: Standing::Ordered { position, commit } },
        LedgerAnswer::Refused { refusal },
        LedgerAnswer::Unavailable { reason },
        LedgerAnswer::Evidence { evidence: Some(world.evidence()) },
        LedgerAnswer::Prediction { prediction },
    ];
    let items = [
        StreamItem::Attested { commit, evidence: world.evidence() },
        StreamItem::CaughtUp { commit },
        StreamItem::Past { release: world.releases[0].release.clone().into() },
        StreamItem::Anchor { anchor: world.anchor.clone().into() },
    ];
    let releases = world.releases.iter().map(|sealed| {
        let sealed = sealed.clone().into();
        numbered(4, &StreamItem::Release { sealed })
    });
    let purposes =
        [ledger::Purpose::Requests {}, ledger::Purpose::Releases { after: commit, window: 8 }];
    let mut samples: Vec<_> = releases.collect();
    samples.extend(purposes.map(|purpose| numbered(0, &ledger::Open { cluster, purpose })));
    samples.push(numbered(1, &ledger::Opened { cluster, host }));
    samples.extend(requests.map(|call| numbered(2, &Request { id: 3, call })));
    samples.extend(answers.map(|answer| numbered(3, &Response { id: 3, answer })));
    samples.extend(items.map(|item| numbered(4, &item)));
    samples.push(numbered(5, &Consumed { commit }));
    samples.push(numbered(6, &SealKey { cluster, key: key(9).public_key() }));
    samples
}

fn to_processor(world: &World) -> Vec<Vec<u8>> {
    let (cluster, purpose) = (world.cluster, judging::Purpose::JudgementFrom);
    let (head, chunks) = &world.snapshot;
    let bytes = Bytes::from(chunks[0].clone());
    let (digest, document) = (world.lived[0].digest(), world.text());
    let outcomes = [
        AdmissionOutcome::Admitted { digest, account: None },
        AdmissionOutcome::Known { digest },
        AdmissionOutcome::Refused { refusal: Refusal::new(RefusalCode::Expired, "late") },
        world.predicted.clone(),
    ];
    let asked = [Asked::Pack { payload: world.lived[0].clone() }, Asked::Predict { document }];
    let (next_deadline, epoch_end) = (Some(NOW), Some(world.epoch_end()));
    let judged = world.releases.iter().map(|sealed| {
        let (sealed, next_members) = (sealed.clone().into(), None);
        let roster = Some(world.roster.clone().into());
        numbered(7, &Judged::Done { sealed, next_deadline, epoch_end, roster, next_members })
    });
    let mut samples: Vec<_> = judged.collect();
    samples.push(numbered(0, &judging::Open { cluster, purpose }));
    samples.push(numbered(1, &world.opened()));
    samples.push(numbered(2, &Restore::Head { head: head.clone() }));
    samples.push(numbered(2, &Restore::Chunk { bytes: bytes.clone() }));
    samples.push(numbered(3, &Restored::Done { opened: world.opened().into() }));
    samples.push(numbered(3, &Restored::Refused { why: "another root".to_owned() }));
    samples.extend(asked.map(|asked| numbered(4, &Admit { id: 5, asked, now: NOW })));
    samples.extend(outcomes.map(|outcome| numbered(5, &Admission { id: 5, outcome })));
    let orders = world.commits.iter().map(|commit| {
        let (commit, then) = (commit.clone(), Then::Snapshot);
        numbered(6, &Judge { commit, then })
    });
    samples.extend(orders);
    samples.push(numbered(7, &Judged::OutOfOrder { expected: CommitIndex(3) }));
    samples.push(numbered(7, &Judged::Upgrade { needs: ProtocolVersion(2) }));
    samples.push(numbered(7, &Judged::Chunk { bytes }));
    samples.push(numbered(7, &Judged::Snapshot { head: head.clone() }));
    samples
}
