//! The thread that gives the helper its orders, and starts it.
//!
//! It waits for the helper alone, never for the mount: a daemon that is killed takes it along, the connection of the mount
//! ends, the helper's call with it, and then the helper, whose socket is closed. A helper that dies is replaced with the next
//! announcement, not more than once a second; what comes until then is not announced.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Weak, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use berth_sys::packet;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, waitid},
    unistd::Pid,
};

use super::{
    Announcement, Announcer, helper,
    order::{Order, Report},
};
use crate::core::Core;

/// The name by which the helper is started: its argument 0.
const NAME: &str = "berth-announcer";
/// How often one who waits for the helper looks whether the mount ends.
const LOOK: Duration = Duration::from_millis(100);
/// The shortest time between two starts of a helper.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the announcer's helper if this process was started to be that; `None` if it was not. To be called first thing in `main`, while
/// the process has one thread and no file open.
#[must_use]
pub fn announcer_asked_for() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next()? != NAME {
        return None;
    }
    Some(helper::run(arguments.next()?.into()))
}

/// Starts the thread, for the mount with this device number.
pub(crate) fn spawn(core: &Arc<Core>, device: u64) -> io::Result<Option<JoinHandle<()>>> {
    let announcer = core.announcer.clone();
    let (Some(program), Some(queue)) = (core.cfg.announcer.clone(), announcer.waiting.lock().take()) else {
        return Ok(None);
    };
    let mut runner = Runner {
        // Not longer than the mount: a queue of announcements must not keep its journal open.
        core: Arc::downgrade(core),
        announcer,
        program,
        mountpoint: core.cfg.mountpoint.clone(),
        device,
        helper: None,
        started: None,
    };
    let thread = std::thread::Builder::new().name("berth-announce".into());
    let thread = thread.spawn(move || {
        // At once: what a start costs is not to be paid by the first event.
        runner.ready();
        while let Ok(announcement) = queue.recv() {
            if runner.announcer.stopping.load(Ordering::Relaxed) {
                break;
            }
            runner.announce(&announcement);
        }
        if let Some(helper) = runner.helper.take() {
            runner.bury(helper);
        }
    })?;
    Ok(Some(thread))
}

struct Helper {
    child: Child,
    socket: OwnedFd,
}

struct Runner {
    core: Weak<Core>,
    announcer: Arc<Announcer>,
    program: PathBuf,
    mountpoint: PathBuf,
    device: u64,
    helper: Option<Helper>,
    started: Option<Instant>,
}

impl Runner {
    fn announce(&mut self, announcement: &Announcement) {
        let order = |core: Arc<Core>| core.order(self.device, announcement);
        let Some(order) = self.core.upgrade().and_then(order) else {
            return;
        };
        // A helper that died since is found out by this; then another may do it.
        let announced = (0..2).any(|_| self.ready() && self.try_order(&order));
        if !announced {
            self.announcer.drop_one();
        }
        self.announcer.done();
    }

    fn try_order(&mut self, order: &Order) -> bool {
        match self.give(order) {
            Ok(Some(report)) => {
                if !report.errors.is_empty() {
                    // Mostly somebody changed the name meanwhile.
                    tracing::debug!(?order, ?report, "not all of a change could be announced");
                }
                true
            }
            Ok(None) => true,
            Err(error) => {
                self.lost(&error);
                false
            }
        }
    }

    /// Gives the helper one order and waits until it is done; `None` when the mount ends before that.
    fn give(&self, order: &Order) -> io::Result<Option<Report>> {
        let Some(helper) = &self.helper else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        packet::send(&helper.socket, &serde_json::to_vec(order)?, &[])?;
        let wait = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut [PollFd::new(helper.socket.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) | Err(Errno::EINTR) => {
                    if self.announcer.stopping.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                }
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let (bytes, _) = packet::receive(&helper.socket)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// Whether there is a helper; starts one if it may.
    fn ready(&mut self) -> bool {
        if self.helper.is_some() {
            return true;
        }
        if self.started.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        self.started = Some(Instant::now());
        match start(&self.program, &self.mountpoint) {
            Ok(helper) => {
                self.announcer.pid.store(helper.child.id(), Ordering::Relaxed);
                self.helper = Some(helper);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start the helper that announces changes made elsewhere to inotify watchers");
                false
            }
        }
    }

    fn lost(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the helper that announces changes made elsewhere to inotify watchers died; another is started");
        if let Some(mut helper) = self.helper.take() {
            let _ = helper.child.kill();
            self.bury(helper);
        }
    }

    /// When the process is at its end none of its requests is on its way any more; only when it is reaped can its number be
    /// another's.
    fn bury(&self, mut helper: Helper) {
        drop(helper.socket);
        let pid = Pid::from_raw(helper.child.id() as i32);
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        self.announcer.pid.store(0, Ordering::Relaxed);
        let _ = helper.child.wait();
    }
}

fn start(program: &Path, mountpoint: &Path) -> io::Result<Helper> {
    let (ours, theirs) = packet::pair()?;
    let mut command = Command::new(program);
    std::os::unix::process::CommandExt::arg0(&mut command, NAME);
    command.arg(mountpoint).stdin(Stdio::from(theirs)).stdout(Stdio::null());
    Ok(Helper {
        child: command.spawn()?,
        socket: ours,
    })
}
