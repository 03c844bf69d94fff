//! `GET /v1/vms/{vm}/export`: a whole VM that is switched off, as one file.
//!
//! Owns who may have it (whoever holds the host's own socket), when (while nobody can write to the
//! disk, and in the generation that the head names) and the file's order. Its layout stands in
//! [`dagger_api::export`].

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use dagger_api::export::{VM_FILE_DIGEST_BYTES, VM_FILE_MAGIC, VmExport};
use dagger_api::{Problem, Sight};
use dagger_payload::kind::VmCreate;
use dagger_payload::object::{Vm, VmState};
use dagger_payload::volume::Volume;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::guard::Door;
use super::problem::ApiProblem;
use super::request::{AccountQuery, Path, Query};
use super::{Api, Shared, vms};
use crate::exports::{Copied, NoCopy};
use crate::limits::{API_EXPORT_STREAM_WAIT_MAX, API_IMAGE_PIECE_BYTES};
use crate::model::{Model, VmQuery};

/// A VM that is switched off, as one file that tells whether it is whole; only over the Unix socket
/// of the host that has it.
#[utoipa::path(
    get,
    path = "/v1/vms/{vm}/export",
    tag = "host",
    params(("vm" = String, Path, description = "Its id, or its name"), AccountQuery),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 403, body = Problem, content_type = "application/problem+json",
            description = "`unix_socket_only`"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "`vm_elsewhere`, `vm_not_stopped`, `copy_too_large`, `name_ambiguous`"),
        (status = 503, body = Problem, content_type = "application/problem+json",
            description = "`export_unavailable`: the disk could not be copied; `overloaded`: another export is made")
    )
)]
pub(super) async fn export(
    State(api): State<Api>,
    Path(vm): Path<String>,
    Query(query): Query<AccountQuery>,
    request: Request,
) -> Result<Response, ApiProblem> {
    if !matches!(request.extensions().get::<Door>(), Some(Door::Unix)) {
        return Err(ApiProblem::unix_only("it hands out whole disks"));
    }
    let query = VmQuery { text: vm, account: query.account };
    let before = still(&api, &query).await?;
    let exporter = api.parts.board.read(|sights| sights.exporter.clone());
    let exporter = exporter.ok_or_else(|| ApiProblem::overloaded("the agent is still starting"))?;
    let Copied { disk, turn } = exporter.copy(&before).await.map_err(|error| match error {
        NoCopy::Busy => ApiProblem::overloaded("another export is made"),
        NoCopy::TooLarge(why) => ApiProblem::copy_too_large(why),
        NoCopy::Failed(why) => ApiProblem::export(why),
    })?;
    // Nobody wrote to the disk while it was copied, or there were no copy; what the head says has
    // to be of the same time.
    let vm = still(&api, &query).await?;
    if vm.generation != before.generation {
        return Err(ApiProblem::not_stopped("the VM was changed meanwhile"));
    }
    let head = VmExport {
        cluster: api.parts.cluster,
        host: api.me,
        vm: vm.id,
        generation: vm.generation,
        create: again(&vm),
        disk_bytes: disk.file_bytes,
        disk_virtual_size_bytes: disk.virtual_size_bytes,
        left_out: left_out(&api, &vm),
    };
    let json =
        serde_json::to_vec(&head).map_err(|error| ApiProblem::internal(error.to_string()))?;
    let mut head = BytesMut::with_capacity(VM_FILE_MAGIC.len() + 8 + json.len());
    head.put_slice(&VM_FILE_MAGIC);
    head.put_u64(json.len() as u64);
    head.put_slice(&json);
    let length = head.len() as u64 + disk.file_bytes + VM_FILE_DIGEST_BYTES as u64;
    let sending = Sending {
        next: Next::Head(head.freeze()),
        file: File::from_std(disk.file),
        left: disk.file_bytes,
        hasher: blake3::Hasher::new(),
        until: Instant::now() + API_EXPORT_STREAM_WAIT_MAX,
        stop: api.stop.clone(),
        _turn: turn,
    };
    let body = futures_util::stream::try_unfold(sending, Sending::next);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The VM, if this host has it and it is switched off and seen so.
async fn still(api: &Shared, query: &VmQuery) -> Result<Vm, ApiProblem> {
    let vm = vms::find(api, query).await?;
    if vm.placement.host() != Some(api.me) {
        let host = vm.placement.host().map_or("no host yet".to_owned(), |host| {
            let name = |model: &Model| model.host_name(&host).map(ToString::to_string);
            let name = api.parts.model.read(name).unwrap_or_else(|| host.to_string());
            format!("host {name}")
        });
        return Err(ApiProblem::vm_elsewhere(format!("VM {} is on {host}", vm.name)));
    }
    let sight = api.parts.board.read(|sights| sights.vms.get(&vm.id).map(|vm| vm.sight));
    match (vm.state(), sight) {
        (VmState::Stopped, Some(Sight::Stopped)) => Ok(vm),
        (VmState::Stopped, _) => {
            let detail =
                format!("VM {} was ordered off, and its host has not seen it off", vm.name);
            Err(ApiProblem::not_stopped(detail))
        }
        (state, _) => Err(ApiProblem::not_stopped(format!("VM {} is {}", vm.name, state.word()))),
    }
}

/// What would order the VM again, wherever that is.
fn again(vm: &Vm) -> VmCreate {
    VmCreate {
        name: vm.name.clone(),
        image: vm.image.clone(),
        cpus: vm.size.cpus,
        memory_mib: vm.size.memory_mib,
        disk_gib: vm.size.disk_gib,
        ssh_keys: vm.ssh_keys.clone(),
        region: None,
        host: None,
        host_labels: Default::default(),
        apart: Vec::new(),
        labels: vm.labels.clone(),
        public_user_data: vm.public_user_data.clone(),
        restart: vm.restart,
        network: None,
        boot: vm.boot.clone(),
        more_cards: Vec::new(),
    }
}

/// What belongs to the VM and is not in the file.
fn left_out(api: &Shared, vm: &Vm) -> Vec<String> {
    let said = |volume: &Volume| {
        let snapshots = volume.snapshots.len();
        format!("volume {} ({} GiB, {snapshots} snapshots)", volume.name, volume.size_gib)
    };
    let volumes = api.parts.model.read(|model| {
        let ours = model.volumes().filter(|volume| volume.used_by.vm() == Some(vm.id));
        ours.map(said).collect::<Vec<_>>()
    });
    let mut left_out = volumes;
    left_out.push("its address, and what its guest said on the console".to_owned());
    if let Some(boot) = &vm.boot {
        let files = boot.images().map(|image| format!("{} {}", image.format.word(), image.digest));
        let files = files.collect::<Vec<_>>().join(", ");
        left_out.push(format!("what it boots, which has to be registered where it goes: {files}"));
    }
    let network = &vm.network;
    if network.allow.is_some() || !network.forwards.is_empty() {
        left_out.push("who may reach it, and ports of its host that lead to it".to_owned());
    }
    if vm.cards().any(|card| card.bridge.is_some()) {
        left_out.push("the bridges that it is on, and its addresses there".to_owned());
    }
    let is_bound = vm.region.is_some() || vm.pinned_host.is_some();
    if is_bound || !vm.host_labels.is_empty() || !vm.apart.is_empty() {
        left_out.push("where it may be, and what it is kept away from".to_owned());
    }
    left_out
}

/// What comes next.
enum Next {
    Head(Bytes),
    Disk,
    Nothing,
}

/// A file on its way.
struct Sending {
    next: Next,
    file: File,
    left: u64,
    hasher: blake3::Hasher,
    until: Instant,
    stop: CancellationToken,
    _turn: OwnedSemaphorePermit,
}

impl Sending {
    async fn next(mut self) -> std::io::Result<Option<(Bytes, Self)>> {
        if self.stop.is_cancelled() || Instant::now() > self.until {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let piece = match std::mem::replace(&mut self.next, Next::Disk) {
            Next::Head(head) => head,
            Next::Disk if self.left > 0 => self.read().await?,
            Next::Disk => {
                self.next = Next::Nothing;
                let digest = Bytes::copy_from_slice(self.hasher.finalize().as_bytes());
                return Ok(Some((digest, self)));
            }
            Next::Nothing => return Ok(None),
        };
        self.hasher.update(&piece);
        Ok(Some((piece, self)))
    }

    async fn read(&mut self) -> std::io::Result<Bytes> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(API_IMAGE_PIECE_BYTES);
        let mut piece = BytesMut::zeroed(room);
        let length = self.file.read(&mut piece).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(length);
        self.left -= length as u64;
        Ok(piece.freeze())
    }
}
