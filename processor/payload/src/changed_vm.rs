//! A change of a VM as releases tell it: without what never changes after its creation, which may
//! be some 60 KiB and would stand in every host's history once for each request of a few bytes.
//!
//! Owns which parts of a VM may change at all, and how a change is put onto an earlier version.
//! Knows no rule: a part that a rule may change stands here. Called by the judge (tells), and by
//! whoever reads releases.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::{AccountId, Generation, HostId, VmId};
use crate::kind::{Capacity, Protection, StopManner};
use crate::name::SshKeyLine;
use crate::network::VmNetwork;
use crate::object::{Cause, Effect, Placement, Vm, VmReport, Wanted};
use crate::release::CommitRelease;
use crate::usage::Meter;
use crate::volume::VmVolume;

/// What a new version of a VM says that an earlier one may not have said; the parts are those of
/// [`Vm`], under the same keys.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct ChangedVm {
    /// Which VM.
    #[n(0)]
    pub id: VmId,
    /// Whose it is.
    #[n(1)]
    pub account: AccountId,
    /// See [`Vm::generation`].
    #[n(3)]
    pub generation: Generation,
    /// See [`Vm::changed`].
    #[n(5)]
    pub changed: Cause,
    /// See [`Vm::wanted`].
    #[n(6)]
    pub wanted: Wanted,
    /// See [`Vm::size`].
    #[n(8)]
    pub size: Capacity,
    /// See [`Vm::placement`].
    #[n(15)]
    pub placement: Placement,
    /// See [`Vm::tried`].
    #[n(16)]
    pub tried: Vec<HostId>,
    /// See [`Vm::reported`].
    #[n(17)]
    pub reported: Option<VmReport>,
    /// See [`Vm::guest_host_key`].
    #[n(18)]
    pub guest_host_key: Option<SshKeyLine>,
    /// See [`Vm::protection`].
    #[n(19)]
    pub protection: Protection,
    /// See [`Vm::booted_since`].
    #[n(21)]
    pub booted_since: Generation,
    /// See [`Vm::meter`].
    #[n(22)]
    pub meter: Meter,
    /// See [`Vm::stop_manner`].
    #[n(23)]
    pub stop_manner: StopManner,
    /// See [`Vm::volumes`].
    #[n(25)]
    pub volumes: Vec<VmVolume>,
    /// See [`Vm::volumes_since`].
    #[n(26)]
    pub volumes_since: Generation,
    /// See [`Vm::network`].
    #[n(27)]
    pub network: VmNetwork,
    /// See [`Vm::more_cards`]: how each of them is reached.
    #[n(30)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub more_cards: Vec<VmNetwork>,
}

/// *Broken*: a history tells of the change of a VM that it has not told of before, or whose last
/// version it has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a change of VM {0} is told, and no such VM is there to be changed")]
pub struct UnknownVm(pub VmId);

impl Vm {
    /// All of it that may change.
    pub fn change(&self) -> ChangedVm {
        // Every part by name: who adds one decides here whether a rule may change it.
        let Self {
            id,
            account,
            name: _,
            generation,
            created: _,
            changed,
            wanted,
            image: _,
            size,
            ssh_keys: _,
            public_user_data: _,
            labels: _,
            region: _,
            host_labels: _,
            pinned_host: _,
            placement,
            tried,
            reported,
            guest_host_key,
            protection,
            apart: _,
            booted_since,
            meter,
            stop_manner,
            restart: _,
            volumes,
            volumes_since,
            network,
            boot: _,
            more_cards,
        } = self;
        ChangedVm {
            id: *id,
            account: *account,
            generation: *generation,
            changed: *changed,
            wanted: *wanted,
            size: *size,
            placement: placement.clone(),
            tried: tried.clone(),
            reported: reported.clone(),
            guest_host_key: guest_host_key.clone(),
            protection: *protection,
            booted_since: *booted_since,
            meter: *meter,
            stop_manner: *stop_manner,
            volumes: volumes.clone(),
            volumes_since: *volumes_since,
            network: network.clone(),
            more_cards: more_cards.clone(),
        }
    }
}

impl ChangedVm {
    /// The VM's new version, whole: put onto any version of it, for the rest of all of them is the
    /// same.
    ///
    /// # Errors
    /// `before` is of another VM.
    pub fn of(&self, before: &Vm) -> Result<Vm, UnknownVm> {
        let Self {
            id,
            account,
            generation,
            changed,
            wanted,
            size,
            placement,
            tried,
            reported,
            guest_host_key,
            protection,
            booted_since,
            meter,
            stop_manner,
            volumes,
            volumes_since,
            network,
            more_cards,
        } = self.clone();
        if (before.id, before.account) != (id, account) {
            return Err(UnknownVm(id));
        }
        Ok(Vm {
            id,
            account,
            name: before.name.clone(),
            generation,
            created: before.created,
            changed,
            wanted,
            image: before.image.clone(),
            size,
            ssh_keys: before.ssh_keys.clone(),
            public_user_data: before.public_user_data.clone(),
            labels: before.labels.clone(),
            region: before.region.clone(),
            host_labels: before.host_labels.clone(),
            pinned_host: before.pinned_host,
            placement,
            tried,
            reported,
            guest_host_key,
            protection,
            apart: before.apart.clone(),
            booted_since,
            meter,
            stop_manner,
            restart: before.restart,
            volumes,
            volumes_since,
            network,
            boot: before.boot.clone(),
            more_cards,
        })
    }
}

impl Effect {
    /// As releases tell it: of a VM that was there before, what may have changed.
    #[must_use]
    pub fn told(self) -> Self {
        match self {
            Self::Vm(vm) => Self::VmChanged(Box::new(vm.change())),
            other => other,
        }
    }

    /// Which VM this is a new version of, if of any.
    pub fn vm(&self) -> Option<VmId> {
        match self {
            Self::Vm(vm) => Some(vm.id),
            Self::VmChanged(change) => Some(change.id),
            _ => None,
        }
    }
}

/// A release beside one version of each VM of which it tells a change.
///
/// Its effects are made whole one at a time: all together they could take a hundred times the
/// release's memory.
#[derive(Debug, Clone)]
pub struct WholeRelease {
    release: Arc<CommitRelease>,
    vms: BTreeMap<VmId, Arc<Vm>>,
}

impl WholeRelease {
    /// Of a release that was taken in already: `known` gives any version of a VM.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn new(
        release: Arc<CommitRelease>,
        mut known: impl FnMut(&VmId) -> Option<Arc<Vm>>,
    ) -> Result<Self, UnknownVm> {
        let mut vms = BTreeMap::new();
        for effect in release.effects() {
            let Effect::VmChanged(change) = effect else { continue };
            if vms.contains_key(&change.id) {
                continue;
            }
            let vm = known(&change.id).filter(|vm| vm.account == change.account);
            vms.insert(change.id, vm.ok_or(UnknownVm(change.id))?);
        }
        Ok(Self { release, vms })
    }

    /// The release as it stands in the history.
    pub fn release(&self) -> &CommitRelease {
        &self.release
    }

    /// One of its effects, in which a VM is whole.
    pub fn whole<'r>(&'r self, effect: &'r Effect) -> Cow<'r, Effect> {
        let Effect::VmChanged(change) = effect else { return Cow::Borrowed(effect) };
        let vm = self.vms.get(&change.id).and_then(|vm| change.of(vm).ok());
        vm.map_or(Cow::Borrowed(effect), |vm| Cow::Owned(Effect::Vm(Box::new(vm))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use crate::id::{LedgerTime, PayloadDigest, Position, VolumeId};
    use crate::kind::{ReportPhase, VmCreate};
    use crate::limits::USER_DATA_BYTES_MAX;
    use crate::network::{Forward, Protocol};
    use crate::object::Agreement;
    use crate::usage::{Metered, Used};

    fn cause(number: u8) -> Cause {
        Cause { digest: PayloadDigest([number; 32]), position: Position(number.into()) }
    }

    /// A VM with long texts, as it is made.
    fn newborn() -> Vm {
        let text = serde_json::json!({
            "name": "web-1",
            "image": {
                "digest": "05".repeat(32), "format": "qcow2", "virtual_size_bytes": 1 << 26
            },
            "cpus": 1, "memory_mib": 512, "disk_gib": 10,
            "ssh_keys": [],
            "public_user_data": "x".repeat(USER_DATA_BYTES_MAX),
            "labels": { "tier": "web" },
            "region": "eu",
            "host_labels": { "disk": "fast" },
            "host": "07".repeat(16),
            "apart": [{ "from": { "tier": "web" }, "by": "host", "strength": "required" }],
            "restart": "never",
            "more_cards": [{}]
        });
        let made: VmCreate = serde_json::from_value(text).expect("a body");
        Vm {
            id: VmId([1; 16]),
            account: AccountId([2; 16]),
            size: made.size(),
            name: made.name,
            generation: Generation(1),
            created: cause(1),
            changed: cause(1),
            wanted: Wanted::Running,
            image: made.image,
            ssh_keys: made.ssh_keys,
            public_user_data: made.public_user_data,
            labels: made.labels,
            region: made.region,
            host_labels: made.host_labels,
            pinned_host: made.host,
            placement: Placement::NoHost {},
            tried: Vec::new(),
            reported: None,
            guest_host_key: None,
            protection: Protection::Unprotected,
            apart: made.apart,
            booted_since: Generation(1),
            meter: Meter::NEW,
            stop_manner: StopManner::Graceful,
            restart: made.restart,
            volumes: Vec::new(),
            volumes_since: Generation(1),
            network: VmNetwork::default(),
            boot: made.boot,
            more_cards: made.more_cards,
        }
    }

    /// The same with everything another that may become so; `number` chooses what.
    fn later(number: u8) -> Vm {
        let generation = Generation(number.into());
        let host = HostId([number; 16]);
        let forwards = vec![Forward { slot: number % 8, protocol: Protocol::Tcp, guest_port: 22 }];
        let network = VmNetwork { allow: None, forwards, bridge: None };
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
        Vm {
            generation,
            changed: cause(number),
            wanted: Wanted::Paused,
            size: Capacity { cpus: number.into(), memory_mib: 1, disk_gib: 2 },
            placement: Placement::Lost { host },
            tried: vec![host],
            reported: Some(VmReport {
                host,
                generation,
                phase: ReportPhase::Degraded,
                reason: Some("of the test".to_owned()),
                cause: cause(number),
                agreement: Agreement::AgainstOrder,
            }),
            guest_host_key: Some(key.parse().expect("a key line")),
            protection: Protection::Protected,
            booted_since: generation,
            meter: Meter {
                counts: Metered::Guest,
                since: LedgerTime(number.into()),
                used: Used { cpu_ms: 1, memory_mib_ms: 2, disk_gib_ms: number.into() },
            },
            stop_manner: StopManner::Forced,
            volumes: vec![VmVolume { volume: VolumeId([number; 16]), slot: 0, size_gib: 1 }],
            volumes_since: generation,
            network: network.clone(),
            more_cards: vec![network],
            ..newborn()
        }
    }

    #[test]
    fn a_change_put_onto_any_version_of_a_vm_gives_the_new_one() {
        let versions: Vec<Vm> = [newborn()].into_iter().chain((2..9).map(later)).collect();
        for new in &versions {
            let bytes = encode(&new.change());
            let told: ChangedVm = decode(&bytes).expect("it reads");
            for before in &versions {
                assert_eq!(told.of(before).as_ref(), Ok(new));
            }
            assert_eq!(told.state(), new.state());
        }
    }

    #[test]
    fn a_change_has_none_of_the_texts_that_never_change() {
        let bytes = encode(&later(2).change()).len();
        assert!(bytes < 512, "{bytes} bytes");
    }

    #[test]
    fn a_change_is_not_put_onto_another_vm() {
        let (new, before) = (later(2), newborn());
        let another = Vm { id: VmId([9; 16]), ..before.clone() };
        let of_another = Vm { account: AccountId([9; 16]), ..before };
        for before in [another, of_another] {
            assert_eq!(new.change().of(&before), Err(UnknownVm(new.id)));
        }
    }
}
