//! Processes: forking from a single thread, the few prctls a container's helper needs, pidfds, signal dispositions.
//!
//! `fork(2)` is unsafe because other threads may hold locks at that instant. The functions here ask the kernel first and refuse
//! when there is more than one thread, which makes them safe to call: afterwards the child may allocate and log like any program.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The child.
    Child,
    /// The parent, with the child's pid in the parent's own pid namespace.
    Parent(i32),
}

fn cvt(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Whether this process has one thread only.
#[must_use]
pub fn single_threaded() -> bool {
    // SAFETY: takes a number. Alone, CLONE_THREAD asks for nothing to be unshared: the kernel only checks that there is no other thread
    // (EINVAL otherwise). Unlike /proc/self/task this works between namespaces too.
    unsafe { libc::unshare(libc::CLONE_THREAD) == 0 }
}

fn require_single_thread() -> io::Result<()> {
    if single_threaded() {
        Ok(())
    } else {
        Err(io::Error::other("this process has more than one thread"))
    }
}

/// Forks this single-threaded process.
///
/// # Errors
/// When the process has more than one thread, or the kernel refuses (`EAGAIN`: a limit of processes).
pub fn fork() -> io::Result<Fork> {
    require_single_thread()?;
    // SAFETY: there is exactly one thread, so no lock can be held by another one in the child.
    match cvt(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Forks a child whose parent is this process's parent (`CLONE_PARENT`): the caller is a mere step on the way into namespaces.
///
/// # Errors
/// As [`fork`].
pub fn fork_sibling() -> io::Result<Fork> {
    require_single_thread()?;
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: a null stack means that the child goes on with a copy of this one, like fork; there is one thread only. The C library's own
    // fork handlers do not run; none of our code, nor malloc in a single-threaded process, depends on them.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0usize, 0usize, 0usize, 0usize) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => i32::try_from(pid).map(Fork::Parent).map_err(io::Error::other),
    }
}

/// Ends this process at once: no destructors, no exit handlers, no flushing (a forked child must not run its parent's).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by `program` (a path; no search).
///
/// Returns only when it failed, with the reason.
#[must_use]
pub fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and point to C strings that live until execve returns or replaces us.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Removes every variable from the environment of this single-threaded process.
///
/// # Errors
/// When there is more than one thread (another one could be reading the environment).
pub fn clear_environment() -> io::Result<()> {
    require_single_thread()?;
    // SAFETY: one thread, so nobody reads the environment meanwhile.
    cvt(unsafe { libc::clearenv() }).map(drop)
}

/// Sets this process's name as `ps` shows it (15 bytes).
pub fn set_name(name: &CStr) {
    // SAFETY: PR_SET_NAME reads at most 16 bytes of a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Sets whether others of the same user may look into this process (`PR_SET_DUMPABLE`).
///
/// # Errors
/// Never on a kernel that Berth supports.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: takes a number only.
    cvt(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) }).map(drop)
}

/// No execve gives more rights from now on.
///
/// # Errors
/// Never on a kernel that Berth supports.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: takes numbers only.
    cvt(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) }).map(drop)
}

/// Has the kernel send `signal` to this process when its parent dies; 0 for none.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: takes a number only.
    cvt(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) }).map(drop)
}

/// Gives every signal its default action and unblocks all: what a program expects to be started with. (Rust's runtime ignores SIGPIPE,
/// which an exec'd program would inherit.)
pub fn reset_signals() {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL is no handler of ours; numbers that the C library keeps for itself are refused with EINVAL, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Has the kernel reap this process's children by itself (SIGCHLD ignored).
pub fn ignore_children() {
    // SAFETY: SIG_IGN is no handler of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Has writes to a pipe without a reader fail with EPIPE instead of killing this process.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is no handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Closes every descriptor from 3 up except `keep`.
///
/// Objects that still own a closed descriptor must not be dropped afterwards: call it in a forked child that ends with [`exec`] or
/// [`exit_now`], and forget what owned them.
///
/// # Errors
/// When the kernel is older than 5.9.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<libc::c_uint> = keep
        .iter()
        .filter_map(|fd| libc::c_uint::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
        .collect();
    keep.sort_unstable();
    let mut from: libc::c_uint = 3;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: closing is memory-safe; the caller vouches that nobody uses the descriptors any more (see close_all_but).
    cvt(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } as libc::c_int).map(drop)
}

/// A handle on a process that stays true when the pid is used again.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us (close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal through a pidfd.
///
/// # Errors
/// `ESRCH` when the process has ended.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed; the borrow keeps the descriptor open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    cvt(result as libc::c_int).map(drop)
}

/// Enters the namespaces `flags` (`CLONE_NEW*`) of the process behind `pidfd`, all or none. A pid namespace counts for children only.
///
/// # Errors
/// `EPERM` without power over them; `EINVAL` for a user namespace in a process with threads.
pub fn enter_namespaces(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: the borrow keeps the descriptor open.
    cvt(unsafe { libc::setns(pidfd.as_raw_fd(), flags) }).map(drop)
}

/// Gives freed heap pages back to the kernel: a process that did much once and will idle for days.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Puts `fd` in the place of standard input (0), output (1) or error (2), to be inherited by exec'd programs.
///
/// # Errors
/// Never for open descriptors.
pub fn replace_stdio(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if fd.as_raw_fd() == target {
        // SAFETY: changes a flag of an open descriptor.
        return cvt(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: 0 to 2 are never owned by an object that would close them.
    cvt(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Brings the loopback link of this thread's network namespace up.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN over it.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: a plain socket call.
    let socket = cvt(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: ifreq is plain data; zero is a valid value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is on our stack.
    cvt(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Makes `terminal` the controlling terminal of this session's leader.
///
/// # Errors
/// `EPERM` when this process leads no session or has a terminal already.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number.
    cvt(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets a terminal's size.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn set_terminal_size(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which is on our stack.
    cvt(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The slave of a pseudo-terminal's master, opened without a path (which could be another file system's): unlocks it first.
///
/// # Errors
/// `ENOTTY` when it is no master.
pub fn open_slave(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    cvt(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let fd = cvt(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_threaded_process_cannot_fork() {
        // The test runner has threads of its own.
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(!single_threaded());
        assert!(fork().is_err());
        assert!(fork_sibling().is_err());
        assert!(clear_environment().is_err());
        drop(stop);
        let _ = other.join();
    }

    #[test]
    fn a_pidfd_of_nobody_is_an_error() {
        assert_eq!(pidfd_open(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
