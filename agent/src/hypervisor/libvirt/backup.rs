//! A volume of a domain in memory, copied by QEMU while the guest goes on.
//!
//! Owns one backup job from its beginning to its end: libvirt's full backup in push mode
//! (`virDomainBackupBegin`), into a file that was made before. QEMU writes there what was on the
//! disk when the job began; what the guest writes meanwhile does not come into it. A job that an
//! agent began and did not live to see the end of is ended first. The `virt` crate does not wrap
//! these calls: the second file of this package with `unsafe` code. Called by the libvirt
//! implementation.
//!
//! Why it is sound: every call gets the pointer of a [`Domain`] that is borrowed for as long as the
//! call takes, and text that ends with a zero and outlives the call. What libvirt allocates is read
//! only if it is not null and is given back by the function that its manual names
//! (`virTypedParamsFree`; `free` for the text of a backup).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_uint};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use serde::{Deserialize, Serialize};
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use super::limits::{COPY_END_WAIT_MAX, COPY_LOOK_EVERY, COPY_WAIT_MAX};
use super::{domain_xml, failed, is, volumes, words};
use crate::hypervisor::{HypervisorError, LiveCopy};

/// Copies the volume; what a job of an earlier agent does is ended.
pub(super) fn copy(domain: &Domain, copy: &LiveCopy) -> Result<(), HypervisorError> {
    let given = volumes::look(domain)?;
    let slot = given.iter().find(|(_, disk)| **disk == copy.disk).map(|(slot, _)| *slot);
    let slot = slot.ok_or_else(|| {
        HypervisorError::Failed("volume_absent: the machine does not have it yet".to_owned())
    })?;
    let device = domain_xml::volume_device(slot);
    let now = domain.block_info(&device, 0).map_err(failed)?;
    if now.capacity != copy.size_bytes {
        let (seen, wanted) = (now.capacity, copy.size_bytes);
        let why = format!("volume_resized: the machine sees {seen} bytes of it, not {wanted}");
        return Err(HypervisorError::Failed(why));
    }
    end_orphan(domain, &copy.copy)?;
    let xml = quick_xml::se::to_string(&Backup::of(&device, &copy.copy))
        .map_err(|error| HypervisorError::Refused(error.to_string()))?;
    begin(domain, &xml)?;
    wait(domain, COPY_WAIT_MAX).inspect_err(|_| {
        // It would go on into a file that nobody wants any more.
        let _ = abort(domain);
    })?;
    match completed(domain)? {
        Ended::Well => Ok(()),
        Ended::Otherwise => Err(HypervisorError::Failed(
            "copy_ended: the copy ended early; the guest was switched off, or there is no room"
                .to_owned(),
        )),
    }
}

/// What libvirt reads of a backup.
#[derive(Serialize)]
#[serde(rename = "domainbackup")]
struct Backup<'a> {
    #[serde(rename = "@mode")]
    mode: &'static str,
    disks: Disks<'a>,
}

/// Disks that are not named have no part in it.
#[derive(Serialize)]
struct Disks<'a> {
    disk: [Disk<'a>; 1],
}

#[derive(Serialize)]
struct Disk<'a> {
    #[serde(rename = "@name")]
    name: &'a str,
    #[serde(rename = "@backup")]
    backup: &'static str,
    #[serde(rename = "@type")]
    kind: &'static str,
    driver: Driver,
    target: Target<'a>,
}

#[derive(Serialize)]
struct Driver {
    #[serde(rename = "@type")]
    format: &'static str,
}

#[derive(Serialize)]
struct Target<'a> {
    #[serde(rename = "@file")]
    file: &'a Path,
}

impl<'a> Backup<'a> {
    fn of(device: &'a str, file: &'a Path) -> Self {
        let disk = Disk {
            name: device,
            backup: "yes",
            kind: "file",
            driver: Driver { format: "qcow2" },
            target: Target { file },
        };
        Self { mode: "push", disks: Disks { disk: [disk] } }
    }
}

/// What libvirt shows of a backup that is being made.
#[derive(Deserialize)]
struct SeenBackup {
    disks: SeenDisks,
}

#[derive(Deserialize)]
struct SeenDisks {
    #[serde(default)]
    disk: Vec<SeenDisk>,
}

#[derive(Deserialize)]
struct SeenDisk {
    target: Option<SeenTarget>,
}

#[derive(Deserialize)]
struct SeenTarget {
    #[serde(rename = "@file")]
    file: Option<std::path::PathBuf>,
}

/// Ends a job of ours whose agent has gone: no other begins one while one goes on, so whatever
/// writes into our directory has nobody who waits for it.
fn end_orphan(domain: &Domain, copy: &Path) -> Result<(), HypervisorError> {
    let Some(xml) = going_on(domain)? else { return Ok(()) };
    let seen: Result<SeenBackup, _> = quick_xml::de::from_str(&xml);
    let targets = seen.into_iter().flat_map(|seen| seen.disks.disk).filter_map(|disk| disk.target);
    let mut files = targets.filter_map(|target| target.file);
    if !files.any(|file| file.parent() == copy.parent()) {
        return Err(HypervisorError::Failed(
            "backup_busy: somebody else makes a backup of the machine".to_owned(),
        ));
    }
    tracing::info!("ending a copy of a volume that an earlier agent began");
    abort(domain)?;
    wait(domain, COPY_END_WAIT_MAX)
}

/// Waits until no job goes on.
fn wait(domain: &Domain, wait_max: Duration) -> Result<(), HypervisorError> {
    let end = Instant::now() + wait_max;
    loop {
        let job = domain.job_info().map_err(failed)?;
        if u32::try_from(job.r#type) == Ok(sys::VIR_DOMAIN_JOB_NONE) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(HypervisorError::Failed("copy_late: the copy does not end".to_owned()));
        }
        std::thread::sleep(COPY_LOOK_EVERY);
    }
}

/// The backup that is being made now, as libvirt shows it.
fn going_on(domain: &Domain) -> Result<Option<String>, HypervisorError> {
    // SAFETY: see the module; the text is copied before it is given back.
    let text = unsafe {
        let text = sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0);
        let copied = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        libc::free(text.cast());
        copied
    };
    match text {
        Some(text) => Ok(Some(text)),
        None => match Error::last_error() {
            error if is(&error, ErrorNumber::NoDomainBackup) => Ok(None),
            error => Err(cannot(error)),
        },
    }
}

fn begin(domain: &Domain, xml: &str) -> Result<(), HypervisorError> {
    let xml = CString::new(xml).map_err(|error| HypervisorError::Refused(error.to_string()))?;
    let flags: c_uint = sys::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL;
    // SAFETY: see the module; there is no checkpoint.
    let begun = unsafe {
        sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), std::ptr::null(), flags)
    };
    if begun == 0 { Ok(()) } else { Err(cannot(Error::last_error())) }
}

fn abort(domain: &Domain) -> Result<(), HypervisorError> {
    // SAFETY: see the module.
    let aborted = unsafe { sys::virDomainAbortJob(domain.as_ptr()) };
    match aborted {
        0 => Ok(()),
        _ => match Error::last_error() {
            // It has ended meanwhile.
            error if is(&error, ErrorNumber::OperationInvalid) => Ok(()),
            error => Err(failed(error)),
        },
    }
}

/// How the last job ended.
enum Ended {
    Well,
    Otherwise,
}

fn completed(domain: &Domain) -> Result<Ended, HypervisorError> {
    let (mut kind, mut count): (c_int, c_int) = (0, 0);
    let mut parameters: sys::virTypedParameterPtr = std::ptr::null_mut();
    // SAFETY: see the module; libvirt fills in all three, and null parameters are given back too.
    let asked = unsafe {
        let asked = sys::virDomainGetJobStats(
            domain.as_ptr(),
            &mut kind,
            &mut parameters,
            &mut count,
            sys::VIR_DOMAIN_JOB_STATS_COMPLETED,
        );
        sys::virTypedParamsFree(parameters, count);
        asked
    };
    if asked != 0 {
        return Err(failed(Error::last_error()));
    }
    match u32::try_from(kind) == Ok(sys::VIR_DOMAIN_JOB_COMPLETED) {
        true => Ok(Ended::Well),
        false => Ok(Ended::Otherwise),
    }
}

/// A libvirt or a QEMU that knows no backups will not learn it while the machine runs.
fn cannot(error: Error) -> HypervisorError {
    let unsupported =
        [ErrorNumber::NoSupport, ErrorNumber::OperationUnsupported, ErrorNumber::ConfigUnsupported];
    match unsupported.into_iter().any(|number| is(&error, number)) {
        true => HypervisorError::Refused(format!(
            "snapshot_while_off_only: this host cannot copy a disk beside its guest; {}",
            words(&error)
        )),
        false => failed(error),
    }
}
