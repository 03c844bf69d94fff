//! Endurance: clusters of real ledgers, hurt for minutes under load, and what they must still be.
//!
//! Owns the two kinds of runs. A *storm* kills, pauses, cuts and heals as a seed says; at its end
//! all ledgers are equal, nothing that was acknowledged is lost, and nobody has signed twice. An
//! *outage* hurts one host in a known way and measures what the others' users notice. The ledgers
//! are processes of their own in mode `opaque` and run the daemon's own program. Called by the
//! program `endure`.

mod clients;
mod compare;
mod namespaces;
pub mod outages;
pub mod schedule;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dagger_payload::id::{PayloadDigest, Position};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{sleep, sleep_until};

use crate::ledgers::{self, Ledgers};
use clients::Clients;
pub use compare::Compared;
use namespaces::{Cable, Namespaces};
use schedule::{Act, Fault, Kind};

/// How long the ledgers may take, once nothing hurts them any more, to deliver everything that was
/// acknowledged and to fall silent.
const HEAL_WAIT_MAX: Duration = Duration::from_secs(90);
/// Between two looks at what the clients were told.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A storm.
#[derive(Debug, Clone)]
pub struct Storm {
    /// How many ledgers.
    pub hosts: u8,
    /// Which faults; any but kills and pauses give each host a network of its own.
    pub kinds: Vec<Kind>,
    /// Decides which fault happens when.
    pub seed: u64,
    /// How many faults.
    pub faults: u32,
    /// For how long.
    pub span: Duration,
    /// Payloads a second that are submitted at each host.
    pub per_second: u32,
}

/// What a storm has shown. All ledgers were equal at its end, or there would be none.
#[derive(Debug, Clone, Serialize)]
pub struct Survived {
    /// What decided the faults.
    pub seed: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u32>,
    /// Payloads that the ledgers said they keep; each was delivered by every host.
    pub acknowledged: u64,
    /// Payloads that were delivered by every host.
    pub delivered: u64,
    /// Payloads that a ledger could not take.
    pub turned_away: u64,
    /// Payloads whose submission got no answer.
    pub unanswered: u64,
    /// The longest time without a delivery anywhere, in milliseconds.
    pub longest_silence_ms: u128,
    /// From the end of the last fault until all had delivered everything, in milliseconds.
    pub healed_after_ms: u128,
    /// What the stores show.
    pub compared: Compared,
}

/// The ledgers of a storm and what can be done to them.
struct Field {
    ledgers: Arc<Ledgers>,
    network: Option<Namespaces>,
}

impl Field {
    fn network(&mut self) -> anyhow::Result<&mut Namespaces> {
        self.network.as_mut().context("faults of the network come with namespaces")
    }

    fn act(&mut self, act: Act) -> anyhow::Result<()> {
        let hosts = self.ledgers.hosts().end;
        match act {
            Act::Begin(Fault::Kill { host }) => self.ledgers.end(host, Signal::SIGKILL).map(drop),
            Act::End(Fault::Kill { host }) => self.ledgers.start(host),
            Act::Begin(Fault::Pause { host }) => self.ledgers.signal(host, Signal::SIGSTOP),
            Act::End(Fault::Pause { host }) => self.ledgers.signal(host, Signal::SIGCONT),
            Act::Begin(Fault::Unplug { host }) => self.network()?.set_cable(host, Cable::Out),
            Act::End(Fault::Unplug { host }) => self.network()?.set_cable(host, Cable::In),
            Act::Begin(fault) => self.network()?.mute(&fault.muted(hosts)),
            Act::End(fault) => self.network()?.unmute(&fault.muted(hosts)),
        }
    }
}

/// Runs `storm` with ledgers that keep their files below `directory`; see [`Ledgers::found`] for
/// `program`.
///
/// # Errors
/// A ledger ends by itself, something acknowledged is lost, the ledgers differ, or fewer faults
/// took effect than were asked for.
pub async fn storm(storm: &Storm, program: &Path, directory: &Path) -> anyhow::Result<Survived> {
    let needs_network = storm.kinds.iter().any(|kind| !Kind::OF_PROCESSES.contains(kind));
    let network = needs_network.then(|| Namespaces::make(storm.hosts)).transpose()?;
    let places = match &network {
        Some(network) => network.places(),
        None => ledgers::on_loopback(storm.hosts)?,
    };
    let ledgers = Arc::new(Ledgers::found(places, program, directory)?);
    ledgers.start_all().await?;
    let mut field = Field { ledgers: ledgers.clone(), network };
    let mut clients = Clients::start(&ledgers, storm.per_second);
    let (acts, drawn) =
        schedule::draw(storm.seed, storm.hosts, &storm.kinds, storm.faults, storm.span);
    let begin = Instant::now();
    let mut took_effect: u32 = 0;
    for (at, act) in acts {
        sleep_until((begin + at).into()).await;
        ledgers.check_alive()?;
        clients.check().await?;
        field.act(act)?;
        took_effect += u32::from(matches!(act, Act::Begin(_)));
    }
    let asked = storm.faults;
    ensure!(took_effect >= asked, "{took_effect} of {asked} faults took effect");
    clients.stop_submitting();
    let ended = Instant::now();
    until_all_delivered(&ledgers, &mut clients).await?;
    let healed_after_ms = ended.elapsed().as_millis();
    let delivered = clients.told(0).delivered.len();
    // One that was killed last may still be starting, and would only die of the signal.
    for host in ledgers.hosts() {
        ledgers.until_linked(host).await?;
    }
    for host in ledgers.hosts() {
        let status = ledgers.end(host, Signal::SIGTERM)?;
        ensure!(status.success(), "host{} ended so: {status}", host + 1);
    }
    let delivered = u64::try_from(delivered)?;
    let compared = compare::stores(&ledgers, Position(delivered))?;
    let sum =
        |of: fn(&clients::Told) -> u64| ledgers.hosts().map(|host| of(&clients.told(host))).sum();
    Ok(Survived {
        seed: storm.seed,
        faults: drawn.into_iter().map(|(kind, count)| (format!("{kind:?}"), count)).collect(),
        acknowledged: sum(|told| u64::try_from(told.acknowledged.len()).expect("a count fits")),
        delivered,
        turned_away: sum(|told| told.turned_away),
        unanswered: sum(|told| told.unanswered),
        longest_silence_ms: longest_silence(&ledgers, &clients, begin, ended).as_millis(),
        healed_after_ms,
        compared,
    })
}

/// The longest time between two deliveries of own payloads, over all hosts together.
fn longest_silence(ledgers: &Ledgers, clients: &Clients, begin: Instant, end: Instant) -> Duration {
    let mut times: Vec<Instant> = ledgers
        .hosts()
        .flat_map(|host| clients.told(host).times.iter().map(|(_, at)| *at).collect::<Vec<_>>())
        .filter(|at| (begin..end).contains(at))
        .chain([begin, end])
        .collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Waits until every host has delivered everything that any of them acknowledged, all the same.
async fn until_all_delivered(ledgers: &Ledgers, clients: &mut Clients) -> anyhow::Result<()> {
    let deadline = Instant::now() + HEAL_WAIT_MAX;
    loop {
        sleep(LOOK_EVERY).await;
        ledgers.check_alive()?;
        clients.check().await?;
        let first = clients.told(0).delivered.clone();
        let mut missing = 0;
        let known: HashSet<&PayloadDigest> = first.iter().collect();
        ensure!(known.len() == first.len(), "a payload was delivered twice");
        for host in ledgers.hosts() {
            let told = clients.told(host);
            missing += told.acknowledged.iter().filter(|digest| !known.contains(digest)).count();
            let common = first.len().min(told.delivered.len());
            ensure!(
                first[..common] == told.delivered[..common],
                "host1 and host{} delivered different histories",
                host + 1
            );
            missing += first.len().max(told.delivered.len()) - common;
        }
        if missing == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            let mut logs = String::new();
            for host in ledgers.hosts() {
                let status = ledgers.status(host).await;
                let end = ledgers.log_end(host);
                logs.push_str(&format!("\nhost{}: {status:?}\n{end}", host + 1));
            }
            bail!("{missing} acknowledged payloads were not delivered everywhere in time{logs}");
        }
    }
}

impl fmt::Display for Survived {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u32 = self.faults.values().sum();
        let kinds: Vec<String> =
            self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(out, "seed          {}", self.seed)?;
        writeln!(out, "faults        {count} ({})", kinds.join(", "))?;
        writeln!(out, "acknowledged  {}, all of them delivered by every host", self.acknowledged)?;
        writeln!(out, "delivered     {} in the same order everywhere", self.delivered)?;
        writeln!(out, "turned away   {}, without an answer {}", self.turned_away, self.unanswered)?;
        writeln!(out, "silence       {} ms at most", self.longest_silence_ms)?;
        writeln!(out, "healed after  {} ms", self.healed_after_ms)?;
        write!(
            out,
            "stores        {} commits equal byte for byte, {} events, one per author and round",
            self.compared.commits, self.compared.events
        )
    }
}
