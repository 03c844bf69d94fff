//! Carries a request out on this machine.
//!
//! Owns the order in which tap, filters, address and route are made: the filters stand before the
//! tap is switched on, and go after it. A tap is known by what it says of itself, not by its name
//! alone, which another card may share. Each part is only ensured, so a request may be repeated,
//! and one that was cut off is finished by the next. Called by the program, once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dagger_payload::id::{HostId, VmId};
use dagger_payload::limits::VM_CARDS_MAX;
use nix::unistd::User;

use crate::bridge_rules;
use crate::claim::{Claim, addresses_of_host};
use crate::command::Program;
use crate::flows::{self, FlowLimits};
use crate::list::{self, List};
use crate::names;
use crate::request::{Action, Answer, BridgedCard, Card, Owner, Request};
use crate::rules;

/// The user of machines under systemd.
const MACHINES: &str = "dagger-vm";
/// Where the kernel shows its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Why a request was not carried out.
enum Undone {
    /// It never will be.
    Refused(String),
    /// Not this time.
    Failed(io::Error),
}

impl From<io::Error> for Undone {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::Refused(format!("interface_occupied: {error}")),
            _ => Self::Failed(error),
        }
    }
}

/// Carries `request` out; the file `allowed` says where guests may be and get to.
pub fn apply(request: &Request, allowed: &Path) -> Answer {
    if let Some(objection) = request.objection() {
        return Answer::Refused(objection);
    }
    let host = request.host;
    let done = match &request.action {
        Action::Ensure(card) => ensure(host, card, allowed).map(|()| Answer::Done),
        Action::Bridge(card) => plug(host, card, allowed).map(|()| Answer::Done),
        Action::Remove(vm) => remove(host, *vm).map(|()| Answer::Done).map_err(Undone::from),
        Action::List => list(host).map(Answer::Cards).map_err(Undone::from),
    };
    done.unwrap_or_else(|undone| match undone {
        Undone::Refused(why) => Answer::Refused(why),
        Undone::Failed(error) => Answer::Failed(format!("network_failed: {error}")),
    })
}

/// What stands under an interface's name.
enum Interface {
    Absent,
    Tap { owner: String, alias: String },
    Other,
}

impl Interface {
    /// Whether this tap is the card's: one that says nothing yet was cut off when it was made.
    fn is_of(alias: &str, host: HostId, (vm, card): (VmId, u8)) -> bool {
        alias.trim().is_empty() || names::is_alias_of(alias, host, vm, card)
    }
}

fn look(name: &str) -> io::Result<Interface> {
    let path = Path::new(INTERFACES).join(name);
    if !path.exists() {
        return Ok(Interface::Absent);
    }
    match fs::read_to_string(path.join("owner")) {
        Ok(owner) => {
            let alias = fs::read_to_string(path.join("ifalias"))?;
            Ok(Interface::Tap { owner: owner.trim().to_owned(), alias })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Interface::Other),
        Err(error) => Err(error),
    }
}

/// The host answers for every neighbour of the guest and carries what is meant for them, so that
/// all a guest sends and gets passes the host's filters.
fn ensure(host: HostId, card: &Card, allowed: &Path) -> Result<(), Undone> {
    let List { outward, .. } = List::read(allowed)?;
    let name = make_tap(host, (card.vm, 0), card.owner, &card.offer().to_string())?;
    set_kernel(&[
        ("ipv4/ip_forward".to_owned(), "1"),
        (format!("ipv4/conf/{name}/forwarding"), "1"),
        (format!("ipv4/conf/{name}/proxy_arp"), "1"),
        (format!("ipv4/conf/{name}/accept_redirects"), "0"),
        (format!("ipv4/neigh/{name}/proxy_delay"), "0"),
    ])?;
    let limits = FlowLimits::of_host();
    Program::Nft
        .tell(&(flows::ensure(host, card, limits) + &rules::ensure(host, card, &outward)))?;
    let gateway = card.subnet.address(1).ok_or_else(|| io::Error::other("subnet without host"))?;
    Program::Ip
        .tell(&format!(
            "address replace {gateway}/32 dev {name}
link set dev {name} up
route replace {}/32 dev {name} src {gateway}\n",
            card.address
        ))
        .map(drop)
        .map_err(Undone::from)
}

/// Makes the tap a port of a bridge. The bridge keeps its MAC address, which would follow its
/// ports' lowest (so the tap's is as good as the highest that there is), and its MTU, which would
/// follow their smallest.
fn plug(host: HostId, card: &BridgedCard, allowed: &Path) -> Result<(), Undone> {
    let allowed = List::read(allowed)?;
    let device = allowed.find(&card.bridge).map_err(Undone::Refused)?;
    let bridge = Path::new(INTERFACES).join(device);
    if !bridge.join("bridge").exists() {
        return Err(io::Error::other(format!("{device} is no bridge of this host")).into());
    }
    let mtu = fs::read_to_string(bridge.join("mtu"))?;
    let mtu: u32 = mtu.trim().parse().map_err(|_| io::Error::other("an MTU is no number"))?;
    let name = names::interface(host, card.vm, card.card);
    claim(host, card, device)?;
    Program::Nft.tell(&bridge_rules::ensure(host, card))?;
    let own = card.mac.get(5..).unwrap_or_default();
    Program::Ip
        .tell(&format!(
            "link set dev {name} address fe:ff{own}
link set dev {name} mtu {mtu}
link set dev {name} master {device}
link set dev {name} up\n"
        ))
        .map(drop)
        .map_err(Undone::from)
}

/// Makes the card's tap, which says what the card is to have on the bridge, if nobody else has it.
fn claim(host: HostId, card: &BridgedCard, device: &str) -> Result<(), Undone> {
    let (name, id) = (names::interface(host, card.vm, card.card), (card.vm, card.card));
    let claim = Claim::of(card, device);
    if let Some(address) = claim.address() {
        let said =
            Program::Ip.tell(&format!("address show dev {device}\nroute show dev {device}\n"))?;
        if addresses_of_host(&said).contains(&address) {
            return Err(Undone::Refused(list::reserved(address, &card.bridge.bridge)));
        }
    }
    if let Some(why) = taken(&name, &claim)? {
        return Err(Undone::Refused(why));
    }
    let before = match look(&name)? {
        Interface::Tap { alias, .. } => Some(alias),
        Interface::Absent | Interface::Other => None,
    };
    make_tap(host, id, card.owner, &claim.to_string())?;
    // Another request may have looked when this one did: now each sees what the other says.
    if let Some(why) = taken(&name, &claim)? {
        let undo = match before {
            Some(alias) if !alias.trim().is_empty() => {
                format!("link set dev {name} alias {}\n", alias.trim())
            }
            Some(_) | None => format!("link delete dev {name}\n"),
        };
        Program::Ip.tell(&undo)?;
        return Err(io::Error::other(format!("{why}, or is just getting it")).into());
    }
    Ok(())
}

/// Why a claim cannot stand beside those of all other taps, if so.
fn taken(name: &str, claim: &Claim) -> io::Result<Option<String>> {
    for (other, alias) in aliases()? {
        let objection = Claim::of_alias(&alias).and_then(|held| claim.objection(&held));
        if other != name && objection.is_some() {
            return Ok(objection);
        }
    }
    Ok(None)
}

/// What all interfaces under names of ours say of themselves.
fn aliases() -> io::Result<Vec<(String, String)>> {
    let mut aliases = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(names::BEGINNING) {
            continue;
        }
        match fs::read_to_string(entry.path().join("ifalias")) {
            Ok(alias) => aliases.push((name, alias)),
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aliases)
}

/// The card's tap, which says whose it is, and what its guest is told when it asks by DHCP. IPv6 is
/// neither filtered nor carried: it has none.
fn make_tap(host: HostId, (vm, card): (VmId, u8), owner: Owner, offer: &str) -> io::Result<String> {
    let name = names::interface(host, vm, card);
    let (user, number) = match owner {
        Owner::Root => ("root", 0),
        Owner::Machines => {
            let found = User::from_name(MACHINES)?;
            let missing = || io::Error::other(format!("there is no user {MACHINES}"));
            (MACHINES, found.ok_or_else(missing)?.uid.as_raw())
        }
    };
    match look(&name)? {
        Interface::Other => return Err(occupied(&name, "is no tap")),
        Interface::Tap { alias, .. } if !Interface::is_of(&alias, host, (vm, card)) => {
            return Err(occupied(&name, "is another card's"));
        }
        Interface::Tap { owner, .. } if owner == number.to_string() => {}
        Interface::Absent | Interface::Tap { .. } => {
            let add = format!("tuntap add dev {name} mode tap user {user} vnet_hdr\n");
            Program::Ip.tell(&add)?;
        }
    }
    let alias = names::alias(host, vm, card);
    Program::Ip.tell(&format!("link set dev {name} alias {alias}{offer}\n"))?;
    set_kernel(&[(format!("ipv6/conf/{name}/disable_ipv6"), "1")])?;
    Ok(name)
}

fn occupied(name: &str, what: &str) -> io::Error {
    let what = format!("{name} {what}; it is not touched");
    io::Error::new(io::ErrorKind::AlreadyExists, what)
}

fn set_kernel(settings: &[(String, &str)]) -> io::Result<()> {
    for (setting, value) in settings {
        let path = PathBuf::from("/proc/sys/net").join(setting);
        match fs::read_to_string(&path) {
            // Writing what stands there already may reset other settings of the same interface.
            Ok(present) if present.trim() == *value => {}
            Ok(_) => fs::write(&path, value).map_err(|error| named(setting, &error))?,
            // A kernel without IPv6 has none to switch off.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && setting.starts_with("ipv6") => {}
            Err(error) => return Err(named(setting, &error)),
        }
    }
    Ok(())
}

fn named(setting: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{setting}: {error}"))
}

/// The taps go first: nothing passes them while their filters go.
fn remove(host: HostId, vm: VmId) -> io::Result<()> {
    for card in 0..VM_CARDS_MAX {
        let name = names::interface(host, vm, card);
        match look(&name)? {
            Interface::Absent => {}
            Interface::Other => return Err(occupied(&name, "is no tap")),
            // This card has none: it could not have been made.
            Interface::Tap { alias, .. } if !Interface::is_of(&alias, host, (vm, card)) => {}
            Interface::Tap { .. } => {
                Program::Ip.tell(&format!("link delete dev {name}\n")).map(drop)?;
            }
        }
    }
    let own = tables(host)?.into_iter().filter(|table| table.vm == vm);
    let script = own.map(|table| format!("delete table {}\n", table.place)).collect::<String>();
    if script.is_empty() { Ok(()) } else { Program::Nft.tell(&script).map(drop) }
}

/// A table of a VM of this host.
struct Table {
    vm: VmId,
    /// Its family and its name.
    place: String,
}

fn tables(host: HostId) -> io::Result<Vec<Table>> {
    let said = Program::Nft.tell("list tables\n")?;
    let table = |line: &str| {
        let place = line.strip_prefix("table ")?.trim();
        let vm = names::vm_of_table(host, place.split_whitespace().nth(1)?)?;
        Some(Table { vm, place: place.to_owned() })
    };
    Ok(said.lines().filter_map(table).collect())
}

/// The VMs of this host of which a tap or a table is there.
fn list(host: HostId) -> io::Result<Vec<VmId>> {
    let aliases = aliases()?;
    let mut vms: Vec<_> =
        aliases.iter().filter_map(|(_, alias)| names::vm_of_alias(host, alias)).collect();
    vms.extend(tables(host)?.into_iter().map(|table| table.vm));
    vms.sort();
    vms.dedup();
    Ok(vms)
}
