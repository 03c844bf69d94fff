//! What Prometheus may scrape (OpenMetrics text).
//!
//! Owns names and labels. Counters are counted where things happen; gauges are read from model,
//! sights and what `/v1/health` says at each scrape. What is not known now has no sample, so that
//! no old number is taken for a new one. Called by API and reports.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicI64;
use std::sync::{Mutex, PoisonError};

use dagger_api::{HealthPart, HealthStatus, LedgerView};
use dagger_payload::object::VmState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::handover::SightBoard;
use crate::model::SharedModel;
use crate::verify::reader::Trust;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SubmissionLabels {
    source: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabel {
    seat: u16,
    member: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhichLabel {
    which: &'static str,
}

/// How this host is at the moment of a scrape.
pub struct HostNow<'a> {
    /// As `/v1/health` says.
    pub health: &'a [HealthPart],
    /// What the ledger says, if it answers.
    pub ledger: Option<&'a LedgerView>,
    /// What is free where disks lie, if that can be seen.
    pub storage_free_bytes: Option<u64>,
}

type Number = Gauge<i64, AtomicI64>;

/// All metrics of the agent.
pub struct Metrics {
    registry: Registry,
    submissions: Family<SubmissionLabels, Counter>,
    problems: Family<CodeLabel, Counter>,
    refused: Family<CodeLabel, Number>,
    vms: Family<StateLabel, Number>,
    judged: Number,
    attested: Number,
    ledger_time_ms: Number,
    hypervisor_up: Number,
    hold: Number,
    contradicting: Number,
    forked: Number,
    junk_payloads: Family<MemberLabel, Number>,
    junk_bytes: Family<MemberLabel, Number>,
    health: Family<PartLabel, Number>,
    voters: Family<WhichLabel, Number>,
    bytes: Family<WhichLabel, Number>,
    /// Gauges are set and read by one scrape at a time.
    scraping: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("dagger_agent"),
            submissions: Family::default(),
            problems: Family::default(),
            refused: Family::default(),
            vms: Family::default(),
            judged: Number::default(),
            attested: Number::default(),
            ledger_time_ms: Number::default(),
            hypervisor_up: Number::default(),
            hold: Number::default(),
            contradicting: Number::default(),
            forked: Number::default(),
            junk_payloads: Family::default(),
            junk_bytes: Family::default(),
            health: Family::default(),
            voters: Family::default(),
            bytes: Family::default(),
            scraping: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "submissions",
            "Payloads given to the ledger, by source and outcome",
            self.submissions.clone(),
        );
        registry.register(
            "problems",
            "Problems that the API answered, by code",
            self.problems.clone(),
        );
        registry.register(
            "payloads_refused",
            "Ordered payloads that the judge refused, by code",
            self.refused.clone(),
        );
        registry.register("vms", "VMs of the cluster, by state", self.vms.clone());
        registry.register("commit_judged", "The last judged commit", self.judged.clone());
        registry.register(
            "commit_attested",
            "The last judged commit that a quorum attests",
            self.attested.clone(),
        );
        registry.register(
            "ledger_time_ms",
            "Ledger time of the last judged commit, in milliseconds since 1970",
            self.ledger_time_ms.clone(),
        );
        registry.register(
            "hypervisor_up",
            "1 when the hypervisor answers",
            self.hypervisor_up.clone(),
        );
        registry.register("hold", "1 when nothing may change on this host", self.hold.clone());
        registry.register(
            "members_contradicting",
            "Members who attest another history",
            self.contradicting.clone(),
        );
        registry.register(
            "members_forked",
            "Members who signed two events for one round",
            self.forked.clone(),
        );
        registry.register(
            "member_junk_payloads",
            "Payloads that a member carried and no honest host takes in at its door",
            self.junk_payloads.clone(),
        );
        registry.register("member_junk_bytes", "Bytes of them", self.junk_bytes.clone());
        registry.register(
            "health",
            "1 when this part of the host is well, as /v1/health says it",
            self.health.clone(),
        );
        registry.register(
            "voters",
            "Voting hosts: all, reached by this one, needed for a change; none while its ledger \
             does not answer",
            self.voters.clone(),
        );
        registry.register(
            "bytes",
            "Bytes: storage_free for disks and images, ledger_store of the ledger",
            self.bytes.clone(),
        );
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The agent's build", version);
    }

    /// A payload was given to the ledger.
    pub fn count_submission(&self, source: &'static str, outcome: &'static str) {
        let labels = SubmissionLabels { source, outcome };
        self.submissions.get_or_create(&labels).inc();
    }

    /// The API answered a problem; `code` is one of a fixed set.
    pub fn count_problem(&self, code: &str) {
        let label = CodeLabel { code: code.to_owned() };
        self.problems.get_or_create(&label).inc();
    }

    fn note_host(&self, host: &HostNow<'_>) {
        for part in host.health {
            let is_well = part.status == HealthStatus::Ok;
            let label = PartLabel { part: part.name.clone() };
            self.health.get_or_create(&label).set(is_well.into());
        }
        self.voters.clear();
        self.bytes.clear();
        let set = |family: &Family<WhichLabel, Number>, which, value| {
            family.get_or_create(&WhichLabel { which }).set(number(value));
        };
        if let Some(ledger) = host.ledger {
            set(&self.voters, "all", ledger.epoch.voters.len() as u64);
            set(&self.voters, "reached", ledger.reached.into());
            set(&self.voters, "needed", ledger.quorum.into());
            set(&self.bytes, "ledger_store", ledger.store_bytes);
            // Whoever has forked stays so, also while the ledger does not answer.
            let authors: BTreeSet<_> = ledger.forks.iter().map(|fork| fork.host).collect();
            self.forked.set(number(authors.len() as u64));
        }
        if let Some(bytes) = host.storage_free_bytes {
            set(&self.bytes, "storage_free", bytes);
        }
    }

    /// The metrics as text, with gauges as they are now.
    pub fn scrape(&self, model: &SharedModel, board: &SightBoard, host: HostNow<'_>) -> String {
        let _scraping = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        self.note_host(&host);
        let progress = model.progress();
        self.judged.set(number(progress.judged.0));
        self.attested.set(number(progress.attested.0));
        self.hold.set(i64::from(matches!(progress.trust, Trust::Hold(_))));
        self.contradicting.set(number(progress.contradicting.len() as u64));
        let up = board.read(|sights| matches!(sights.hypervisor, Some(Ok(_))));
        self.hypervisor_up.set(i64::from(up));
        model.read(|model| {
            self.ledger_time_ms.set(number(model.ledger_time().0));
            for state in VmState::ALL {
                let existing = model.vms().filter(|vm| vm.state() == state).count() as u64;
                let gone = if state == VmState::Deleted { model.deleted_vms() } else { 0 };
                let label = StateLabel { state: state.word() };
                self.vms.get_or_create(&label).set(number(existing + gone));
            }
            for (code, count) in model.refused() {
                let label = CodeLabel { code: (*code).to_owned() };
                self.refused.get_or_create(&label).set(number(*count));
            }
            for (author, junk) in model.junk() {
                let Some(name) = model.members().seat_name(author) else { continue };
                let label = MemberLabel { seat: author.0, member: name.to_string() };
                self.junk_payloads.get_or_create(&label).set(number(junk.payloads));
                self.junk_bytes.get_or_create(&label).set(number(junk.bytes));
            }
        });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to memory cannot fail");
        text
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
