//! libvirt behind the trait: QEMU with KVM or TCG, and libvirt's built-in test driver.
//!
//! Owns the one connection and what is said over it. Never decides, never waits longer than libvirt
//! does (the caller has the deadline), never touches a domain whose tags are not ours. Keep-alive
//! makes a daemon that hangs a connection that ends, so that calls into it return. Called through
//! [`Hypervisor`] by the actuator and the observation.

mod backup;
mod console;
mod domain_xml;
mod events;
mod flavour;
mod limits;
mod volumes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use dagger_payload::id::VmId;
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainState, DomainStateReason};
use virt::error::{Error, ErrorNumber};
use virt::sys;

use self::domain_xml::Console;
use self::events::Subscription;
use self::flavour::Flavour;
use super::announcer::Announcer;
use super::names::{HostNames, TAGS_NAMESPACE};
use super::{
    ConsoleInput, GivenVolume, Hypervisor, HypervisorError, Inventory, LiveCopy, Machine,
    MachineSpecification, Power, Tags,
};
use crate::controller::proof::{DeleteProof, StopProof};
use crate::machines::Accelerator;
use limits::{KEEP_ALIVE_MISSING_MAX, KEEP_ALIVE_SECONDS, LISTINGS_MAX};

/// The daemon through which libvirt writes console files, as its error messages name it.
const CONSOLE_DAEMON: &str = "virtlogd";
/// The prefix under which our tags stand in a domain's metadata.
const TAGS_PREFIX: &str = "dagger";

/// libvirt on this host.
pub struct Libvirt {
    names: HostNames,
    uri: String,
    accelerator: Accelerator,
    announcer: Announcer,
    live: Mutex<Option<Live>>,
    /// libvirt cannot write console files; found out when a machine did not start, forgotten with
    /// the connection.
    no_console_files: AtomicBool,
}

/// A connection that answered.
struct Live {
    connection: Connect,
    flavour: Flavour,
    _subscription: Subscription,
}

impl Libvirt {
    /// Prepares; nothing is connected yet.
    pub fn new(uri: String, accelerator: Accelerator, announcer: Announcer) -> Self {
        Self {
            names: announcer.names(),
            uri,
            accelerator,
            announcer,
            live: Mutex::default(),
            no_console_files: AtomicBool::new(false),
        }
    }

    fn open(&self) -> Result<Live, HypervisorError> {
        events::ensure_event_loop().map_err(HypervisorError::Unavailable)?;
        let unavailable = |error: Error| HypervisorError::Unavailable(error.to_string());
        let connection = Connect::open(Some(&self.uri)).map_err(unavailable)?;
        // Drivers within our own process, such as the test driver, have nothing to keep alive.
        let _ = connection.set_keep_alive(KEEP_ALIVE_SECONDS, KEEP_ALIVE_MISSING_MAX);
        let subscription = Subscription::open(&connection, &self.announcer).map_err(unavailable)?;
        let flavour = Flavour::find(&connection, self.accelerator)?;
        Ok(Live { connection, flavour, _subscription: subscription })
    }

    /// The connection now, to be used without holding the lock.
    fn connection(&self) -> Result<(Connect, Flavour), HypervisorError> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.as_ref()
            .map(|live| (live.connection.clone(), live.flavour))
            .ok_or_else(|| HypervisorError::Unavailable("libvirt is not connected".to_owned()))
    }

    /// Our domain of `vm`; `None` when libvirt says that there is none, an error when it carries
    /// other tags.
    fn ours(&self, connection: &Connect, vm: VmId) -> Result<Option<Domain>, HypervisorError> {
        match connection.lookup_domain_by_name(&self.names.domain(vm)) {
            Ok(domain) => match self.machine(&domain, vm)? {
                Some(Machine::Ours { .. }) => Ok(Some(domain)),
                Some(Machine::Foreign(why)) => Err(HypervisorError::Occupied(why)),
                None => Ok(None),
            },
            Err(error) if is(&error, ErrorNumber::NoDomain) => Ok(None),
            Err(error) => Err(HypervisorError::Unavailable(error.to_string())),
        }
    }

    /// Like [`Libvirt::ours`], where the domain has to be there.
    fn existing(&self, connection: &Connect, vm: VmId) -> Result<Domain, HypervisorError> {
        self.ours(connection, vm)?
            .ok_or_else(|| HypervisorError::Failed("the domain is not defined".to_owned()))
    }

    /// What this domain is; `None` when it went while we looked.
    fn machine(&self, domain: &Domain, vm: VmId) -> Result<Option<Machine>, HypervisorError> {
        let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
        let tags = match domain.metadata(kind, Some(TAGS_NAMESPACE), 0) {
            Ok(xml) => domain_xml::read_tags(&xml),
            Err(error) if is(&error, ErrorNumber::NoDomain) => return Ok(None),
            Err(error) if is(&error, ErrorNumber::NoDomainMetadata) => {
                Err("a domain of this name carries no tags of ours".to_owned())
            }
            Err(error) => return Err(HypervisorError::Unavailable(error.to_string())),
        };
        let tags = match tags {
            Ok(tags) if tags.host == self.names.host() && tags.vm == vm => tags,
            Ok(_) => {
                let why = "a domain of this name carries another host's or VM's tags";
                return Ok(Some(Machine::Foreign(why.to_owned())));
            }
            Err(why) => return Ok(Some(Machine::Foreign(why))),
        };
        Ok(power(domain)?.map(|power| Machine::Ours { power, tags }))
    }

    /// One try at a full listing; `None` when a domain went during it.
    fn list_once(&self, connection: &Connect) -> Result<Option<Inventory>, HypervisorError> {
        let unavailable = |error: Error| HypervisorError::Unavailable(error.to_string());
        let mut inventory = Inventory::new();
        for domain in connection.list_all_domains(0).map_err(unavailable)? {
            let name = domain.name().map_err(unavailable)?;
            let Some(vm) = self.names.vm_of_domain(&name) else { continue };
            match self.machine(&domain, vm)? {
                Some(machine) => inventory.insert(vm, machine),
                None => return Ok(None),
            };
        }
        Ok(Some(inventory))
    }
}

impl Hypervisor for Libvirt {
    fn connect(&self) -> Result<String, HypervisorError> {
        if let Ok((connection, flavour)) = self.connection()
            && connection.is_alive().unwrap_or(false)
        {
            return Ok(flavour.describe().to_owned());
        }
        // Opened without holding the lock: a daemon that hangs here must not hold up those who ask
        // for the connection.
        let live = self.open()?;
        let description = live.flavour.describe().to_owned();
        self.no_console_files.store(false, Ordering::Release);
        let old = self.live.lock().unwrap_or_else(PoisonError::into_inner).replace(live);
        drop(old);
        Ok(description)
    }

    fn disconnect(&self) {
        // The test driver's machines live in its connection; it cannot hang, so there is nothing to
        // give up.
        let old = self
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_if(|live| live.flavour != Flavour::Test);
        drop(old);
    }

    fn list(&self) -> Result<Inventory, HypervisorError> {
        let (connection, _) = self.connection()?;
        for _ in 0..LISTINGS_MAX {
            if let Some(inventory) = self.list_once(&connection)? {
                return Ok(inventory);
            }
        }
        Err(HypervisorError::Unavailable("domains came and went during every listing".to_owned()))
    }

    fn strays(&self) -> Result<Vec<String>, HypervisorError> {
        let (connection, _) = self.connection()?;
        let unavailable = |error: Error| HypervisorError::Unavailable(error.to_string());
        let mut strays = Vec::new();
        for domain in connection.list_all_domains(0).map_err(unavailable)? {
            let name = domain.name().map_err(unavailable)?;
            if self.names.vm_of_domain(&name).is_some() {
                continue;
            }
            let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            // Another's domain: whatever is wrong with its metadata is none of our business.
            let Ok(xml) = domain.metadata(kind, Some(TAGS_NAMESPACE), 0) else { continue };
            if let Ok(tags) = domain_xml::read_tags(&xml)
                && tags.host == self.names.host()
            {
                strays.push(format!("the domain {name} carries the tags of VM {}", tags.vm));
            }
        }
        Ok(strays)
    }

    fn look(&self, vm: VmId) -> Result<Option<Machine>, HypervisorError> {
        let (connection, _) = self.connection()?;
        match connection.lookup_domain_by_name(&self.names.domain(vm)) {
            Ok(domain) => self.machine(&domain, vm),
            Err(error) if is(&error, ErrorNumber::NoDomain) => Ok(None),
            Err(error) => Err(HypervisorError::Unavailable(error.to_string())),
        }
    }

    fn define(&self, machine: &MachineSpecification) -> Result<(), HypervisorError> {
        let (connection, flavour) = self.connection()?;
        self.ours(&connection, machine.tags.vm)?;
        let console = match self.no_console_files.load(Ordering::Acquire) {
            true => Console::TerminalOnly,
            false => Console::Logged,
        };
        let xml = domain_xml::domain(machine, &self.names, flavour, console)
            .map_err(|error| HypervisorError::Refused(error.to_string()))?;
        match connection.define_domain_xml(&xml) {
            Ok(_) => Ok(()),
            Err(error) if is_final(&error) => Err(HypervisorError::Refused(error.to_string())),
            Err(error) => Err(failed(error)),
        }
    }

    fn tag(&self, tags: &Tags) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let domain = self.existing(&connection, tags.vm)?;
        let xml =
            domain_xml::tags(tags).map_err(|error| HypervisorError::Refused(error.to_string()))?;
        let lasting = sys::VIR_DOMAIN_AFFECT_CONFIG;
        let flags = if domain.is_active().map_err(failed)? {
            lasting | sys::VIR_DOMAIN_AFFECT_LIVE
        } else {
            lasting
        };
        let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
        domain
            .set_metadata(kind, Some(&xml), Some(TAGS_PREFIX), Some(TAGS_NAMESPACE), flags)
            .map_err(failed)
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let domain = self.existing(&connection, vm)?;
        if domain.is_active().map_err(failed)? {
            return Ok(());
        }
        domain.create().map_err(|error| {
            if error.message().contains(CONSOLE_DAEMON) {
                // The next try defines the machine anew, without a console file.
                self.no_console_files.store(true, Ordering::Release);
            }
            failed(error)
        })
    }

    fn pause(&self, vm: VmId) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let domain = self.existing(&connection, vm)?;
        match power(&domain)? {
            Some(Power::Running) => domain.suspend().map_err(failed),
            Some(Power::Paused | Power::Stopped) | None => Ok(()),
        }
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let domain = self.existing(&connection, vm)?;
        match power(&domain)? {
            Some(Power::Paused) => domain.resume().map_err(failed),
            Some(Power::Running | Power::Stopped) | None => Ok(()),
        }
    }

    fn give(&self, vm: VmId, volumes: &[GivenVolume]) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let domain = self.existing(&connection, vm)?;
        if domain.is_active().map_err(failed)? { volumes::give(&domain, volumes) } else { Ok(()) }
    }

    fn copy_volume(&self, copy: &LiveCopy) -> Result<(), HypervisorError> {
        let (connection, flavour) = self.connection()?;
        let domain = self.existing(&connection, copy.vm)?;
        match flavour {
            Flavour::Qemu { .. } => backup::copy(&domain, copy),
            Flavour::Test => Err(HypervisorError::Refused(
                "snapshot_while_off_only: machines on paper copy no disks".to_owned(),
            )),
        }
    }

    fn ask_shutdown(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        let (connection, flavour) = self.connection()?;
        match self.ours(&connection, proof.vm())? {
            Some(domain) if domain.is_active().map_err(failed)? => match flavour {
                // The button and nothing else: left to choose, libvirt asks the guest's agent, and
                // waits a minute for one that does not do as it says.
                Flavour::Qemu { .. } => {
                    domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
                }
                Flavour::Test => domain.shutdown(),
            }
            .map_err(failed),
            Some(_) | None => Ok(()),
        }
    }

    fn destroy(&self, proof: &StopProof) -> Result<(), HypervisorError> {
        let (connection, _) = self.connection()?;
        let Some(domain) = self.ours(&connection, proof.vm())? else { return Ok(()) };
        if domain.is_active().map_err(failed)?
            && let Err(error) = domain.destroy()
            && !is(&error, ErrorNumber::OperationInvalid)
        {
            return Err(failed(error));
        }
        if domain.is_active().map_err(failed)? {
            return Err(HypervisorError::Failed("it still runs after destroy".to_owned()));
        }
        Ok(())
    }

    fn undefine(&self, proof: &DeleteProof) -> Result<(), HypervisorError> {
        let (connection, flavour) = self.connection()?;
        let Some(domain) = self.ours(&connection, proof.vm())? else { return Ok(()) };
        if domain.is_active().map_err(failed)? {
            return Err(HypervisorError::Failed("it still runs".to_owned()));
        }
        let flags = match flavour {
            // What an operator may have left with the domain would keep it defined.
            Flavour::Qemu { .. } => {
                sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                    | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            }
            Flavour::Test => 0,
        };
        domain.undefine_flags(flags).map_err(failed)?;
        match self.look(proof.vm())? {
            None => Ok(()),
            Some(_) => Err(HypervisorError::Failed("it is still defined".to_owned())),
        }
    }

    fn open_console(&self, vm: VmId) -> Result<Box<dyn ConsoleInput>, HypervisorError> {
        let (connection, flavour) = self.connection()?;
        let domain = self.existing(&connection, vm)?;
        if flavour == Flavour::Test {
            let why = "console_unsupported: libvirt's test driver has no consoles";
            return Err(HypervisorError::Refused(why.to_owned()));
        }
        let opened = console::DomainConsole::open(&connection, &domain).map_err(failed)?;
        Ok(Box::new(opened))
    }
}

/// Whether the guest is in memory; `None` when the domain went while we looked.
fn power(domain: &Domain) -> Result<Option<Power>, HypervisorError> {
    use virt::enumutil::Enum;
    let (state, reason) =
        domain.state().map_err(|error| HypervisorError::Unavailable(error.to_string()))?;
    let just_starting = || {
        matches!(
            reason,
            Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::StartingUp)))
        )
    };
    match state {
        Enum::Known(DomainState::Running | DomainState::Blocked | DomainState::Shutdown) => {
            Ok(Some(Power::Running))
        }
        Enum::Known(DomainState::Paused) if just_starting() => Ok(Some(Power::Running)),
        Enum::Known(DomainState::Paused | DomainState::PMSuspended | DomainState::Crashed) => {
            Ok(Some(Power::Paused))
        }
        Enum::Known(DomainState::Shutoff) => Ok(Some(Power::Stopped)),
        // The crate gives an unknown state where the call failed; whether the domain went decides
        // what that means.
        Enum::Known(DomainState::NoState) | Enum::Unknown(_) => match domain.is_active() {
            Ok(_) => Err(HypervisorError::Unavailable("a domain is in no known state".to_owned())),
            Err(error) if is(&error, ErrorNumber::NoDomain) => Ok(None),
            Err(error) => Err(HypervisorError::Unavailable(error.to_string())),
        },
    }
}

fn is(error: &Error, number: ErrorNumber) -> bool {
    error.code().is(number)
}

/// Errors that the same definition will meet again for ever.
fn is_final(error: &Error) -> bool {
    [ErrorNumber::XmlError, ErrorNumber::ConfigUnsupported, ErrorNumber::InvalidArg]
        .into_iter()
        .any(|number| is(error, number))
}

/// Errors of calls that change something: a dead connection leaves the outcome open, anything else
/// is a failure.
fn failed(error: Error) -> HypervisorError {
    let connection_errors = [
        ErrorNumber::InvalidConn,
        ErrorNumber::NoConnect,
        ErrorNumber::Rpc,
        ErrorNumber::SystemError,
        ErrorNumber::InternalError,
    ];
    let from_the_wire = error.domain().is(virt::error::ErrorDomain::Rpc)
        || error.domain().is(virt::error::ErrorDomain::Remote);
    if from_the_wire && connection_errors.iter().any(|number| is(&error, *number)) {
        return HypervisorError::Unavailable(error.to_string());
    }
    HypervisorError::Failed(words(&error))
}

/// What libvirt says, as the VM's owner reads it: without the numbers of its code.
fn words(error: &Error) -> String {
    format!("libvirt refused it: {}", error.message())
}
