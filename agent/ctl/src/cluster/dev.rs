//! `daggerctl cluster dev`: starts a cluster on this machine, shows how to use it, and stops it on
//! Ctrl-C.
//!
//! Owns the order of starting. What was started before a failure is stopped again. Called by
//! `cluster`.

use std::process::Child;
use std::time::Instant;

use dagger_api::LedgerView;
use dagger_payload::name::Name;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::{AcceleratorChoice, DevArguments, Hypervisor};
use super::daemons::{self, Role};
use super::forwarding::Forwarding;
use super::lock::Lock;
use super::record::{Accelerator, Directory, Libvirt, Record, make_private};
use super::{
    cloud_hypervisor, configuration, identity, kvm, libvirt, machines, offer, status, stop, usage,
};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::limits::{CLUSTER_START_MAX, SUPERVISION_PAUSE};
use crate::progress::{Progress, say};
use crate::session::{Pause, Session};

/// Hosts of a new cluster: the fewest that tolerate a dishonest one.
const HOSTS_DEFAULT: u16 = 4;

/// A daemon that this process started.
struct Started {
    role: Role,
    host: Name,
    child: Child,
}

/// Everything that this process started.
#[derive(Default)]
struct Children {
    daemons: Vec<Started>,
    libvirtd: Option<Child>,
}

/// Starts the cluster; returns when it works (`--detach`) or has been stopped.
pub(crate) async fn run(arguments: &DevArguments, session: &Session) -> Result<(), Failure> {
    let directory = Directory::of(&arguments.directory)?;
    make_private(directory.root())?;
    let lock = Lock::take(&directory)?;
    let progress = Progress::new(session.output.format);
    let mut record = recall(arguments, &directory, &progress)?;
    if let Some(process) =
        status::processes(&directory, &record).find(|process| process.find(&directory).is_some())
    {
        return Err(Failure::refused(
            "already_running",
            format!("{} runs already in {}", process.name, directory.root().display()),
            "See `daggerctl cluster status`; `daggerctl cluster stop` ends the cluster.",
        ));
    }
    choose_hypervisor(arguments, &mut record, &progress).await?;
    directory.write_record(&record)?;
    configuration::write(&directory, &record, &arguments.log)?;
    let own = own_session(&directory, &record, session);
    let mut children = Children::default();
    let mut end = EndSignal::new()?;
    let started = tokio::select! {
        started = start(arguments, &directory, &record, &own, &mut children, &progress) => started,
        () = end.wait() => Err(Failure::unavailable("interrupted", "interrupted", "")),
    };
    if let Err(failure) = started {
        stop::stop(&directory, &record, &progress).await?;
        return Err(failure);
    }
    drop(progress);
    let mode = if arguments.detach { usage::Mode::Detached } else { usage::Mode::Foreground };
    usage::show(&directory, &record, mode, session)?;
    if arguments.detach {
        drop(lock);
        return Ok(());
    }
    supervise(arguments, &directory, &record, &mut children, &mut end).await;
    let progress = Progress::new(session.output.format);
    stop::stop(&directory, &record, &progress).await
}

/// The cluster in the directory: the one that is there, or a new one.
fn recall(
    arguments: &DevArguments,
    directory: &Directory,
    progress: &Progress,
) -> Result<Record, Failure> {
    let Some(record) = directory.read_record()? else {
        let hosts = arguments.hosts.unwrap_or(HOSTS_DEFAULT);
        let hypervisor = arguments.hypervisor.unwrap_or(Hypervisor::Qemu);
        progress.working("making keys and the genesis document");
        let record = identity::found(directory, hosts, hypervisor)?;
        progress.done(format!("new cluster in {}", directory.root().display()));
        return Ok(record);
    };
    let hosts = record.hosts.len();
    if arguments.hosts.is_some_and(|asked| usize::from(asked) != hosts) {
        return Err(Failure::refused(
            "cluster_differs",
            format!("the cluster in {} has {hosts} hosts", directory.root().display()),
            "Leave --hosts away to start it again, or name another --directory for a new one.",
        ));
    }
    progress.done(format!("the cluster in {}, as it was", directory.root().display()));
    Ok(record)
}

async fn choose_hypervisor(
    arguments: &DevArguments,
    record: &mut Record,
    progress: &Progress,
) -> Result<(), Failure> {
    record.hypervisor = arguments.hypervisor.unwrap_or(record.hypervisor);
    if record.hypervisor == Hypervisor::Test {
        record.libvirt = Libvirt::None;
        record.network_helper = None;
        return Ok(());
    }
    let is_root = nix::unistd::geteuid().is_root();
    record.network_helper = if is_root { Some(daemons::find_program("dagger-net")?) } else { None };
    if record.hypervisor == Hypervisor::Cloud {
        record.libvirt = Libvirt::None;
        let found = cloud_hypervisor::find(arguments, record.cloud_hypervisor.as_ref())?;
        progress.done(format!("Cloud Hypervisor: {}", found.program.display()));
        record.cloud_hypervisor = Some(found);
        return Ok(());
    }
    if !is_root {
        return Err(Failure::refused(
            "needs_root",
            "real VMs need root: for their networks, and for a libvirtd of the cluster's own",
            "Run it with sudo, or with `--hypervisor test` for VMs that only exist on paper.",
        ));
    }
    record.libvirt = if libvirt::system_answers() { Libvirt::System } else { Libvirt::Private };
    let missing = libvirt::missing_programs(record.libvirt);
    if !missing.is_empty() {
        return Err(Failure::refused(
            "program_missing",
            format!("not installed: {}", missing.join(", ")),
            "On Debian: apt-get install --no-install-recommends libvirt-daemon-system libvirt-clients \
             qemu-system-x86 qemu-utils iptables iproute2 nftables",
        ));
    }
    progress.working("trying whether KVM works here");
    let (accelerator, why) = match arguments.accelerator {
        AcceleratorChoice::Kvm => (Accelerator::Kvm, "as asked"),
        AcceleratorChoice::Tcg => (Accelerator::Tcg, "as asked"),
        AcceleratorChoice::Auto => kvm::probe().await,
    };
    record.accelerator = accelerator;
    progress.done(match accelerator {
        Accelerator::Kvm => format!("QEMU runs with KVM: {why}"),
        Accelerator::Tcg => format!("QEMU runs without KVM: {why}"),
    });
    Ok(())
}

/// A session that speaks with the cluster's own agents.
pub(crate) fn own_session(directory: &Directory, record: &Record, session: &Session) -> Session {
    let socket =
        |host: &super::record::HostRecord| Endpoint::Unix(directory.api_socket(record, &host.name));
    Session {
        client: Client::new(record.hosts.iter().map(socket).collect(), None),
        output: session.output,
        key: None,
        valid_for: session.valid_for,
    }
}

async fn start(
    arguments: &DevArguments,
    directory: &Directory,
    record: &Record,
    own: &Session,
    children: &mut Children,
    progress: &Progress,
) -> Result<(), Failure> {
    if record.network_helper.is_some() {
        Forwarding::of_this_machine(record).note(machines::guests());
    }
    if record.libvirt == Libvirt::Private {
        progress.working("starting libvirtd; its first look at QEMU takes some seconds");
        children.libvirtd = Some(libvirt::start(directory, record).await?);
        progress.done("libvirtd runs in a mount namespace of its own");
    }
    for (role, host) in record.daemons() {
        progress.working(format!("starting {} of {}", role.program(), host.name));
        let child = daemons::start(directory, record, role, &host.name).await?;
        children.daemons.push(Started { role, host: host.name.clone(), child });
        if record.hosts.last() == Some(host) {
            progress.done(format!("{} x {} started", record.hosts.len(), role.program()));
        }
    }
    progress.working("waiting until all ledgers are connected");
    wait_connected(directory, record).await?;
    progress.done("all ledgers are connected");
    progress.working("declaring what the hosts offer");
    let count = offer::declare(arguments, directory, record, own).await?;
    if count > 0 {
        progress.done(format!("{count} hosts declared, each signed by its operator"));
    }
    Ok(())
}

/// Waits until every host's ledger reaches all others and can order.
async fn wait_connected(directory: &Directory, record: &Record) -> Result<(), Failure> {
    let deadline = Instant::now() + CLUSTER_START_MAX;
    let mut pause = Pause::new();
    for host in &record.hosts {
        let endpoint = Endpoint::Unix(directory.api_socket(record, &host.name));
        let client = Client::new(vec![endpoint], None);
        loop {
            let seen = match client.get::<LedgerView>("/v1/ledger").await {
                Ok(view) => match view.unavailable {
                    None if usize::from(view.reached) == view.epoch.voters.len() => break,
                    None => format!("it reaches {} of {}", view.reached, view.epoch.voters.len()),
                    Some(why) => why,
                },
                Err(failure) => failure.to_text(),
            };
            for process in status::processes(directory, record) {
                if process.find(directory).is_none() {
                    return Err(process.failure(directory, "ended"));
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::unavailable(
                    "not_connected",
                    format!("the ledger of {} is not connected in time: {seen}", host.name),
                    format!("Read {}.", directory.log(&format!("ledger-{}", host.name)).display()),
                ));
            }
            pause.wait().await;
        }
    }
    Ok(())
}

/// Watches the daemons until the user ends the cluster.
async fn supervise(
    arguments: &DevArguments,
    directory: &Directory,
    record: &Record,
    children: &mut Children,
    end: &mut EndSignal,
) {
    loop {
        tokio::select! {
            () = end.wait() => return,
            () = tokio::time::sleep(SUPERVISION_PAUSE) => {}
        }
        if let Some(libvirtd) = &mut children.libvirtd
            && let Ok(Some(how)) = libvirtd.try_wait()
        {
            say(&format!("libvirtd ended ({how}); the VMs run on, but cannot be changed"));
            children.libvirtd = None;
        }
        let (ended, running) = std::mem::take(&mut children.daemons)
            .into_iter()
            .map(|mut started| (started.child.try_wait(), started))
            .partition::<Vec<_>, _>(|(state, _)| matches!(state, Ok(Some(_))));
        children.daemons = running.into_iter().map(|(_, started)| started).collect();
        for (state, started) in ended {
            let how = state.ok().flatten().map(|how| how.to_string()).unwrap_or_default();
            let (role, host) = (started.role, &started.host);
            say(&format!("{} of {host} ended ({how})", role.program()));
            if !arguments.restart {
                let again = format!("daggerctl cluster start-daemon {} {host}", role.as_str());
                say(&format!(
                    "  start it again with: {again} --directory {}",
                    directory.root().display()
                ));
                continue;
            }
            match daemons::start(directory, record, role, host).await {
                Ok(child) => children.daemons.push(Started { child, ..started }),
                Err(failure) => say(&failure.to_text()),
            }
        }
    }
}

/// SIGINT, SIGTERM or SIGHUP.
struct EndSignal {
    signals: [tokio::signal::unix::Signal; 3],
}

impl EndSignal {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::broken(format!("signals: {error}")));
        Ok(Self {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
        })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::arguments::DirectoryArguments;
    use crate::output::Format;

    fn arguments(directory: &std::path::Path, hosts: Option<u16>) -> DevArguments {
        DevArguments {
            hosts,
            directory: DirectoryArguments { directory: Some(directory.to_owned()) },
            detach: true,
            restart: false,
            hypervisor: Some(Hypervisor::Test),
            accelerator: AcceleratorChoice::Tcg,
            cloud_hypervisor: None,
            firmware: None,
            host_cpus: None,
            host_memory: None,
            host_disk: None,
            log: "info".into(),
        }
    }

    #[test]
    fn a_directory_that_is_used_again_keeps_its_identity_and_refuses_another_size() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path().join("dev");
        let progress = Progress::new(Format::Json);
        let recall = |hosts| {
            let arguments = arguments(&root, hosts);
            let directory = Directory::of(&arguments.directory)?;
            recall(&arguments, &directory, &progress)
        };
        let files = || {
            let mut names = vec!["genesis.json".to_owned(), "genesis.json.sig".to_owned()];
            let keys = std::fs::read_dir(root.join("keys")).expect("keys");
            names.extend(
                keys.map(|key| format!("keys/{}", key.expect("a key").file_name().display())),
            );
            names.sort();
            let read = |name: String| {
                let bytes = std::fs::read(root.join(&name)).expect("a file");
                (name, bytes)
            };
            names.into_iter().map(read).collect::<Vec<_>>()
        };
        let first = recall(Some(2)).expect("a new cluster");
        let before = files();
        assert_eq!(recall(None).expect("the same cluster"), first);
        assert_eq!(recall(Some(2)).expect("the same cluster"), first);
        assert_eq!(files(), before);
        let failure = recall(Some(3)).expect_err("another size");
        assert!(failure.has_code("cluster_differs"));
    }
}
