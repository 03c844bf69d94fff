//! What Cloud Hypervisor takes and gives as JSON, as far as we use it (API 0.3.0).
//!
//! Owns these shapes. Requests name everything that has a default we rely on, since unknown names
//! are ignored by the other side; answers are read tolerantly. Called by the implementation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dagger_payload::name::CommandLine;
use serde::{Deserialize, Serialize};

use super::attached::Attached;
use crate::hypervisor::names::{HostNames, uuid};
use crate::hypervisor::{DirectBoot, GivenVolume, MachineSpecification, Tags};

/// Where the kernel tells of taps.
const TAPS: &str = "/sys/devices/virtual/net";
/// What stands in front of our tags among a machine's OEM strings.
const TAGS_BEGINNING: &str = "dagger:1:";
/// What stands in front of the place of a volume in the id of its disk.
const VOLUME: &str = "volume";

#[derive(Debug, Serialize)]
pub(super) struct VmConfig {
    cpus: Cpus,
    memory: Memory,
    payload: Payload,
    disks: Vec<Disk>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    net: Vec<Net>,
    rng: Rng,
    serial: Serial,
    console: Console,
    platform: Platform,
    pvpanic: bool,
    landlock_enable: bool,
    landlock_rules: Vec<LandlockRule>,
}

#[derive(Debug, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
}

#[derive(Debug, Serialize)]
struct Memory {
    size: u64,
}

/// What starts first: the firmware, which looks for a boot loader on the disks, or a kernel.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Payload {
    Firmware {
        firmware: PathBuf,
    },
    Kernel {
        kernel: PathBuf,
        #[serde(skip_serializing_if = "Option::is_none")]
        initramfs: Option<PathBuf>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cmdline: Option<CommandLine>,
    },
}

impl Payload {
    fn of(machine: &MachineSpecification, firmware: &Path) -> Self {
        match &machine.boot {
            None => Self::Firmware { firmware: firmware.to_owned() },
            Some(DirectBoot { kernel, initrd, command_line }) => Self::Kernel {
                kernel: kernel.clone(),
                initramfs: initrd.clone(),
                cmdline: command_line.clone(),
            },
        }
    }

    /// Its files, which the confined process has to read, again at every reset of the guest.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let (first, second) = match self {
            Self::Firmware { firmware } => (firmware, None),
            Self::Kernel { kernel, initramfs, .. } => (kernel, initramfs.as_ref()),
        };
        std::iter::once(first.as_path()).chain(second.map(PathBuf::as_path))
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Disk {
    id: String,
    path: PathBuf,
    /// Always told: of an image whose type was found by looking, the first sector cannot be
    /// written.
    image_type: &'static str,
    readonly: bool,
    backing_files: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
}

/// A card on a tap that was made before, and is switched on.
#[derive(Debug, Serialize)]
pub(super) struct Net {
    id: String,
    tap: String,
    mac: String,
}

#[derive(Debug, Serialize)]
struct Rng {
    src: &'static str,
}

#[derive(Debug, Serialize)]
struct Serial {
    mode: &'static str,
    socket: PathBuf,
}

#[derive(Debug, Serialize)]
struct Console {
    mode: &'static str,
}

#[derive(Debug, Serialize)]
struct Platform {
    system_uuid: String,
    oem_strings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LandlockRule {
    path: PathBuf,
    access: &'static str,
}

/// Whether the process confines itself to its machine's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landlock {
    /// The kernel can.
    On,
    /// The kernel cannot.
    Off,
}

/// The machine's network cards.
pub(super) fn cards(machine: &MachineSpecification, names: &HostNames) -> Vec<Net> {
    let vm = machine.tags.vm;
    let card = |card: u8| Net {
        id: format!("net{card}"),
        tap: names.tap(vm, card),
        mac: names.mac(vm, card),
    };
    (0..machine.cards).map(card).collect()
}

/// The machine as the process is told it.
pub(super) fn configuration(
    machine: &MachineSpecification,
    net: Vec<Net>,
    (firmware, directory, attached): (&Path, &Path, &Attached),
    landlock: Landlock,
) -> VmConfig {
    let below = |path: &Path| LandlockRule { path: path.to_owned(), access: "r" };
    let payload = Payload::of(machine, firmware);
    // The whole directory: a reboot makes the serial socket anew, which a rule on the socket would
    // forbid.
    let own = |path: &Path| LandlockRule { path: path.to_owned(), access: "rw" };
    // Of all disks it may open those that it is given, now or later.
    let mut landlock_rules = vec![own(directory), own(attached.directory()), below(&machine.image)];
    landlock_rules.extend(payload.files().map(below));
    // It reads what kind of tap it is given.
    let taps = net.iter().map(|card| Path::new(TAPS).join(&card.tap));
    landlock_rules.extend(taps.map(|path| LandlockRule { path, access: "r" }));
    VmConfig {
        cpus: Cpus { boot_vcpus: machine.cpus, max_vcpus: machine.cpus },
        memory: Memory { size: machine.memory_mib << 20 },
        payload,
        disks: [
            Disk {
                id: "root".to_owned(),
                path: attached.link_of(&machine.disk),
                image_type: "Qcow2",
                readonly: false,
                backing_files: true,
                serial: None,
            },
            Disk {
                id: "seed".to_owned(),
                path: attached.link_of(&machine.seed),
                image_type: "Raw",
                readonly: true,
                backing_files: false,
                serial: None,
            },
        ]
        .into_iter()
        .chain(machine.volumes.iter().map(|given| volume_disk(given, attached)))
        .collect(),
        net,
        rng: Rng { src: "/dev/urandom" },
        serial: Serial { mode: "Socket", socket: directory.join(super::place::SERIAL) },
        console: Console { mode: "Off" },
        platform: Platform {
            system_uuid: uuid(machine.tags.vm),
            oem_strings: vec![tags_text(&machine.tags)],
        },
        pvpanic: true,
        landlock_enable: landlock == Landlock::On,
        landlock_rules,
    }
}

/// The id of the disk in this place for a volume.
pub(super) fn volume_id(slot: u8) -> String {
    format!("{VOLUME}{slot}")
}

/// Which place for a volume a device of this id has, if it is a volume's.
fn slot_of(id: &str) -> Option<u8> {
    id.strip_prefix(VOLUME)?.parse().ok()
}

pub(super) fn volume_disk(given: &GivenVolume, attached: &Attached) -> Disk {
    Disk {
        id: volume_id(given.slot),
        path: attached.link_of(&given.disk),
        image_type: "Qcow2",
        readonly: false,
        backing_files: false,
        serial: Some(given.serial()),
    }
}

fn tags_text(tags: &Tags) -> String {
    let Tags { host, vm, generation, payload } = tags;
    format!("{TAGS_BEGINNING}{host}:{vm}:{}:{payload}", generation.0)
}

fn read_tags(text: &str) -> Option<Tags> {
    let parts: Vec<_> = text.strip_prefix(TAGS_BEGINNING)?.split(':').collect();
    let [host, vm, generation, payload] = parts[..] else { return None };
    Some(Tags {
        host: host.parse().ok()?,
        vm: vm.parse().ok()?,
        generation: dagger_payload::id::Generation(generation.parse().ok()?),
        payload: payload.parse().ok()?,
    })
}

/// What `vm.remove-device` takes.
#[derive(Debug, Serialize)]
pub(super) struct DeviceId {
    pub(super) id: String,
}

/// What `vm.resize-disk` takes.
#[derive(Debug, Serialize)]
pub(super) struct DiskSize {
    pub(super) id: String,
    pub(super) desired_size: u64,
}

/// A machine without its volumes, and these: told after the process has confined itself, they give
/// it no lasting right to their files.
pub(super) fn without_volumes(
    mut config: serde_json::Value,
) -> (serde_json::Value, Vec<serde_json::Value>) {
    let mut volumes = Vec::new();
    if let Some(disks) = config.pointer_mut("/disks").and_then(serde_json::Value::as_array_mut) {
        let is_volume = |disk: &serde_json::Value| disk["id"].as_str().and_then(slot_of).is_some();
        volumes = disks.iter().filter(|disk| is_volume(disk)).cloned().collect();
        disks.retain(|disk| !is_volume(disk));
    }
    (config, volumes)
}

/// The paths of the disks of a machine as it is told.
pub(super) fn disks(config: &serde_json::Value) -> Vec<PathBuf> {
    let disks = config.pointer("/disks").and_then(serde_json::Value::as_array);
    let path = |disk: &serde_json::Value| disk.get("path")?.as_str().map(PathBuf::from);
    disks.into_iter().flatten().filter_map(path).collect()
}

/// What `vm.info` says.
#[derive(Debug, Deserialize)]
pub(super) struct VmInfo {
    pub(super) state: State,
    pub(super) config: serde_json::Value,
    /// Of a guest in memory: what it has, and what it was asked to let go of and has not.
    device_tree: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// The states of a machine in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum State {
    /// Only a configuration.
    Created,
    Running,
    /// Only ever seen in the documentation.
    Shutdown,
    Paused,
    /// A later release's: its guest is in memory.
    #[serde(other)]
    Other,
}

impl VmInfo {
    /// The tags that the machine was started with.
    pub(super) fn tags(&self) -> Option<Tags> {
        let strings = self.config.pointer("/platform/oem_strings")?.as_array()?;
        strings.iter().find_map(|text| read_tags(text.as_str()?))
    }
}

impl VmInfo {
    /// The files of the volumes that it has and was not asked to give back, by place.
    pub(super) fn volumes(&self) -> BTreeMap<u8, PathBuf> {
        let disks = self.config.pointer("/disks").and_then(serde_json::Value::as_array);
        let volume = |disk: &serde_json::Value| {
            let slot = slot_of(disk.get("id")?.as_str()?)?;
            Some((slot, disk.get("path")?.as_str()?.into()))
        };
        disks.into_iter().flatten().filter_map(volume).collect()
    }

    /// The files of all disks that a reset of its guest opens again.
    pub(super) fn disks(&self) -> Vec<PathBuf> {
        disks(&self.config)
    }

    /// The places for volumes in which a device is; `None` where that is not told.
    pub(super) fn volume_devices(&self) -> Option<Vec<u8>> {
        Some(self.device_tree.as_ref()?.keys().filter_map(|id| slot_of(id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{Generation, HostId, PayloadDigest, VmId};

    use super::*;

    #[test]
    fn tags_ride_on_the_machine_and_read_back() {
        let tags = Tags {
            host: HostId([1; 16]),
            vm: VmId([2; 16]),
            generation: Generation(3),
            payload: PayloadDigest([4; 32]),
        };
        let config = serde_json::json!({ "platform": { "oem_strings": ["x", tags_text(&tags)] } });
        assert_eq!(VmInfo { state: State::Running, config, device_tree: None }.tags(), Some(tags));
    }

    #[test]
    fn a_state_that_no_release_had_yet_reads() {
        let info: VmInfo =
            serde_json::from_str(r#"{"state":"BreakPoint","config":{},"new":1}"#).unwrap();
        assert_eq!(info.state, State::Other);
    }
}
