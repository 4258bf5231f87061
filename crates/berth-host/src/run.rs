//! `berth run NAME -- CMD`: a sandbox of a workspace for one command by hand.

use std::sync::Arc;

use berth_sandbox::{ExecRequest, ExecSession, ExitInfo, Sandbox};
use berth_workspace::AppName;

/// What to run by hand.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The workspace whose source, image and environment are used.
    pub app: AppName,
    /// The command, its environment and terminal.
    pub exec: ExecRequest,
    /// Install the dependencies first.
    pub install: bool,
}

/// A command that runs in a sandbox of its own.
pub struct RunSession {
    /// The command's pipes or terminal.
    pub exec: ExecSession,
    /// The sandbox made for it.
    pub sandbox: Arc<Sandbox>,
}

impl RunSession {
    /// Waits for the command, then stops and removes the sandbox.
    pub async fn wait(self) -> ExitInfo {
        unimplemented!()
    }
}
