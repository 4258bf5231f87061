//! The system calls that an app may make: the list of docker's default profile for a container without capabilities.
//!
//! Two filters are stacked, because a filter has one answer for what it does not list. The first allows the list and answers ENOSYS to
//! the rest, so that a C library probing for a system call newer than this list falls back (`clone3` relies on it: its flags are in
//! memory, where a filter cannot look). The second answers EPERM to what is known and forbidden; of two errors the kernel takes the one
//! of the filter loaded last. What is always allowed costs nothing at run time: the kernel caches it per call number.
//!
//! Compiled once, in the spawner; the keepers and inits inherit the bytes.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// CLONE_NEW* in clone's flags (NEWTIME's bit is part of the exit signal there).
const NAMESPACES: u64 = 0x7E02_0000;
/// The same for unshare, with NEWTIME.
const UNSHARE_NAMESPACES: u64 = NAMESPACES | 0x80;
/// Personalities that only choose the system's name and address layout: 0, PER_LINUX32, UNAME26 with both, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Both filters, ready to load.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    allow: BpfProgram,
    deny: BpfProgram,
}

impl Filter {
    /// Compiles the profile for this machine.
    pub fn compile() -> Result<Self, String> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
        Ok(Self {
            allow: program(
                allowed()?,
                SeccompAction::Errno(libc::ENOSYS as u32),
                SeccompAction::Allow,
                arch,
            )?,
            deny: program(
                denied()?,
                SeccompAction::Allow,
                SeccompAction::Errno(libc::EPERM as u32),
                arch,
            )?,
        })
    }

    /// Loads it for this process, for good. The caller must end when this fails.
    pub fn load(&self) -> Result<(), String> {
        seccompiler::apply_filter(&self.allow).map_err(|e| e.to_string())?;
        seccompiler::apply_filter(&self.deny).map_err(|e| e.to_string())
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(|e| e.to_string())?;
    BpfProgram::try_from(filter).map_err(|e| e.to_string())
}

fn rule(conditions: &[(u8, Len, Op, u64)]) -> Result<SeccompRule, String> {
    let conditions: Result<Vec<_>, _> = conditions
        .iter()
        .map(|(arg, len, op, value)| SeccompCondition::new(*arg, len.clone(), op.clone(), *value))
        .collect();
    SeccompRule::new(conditions.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
}

fn allowed() -> Result<Rules, String> {
    let mut rules: Rules = ALLOWED.iter().chain(ALLOWED_HERE).map(|n| (*n, Vec::new())).collect();
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, Len::Qword, Op::MaskedEq(NAMESPACES), 0)])?],
    );
    rules.insert(
        libc::SYS_unshare,
        vec![rule(&[(0, Len::Qword, Op::MaskedEq(UNSHARE_NAMESPACES), 0)])?],
    );
    // Typing into one's terminal as if the user did: out of a sandbox into the operator's shell behind `berth exec`.
    let ioctl = rule(&[
        (1, Len::Dword, Op::Ne, u64::from(TIOCSTI)),
        (1, Len::Dword, Op::Ne, u64::from(TIOCLINUX)),
    ])?;
    rules.insert(libc::SYS_ioctl, vec![ioctl]);
    let socket = rule(&[
        (0, Len::Dword, Op::Ne, AF_ALG),
        (0, Len::Dword, Op::Ne, AF_VSOCK),
        (0, Len::Dword, Op::Ne, AF_PACKET),
    ])?;
    rules.insert(libc::SYS_socket, vec![socket]);
    let personalities: Result<Vec<_>, _> = PERSONALITIES
        .iter()
        .map(|p| rule(&[(0, Len::Dword, Op::Eq, *p)]))
        .collect();
    rules.insert(libc::SYS_personality, personalities?);
    Ok(rules)
}

/// EPERM instead of ENOSYS: programs give up at once instead of taking the kernel for an old one.
fn denied() -> Result<Rules, String> {
    let mut rules: Rules = DENIED.iter().map(|n| (*n, Vec::new())).collect();
    for (call, mask) in [(libc::SYS_clone, NAMESPACES), (libc::SYS_unshare, UNSHARE_NAMESPACES)] {
        let bits = (0..32).map(|bit| 1u64 << bit).filter(|bit| mask & bit != 0);
        let each: Result<Vec<_>, _> = bits
            .map(|bit| rule(&[(0, Len::Qword, Op::MaskedEq(bit), bit)]))
            .collect();
        rules.insert(call, each?);
    }
    let ioctls: Result<Vec<_>, _> = [TIOCSTI, TIOCLINUX]
        .iter()
        .map(|r| rule(&[(1, Len::Dword, Op::Eq, u64::from(*r))]))
        .collect();
    rules.insert(libc::SYS_ioctl, ioctls?);
    let families: Result<Vec<_>, _> = [AF_ALG, AF_VSOCK, AF_PACKET]
        .iter()
        .map(|f| rule(&[(0, Len::Dword, Op::Eq, *f)]))
        .collect();
    rules.insert(libc::SYS_socket, families?);
    Ok(rules)
}

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;
const AF_ALG: u64 = libc::AF_ALG as u64;
const AF_VSOCK: u64 = libc::AF_VSOCK as u64;
const AF_PACKET: u64 = libc::AF_PACKET as u64;

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Forbidden and worth an honest EPERM.
const DENIED: &[i64] = calls! {
    SYS_acct SYS_add_key SYS_adjtimex SYS_bpf SYS_chroot SYS_clock_adjtime SYS_clock_settime SYS_delete_module SYS_finit_module
    SYS_fanotify_init SYS_fanotify_mark SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_init_module SYS_io_uring_enter
    SYS_io_uring_register SYS_io_uring_setup SYS_kexec_load SYS_kexec_file_load SYS_keyctl SYS_lookup_dcookie SYS_mbind
    SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_name_to_handle_at SYS_nfsservctl
    SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pivot_root SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key
    SYS_set_mempolicy SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2
    SYS_userfaultfd SYS_vhangup
};

/// Allowed on every machine.
const ALLOWED: &[i64] = calls! {
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep
    SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64
    SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr
    SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit
    SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch
    SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents  SYS_io_setup SYS_io_submit
    SYS_ioprio_get SYS_ioprio_set SYS_kcmp SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self
    SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect
    SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget
    SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open
    SYS_pidfd_send_signal SYS_pidfd_getfd SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64
    SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev SYS_pselect6 SYS_ptrace
    SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg
    SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending
    SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam
    SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
    SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto
    SYS_set_robust_list SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority
    SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat
    SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs SYS_statx
    SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
    SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times
    SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
};

/// Calls that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = calls! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_ctl_old SYS_epoll_wait
    SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat
    SYS_mkdir SYS_mknod SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select SYS_signalfd SYS_stat
    SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork SYS_get_thread_area SYS_set_thread_area
};

/// Calls that only this machine has.
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_profile_compiles_and_the_lists_do_not_overlap() {
        let filter = Filter::compile().unwrap();
        assert!(
            filter.allow.len() < 4096 && filter.deny.len() < 4096,
            "the kernel takes 4096 instructions a filter"
        );
        for call in DENIED {
            assert!(
                !ALLOWED.contains(call) && !ALLOWED_HERE.contains(call),
                "{call} is in both lists"
            );
        }
    }
}
