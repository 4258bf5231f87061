//! The process that all keepers are forked from: one thread, forked from `main` before there is any other.
//!
//! It waits on one socket. Each message is a [`SpawnRequest`] with the keeper's end of a control socket; it forks, and the child becomes
//! the keeper. It never waits for keepers (the kernel reaps them, SIGCHLD is ignored) and holds nothing of theirs, so its end changes
//! nothing for them. It ends when the daemon's end of the socket closes, however the daemon ended.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use berth_sys::packet;
use berth_sys::process::{self, Fork};
use berth_workspace::Excludes;
use nix::unistd::setsid;

use crate::cgroup;
use crate::error::{SandboxError, SpawnError};
use crate::keeper;
use crate::protocol::{self, FromKeeper, SpawnRequest, monotonic_ns};
use crate::seccomp::Filter;
use crate::spec::SandboxSpec;

/// A handle on the spawner process. Drop it to end the spawner; the keepers go on.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    pid: i32,
}

impl Spawner {
    /// Forks the spawner. Call it first thing in `main`.
    ///
    /// # Errors
    /// [`SpawnError::Threads`] when there is more than one thread, [`SpawnError::Fork`] when the kernel refuses.
    pub fn fork_before_threads() -> Result<Self, SpawnError> {
        if !process::single_threaded() {
            return Err(SpawnError::Threads);
        }
        let (ours, theirs) = packet::pair().map_err(SpawnError::Fork)?;
        match process::fork().map_err(SpawnError::Fork)? {
            Fork::Parent(pid) => Ok(Self { socket: ours, pid }),
            Fork::Child => {
                drop(ours);
                serve(&theirs)
            }
        }
    }

    /// The spawner's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has a keeper forked for `spec`. Its control socket is returned at once.
    pub(crate) fn spawn(&self, spec: &SandboxSpec) -> Result<OwnedFd, SandboxError> {
        let request = SpawnRequest {
            spec: spec.clone(),
            created_ns: monotonic_ns(),
        };
        let bytes = serde_json::to_vec(&request).map_err(|e| SandboxError::SpawnerGone(e.into()))?;
        if bytes.len() > packet::MAX_MESSAGE {
            return Err(SandboxError::SpecTooLarge {
                id: spec.id.to_string(),
                size: bytes.len(),
                limit: packet::MAX_MESSAGE,
            });
        }
        let (ours, theirs) = packet::pair().map_err(SandboxError::SpawnerGone)?;
        packet::send(&self.socket, &bytes, &[theirs.as_fd()]).map_err(SandboxError::SpawnerGone)?;
        packet::set_nonblocking(&ours).map_err(SandboxError::SpawnerGone)?;
        Ok(ours)
    }
}

/// The spawner's life.
fn serve(socket: &OwnedFd) -> ! {
    let _ = setsid();
    process::set_name(c"berth-spawner");
    let _ = process::close_all_but(&[socket.as_raw_fd()]);
    // What the daemon was started from must not be kept open by keepers that outlive it: a pipe's reader would wait for ever.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for stdio in 0..3 {
            let _ = process::replace_stdio(null.as_fd(), stdio);
        }
    }
    process::reset_signals();
    process::ignore_children();
    // Made once, inherited by all.
    let filter = Filter::compile().map(Arc::new);
    let _ = Excludes::standard();
    let own_cgroup = cgroup::own_procs_file();
    loop {
        match protocol::receive::<SpawnRequest>(socket) {
            Ok(None) => process::exit_now(0),
            Ok(Some((request, mut fds))) => {
                if let Some(control) = fds.pop() {
                    fork_keeper(request, control, &filter);
                    warm_cgroups(own_cgroup.as_deref());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
            Err(_) => process::exit_now(1),
        }
    }
}

fn fork_keeper(request: SpawnRequest, control: OwnedFd, filter: &Result<Arc<Filter>, String>) {
    let refuse = |act: &str, reason: String| {
        let _ = protocol::send(
            &control,
            &FromKeeper::Failed {
                act: act.to_owned(),
                reason,
            },
            &[],
        );
    };
    let filter = match filter {
        Ok(filter) => Arc::clone(filter),
        Err(reason) => return refuse("compile the system call filter", reason.clone()),
    };
    match process::fork() {
        Ok(Fork::Parent(_)) => {}
        Err(error) => refuse("fork its keeper", error.to_string()),
        Ok(Fork::Child) => {
            process::reset_signals();
            // Readers of pipes come and go; a keeper must see EPIPE, not die of it.
            process::ignore_broken_pipes();
            if let Err(error) = process::close_all_but(&[control.as_raw_fd()]) {
                refuse("close its keeper's descriptors", error.to_string());
                process::exit_now(1);
            }
            keeper::run(request, control, filter)
        }
    }
}

/// Begins the wait that joining a cgroup costs after a quiet time, beside the keeper's other work.
///
/// The kernel guards moves between cgroups with a lock whose first taker after a pause waits for an RCU grace period (7 to 12 ms); who comes
/// meanwhile waits for the rest of it only. So a process that lives for this write alone moves to where it is already, and the container's
/// own move a few milliseconds later finds the wait half over.
fn warm_cgroups(own: Option<&Path>) {
    if let (Some(own), Ok(Fork::Child)) = (own, process::fork()) {
        let _ = std::fs::write(own, "0");
        process::exit_now(0)
    }
}
