//! A further command in a living sandbox.
//!
//! ```text
//!  keeper ── fork ──▶ step: joins the cgroup, enters the init's namespaces (one setns on its pidfd), becomes uid 1000 without
//!    │                 │    capabilities, opens the terminal from the sandbox's own devpts
//!    │                 └─ clone(CLONE_PARENT) ──▶ command: in the pid namespace and the keeper's child; filter, then execve
//!    └─ waits for both
//! ```
//!
//! Own code rather than libcontainer's tenant builder, which writes state files, needs a thread-unsafe chdir in the keeper and a socket
//! path for the terminal; this is four system calls. The step is undumpable before it enters, so that nothing inside can look into it, and
//! the sandbox's uid 1000 owns nothing of the host that a `/proc/PID/exe` could lead to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use berth_sys::packet;
use berth_sys::process::{self, Fork};
use caps::CapSet;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, chdir, pipe2, setgroups, setresgid, setresuid, setsid};

use crate::cgroup::Cgroup;
use crate::command::{Prepared, base_environment};
use crate::protocol::{self, ExecReport};
use crate::seccomp::Filter;
use crate::spec::{APP_UID, ExecRequest, SandboxSpec};

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWCGROUP;

/// A command that runs.
pub(crate) struct Started {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The terminal's master, or stdin, stdout and stderr.
    pub fds: Vec<OwnedFd>,
}

/// What the keeper knows about the sandbox.
pub(crate) struct Target<'a> {
    pub spec: &'a SandboxSpec,
    pub init: BorrowedFd<'a>,
    pub filter: &'a Filter,
}

/// The command's ends of its pipes.
struct Pipes {
    ours: Vec<OwnedFd>,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn new() -> io::Result<Self> {
        let (stdin_read, stdin_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout_read, stdout_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr_read, stderr_write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self {
            ours: vec![stdin_write, stdout_read, stderr_read],
            theirs: vec![stdin_read, stdout_write, stderr_write],
        })
    }
}

/// Runs `request` inside. Returns when its program was started, or the reason why not, for people.
pub(crate) fn start(target: &Target<'_>, request: &ExecRequest) -> Result<Started, String> {
    let spec = target.spec;
    let cwd = request.cwd.clone().unwrap_or_else(|| spec.cwd().to_owned());
    let mut base = base_environment(spec.app.as_str(), &cwd);
    if request.tty.is_some() {
        base.insert("TERM".to_owned(), "xterm-256color".to_owned());
    }
    let ready = Prepared::new(&request.argv, &[&base, &spec.env, &request.env])?;
    let pipes = if request.tty.is_none() {
        Some(Pipes::new().map_err(|e| format!("make pipes: {e}"))?)
    } else {
        None
    };
    let (ours, theirs) = packet::pair().map_err(|e| format!("make a socket pair: {e}"))?;
    match process::fork().map_err(|e| format!("fork: {e}"))? {
        Fork::Child => {
            drop(ours);
            let failed = enter_and_run(target, request, &ready, &cwd, pipes, &theirs);
            let _ = protocol::send(&theirs, &ExecReport::Failed { reason: failed }, &[]);
            process::exit_now(1)
        }
        Fork::Parent(step) => {
            drop(theirs);
            let result = collect(&ours, pipes.map(|p| p.ours));
            let _ = waitpid(Pid::from_raw(step), None);
            result
        }
    }
}

/// Hears the step and the command out; the socket closes when the command's program has started.
fn collect(socket: &OwnedFd, pipes: Option<Vec<OwnedFd>>) -> Result<Started, String> {
    let mut fds = pipes.unwrap_or_default();
    let mut pid = None;
    let mut failed = None;
    while let Some((report, received)) =
        protocol::receive::<ExecReport>(socket).map_err(|e| format!("hear the command: {e}"))?
    {
        match report {
            ExecReport::Terminal => fds = received,
            ExecReport::Child { pid: child } => pid = Some(child),
            ExecReport::Failed { reason } => failed = Some(reason),
        }
    }
    match (pid, failed) {
        (Some(pid), None) => {
            let pidfd = process::pidfd_open(pid).map_err(|e| format!("watch the command: {e}"))?;
            Ok(Started { pid, pidfd, fds })
        }
        (pid, failed) => {
            if let Some(pid) = pid {
                let _ = waitpid(Pid::from_raw(pid), None);
            }
            Err(failed.unwrap_or_else(|| "the sandbox ended meanwhile".to_owned()))
        }
    }
}

/// The step, and behind the second fork the command. Returns only with a reason why it could not go on.
fn enter_and_run(
    target: &Target<'_>,
    request: &ExecRequest,
    ready: &Prepared,
    cwd: &str,
    pipes: Option<Pipes>,
    socket: &OwnedFd,
) -> String {
    match enter(target, request, socket) {
        Err(reason) => reason,
        Ok(terminal) => match process::fork_sibling() {
            Err(error) => format!("fork inside: {error}"),
            Ok(Fork::Parent(pid)) => {
                let _ = protocol::send(socket, &ExecReport::Child { pid }, &[]);
                process::exit_now(0)
            }
            Ok(Fork::Child) => {
                let stdio: Vec<&OwnedFd> = match (&terminal, &pipes) {
                    (Some(slave), _) => vec![slave, slave, slave],
                    (None, Some(pipes)) => pipes.theirs.iter().collect(),
                    (None, None) => Vec::new(),
                };
                let reason = run(ready, cwd, &stdio, terminal.as_ref(), target.filter, socket);
                let _ = protocol::send(socket, &ExecReport::Failed { reason }, &[]);
                // Here and not by returning: descriptors that are closed already have owners in the frames above.
                process::exit_now(1)
            }
        },
    }
}

/// Into the cgroup and the namespaces, down to the app's user. Returns the terminal's slave when one was asked for.
fn enter(target: &Target<'_>, request: &ExecRequest, socket: &OwnedFd) -> Result<Option<OwnedFd>, String> {
    process::set_name(c"berth-exec");
    process::set_dumpable(false).map_err(|e| format!("become undumpable: {e}"))?;
    let cgroup = Cgroup::new(&target.spec.instance, target.spec.id.as_str());
    cgroup
        .join(i32::try_from(std::process::id()).unwrap_or(0))
        .map_err(|e| format!("join the sandbox's cgroup: {e}"))?;
    process::enter_namespaces(target.init, NAMESPACES).map_err(|e| format!("enter the sandbox: {e}"))?;
    become_app().map_err(|e| format!("give up rights: {e}"))?;
    request
        .tty
        .map(|(rows, cols)| terminal(rows, cols, socket).map_err(|e| format!("open a terminal: {e}")))
        .transpose()
}

/// Uid and gid 1000, no groups, no capability in any set, none to be had by any execve.
fn become_app() -> Result<(), Box<dyn std::error::Error>> {
    for capability in caps::runtime::thread_all_supported() {
        caps::drop(None, CapSet::Bounding, capability)?;
    }
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(APP_UID), Gid::from_raw(APP_UID));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set)?;
    }
    process::set_no_new_privs()?;
    // A change of user makes a process undumpable or dumpable by the host's settings: say it again.
    process::set_dumpable(false)?;
    Ok(())
}

/// A terminal of the sandbox's own devpts: the master goes to the keeper, the slave is returned.
fn terminal(rows: u16, cols: u16, socket: &OwnedFd) -> io::Result<OwnedFd> {
    let master = open(
        "/dev/ptmx",
        OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let meta = std::fs::File::from(master.try_clone()?).metadata()?;
    if !meta.file_type().is_char_device() || meta.rdev() != nix::sys::stat::makedev(5, 2) {
        return Err(io::Error::other("/dev/ptmx is no terminal device"));
    }
    process::set_terminal_size(master.as_fd(), rows, cols)?;
    let slave = process::open_slave(master.as_fd())?;
    protocol::send(socket, &ExecReport::Terminal, &[master.as_fd()])?;
    Ok(slave)
}

/// The command itself. Returns only with a reason why it did not start.
fn run(
    ready: &Prepared,
    cwd: &str,
    stdio: &[&OwnedFd],
    terminal: Option<&OwnedFd>,
    filter: &Filter,
    socket: &OwnedFd,
) -> String {
    let prepare = || -> Result<(), String> {
        setsid().map_err(|e| format!("begin a session: {e}"))?;
        if let Some(slave) = terminal {
            process::take_terminal(slave.as_fd()).map_err(|e| format!("take the terminal: {e}"))?;
        }
        for (fd, target) in stdio.iter().zip(0..) {
            process::replace_stdio(fd.as_fd(), target).map_err(|e| format!("set up its input and output: {e}"))?;
        }
        process::close_all_but(&[socket.as_raw_fd()]).map_err(|e| format!("close descriptors: {e}"))?;
        chdir(cwd).map_err(|e| format!("cannot enter {cwd}: {e}"))?;
        process::reset_signals();
        filter.load().map_err(|e| format!("load the system call filter: {e}"))
    };
    match prepare() {
        Ok(()) => ready.exec().1,
        Err(reason) => reason,
    }
}
