//! A bill that is computed from a history that was made here, whole, changed and cut.

use std::path::PathBuf;

use dagger_payload::attested::{AttestedEnd, AttestedProof};
use dagger_payload::codec;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{AuthorIndex, HistoryHash, LedgerTime, Position, PrefixHash, StateRoot};
use dagger_payload::kind::{Body, ProposalChange};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::proof::{Finding, Path as Way, StateProof};
use dagger_payload::release::{OrderedPayload, Release, Verdict, extend_prefix, initial_prefix};
use dagger_payload::snapshot::extend_history;
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::state_tree::{Subject, leaf};
use dagger_payload::usage::{PastUsage, Used};

use super::super::ledger::verify::tests::{genesis, header, key};
use super::*;

const ACCOUNT: AccountId = AccountId([7; 16]);

fn host() -> HostId {
    genesis("0").0.hosts[1].id()
}

/// What the account has used after a commit, as an effect of it.
fn used(cpu_ms: u64) -> Effect {
    let used = Used { cpu_ms, ..Used::default() };
    Effect::Usage(Box::new(PastUsage { account: ACCOUNT, host: host(), vms: 1, used }))
}

/// Three releases, the second of which only the passing of time made, and a proof of the last.
fn history() -> (Vec<CommitRelease>, AttestedProof) {
    let (_, cluster) = genesis("0");
    let (mut prefix, mut chain) = (initial_prefix(&cluster), HistoryHash::ZERO);
    let mut releases = Vec::new();
    for (number, commit) in [3, 4, 9].into_iter().enumerate() {
        let cpu_ms = 1_000 * (number as u64 + 1);
        let body = Body::OperatorWithdraw(ProposalChange {
            proposal: dagger_payload::id::PayloadDigest([3; 32]),
        });
        let (signer, not_after) = (key(1).public_key(), LedgerTime(commit));
        let payload = SignedPayload::sign(&key(1), &Payload { cluster, signer, not_after, body });
        let judged = Release {
            position: Position(number as u64),
            digest: payload.digest(),
            ordered: OrderedPayload { author: AuthorIndex(1), payload },
            verdict: Verdict::Accepted,
            effects: vec![used(cpu_ms)],
        };
        let (judged, time_effects) =
            if commit == 4 { (Vec::new(), vec![used(cpu_ms)]) } else { (vec![judged], Vec::new()) };
        let ledger_time = LedgerTime(1_700_000_000_000 + commit);
        let payloads = judged.iter().map(|judged| &judged.ordered.payload);
        prefix = extend_prefix(&prefix, ledger_time, payloads);
        let end = CommitEnd {
            index: CommitIndex(commit),
            position: Position(number as u64),
            prefix_hash: prefix,
            state_root: StateRoot::ZERO,
        };
        let release = CommitRelease { end, ledger_time, releases: judged, time_effects };
        chain = extend_history(&chain, &release);
        releases.push(release);
    }
    let last = releases.last().expect("three");
    // The leaf has more than readers know.
    let value = codec::encode(&(last.ledger_time, chain, 7_u8));
    let state_root = StateRoot(leaf(&Subject::Order.place(), &value));
    let end = CommitEnd { state_root, ..last.end };
    let headers = [0, 1, 3].map(|author| header(cluster, author, end)).to_vec();
    let finding = Finding::Value(value.into());
    let proof = AttestedProof {
        state: StateProof { path: Way(Vec::new()), finding },
        attested: AttestedEnd { end, headers, handovers: Vec::new() },
        carried: None,
    };
    (releases, proof)
}

/// Everything that somebody has who asks nobody.
struct Files {
    _directory: tempfile::TempDir,
    history: PathBuf,
    proof: PathBuf,
    genesis: PathBuf,
    /// As the history was exported.
    exported: Vec<u8>,
}

impl Files {
    fn new() -> Self {
        let (releases, proof) = history();
        let (founding, cluster) = genesis("0");
        let mut exported = HISTORY_MAGIC.to_vec();
        releases.iter().for_each(|release| history::write(release, &mut exported));
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            path
        };
        let document = founding.to_bytes();
        let signature = sshsig::sign(&key(1), Namespace::Genesis, &document);
        let armor = sshsig::to_armor(&key(1).public_key(), Namespace::Genesis, &signature);
        write("genesis.json.sig", armor.as_bytes());
        let view = dagger_api::proof::ProofView::new(cluster, Subject::Order, &proof, Vec::new());
        Self {
            history: write("history", &exported),
            proof: write("order.json", &serde_json::to_vec(&view).expect("plain data")),
            genesis: write("genesis.json", &document),
            exported,
            _directory: directory,
        }
    }

    fn bill(&self, commit: Option<u64>) -> Result<UsageView, String> {
        let sources = Sources {
            history: &self.history,
            proof: &self.proof,
            genesis: &self.genesis,
            signatures: None,
        };
        bill(&sources, ACCOUNT, commit.map(CommitIndex)).map_err(|error| error.to_text())
    }

    /// What comes of another history.
    fn of(&self, bytes: &[u8]) -> Result<UsageView, String> {
        std::fs::write(&self.history, bytes).expect("written");
        self.bill(None)
    }
}

#[test]
fn a_bill_is_computed_as_of_any_commit_up_to_the_proof() {
    let files = Files::new();
    let newest = files.bill(None).expect("all of it holds");
    assert_eq!((newest.commit.0, newest.used.cpu_ms), (9, 3_000));
    assert_eq!(newest.hosts[0].name, Some("host1".parse().expect("a name")));
    for (commit, at, cpu_ms) in [(1, 0, 0), (3, 3, 1_000), (4, 4, 2_000), (8, 4, 2_000)] {
        let bill = files.bill(Some(commit)).expect("all of it holds");
        assert_eq!((bill.commit.0, bill.used.cpu_ms), (at, cpu_ms), "{commit}");
    }
    let later = files.bill(Some(10)).expect_err("nothing shows that");
    assert!(later.contains("the proof is of commit 9"), "{later}");
}

#[test]
fn whatever_is_changed_in_a_history_no_bill_comes_of_it() {
    let files = Files::new();
    for at in 0..files.exported.len() {
        let mut changed = files.exported.clone();
        changed[at] ^= 1;
        let Ok(bill) = files.of(&changed) else { continue };
        // What no chain covers, and no bill says: who carried a payload, and what each commit end
        // but the attested one is said to lead to.
        assert_eq!(Ok(bill), files.of(&files.exported), "byte {at}");
    }
    for end in (0..files.exported.len()).step_by(7) {
        assert!(files.of(&files.exported[..end]).is_err(), "cut at {end}");
    }
    // What comes after the proof's commit is not looked at.
    let more = [&files.exported[..], b"more"].concat();
    assert!(files.of(&more).is_ok());
}

#[test]
fn a_history_in_which_a_number_is_larger_is_told_to_be_false() {
    let files = Files::new();
    let (mut releases, _) = history();
    releases[1].time_effects = vec![used(2_001)];
    let mut padded = HISTORY_MAGIC.to_vec();
    releases.iter().for_each(|release| history::write(release, &mut padded));
    let told = files.of(&padded).expect_err("it is not the true one");
    assert!(told.contains("NOT PROVEN") && told.contains("does not lead to what"), "{told}");
    releases.remove(1);
    let mut shorter = HISTORY_MAGIC.to_vec();
    releases.iter().for_each(|release| history::write(release, &mut shorter));
    assert!(files.of(&shorter).is_err());
    assert!(files.of(&files.exported[..60]).is_err_and(|told| told.contains("in the middle")));
    // A proof of something else shows nothing of a history.
    let (_, mut proof) = history();
    proof.attested.end.prefix_hash = PrefixHash([9; 32]);
    let view =
        dagger_api::proof::ProofView::new(genesis("0").1, Subject::Order, &proof, Vec::new());
    std::fs::write(&files.proof, serde_json::to_vec(&view).expect("plain data")).expect("written");
    assert!(files.of(&files.exported).is_err());
}
