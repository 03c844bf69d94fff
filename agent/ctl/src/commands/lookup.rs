//! Looks VMs and hosts up by what people type: a name, an id, or an id's first digits.
//!
//! Owns in which order these are tried. Never changes anything. Called by the commands that name a
//! VM or a host.

use std::collections::BTreeMap;

use dagger_api::{HostView, VmView};
use dagger_payload::id::{HostId, VmId};
use dagger_payload::name::Name;

use super::{encode, prefix};
use crate::failure::Failure;
use crate::session::Session;

/// Looks a VM up by name in the key's account, by id, or by the first digits of an id.
pub(crate) async fn find(session: &Session, vm: &str) -> Result<VmView, Failure> {
    session.client.get(&vm_path(session, vm, "").await?).await
}

/// The path of a VM, or of something below it.
pub(crate) async fn vm_path(session: &Session, vm: &str, below: &str) -> Result<String, Failure> {
    if vm.parse::<VmId>().is_ok() {
        return Ok(format!("/v1/vms/{vm}{below}"));
    }
    if prefix::is_prefix(vm)
        && let Some(id) = begins_with(session, vm).await?
    {
        return Ok(format!("/v1/vms/{id}{below}"));
    }
    let account = session.account().await?;
    Ok(format!("/v1/vms/{}{below}?account={account}", encode(vm)))
}

/// The VM whose id begins with these digits, unless it is the name of one that may be seen.
async fn begins_with(session: &Session, digits: &str) -> Result<Option<VmId>, Failure> {
    let vms: Vec<VmView> = session.client.get("/v1/vms").await?;
    if vms.iter().any(|view| view.vm.name.as_str() == digits) {
        return Ok(None);
    }
    prefix::only(digits, vms.iter().map(|view| view.vm.id))
}

/// The names of all hosts.
pub(crate) async fn named_hosts(session: &Session) -> Result<BTreeMap<HostId, Name>, Failure> {
    let hosts: Vec<HostView> = session.client.get("/v1/hosts").await?;
    Ok(hosts.into_iter().map(|host| (host.id, host.name)).collect())
}

/// Looks a host up by name.
pub(crate) async fn find_host(session: &Session, name: &Name) -> Result<HostView, Failure> {
    let hosts: Vec<HostView> = session.client.get("/v1/hosts").await?;
    hosts.into_iter().find(|host| host.name == *name).ok_or_else(|| {
        Failure::refused(
            "not_found",
            format!("no host is called {name}"),
            "See `daggerctl host ls`.",
        )
    })
}
