//! How a keeper makes its sandbox: environment, network namespace, folders, bundle, container, init.
//!
//! Each act that fails is told by name with its cause; `keeper.rs` then removes what there is.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use berth_sys::{packet, process};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{pipe2, setsid};

use crate::bundle;
use crate::init::Init;
use crate::network;
use crate::seccomp::Filter;
use crate::spec::SandboxSpec;

/// An act that failed while making the sandbox, in words.
pub(crate) struct Failure {
    pub act: &'static str,
    pub reason: String,
}

pub(crate) trait During<T> {
    fn during(self, act: &'static str) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> During<T> for Result<T, E> {
    fn during(self, act: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            act,
            reason: berth_workspace::chain(&error),
        })
    }
}

/// What a started container gives the keeper.
pub(crate) struct Parts {
    pub init: OwnedFd,
    pub init_pid: i32,
    pub report: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub listener: OwnedFd,
}

/// Makes everything and starts the init. The sandbox's folders are there already ([`make_folders`]).
pub(crate) fn born(spec: &Arc<SandboxSpec>, filter: &Arc<Filter>) -> Result<Parts, Failure> {
    let _ = setsid();
    process::set_name(c"berth-keeper");
    process::clear_environment().during("clear its environment")?;
    protect();
    wire(spec)?;
    let dir = spec.dir();
    let keep = serde_json::to_vec(&**spec).during("describe the sandbox")?;
    fs::write(dir.join("spec.json"), keep).during("write spec.json")?;
    bundle::write(spec, &dir.join("bundle")).during("write its bundle")?;
    let listener = listen(&dir).during("listen on keeper.sock")?;
    container(spec, filter, &dir, listener)
}

/// Out of the way of the host's out-of-memory killer; needs CAP_SYS_RESOURCE, and is not worth failing for.
fn protect() {
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
}

/// A network namespace that belongs to the host's user namespace: the sandbox holds no power over it.
fn wire(spec: &SandboxSpec) -> Result<(), Failure> {
    let host = File::open("/proc/self/ns/net").during("open the host's network namespace")?;
    unshare(CloneFlags::CLONE_NEWNET).during("make a network namespace")?;
    process::loopback_up().during("bring loopback up")?;
    // The app has no capability, and port 80 is nobody else's here. Ping without a raw socket likewise.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    if let Some(slot) = &spec.slot {
        network::wire_inside(slot, host.as_fd()).during("wire its network")?;
    }
    Ok(())
}

/// 0711: the sandbox's root, an unprivileged user of the host, opens what is bound from here by name.
pub(crate) fn make_folders(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o711);
    if let Some(parent) = dir.parent() {
        builder.recursive(true).create(parent)?;
    }
    builder.recursive(false).create(dir)?;
    builder.create(dir.join("bundle"))?;
    builder.create(dir.join("state"))
}

/// The socket's path may be longer than an address holds (107 bytes): by way of the folder's descriptor it never is.
pub(crate) fn socket_path(dir: &File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    std::path::PathBuf::from(format!("/proc/self/fd/{}/keeper.sock", dir.as_raw_fd()))
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let listener = packet::listener(&socket_path(&File::open(dir)?))?;
    fs::set_permissions(dir.join("keeper.sock"), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Makes the container with libcontainer and starts its init.
fn container(spec: &Arc<SandboxSpec>, filter: &Arc<Filter>, dir: &Path, listener: OwnedFd) -> Result<Parts, Failure> {
    let (report, report_write) = pipe2(OFlag::O_CLOEXEC).during("make a pipe")?;
    let (stdout, stdout_write) = pipe2(OFlag::O_CLOEXEC).during("make a pipe")?;
    let (stderr, stderr_write) = pipe2(OFlag::O_CLOEXEC).during("make a pipe")?;
    for end in [&report, &stdout, &stderr] {
        packet::set_nonblocking(end).during("make a pipe not block")?;
    }
    let null = File::open("/dev/null").during("open /dev/null")?;
    let init = Init {
        spec: Arc::clone(spec),
        filter: Arc::clone(filter),
        report: Arc::new(report_write),
    };
    let mut container = ContainerBuilder::new(spec.id.to_string(), SyscallType::default())
        .with_executor(init)
        .with_root_path(dir.join("state"))
        .during("name its state folder")?
        .with_stdin(null)
        .with_stdout(stdout_write)
        .with_stderr(stderr_write)
        .as_init(dir.join("bundle"))
        .with_systemd(false)
        .build()
        .during("make the container")?;
    let init_pid = container.pid().map_or(0, |pid| pid.as_raw());
    let init = process::pidfd_open(init_pid).during("watch the init")?;
    container.start().during("start the init")?;
    // libcontainer lowered the keeper's standing for the container's sake, and went to live in its folder.
    protect();
    let _ = std::env::set_current_dir("/");
    Ok(Parts {
        init,
        init_pid,
        report,
        stdout,
        stderr,
        listener,
    })
}
