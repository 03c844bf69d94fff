//! Domain definitions as typed values: what libvirt reads and shows of one VM.
//!
//! Owns the shape of the XML (libvirt's manual, "Domain XML format"). Text is escaped by the
//! serializer; nothing is pasted together. Formats of disks and the end of every backing chain are
//! always written, so that nothing is ever probed. Never talks to libvirt. Called by the libvirt
//! implementation.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dagger_payload::kind::ImageFormat;
use dagger_payload::limits::VM_VOLUMES_MAX;
use serde::{Deserialize, Serialize};

use super::flavour::{Flavour, Virtualization};
use crate::hypervisor::names::{HostNames, TAGS_NAMESPACE, uuid};
use crate::hypervisor::{GivenVolume, MachineSpecification, Tags};

/// The name by which the QEMU guest agent finds its line.
const GUEST_AGENT: &str = "org.qemu.guest_agent.0";

#[derive(Serialize)]
#[serde(rename = "domain")]
struct Domain<'a> {
    #[serde(rename = "@type")]
    kind: &'static str,
    name: String,
    uuid: String,
    title: &'a str,
    metadata: Metadata,
    memory: Memory,
    vcpu: u32,
    os: OperatingSystem<'a>,
    features: Features,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    clock: Clock,
    on_poweroff: &'static str,
    on_reboot: &'static str,
    on_crash: &'static str,
    devices: Devices<'a>,
}

#[derive(Serialize)]
struct Metadata {
    #[serde(rename = "dagger:domain")]
    tags: TagsElement,
}

#[derive(Serialize)]
struct TagsElement {
    #[serde(rename = "@xmlns:dagger")]
    namespace: &'static str,
    #[serde(rename = "@host")]
    host: String,
    #[serde(rename = "@vm")]
    vm: String,
    #[serde(rename = "@generation")]
    generation: u64,
    #[serde(rename = "@payload")]
    payload: String,
}

#[derive(Serialize)]
struct Memory {
    #[serde(rename = "@unit")]
    unit: &'static str,
    #[serde(rename = "$text")]
    value: u64,
}

#[derive(Serialize)]
struct OperatingSystem<'a> {
    #[serde(rename = "type")]
    kind: OperatingSystemType,
    /// The firmware boots its disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<Boot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<&'a Path>,
    #[serde(rename = "cmdline", skip_serializing_if = "Option::is_none")]
    command_line: Option<&'a str>,
}

#[derive(Serialize)]
struct OperatingSystemType {
    #[serde(rename = "@arch", skip_serializing_if = "Option::is_none")]
    architecture: Option<&'static str>,
    #[serde(rename = "@machine", skip_serializing_if = "Option::is_none")]
    machine: Option<&'static str>,
    #[serde(rename = "$text")]
    value: &'static str,
}

#[derive(Serialize)]
struct Boot {
    #[serde(rename = "@dev")]
    device: &'static str,
}

#[derive(Serialize)]
struct Features {
    acpi: (),
}

#[derive(Serialize)]
struct Cpu {
    #[serde(rename = "@mode")]
    mode: &'static str,
}

#[derive(Serialize)]
struct Clock {
    #[serde(rename = "@offset")]
    offset: &'static str,
}

#[derive(Serialize)]
struct Devices<'a> {
    disk: Vec<Disk<'a>>,
    controller: Controller,
    interface: Vec<Interface>,
    serial: CharacterDevice<'a>,
    console: CharacterDevice<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<Channel>,
    rng: RandomSource,
    memballoon: Model,
}

#[derive(Serialize)]
struct Disk<'a> {
    #[serde(rename = "@type")]
    kind: &'static str,
    #[serde(rename = "@device")]
    device: &'static str,
    driver: DiskDriver,
    source: File<'a>,
    #[serde(rename = "backingStore")]
    backing: BackingStore<'a>,
    target: DiskTarget,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    readonly: Option<()>,
}

#[derive(Serialize)]
struct DiskDriver {
    #[serde(rename = "@name")]
    name: &'static str,
    #[serde(rename = "@type")]
    format: &'static str,
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "@file")]
    file: &'a Path,
}

/// An element without content ends the chain.
#[derive(Default, Serialize)]
struct BackingStore<'a> {
    #[serde(rename = "@type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<File<'a>>,
    #[serde(rename = "backingStore", skip_serializing_if = "Option::is_none")]
    end: Option<()>,
}

#[derive(Serialize)]
struct Format {
    #[serde(rename = "@type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct DiskTarget {
    #[serde(rename = "@dev")]
    device: String,
    #[serde(rename = "@bus")]
    bus: &'static str,
}

#[derive(Serialize)]
struct Controller {
    #[serde(rename = "@type")]
    kind: &'static str,
    #[serde(rename = "@model")]
    model: &'static str,
}

#[derive(Serialize)]
struct Interface {
    #[serde(rename = "@type")]
    kind: &'static str,
    mac: Address,
    target: Tap,
    model: InterfaceModel,
}

#[derive(Serialize)]
struct Address {
    #[serde(rename = "@address")]
    address: String,
}

/// A tap that is there before the machine starts and stays after it: libvirt makes none.
#[derive(Serialize)]
struct Tap {
    #[serde(rename = "@dev")]
    device: String,
    #[serde(rename = "@managed")]
    managed: &'static str,
}

#[derive(Serialize)]
struct InterfaceModel {
    #[serde(rename = "@type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct CharacterDevice<'a> {
    #[serde(rename = "@type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Log<'a>>,
    target: CharacterTarget,
}

#[derive(Serialize)]
struct Log<'a> {
    #[serde(rename = "@file")]
    file: &'a Path,
    #[serde(rename = "@append")]
    append: &'static str,
}

#[derive(Serialize)]
struct CharacterTarget {
    #[serde(rename = "@type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(rename = "@port")]
    port: u8,
}

/// A line between guest and host; libvirt puts its socket where it keeps its own.
#[derive(Serialize)]
struct Channel {
    #[serde(rename = "@type")]
    kind: &'static str,
    target: ChannelTarget,
}

#[derive(Serialize)]
struct ChannelTarget {
    #[serde(rename = "@type")]
    kind: &'static str,
    #[serde(rename = "@name")]
    name: &'static str,
}

#[derive(Serialize)]
struct RandomSource {
    #[serde(rename = "@model")]
    model: &'static str,
    backend: RandomBackend,
}

#[derive(Serialize)]
struct RandomBackend {
    #[serde(rename = "@model")]
    model: &'static str,
    #[serde(rename = "$text")]
    path: &'static str,
}

#[derive(Serialize)]
struct Model {
    #[serde(rename = "@model")]
    model: &'static str,
}

/// Where a guest's console goes besides its terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    /// Into the machine's console file.
    Logged,
    /// Nowhere: libvirt is set up to write console files through virtlogd, and that does not run.
    TerminalOnly,
}

/// The definition of `machine`, for `define`.
///
/// # Errors
/// A path that is not UTF-8.
pub(super) fn domain(
    machine: &MachineSpecification,
    names: &HostNames,
    flavour: Flavour,
    console: Console,
) -> Result<String, quick_xml::SeError> {
    let emulated = |virtualization: Virtualization| match virtualization {
        Virtualization::Kvm => ("kvm", "host-passthrough"),
        Virtualization::Tcg => ("qemu", "maximum"),
    };
    let (kind, cpu, operating_system) = match flavour {
        Flavour::Qemu { virtualization } => {
            let (kind, mode) = emulated(virtualization);
            // The older of the two PC machines: fewer bridges to enumerate, so it boots faster
            // where all is emulated.
            (kind, Some(Cpu { mode }), (Some("x86_64"), Some("pc")))
        }
        // libvirt's test driver knows domains of its own type only, and no machine types or CPU
        // modes.
        Flavour::Test => ("test", None, (None, None)),
    };
    let log = match (flavour, console) {
        (Flavour::Qemu { .. }, Console::Logged) => {
            Some(Log { file: &machine.console, append: "on" })
        }
        (Flavour::Qemu { .. }, Console::TerminalOnly) | (Flavour::Test, _) => None,
    };
    let channel = match flavour {
        Flavour::Qemu { .. } => Some(Channel {
            kind: "unix",
            target: ChannelTarget { kind: "virtio", name: GUEST_AGENT },
        }),
        Flavour::Test => None,
    };
    let definition = Domain {
        kind,
        name: names.domain(machine.tags.vm),
        uuid: uuid(machine.tags.vm),
        title: &machine.title,
        metadata: Metadata { tags: tags_element(&machine.tags) },
        memory: Memory { unit: "MiB", value: machine.memory_mib },
        vcpu: machine.cpus,
        os: boot(machine, operating_system),
        features: Features { acpi: () },
        cpu,
        clock: Clock { offset: "utc" },
        on_poweroff: "destroy",
        on_reboot: "restart",
        on_crash: "destroy",
        devices: Devices { channel, ..devices(machine, names, log) },
    };
    quick_xml::se::to_string(&definition)
}

/// What starts first: a kernel, handed over by the hypervisor, or the boot loader on the disk.
fn boot<'a>(
    machine: &'a MachineSpecification,
    (architecture, kind): (Option<&'static str>, Option<&'static str>),
) -> OperatingSystem<'a> {
    let direct = machine.boot.as_ref();
    OperatingSystem {
        kind: OperatingSystemType { architecture, machine: kind, value: "hvm" },
        boot: direct.is_none().then_some(Boot { device: "hd" }),
        kernel: direct.map(|direct| direct.kernel.as_path()),
        initrd: direct.and_then(|direct| direct.initrd.as_deref()),
        command_line: direct
            .and_then(|direct| direct.command_line.as_ref())
            .map(|line| line.as_str()),
    }
}

fn devices<'a>(
    machine: &'a MachineSpecification,
    names: &HostNames,
    log: Option<Log<'a>>,
) -> Devices<'a> {
    let interface = |card| Interface {
        kind: "ethernet",
        mac: Address { address: names.mac(machine.tags.vm, card) },
        target: Tap { device: names.tap(machine.tags.vm, card), managed: "no" },
        model: InterfaceModel { kind: "virtio" },
    };
    Devices {
        disk: [overlay(machine), seed(machine)]
            .into_iter()
            .chain(machine.volumes.iter().map(given_volume))
            .collect(),
        controller: Controller { kind: "usb", model: "none" },
        interface: (0..machine.cards).map(interface).collect(),
        serial: CharacterDevice {
            kind: "pty",
            log,
            target: CharacterTarget { kind: None, port: 0 },
        },
        console: CharacterDevice {
            kind: "pty",
            log: None,
            target: CharacterTarget { kind: Some("serial"), port: 0 },
        },
        channel: None,
        rng: RandomSource {
            model: "virtio",
            backend: RandomBackend { model: "random", path: "/dev/urandom" },
        },
        memballoon: Model { model: "none" },
    }
}

fn overlay(machine: &MachineSpecification) -> Disk<'_> {
    Disk {
        kind: "file",
        device: "disk",
        driver: DiskDriver { name: "qemu", format: "qcow2" },
        source: File { file: &machine.disk },
        backing: BackingStore {
            kind: Some("file"),
            format: Some(Format { kind: format_name(machine.image_format) }),
            source: Some(File { file: &machine.image }),
            end: Some(()),
        },
        target: DiskTarget { device: "vda".to_owned(), bus: "virtio" },
        serial: None,
        readonly: None,
    }
}

fn seed(machine: &MachineSpecification) -> Disk<'_> {
    Disk {
        kind: "file",
        device: "disk",
        driver: DiskDriver { name: "qemu", format: "raw" },
        source: File { file: &machine.seed },
        backing: BackingStore::default(),
        target: DiskTarget { device: "vdb".to_owned(), bus: "virtio" },
        serial: None,
        readonly: Some(()),
    }
}

fn given_volume(given: &GivenVolume) -> Disk<'_> {
    volume_at(given.slot, &given.disk, Some(given.serial()))
}

fn volume_at(slot: u8, file: &Path, serial: Option<String>) -> Disk<'_> {
    Disk {
        kind: "file",
        device: "disk",
        driver: DiskDriver { name: "qemu", format: "qcow2" },
        source: File { file },
        backing: BackingStore::default(),
        target: DiskTarget { device: volume_device(slot), bus: "virtio" },
        serial,
        readonly: None,
    }
}

/// A place for volumes as libvirt names it: after the machine's own two disks.
pub(super) fn volume_device(slot: u8) -> String {
    format!("vd{}", char::from(b'c'.saturating_add(slot)))
}

/// The device of a volume, to be attached.
pub(super) fn volume(given: &GivenVolume) -> Result<String, quick_xml::SeError> {
    quick_xml::se::to_string_with_root("disk", &given_volume(given))
}

/// The device in a place for volumes, to be detached.
pub(super) fn volume_to_detach(slot: u8, file: &Path) -> Result<String, quick_xml::SeError> {
    quick_xml::se::to_string_with_root("disk", &volume_at(slot, file, None))
}

/// What we ask of a domain's disks.
#[derive(Deserialize)]
struct SeenDomain {
    devices: SeenDevices,
}

#[derive(Deserialize)]
struct SeenDevices {
    #[serde(default)]
    disk: Vec<SeenDisk>,
}

#[derive(Deserialize)]
struct SeenDisk {
    source: Option<SeenFile>,
    target: SeenTarget,
}

#[derive(Deserialize)]
struct SeenFile {
    #[serde(rename = "@file")]
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct SeenTarget {
    #[serde(rename = "@dev")]
    device: String,
}

/// The places for volumes that a domain has filled, and with which files.
///
/// # Errors
/// What libvirt shows does not read.
pub(super) fn read_volumes(xml: &str) -> Result<BTreeMap<u8, PathBuf>, quick_xml::DeError> {
    let seen: SeenDomain = quick_xml::de::from_str(xml)?;
    let at = |disk: SeenDisk| {
        let slot = (0..VM_VOLUMES_MAX).find(|slot| volume_device(*slot) == disk.target.device)?;
        Some((slot, disk.source.and_then(|source| source.file).unwrap_or_default()))
    };
    Ok(seen.devices.disk.into_iter().filter_map(at).collect())
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        // No disk lies over the last two.
        ImageFormat::Raw | ImageFormat::Kernel | ImageFormat::Initrd => "raw",
        ImageFormat::Qcow2 => "qcow2",
    }
}

fn tags_element(tags: &Tags) -> TagsElement {
    TagsElement {
        namespace: TAGS_NAMESPACE,
        host: tags.host.to_string(),
        vm: tags.vm.to_string(),
        generation: tags.generation.0,
        payload: tags.payload.to_string(),
    }
}

/// The tags as libvirt takes and shows them by themselves: without prefix or namespace.
#[derive(Serialize, Deserialize)]
#[serde(rename = "domain")]
struct BareTags {
    #[serde(rename = "@host")]
    host: String,
    #[serde(rename = "@vm")]
    vm: String,
    #[serde(rename = "@generation")]
    generation: u64,
    #[serde(rename = "@payload")]
    payload: String,
}

/// The tags, for `set_metadata`.
pub(super) fn tags(tags: &Tags) -> Result<String, quick_xml::SeError> {
    quick_xml::se::to_string(&BareTags {
        host: tags.host.to_string(),
        vm: tags.vm.to_string(),
        generation: tags.generation.0,
        payload: tags.payload.to_string(),
    })
}

/// Reads what `get_metadata` gave.
///
/// # Errors
/// Why these are no tags of ours, in one sentence.
pub(super) fn read_tags(xml: &str) -> Result<Tags, String> {
    let bare: BareTags =
        quick_xml::de::from_str(xml).map_err(|error| format!("its tags do not read: {error}"))?;
    let wrong = |error: dagger_payload::id::ParseIdError| format!("its tags do not read: {error}");
    Ok(Tags {
        host: bare.host.parse().map_err(wrong)?,
        vm: bare.vm.parse().map_err(wrong)?,
        generation: dagger_payload::id::Generation(bare.generation),
        payload: bare.payload.parse().map_err(wrong)?,
    })
}
