//! The daemon's handle on a sandbox.
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use berth_sys::netns::Netns;
use tokio::sync::mpsc;

use crate::{ExecRequest, ExitInfo, Phase, SandboxError, SandboxEvent, SandboxId, SandboxSpec, Slot, Spawner, Stats};

/// A living sandbox.
pub struct Sandbox {}
impl Sandbox {
    /// Makes and starts a sandbox; returns when its init runs.
    pub async fn create(_spawner: &Spawner, _spec: SandboxSpec, _slot: impl Into<Option<Slot>>) -> Result<(Sandbox, mpsc::Receiver<SandboxEvent>), SandboxError> {
        unimplemented!()
    }
    /// Takes over a sandbox that an earlier daemon left running. Its spec is [`Sandbox::spec`], how far it has come [`Sandbox::phase`].
    pub async fn adopt(_run_dir: &Path, _id: &SandboxId, _slot: impl Into<Option<Slot>>) -> Result<(Sandbox, mpsc::Receiver<SandboxEvent>), SandboxError> {
        unimplemented!()
    }
    /// Its name.
    pub fn id(&self) -> &SandboxId {
        unimplemented!()
    }
    /// What it was made from.
    pub fn spec(&self) -> &SandboxSpec {
        unimplemented!()
    }
    /// The last phase reached.
    pub fn phase(&self) -> Option<Phase> {
        unimplemented!()
    }
    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        unimplemented!()
    }
    /// The keeper's pid on the host.
    pub fn keeper_pid(&self) -> i32 {
        unimplemented!()
    }
    /// The init's pid on the host.
    pub fn init_pid(&self) -> i32 {
        unimplemented!()
    }
    /// Listening TCP sockets in its network namespace.
    pub fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        unimplemented!()
    }
    /// Leaves the sandbox running and lets go of it (the daemon is about to restart).
    pub fn detach(self) {
        unimplemented!()
    }
    /// SIGTERM, after `grace` SIGKILL; then everything is removed. Idempotent.
    pub async fn stop(&self, _grace: Duration) -> Result<ExitInfo, SandboxError> {
        unimplemented!()
    }
    /// Resolves when the sandbox has ended and is removed.
    pub async fn ended(&self) -> ExitInfo {
        unimplemented!()
    }
    /// Sends a signal to the app's process group.
    pub async fn signal(&self, _signal: i32) -> Result<(), SandboxError> {
        unimplemented!()
    }
    /// Runs a command inside.
    pub async fn exec(&self, _request: ExecRequest) -> Result<ExecSession, SandboxError> {
        unimplemented!()
    }
    /// What it uses now.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Stops giving it CPU time.
    pub fn freeze(&self) -> io::Result<()> {
        unimplemented!()
    }
    /// Lets it run again.
    pub fn thaw(&self) -> io::Result<()> {
        unimplemented!()
    }
}
/// A command running inside a sandbox.
pub struct ExecSession {
    /// Write end of its stdin (`None` with a terminal).
    pub stdin: Option<OwnedFd>,
    /// Read end of its stdout (`None` with a terminal).
    pub stdout: Option<OwnedFd>,
    /// Read end of its stderr (`None` with a terminal).
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, when one was asked for.
    pub terminal: Option<OwnedFd>,
}
impl ExecSession {
    /// Changes the terminal's size.
    pub fn resize(&self, _rows: u16, _cols: u16) -> io::Result<()> {
        unimplemented!()
    }
    /// Sends a signal to the command's process group.
    pub async fn signal(&self, _signal: i32) -> Result<(), SandboxError> {
        unimplemented!()
    }
    /// Waits for its end. Cancel-safe.
    pub async fn wait(&mut self) -> Result<ExitInfo, SandboxError> {
        unimplemented!()
    }
}
