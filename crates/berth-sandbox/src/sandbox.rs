//! The daemon's handle on a sandbox.
//!
//! One task per sandbox owns the control socket: it turns the keeper's messages into events, and keeps the one thing that is known for
//! certain, whether the sandbox has ended, in a watch that everybody can wait on. When the socket closes without a farewell the keeper was
//! killed; its init dies with it (the kernel sees to that), and the task removes what the keeper would have removed.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_sys::netns::Netns;
use berth_sys::{packet, process};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::birth;
use crate::cgroup::{Cgroup, Freezer};
use crate::keeper;
use crate::listening;
use crate::protocol::{self, FromKeeper, ToKeeper};
use crate::spec::sandbox_dir;
use crate::{
    ExecRequest, ExitInfo, Phase, Reclaim, SandboxError, SandboxEvent, SandboxId, SandboxSpec, Slot, Spawner, Stats,
};

/// Events that wait for a slow reader; a sandbox has a few in its whole life.
const EVENTS: usize = 1024;
/// How long a killed sandbox may take to vanish.
const VANISH: Duration = Duration::from_secs(20);
/// How long a keeper that has said farewell may take to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// A packet socket in tokio's hands.
struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        packet::watch(fd).map(Self)
    }

    async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| protocol::receive(fd.get_ref())) {
                Ok(result) => return result,
                Err(_) => continue,
            }
        }
    }

    async fn send(&self, message: &impl Serialize) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| protocol::send(fd.get_ref(), message, &[])) {
                Ok(result) => return result,
                Err(_) => continue,
            }
        }
    }
}

/// What is known of a sandbox at the moment.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    phase: Option<Phase>,
    ended: Option<ExitInfo>,
}

/// A living sandbox. Dropping it lets go of the sandbox, which runs on and can be adopted; [`Sandbox::stop`] ends it.
pub struct Sandbox {
    spec: Arc<SandboxSpec>,
    keeper_pid: i32,
    init_pid: i32,
    netns: Netns,
    state: watch::Receiver<State>,
    commands: mpsc::UnboundedSender<ToKeeper>,
    /// Opened when it is first frozen.
    freezer: OnceLock<Freezer>,
    /// Freed with this handle: the address must not be given to another sandbox before.
    _slot: Mutex<Option<Slot>>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.spec.id)
            .field("keeper", &self.keeper_pid)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Makes and starts a sandbox; returns when its init runs.
    ///
    /// Not cancel-safe: a sandbox whose creation was abandoned lives on until [`crate::clean_leftovers`].
    ///
    /// # Errors
    /// [`SandboxError::Create`] with the act that failed; nothing of the sandbox is left then.
    pub async fn create(
        spawner: &Spawner,
        spec: SandboxSpec,
        slot: impl Into<Option<Slot>>,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let socket = spawner.spawn(&spec)?;
        Self::meet(spec, socket, slot.into()).await
    }

    /// Takes over a sandbox that an earlier daemon left running: [`Sandbox::spec`] is what it was made from, [`Sandbox::phase`] how far it
    /// has come; events from now on.
    ///
    /// # Errors
    /// [`SandboxError::Keeper`] when its keeper does not answer (it is a leftover then), [`SandboxError::BadFolder`] without `spec.json`.
    pub async fn adopt(
        run_dir: &Path,
        id: &SandboxId,
        slot: impl Into<Option<Slot>>,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let dir = sandbox_dir(run_dir, id.as_str());
        let spec = read_spec(&dir)?;
        let socket = connect(&dir, id.as_str())?;
        Self::meet(spec, socket, slot.into()).await
    }

    async fn meet(
        spec: SandboxSpec,
        socket: OwnedFd,
        slot: Option<Slot>,
    ) -> Result<(Self, mpsc::Receiver<SandboxEvent>), SandboxError> {
        let id = spec.id.to_string();
        let path = spec.dir().join("keeper.sock");
        let broken = |source| SandboxError::Keeper {
            id: id.clone(),
            path: path.clone(),
            source,
        };
        let socket = Socket::new(socket).map_err(broken)?;
        let (keeper_pid, init_pid, phase) = match socket.receive().await.map_err(broken)? {
            Some((
                FromKeeper::Hello {
                    keeper_pid,
                    init_pid,
                    phase,
                },
                _,
            )) => (keeper_pid, init_pid, phase),
            Some((FromKeeper::Failed { act, reason }, _)) => return Err(SandboxError::Create { id, act, reason }),
            Some(_) => return Err(SandboxError::KeeperDied { id }),
            None => {
                let remains = spec.clone();
                let _ = tokio::task::spawn_blocking(move || keeper::remove(&remains)).await;
                return Err(SandboxError::KeeperDied { id });
            }
        };
        let netns = Netns::of_pid(keeper_pid).map_err(|source| SandboxError::Open {
            id: id.clone(),
            what: "its network namespace".to_owned(),
            source,
        })?;
        let spec = Arc::new(spec);
        let (events, receiver) = mpsc::channel(EVENTS);
        let (state_in, state) = watch::channel(State { phase, ended: None });
        let (commands, asked) = mpsc::unbounded_channel();
        tokio::spawn(attend(Arc::clone(&spec), socket, events, state_in, asked));
        Ok((
            Self {
                spec,
                keeper_pid,
                init_pid,
                netns,
                state,
                commands,
                freezer: OnceLock::new(),
                _slot: Mutex::new(slot),
            },
            receiver,
        ))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.spec.id
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// The last phase reached.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.state.borrow().phase
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitInfo> {
        self.state.borrow().ended
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> Netns {
        self.netns.clone()
    }

    /// The keeper's pid on the host.
    #[must_use]
    pub fn keeper_pid(&self) -> i32 {
        self.keeper_pid
    }

    /// The init's pid on the host.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        self.init_pid
    }

    /// Listening TCP sockets in its network namespace.
    ///
    /// # Errors
    /// When it has ended.
    pub fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        // The number of a keeper that has ended may be another process's.
        if self.exit().is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended"));
        }
        listening::of_pid(self.keeper_pid)
    }

    /// Leaves the sandbox running and lets go of it (the daemon is about to restart).
    pub fn detach(self) {}

    /// SIGTERM to the app's process group, SIGKILL to everything after `grace`; returns when everything is removed: processes, cgroups,
    /// mounts, run folder. (The network namespace goes with the last [`Netns`] of it.) Idempotent and cancel-safe: once asked for, the stop
    /// goes on.
    ///
    /// # Errors
    /// [`SandboxError::Stuck`] when the kernel does not let it go.
    pub async fn stop(&self, grace: Duration) -> Result<ExitInfo, SandboxError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        // A task that is gone has the end in the watch already.
        let _ = self.commands.send(ToKeeper::Stop { grace_ms });
        let limit = grace + VANISH;
        tokio::time::timeout(limit, self.ended())
            .await
            .map_err(|_| SandboxError::Stuck {
                id: self.spec.id.to_string(),
                seconds: limit.as_secs(),
            })
    }

    /// Resolves when the sandbox has ended and is removed. Cancel-safe.
    pub async fn ended(&self) -> ExitInfo {
        let mut state = self.state.clone();
        // An error means that the task is gone, which it is only after it has said how the sandbox ended.
        let _ = state.wait_for(|s| s.ended.is_some()).await;
        let last = *state.borrow();
        last.ended.unwrap_or_default()
    }

    /// Sends a signal to the app's process group (SIGTERM, INT, HUP, QUIT, USR1 or USR2; others do nothing).
    ///
    /// # Errors
    /// [`SandboxError::Ended`].
    pub async fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        self.commands
            .send(ToKeeper::Signal { signal })
            .map_err(|_| SandboxError::Ended {
                id: self.spec.id.to_string(),
            })
    }

    /// Runs a command inside, with the app's rights and limits.
    ///
    /// # Errors
    /// [`SandboxError::Exec`] with the reason, e.g. "command not found: x"; [`SandboxError::Ended`].
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, SandboxError> {
        let id = self.spec.id.to_string();
        if self.exit().is_some() {
            return Err(SandboxError::Ended { id });
        }
        let broken = |source| SandboxError::Keeper {
            id: id.clone(),
            path: self.spec.dir().join("keeper.sock"),
            source,
        };
        let socket = Socket::new(connect(&self.spec.dir(), &id)?).map_err(broken)?;
        socket.send(&ToKeeper::Exec(request.clone())).await.map_err(broken)?;
        loop {
            match socket.receive().await.map_err(broken)? {
                Some((FromKeeper::ExecStarted { pid }, fds)) => {
                    return Ok(ExecSession::new(id, pid, socket, fds, request.tty.is_some()));
                }
                Some((FromKeeper::ExecFailed { reason }, _)) => return Err(SandboxError::Exec { id, reason }),
                Some((FromKeeper::Event(SandboxEvent::Exited(_)), _)) | None => return Err(SandboxError::Ended { id }),
                Some(_) => {}
            }
        }
    }

    /// What it uses now; zeros once it has ended.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cgroup().stats()
    }

    /// Takes all CPU time from it. Returns at once; whoever may want it to run again meanwhile must be kept apart by the caller.
    ///
    /// # Errors
    /// When the host has no freezer, or it has ended.
    pub fn freeze(&self) -> io::Result<()> {
        self.freezer()?.set(true)
    }

    /// Lets it run again. One write to an open file: may be called where nothing may wait.
    ///
    /// # Errors
    /// As [`Sandbox::freeze`].
    pub fn thaw(&self) -> io::Result<()> {
        self.freezer()?.set(false)
    }

    /// Hands memory to the kernel, for as long as `go_on` says so. Blocks, for milliseconds for each ten megabytes that are swapped.
    ///
    /// # Errors
    /// When the host limits no memory, or it has ended.
    pub fn reclaim(&self, what: Reclaim, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        self.cgroup().reclaim(what, go_on)
    }

    fn freezer(&self) -> io::Result<&Freezer> {
        if let Some(freezer) = self.freezer.get() {
            return Ok(freezer);
        }
        let opened = self.cgroup().freezer()?;
        Ok(self.freezer.get_or_init(|| opened))
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::new(&self.spec.instance, self.spec.id.as_str())
    }
}

/// Reads `spec.json` in a sandbox's folder.
pub(crate) fn read_spec(dir: &Path) -> Result<SandboxSpec, SandboxError> {
    let bad = |source| SandboxError::BadFolder {
        path: dir.to_owned(),
        source,
    };
    let bytes = std::fs::read(dir.join("spec.json")).map_err(bad)?;
    serde_json::from_slice(&bytes).map_err(|e| bad(e.into()))
}

/// Connects to the keeper whose folder is `dir`.
pub(crate) fn connect(dir: &Path, id: &str) -> Result<OwnedFd, SandboxError> {
    let open = || packet::connect_to(&birth::socket_path(&File::open(dir)?));
    open().map_err(|source| SandboxError::Keeper {
        id: id.to_owned(),
        path: dir.join("keeper.sock"),
        source,
    })
}

/// Owns the control socket until the sandbox has ended or nobody holds it any more.
async fn attend(
    spec: Arc<SandboxSpec>,
    socket: Socket,
    events: mpsc::Sender<SandboxEvent>,
    state: watch::Sender<State>,
    mut asked: mpsc::UnboundedReceiver<ToKeeper>,
) {
    let exit = loop {
        tokio::select! {
            command = asked.recv() => match command {
                // Nobody holds the sandbox: let go of it.
                None => return,
                Some(command) => { let _ = socket.send(&command).await; }
            },
            message = socket.receive::<FromKeeper>() => match message {
                Ok(Some((FromKeeper::Event(SandboxEvent::Exited(exit)), _))) => {
                    // The keeper ends next, and the network namespace with it.
                    let _ = tokio::time::timeout(FAREWELL, socket.receive::<FromKeeper>()).await;
                    break exit;
                }
                Ok(Some((FromKeeper::Event(event), _))) => {
                    if let SandboxEvent::Phase { phase, .. } = &event {
                        state.send_modify(|s| s.phase = Some(*phase));
                    }
                    let _ = events.try_send(event);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    tracing::warn!(sandbox = %spec.id, "its keeper was killed; removing what it left");
                    let remains = Arc::clone(&spec);
                    let _ = tokio::task::spawn_blocking(move || keeper::remove(&remains)).await;
                    break ExitInfo { signal: Some(libc::SIGKILL), ..ExitInfo::default() };
                }
            },
        }
    };
    state.send_modify(|s| s.ended = Some(exit));
    let _ = events.try_send(SandboxEvent::Exited(exit));
}

/// A command running inside a sandbox. Dropping it hangs up: the command gets SIGHUP.
pub struct ExecSession {
    /// Write end of its stdin (`None` with a terminal). Close it to end its input.
    pub stdin: Option<OwnedFd>,
    /// Read end of its stdout (`None` with a terminal).
    pub stdout: Option<OwnedFd>,
    /// Read end of its stderr (`None` with a terminal).
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, when one was asked for; reading gives EIO when the command has ended.
    pub terminal: Option<OwnedFd>,
    id: String,
    pid: i32,
    socket: Socket,
    ended: Option<ExitInfo>,
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSession")
            .field("sandbox", &self.id)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl ExecSession {
    fn new(id: String, pid: i32, socket: Socket, fds: Vec<OwnedFd>, tty: bool) -> Self {
        let mut fds = fds.into_iter();
        let mut session = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
            id,
            pid,
            socket,
            ended: None,
        };
        if tty {
            session.terminal = fds.next();
        } else {
            session.stdin = fds.next();
            session.stdout = fds.next();
            session.stderr = fds.next();
        }
        session
    }

    /// Its pid on the host.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Changes the terminal's size; nothing without one.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => process::set_terminal_size(terminal.as_fd(), rows, cols),
            None => Ok(()),
        }
    }

    /// Sends a signal to the command's process group.
    ///
    /// # Errors
    /// [`SandboxError::Ended`] when the sandbox is gone.
    pub async fn signal(&self, signal: i32) -> Result<(), SandboxError> {
        let sent = self.socket.send(&ToKeeper::ExecSignal { signal }).await;
        sent.map_err(|_| SandboxError::Ended { id: self.id.clone() })
    }

    /// Waits for its end; a command killed with its sandbox ended by SIGKILL. Cancel-safe, and may be called again.
    ///
    /// # Errors
    /// [`SandboxError::Keeper`] when the keeper says what cannot be understood.
    pub async fn wait(&mut self) -> Result<ExitInfo, SandboxError> {
        while self.ended.is_none() {
            match self.socket.receive::<FromKeeper>().await {
                Ok(Some((FromKeeper::ExecExited(exit), _))) => self.ended = Some(exit),
                Ok(None) => {
                    self.ended = Some(ExitInfo {
                        signal: Some(libc::SIGKILL),
                        ..ExitInfo::default()
                    })
                }
                Ok(Some(_)) => {}
                Err(source) => {
                    return Err(SandboxError::Keeper {
                        id: self.id.clone(),
                        path: "keeper.sock".into(),
                        source,
                    });
                }
            }
        }
        Ok(self.ended.unwrap_or_default())
    }
}
