//! The sandbox that the processor closes around itself before it reads the first byte from a peer.
//!
//! Owns the list of system calls that judging needs, and the limits. From then on no file, socket,
//! device or process can be opened or made, whoever started the daemon: systemd's unit adds its own
//! walls outside. Called once by the daemon, in two steps: the files are closed once configuration,
//! genesis and sockets are in place and before any thread is started, for Landlock binds the
//! calling thread and those that it starts; the system calls once the threads are there, too.
//! Sources: seccomp(2), landlock(7), setrlimit(2).

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::limits::{ADDRESS_SPACE_BYTES_MAX, OPEN_FILES_MAX};

/// Why the sandbox could not be closed: the daemon does not start without it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A limit could not be set.
    #[error("cannot limit the process's resources")]
    Limits(#[source] nix::Error),
    /// The kernel refused Landlock for another reason than not having it.
    #[error("cannot close the file system")]
    Landlock(#[source] landlock::RulesetError),
    /// The filter could not be built or set; a kernel without seccomp is not supported.
    #[error("cannot set the system call filter")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How far the file system is closed beyond the system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileWall {
    /// Landlock refuses every path.
    Landlock,
    /// This kernel has no Landlock; the filter alone keeps files from being opened.
    FilterOnly,
}

/// Closes every path and every TCP port to this thread and to those that it starts from now on, for
/// ever, as far as the kernel can.
///
/// # Errors
/// [`SandboxError::Landlock`]; the process must not go on then.
pub fn close_files() -> Result<FileWall, SandboxError> {
    restrict().map_err(SandboxError::Landlock)
}

/// Closes the rest of the sandbox around all threads of this process, for ever.
///
/// # Errors
/// [`SandboxError`]; the process must not go on then.
pub fn close_calls() -> Result<(), SandboxError> {
    for (resource, limit) in [
        (Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES_MAX),
        (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
    ] {
        // Whoever starts the daemon may have set less; that stays.
        let (_, most) = getrlimit(resource).map_err(SandboxError::Limits)?;
        let limit = limit.min(most);
        setrlimit(resource, limit, limit).map_err(SandboxError::Limits)?;
    }
    let filter = filter().map_err(|error| SandboxError::Seccomp(Box::new(error)))?;
    seccompiler::apply_filter_all_threads(&filter)
        .map_err(|error| SandboxError::Seccomp(Box::new(error)))
}

fn restrict() -> Result<FileWall, landlock::RulesetError> {
    let abi = ABI::V4;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => FileWall::Landlock,
        RulesetStatus::NotEnforced => FileWall::FilterOnly,
    })
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Memory, but none that could hold new code.
    let executable = u64::try_from(libc::PROT_EXEC).expect("a small constant");
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let not_executable = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(executable),
            0,
        )?;
        rules.insert(call, vec![SeccompRule::new(vec![not_executable])?]);
    }
    // Refused with EPERM rather than killed: a panic must still be able to leave its message.
    let refused = SeccompAction::Errno(u32::try_from(libc::EPERM).expect("a small constant"));
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture)?.try_into()
}

/// What a judge needs: to talk over sockets that it has, to wait, to get memory, and to end.
const ALLOWED: &[i64] = &[
    // talk
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // wait
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // memory and chance
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // signals and the end
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];
