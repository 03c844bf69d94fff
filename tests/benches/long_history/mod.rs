//! A long history in the agent's read model: what it costs in memory and in time, in this process.
//!
//! Owns the made-up releases. Nothing in them is signed by more than one key: that is checked
//! before the model sees them, and measured elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dagger_agent::limits::RELEASES_WRITTEN_TOGETHER_MAX;
use dagger_agent::model::{Archives, LogQuery, LookBack, LookExtent, Model, SharedModel, Walker};
use dagger_agent::verify::reader::Reader;
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, LedgerTime, PayloadDigest, Position, PrefixHash,
    StateRoot, VmId,
};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{Body, VmChange};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::release::{CommitRelease, OrderedPayload, Release, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// How much the anonymous memory may grow between the two looks, in MiB: what allocators round up.
const GROWTH_GOAL_MIB: f64 = 8.0;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([byte; 32]))
}

fn genesis() -> Genesis {
    Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: "bench".parse().unwrap(),
        mode: GenesisMode::Judged,
        operators: vec![GenesisOperator { name: "op1".parse().unwrap(), key: key(1).public_key() }],
        hosts: vec![GenesisHost {
            name: "host1".parse().unwrap(),
            operator: "op1".parse().unwrap(),
            ledger_key: key(2).public_key(),
            address: "127.0.0.1:7400".parse().unwrap(),
        }],
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    }
}

/// A commit with one refused payload, as a lying member would order them without end.
fn commit(cluster: ClusterId, signer: &SecretKey, number: u64) -> Arc<CommitRelease> {
    let body = Body::VmStop(VmChange { vm: VmId([1; 16]), expected_generation: None }.into());
    let document = Payload {
        cluster,
        signer: signer.public_key(),
        not_after: LedgerTime(1_000_000 + number),
        body,
    };
    let payload = SignedPayload::sign(signer, &document);
    let refusal = Refusal::new(RefusalCode::NotFound, "there is no such VM");
    let release = Release {
        position: Position(number),
        digest: payload.digest(),
        ordered: OrderedPayload { author: AuthorIndex(0), payload },
        verdict: Verdict::Refused(refusal),
        effects: Vec::new(),
    };
    let end = CommitEnd {
        index: CommitIndex(number),
        position: Position(number),
        prefix_hash: PrefixHash::ZERO,
        state_root: StateRoot::ZERO,
    };
    let (releases, time_effects) = (vec![release], Vec::new());
    Arc::new(CommitRelease { end, ledger_time: LedgerTime(number), releases, time_effects })
}

/// A line of `/proc/self/status`, in MiB.
fn status_mib(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Folds `early` payloads, and then up to `late`.
pub(crate) fn measure(runtime: &tokio::runtime::Runtime, early: u64, late: u64) -> Value {
    let place = TempDir::new().unwrap();
    let genesis = genesis();
    let cluster = ClusterId::of(&genesis.to_bytes());
    let archive = Archives::below(place.path()).fresh().unwrap();
    let mut reader = Reader::new(cluster, genesis.clone(), None);
    let model = SharedModel::new(Model::new(&genesis), Some(archive), reader.progress());
    let signer = key(9);
    let mut digests: Vec<PayloadDigest> = Vec::new();
    let mut fold = |numbers: std::ops::RangeInclusive<u64>, together: usize| {
        let (all, mut folding) = (numbers.clone().count() as f64, Duration::ZERO);
        let numbers: Vec<_> = numbers.collect();
        for some in numbers.chunks(together) {
            let commits: Vec<_> =
                some.iter().map(|number| commit(cluster, &signer, *number)).collect();
            let noted = commits.iter().filter(|commit| commit.end.index.0 % 1024 == 1);
            digests.extend(noted.map(|commit| commit.releases[0].digest));
            folding += timed(|| model.take_in(&commits).unwrap().unwrap());
        }
        (all / folding.as_secs_f64()).round()
    };
    let alone = fold(1..=early, 1);
    let before = status_mib("RssAnon:");
    let together = fold(early + 1..=late, RELEASES_WRITTEN_TOGETHER_MAX);
    let after = status_mib("RssAnon:");
    let count = u32::try_from(digests.len()).unwrap();
    let glances = timed(|| {
        for digest in &digests {
            let digest = *digest;
            let look = move |back: &LookBack| back.payload_view(&digest, CommitIndex(0));
            let view = runtime.block_on(model.look_back(LookExtent::Glance, look)).unwrap();
            assert!(view.is_some());
        }
    });
    let query = LogQuery { from: Some(Position(1)), entries_max: 1000, looked_at_max: 100_000 };
    let page = timed(|| {
        let look = move |back: &LookBack| back.log(query, CommitIndex(0), &|_| true);
        let view =
            runtime.block_on(model.look_back(LookExtent::Walk(Walker::Operator), look)).unwrap();
        assert!(!view.entries.is_empty());
    });
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    let growth = after - before;
    json!({
        "payloads_early": early, "payloads_late": late,
        "anonymous_early_mib": rounded(before),
        "anonymous_late_mib": rounded(after),
        "growth_mib": rounded(growth),
        "goal_growth_mib_max": GROWTH_GOAL_MIB,
        "is_within_goal": growth <= GROWTH_GOAL_MIB,
        "mapped_files_mib": rounded(status_mib("RssFile:")),
        "archive_mib": rounded(archive_mib(place.path())),
        "folded_alone_per_s": alone,
        "folded_together_per_s": together,
        "payload_show_us": ((glances / count).as_secs_f64() * 1e6).round(),
        "log_page_of_1000_ms": rounded(page.as_secs_f64() * 1e3),
        "note": "one refused payload in each commit, the early ones folded one by one, the others as \
                 many together as while catching up; anonymous memory of this process, which maps \
                 the archive besides: those pages are the kernel's to take back",
    })
}

fn archive_mib(place: &std::path::Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    let archives = std::fs::read_dir(place.join("archive")).unwrap();
    let files = archives.map(|archive| archive.unwrap().path().join("data.mdb"));
    files.map(|file| file.metadata().unwrap().blocks() * 512).sum::<u64>() as f64 / 1048576.0
}
