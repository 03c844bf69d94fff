//! A kept history, grown by the model's run and signed throughout, and the roots that it led to
//! then: every build that judges it must come to the same ones.
//!
//! `DAGGER_GROW_HISTORY=1 cargo nextest run -p dagger-processor --test model kept_history` grows a
//! new one, which is right only before the first release, or for a new protocol version beside the
//! histories of the old ones.

use std::path::PathBuf;

use dagger_payload::codec::{decode, encode};
use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, ProtocolVersion};
use dagger_payload::release::OrderedCommit;
use dagger_processor::judge::Judge;
use dagger_processor::verify::{Verified, verify};

use super::run::{Run, Signing};

/// Few enough that the file stays small.
const PAYLOADS: u64 = 360;
/// Of so many runs the one with the most different verdicts is kept.
const RUNS: u64 = 60;

#[derive(minicbor::Encode, minicbor::Decode)]
pub(crate) struct History {
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) genesis: Vec<u8>,
    #[n(1)]
    pub(crate) commits: Vec<OrderedCommit>,
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/model").join(name)
}

fn line(end: &CommitEnd) -> String {
    format!("{} {} {} {}\n", end.index, end.position, end.prefix_hash, end.state_root)
}

fn run(seed: u64, signing: Signing) -> (Run, Vec<OrderedCommit>, String) {
    let mut run = Run::new(seed, signing);
    let (mut commits, mut roots) = (Vec::new(), String::new());
    while run.judged < PAYLOADS {
        let (commit, end) = run.commit();
        roots.push_str(&line(&end));
        commits.push(commit);
    }
    (run, commits, roots)
}

/// The history that is kept.
pub(crate) fn kept() -> History {
    let history = std::fs::read(file("history.cbor")).expect("the history");
    decode(&history).expect("a history")
}

fn grow() {
    let variety = |seed: &u64| run(*seed, Signing::Sample).0.verdicts.len();
    let seed = (0..RUNS).max_by_key(variety).expect("some runs");
    let (_, commits, roots) = run(seed, Signing::All);
    let history = History { genesis: super::people::genesis().to_bytes(), commits };
    std::fs::write(file("history.cbor"), encode(&history)).expect("written");
    std::fs::write(file("history.roots"), roots).expect("written");
}

#[test]
fn the_kept_history_leads_to_the_roots_that_it_led_to_when_it_was_grown() {
    if std::env::var_os("DAGGER_GROW_HISTORY").is_some() {
        grow();
    }
    let history = kept();
    let cluster = ClusterId::of(&history.genesis);
    let genesis = Genesis::read(&history.genesis).expect("a genesis");
    let mut judge = Judge::found(genesis, cluster).knowing(ProtocolVersion(u32::MAX));
    let roots = std::fs::read_to_string(file("history.roots")).expect("its roots");
    assert_eq!(roots.lines().count(), history.commits.len());
    for (commit, root) in history.commits.iter().zip(roots.lines()) {
        let payloads = commit.payloads.iter();
        let verified: Vec<Verified> = payloads.map(|ordered| verify(&ordered.payload)).collect();
        let release = judge.apply(commit.clone(), &verified).expect("the next commit");
        assert_eq!(
            line(&release.end).trim_end(),
            root,
            "the rules judge an old history differently: hosts with the old and the new rules \
             would part. A changed rule needs a protocol activation (see tests/model/history.rs)."
        );
    }
}
