//! Reads a VM's file piece by piece: the head, the disk, and whether all of it is there as it was.
//!
//! Owns the checks; what comes of the disk's bytes is the caller's. Nothing that was read may be
//! believed before [`Reading::end`]. Never reads or writes a file itself. Called by `vm export`,
//! which checks what it stores, and by `vm import`.

use dagger_api::export::{
    VM_FILE_DIGEST_BYTES, VM_FILE_DISK_BYTES_MAX, VM_FILE_HEAD_BYTES_MAX, VM_FILE_MAGIC, VmExport,
};
use dagger_payload::kind::VmCreate;

use crate::failure::Failure;

/// The magic and the length.
const BEGIN_BYTES: usize = VM_FILE_MAGIC.len() + 8;

/// A file that is being read.
pub(crate) struct Reading {
    /// What was read of the part that is not complete: the head, then the digest.
    kept: Vec<u8>,
    head: Option<VmExport>,
    disk_left: u64,
    hasher: blake3::Hasher,
}

/// All of it was there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// The head.
    pub(crate) head: VmExport,
    /// The digest at its end, which is right.
    pub(crate) digest: [u8; VM_FILE_DIGEST_BYTES],
}

fn refused(what: impl Into<String>) -> Failure {
    Failure::refused(
        "vm_file_refused",
        what,
        "Make it again with `daggerctl vm export`; nothing of it was used.",
    )
}

/// The digest protects against damage, not against whoever edits a file: what its reader would sign
/// unseen must not be in it.
fn orders_only_what_exports_name(create: &VmCreate) -> bool {
    let VmCreate { region, host, host_labels, apart, network, more_cards, .. } = create;
    let is_anywhere = region.is_none() && host.is_none() && host_labels.is_empty();
    is_anywhere && apart.is_empty() && network.is_none() && more_cards.is_empty()
}

impl Reading {
    /// Nothing was read yet.
    pub(crate) fn new() -> Self {
        Self { kept: Vec::new(), head: None, disk_left: 0, hasher: blake3::Hasher::new() }
    }

    /// Takes the next bytes; gives those of them that belong to the disk.
    pub(crate) fn take<'b>(&mut self, mut bytes: &'b [u8]) -> Result<&'b [u8], Failure> {
        if self.head.is_none() {
            bytes = self.take_head(bytes)?;
        }
        let disk = usize::try_from(self.disk_left).unwrap_or(usize::MAX).min(bytes.len());
        let (disk, rest) = bytes.split_at(disk);
        self.hasher.update(disk);
        self.disk_left -= disk.len() as u64;
        self.kept.extend_from_slice(&rest[..rest.len().min(VM_FILE_DIGEST_BYTES + 1)]);
        if self.head.is_some() && self.kept.len() > VM_FILE_DIGEST_BYTES {
            return Err(refused("there is something behind its end"));
        }
        Ok(disk)
    }

    /// Takes what belongs to the head; gives the rest.
    fn take_head<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Failure> {
        let bytes = self.fill(BEGIN_BYTES, bytes);
        let known = self.kept.len().min(VM_FILE_MAGIC.len());
        if self.kept[..known] != VM_FILE_MAGIC[..known] {
            return Err(refused("it is no VM's file, or one of another version"));
        }
        let Some(length) = self.kept.get(VM_FILE_MAGIC.len()..BEGIN_BYTES) else {
            return Ok(bytes);
        };
        let length = length.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > VM_FILE_HEAD_BYTES_MAX {
            let what = format!("its head has more than {VM_FILE_HEAD_BYTES_MAX} bytes");
            return Err(refused(what));
        }
        let bytes = self.fill(BEGIN_BYTES + length, bytes);
        if self.kept.len() < BEGIN_BYTES + length {
            return Ok(bytes);
        }
        let head: VmExport = serde_json::from_slice(&self.kept[BEGIN_BYTES..])
            .map_err(|error| refused(format!("its head does not read: {error}")))?;
        if head.disk_bytes > VM_FILE_DISK_BYTES_MAX {
            let what = format!("its disk has more than {VM_FILE_DISK_BYTES_MAX} bytes");
            return Err(refused(what));
        }
        if !orders_only_what_exports_name(&head.create) {
            return Err(refused(
                "its head says where the VM may be or who reaches it; no export does",
            ));
        }
        self.hasher.update(&self.kept);
        self.kept.clear();
        self.disk_left = head.disk_bytes;
        self.head = Some(head);
        Ok(bytes)
    }

    /// Keeps bytes until there are `wanted`; gives the rest.
    fn fill<'b>(&mut self, wanted: usize, bytes: &'b [u8]) -> &'b [u8] {
        let missing = wanted.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..missing]);
        &bytes[missing..]
    }

    /// Nothing comes any more: whether it is whole.
    pub(crate) fn end(self) -> Result<Whole, Failure> {
        let torn = || refused("the file ends too early: copy it again");
        let head = self.head.ok_or_else(torn)?;
        let digest: [u8; VM_FILE_DIGEST_BYTES] = self.kept.try_into().map_err(|_| torn())?;
        if *self.hasher.finalize().as_bytes() != digest {
            return Err(refused("it is not as it was made: its digest is another"));
        }
        Ok(Whole { head, digest })
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::{ClusterId, Generation, HostId, ImageDigest, VmId};
    use dagger_payload::kind::{ImageFormat, RestartPolicy, VmImage};

    use super::*;

    const DISK: &[u8] = b"what the guest wrote";

    fn head() -> VmExport {
        let image = VmImage {
            digest: ImageDigest([6; 32]),
            format: ImageFormat::Raw,
            virtual_size_bytes: 1 << 20,
        };
        let create = VmCreate {
            name: "web-1".parse().expect("a name"),
            image,
            cpus: 1,
            memory_mib: 64,
            disk_gib: 1,
            ssh_keys: Vec::new(),
            region: None,
            host: None,
            host_labels: Default::default(),
            apart: Vec::new(),
            labels: Default::default(),
            public_user_data: None,
            restart: RestartPolicy::Always,
            network: None,
            boot: None,
            more_cards: Vec::new(),
        };
        VmExport {
            cluster: ClusterId([1; 32]),
            host: HostId([2; 16]),
            vm: VmId([3; 16]),
            generation: Generation(4),
            create,
            disk_bytes: DISK.len() as u64,
            disk_virtual_size_bytes: 1 << 30,
            left_out: vec!["volume data".to_owned()],
        }
    }

    fn file_of(head: &VmExport, disk: &[u8]) -> Vec<u8> {
        let json = serde_json::to_vec(head).expect("plain data");
        let length = (json.len() as u64).to_be_bytes();
        let mut file = [&VM_FILE_MAGIC[..], &length, &json, disk].concat();
        file.extend_from_slice(blake3::hash(&file).as_bytes());
        file
    }

    fn read(file: &[u8], piece_bytes: usize) -> Result<(Whole, Vec<u8>), Failure> {
        let (mut reading, mut disk) = (Reading::new(), Vec::new());
        for piece in file.chunks(piece_bytes) {
            disk.extend_from_slice(reading.take(piece)?);
        }
        Ok((reading.end()?, disk))
    }

    #[test]
    fn a_whole_file_gives_its_head_and_its_disk_however_it_is_cut_into_pieces() {
        let file = file_of(&head(), DISK);
        for piece_bytes in [1, 7, 33, 64, file.len()] {
            let (whole, disk) = read(&file, piece_bytes).expect("it is whole");
            assert_eq!((whole.head, &disk[..]), (head(), DISK), "{piece_bytes}");
        }
    }

    #[test]
    fn a_file_that_was_cut_lengthened_or_changed_anywhere_is_refused() {
        let file = file_of(&head(), DISK);
        for length in 0..file.len() {
            assert!(read(&file[..length], 16).is_err(), "cut to {length}");
        }
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(read(&changed, 16).is_err(), "changed at {at}");
        }
        assert!(read(&[&file[..], b"x"].concat(), file.len()).is_err());
        assert!(read(&[&file[..], b"x"].concat(), 1).is_err());
    }

    #[test]
    fn an_edited_head_that_says_what_no_export_says_is_refused_although_its_digest_is_right() {
        let changes: [fn(&mut VmCreate); 2] = [
            |create| create.region = Some("north".parse().expect("a name")),
            |create| create.host = Some(HostId([9; 16])),
        ];
        for change in changes {
            let mut edited = head();
            change(&mut edited.create);
            assert!(read(&file_of(&edited, DISK), 64).is_err(), "{:?}", edited.create);
        }
    }

    #[test]
    fn what_claims_more_than_any_file_has_is_refused_before_it_is_read() {
        let mut long = [&VM_FILE_MAGIC[..], &u64::MAX.to_be_bytes()].concat();
        assert!(Reading::new().take(&long).is_err());
        long.truncate(VM_FILE_MAGIC.len());
        long.extend_from_slice(&(VM_FILE_HEAD_BYTES_MAX as u64 + 1).to_be_bytes());
        assert!(Reading::new().take(&long).is_err());
        let large = VmExport { disk_bytes: VM_FILE_DISK_BYTES_MAX + 1, ..head() };
        assert!(Reading::new().take(&file_of(&large, &[])).is_err());
    }
}
