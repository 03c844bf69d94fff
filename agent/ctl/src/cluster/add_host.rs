//! `daggerctl cluster add-host`: one more host for a cluster that runs.
//!
//! Owns the order of steps: keys, admission of the operator, the host's declaration, the roster,
//! the daemons, the vote. Each is done once: repeated, the command goes on where it stopped. What
//! only the other operators can decide it signs with their keys when asked to, for on a development
//! cluster they lie side by side, and else shows. Called by `cluster`.

use std::time::Instant;

use dagger_api::{HostView, LedgerView, OperatorView, ProposalView, Vote};
use dagger_payload::id::PayloadDigest;
use dagger_payload::kind::{Body, OperatorPropose, ProposalChange};
use dagger_payload::membership::{Change, OperatorStanding, ProposalStanding};
use dagger_payload::name::Name;
use dagger_payload::roster::Roster;

use super::arguments::AddHostArguments;
use super::daemons::{self, Process, Role};
use super::dev::own_session;
use super::lock::Lock;
use super::record::{Directory, HostRecord, Membership, Record};
use super::{configuration, identity, network, offer};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::limits::{CLUSTER_START_MAX, DEVELOPMENT_HOSTS_MAX};
use crate::output::Format;
use crate::progress::Progress;
use crate::session::{Pause, Session, Until};
use crate::signer::{read_public_key, with_pub};

/// What is to be done by the other operators before the command can go on.
struct Waits {
    what: String,
    commands: Vec<String>,
}

struct Addition<'a> {
    directory: &'a Directory,
    record: Record,
    host: HostRecord,
    session: &'a Session,
    progress: Progress,
    deadline: Instant,
}

/// Adds the host, as far as its operator can and the others have agreed.
pub(crate) async fn run(arguments: &AddHostArguments, session: &Session) -> Result<(), Failure> {
    let directory = Directory::of(&arguments.directory)?;
    let mut record = directory.require_record()?;
    // Whoever supervises the cluster would not know of the host when it ends.
    let _lock = Lock::take(&directory)?;
    let progress = Progress::new(session.output.format);
    let host = recall(arguments, &directory, &mut record)?;
    progress.done(format!("keys of {} in {}", host.name, directory.join("keys").display()));
    let own = own_session(&directory, &record, session);
    let deadline = Instant::now() + CLUSTER_START_MAX;
    let mut addition =
        Addition { directory: &directory, record, host, session: &own, progress, deadline };
    let waits = addition.go(arguments).await?;
    let Addition { host, progress, .. } = addition;
    drop(progress);
    let value = serde_json::json!({
        "host": host.name,
        "operator": host.operator,
        "waits_for": waits.as_ref().map(|waits| &waits.what),
        "commands": waits.as_ref().map(|waits| &waits.commands),
    });
    session.output.show(&value, |_| text(&directory, &host, waits.as_ref()))
}

/// The host in the record, or a new one.
fn recall(
    arguments: &AddHostArguments,
    directory: &Directory,
    record: &mut Record,
) -> Result<HostRecord, Failure> {
    let known = record.hosts.iter().find(|host| host.name == arguments.name);
    if let Some(host) = known {
        let asked = arguments.operator.as_ref();
        return match (host.membership, asked.is_some_and(|asked| *asked != host.operator)) {
            (Membership::Joined, false) => Ok(host.clone()),
            (Membership::Founder, _) => Err(Failure::refused(
                "already_exists",
                format!("{} is a host of the founding", host.name),
                "Choose another --name.",
            )),
            (Membership::Joined, true) => Err(Failure::refused(
                "already_exists",
                format!("{} belongs to {}", host.name, host.operator),
                "Leave --operator away to go on with it, or choose another --name.",
            )),
        };
    }
    if record.hosts.len() >= usize::try_from(DEVELOPMENT_HOSTS_MAX).unwrap_or(usize::MAX) {
        let what = format!("a development cluster has at most {DEVELOPMENT_HOSTS_MAX} hosts");
        return Err(Failure::refused("limit_exceeded", what, ""));
    }
    let operator = match &arguments.operator {
        Some(operator) => operator.clone(),
        None => identity::parse_name(&format!("op{}", record.hosts.len() + 1))?,
    };
    let (ports, networks) = (network::free_ports(2)?, network::guest_networks(1)?);
    let host = HostRecord {
        name: arguments.name.clone(),
        operator,
        ledger_port: ports[0],
        api_port: ports[1],
        guest_network: networks[0],
        membership: Membership::Joined,
    };
    identity::make_host_keys(directory, &host)?;
    record.hosts.push(host.clone());
    directory.write_record(record)?;
    Ok(host)
}

impl Addition<'_> {
    async fn go(&mut self, arguments: &AddHostArguments) -> Result<Option<Waits>, Failure> {
        if !self.is_admitted().await? {
            let key = self.directory.key(self.host.operator.as_str());
            if !arguments.admit {
                return Ok(Some(self.admission_commands(&key).await?));
            }
            self.progress.working("the operators admit the host's operator");
            let name = self.host.operator.clone();
            let key = read_public_key(&with_pub(&key))?;
            self.decide(Change::AddOperator { name, key }).await?;
            self.progress.done(format!("{} is an operator", self.host.operator));
        }
        self.declare().await?;
        self.start().await?;
        if self.vote().await? == Vote::Follows {
            if !arguments.vote {
                return Ok(Some(self.vote_commands().await?));
            }
            self.progress.working("the operators let the host vote");
            let add = vec![self.seen().await?.id];
            self.decide(Change::Voters { add, remove: Vec::new() }).await?;
        }
        if arguments.vote {
            self.wait_for_vote().await?;
        }
        Ok(None)
    }

    async fn operators(&self) -> Result<Vec<OperatorView>, Failure> {
        let mut operators: Vec<OperatorView> = self.session.client.get("/v1/operators").await?;
        operators.retain(|operator| operator.standing == OperatorStanding::Present);
        Ok(operators)
    }

    async fn is_admitted(&self) -> Result<bool, Failure> {
        Ok(self.operators().await?.iter().any(|operator| operator.name == self.host.operator))
    }

    async fn seen(&self) -> Result<HostView, Failure> {
        let hosts: Vec<HostView> = self.session.client.get("/v1/hosts").await?;
        let own = hosts.into_iter().find(|host| host.name == self.host.name);
        own.ok_or_else(|| {
            let what = format!("{} is no member yet", self.host.name);
            Failure::unavailable("not_found", what, "See `daggerctl host ls`.")
        })
    }

    async fn vote(&self) -> Result<Vote, Failure> {
        Ok(self.seen().await?.vote)
    }

    /// Signs with an operator's key, and waits until it is judged.
    async fn order(&self, operator: &Name, body: Body) -> Result<PayloadDigest, Failure> {
        let key = self.directory.key(operator.as_str());
        let signed = self.session.sign(Some(&key), body).await?;
        let silent = Progress::new(Format::Json);
        self.session.submit(&signed, Until::Judged, self.deadline, &silent).await?;
        Ok(signed.digest)
    }

    /// Proposes a change and approves it with one operator's key after the other, until it passes.
    async fn decide(&self, change: Change) -> Result<(), Failure> {
        let operators = self.operators().await?.into_iter().map(|operator| operator.name);
        let has_key = |name: &Name| self.directory.key(name.as_str()).exists();
        let mut operators = operators.filter(has_key);
        let Some(first) = operators.next() else {
            return Err(Failure::broken("the cluster has no operator whose key is here"));
        };
        let propose = OperatorPropose { change, expected_epoch: None };
        let proposal = self.order(&first, Body::OperatorPropose(Box::new(propose))).await?;
        for operator in operators {
            let proposals: Vec<ProposalView> = self.session.client.get("/v1/proposals").await?;
            let standing = proposals.iter().find(|view| view.proposal.id == proposal);
            if standing.is_some_and(|view| view.proposal.standing != ProposalStanding::Open) {
                break;
            }
            self.order(&operator, Body::OperatorApprove(ProposalChange { proposal })).await?;
        }
        Ok(())
    }

    /// Declares the host, signed by its own operator, and writes down where its peers are.
    async fn declare(&self) -> Result<(), Failure> {
        if self.seen().await.is_err() {
            self.progress.working("declaring the host");
            let capacity = offer::capacity(offer::Wishes::default(), self.directory, &self.record)?;
            let known = self.record.hosts.iter();
            let place = known.take_while(|host| host.name != self.host.name).count();
            let body = offer::join((self.directory, &self.record), place, &self.host, capacity)?;
            self.order(&self.host.operator, body).await?;
            self.progress.done(format!("{} follows, declared by its operator", self.host.name));
        }
        let roster: Roster = self.session.client.get("/v1/roster").await?;
        let text = serde_json::to_vec_pretty(&roster);
        let text = text.map_err(|error| Failure::broken(format!("a roster: {error}")))?;
        let path = self.directory.roster(&self.host.name);
        configuration::write_host(self.directory, &self.record, &self.host, "info")?;
        std::fs::write(&path, text).map_err(|error| Failure::file(&path, &error))?;
        configuration::write_environment(self.directory, &self.record)
    }

    async fn start(&self) -> Result<(), Failure> {
        let (directory, record, host) = (self.directory, &self.record, &self.host.name);
        for role in [Role::Processor, Role::Ledger, Role::Agent] {
            if Process::daemon(directory, role, host).find(directory).is_none() {
                self.progress.working(format!("starting {} of {host}", role.program()));
                daemons::start(directory, record, role, host).await?;
            }
        }
        self.progress.working("waiting until the host has the history");
        let client = Client::new(vec![Endpoint::Unix(directory.api_socket(record, host))], None);
        let mut pause = Pause::new();
        loop {
            // Its own judge has come so far that it sees its own seat.
            let seen = client.get::<LedgerView>("/v1/ledger").await;
            let joined = seen.as_ref().is_ok_and(|view| {
                view.unavailable.is_none() && view.members.iter().any(|member| member.name == *host)
            });
            let hosts = client.get::<Vec<HostView>>("/v1/hosts").await;
            let judged = hosts.is_ok_and(|hosts| hosts.iter().any(|known| known.name == *host));
            if joined && judged {
                self.progress.done(format!("the daemons of {host} run, and have the history"));
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                let why = match seen {
                    Ok(view) => view.unavailable.unwrap_or_else(|| "it still reads".to_owned()),
                    Err(failure) => failure.to_text(),
                };
                let log = directory.log(&format!("ledger-{host}"));
                return Err(Failure::unavailable(
                    "not_connected",
                    format!("{host} does not have the history in time: {why}"),
                    format!("Read {}.", log.display()),
                ));
            }
            pause.wait().await;
        }
    }

    async fn wait_for_vote(&self) -> Result<(), Failure> {
        self.progress.working("waiting for the epoch in which the host votes");
        let mut pause = Pause::new();
        while self.vote().await? != Vote::Votes {
            if Instant::now() >= self.deadline {
                return Err(Failure::unavailable(
                    "not_applied_in_time",
                    format!("{} does not vote yet", self.host.name),
                    "The next epoch begins by itself: `daggerctl ledger status`.",
                ));
            }
            pause.wait().await;
        }
        self.progress.done(format!("{} votes", self.host.name));
        Ok(())
    }

    async fn admission_commands(&self, key: &std::path::Path) -> Result<Waits, Failure> {
        let (operator, public) = (&self.host.operator, with_pub(key));
        let first = self.record.hosts.first().map_or(operator, |host| &host.operator);
        Ok(Waits {
            what: format!("{operator} is no operator of this cluster yet"),
            commands: vec![
                format!(
                    "daggerctl operator propose add-operator {operator} {} --key {}",
                    public.display(),
                    self.directory.key(first.as_str()).display()
                ),
                self.approve_command(first).await?,
                self.again_command(),
            ],
        })
    }

    async fn vote_commands(&self) -> Result<Waits, Failure> {
        let host = &self.host.name;
        Ok(Waits {
            what: format!("{host} follows; it votes once the operators agree"),
            commands: vec![
                format!(
                    "daggerctl operator propose add-voter {host} --key {}",
                    self.directory.key(self.host.operator.as_str()).display()
                ),
                self.approve_command(&self.host.operator).await?,
            ],
        })
    }

    /// As many operators as it takes, beside whoever proposes.
    async fn approve_command(&self, proposer: &Name) -> Result<String, Failure> {
        let operators = self.operators().await?;
        let needed = 2 * operators.len() / 3 + 1;
        let others = operators.iter().filter(|operator| operator.name != *proposer);
        let key = |operator: &OperatorView| self.directory.key(operator.name.as_str());
        let keys = others.take(needed - 1).map(|each| key(each).display().to_string());
        let keys = keys.collect::<Vec<_>>().join(",");
        Ok(format!("daggerctl operator approve PROPOSAL --operator-key {keys}"))
    }

    fn again_command(&self) -> String {
        let root = self.directory.root().display();
        format!("daggerctl cluster add-host --name {} --directory {root}", self.host.name)
    }
}

fn text(directory: &Directory, host: &HostRecord, waits: Option<&Waits>) -> String {
    match waits {
        Some(waits) => {
            format!("{}. Next:\n  {}", waits.what, waits.commands.join("\n  "))
        }
        None => format!(
            "{} of {} takes part. Source {} again to use it.",
            host.name,
            host.operator,
            directory.environment().display()
        ),
    }
}
