//! `berth run NAME -- CMD`: a sandbox of a workspace for one command by hand.
//!
//! It is a sandbox like an app's (same image, limits, network and environment) but nothing is started in it, no request
//! gets there, and it goes when the command has ended. A session that is dropped (the person pressed Ctrl-C, the
//! connection broke) is cleaned up as well, and so is one that is open when the host shuts down.

use std::sync::Arc;

use berth_sandbox::{ExecRequest, ExecSession, ExitInfo, Phase, Sandbox, SandboxEvent};
use berth_workspace::{AppName, Plan, RevisionId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::driver::Ground;
use crate::failure::{FailKind, FailReason, RunError};
use crate::life;
use crate::sandboxes::{Made, Order, Running};

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
    keep: RunKeep,
}

/// Keeps the sandbox of a [`RunSession`]; when it is dropped, the sandbox is stopped and removed.
pub struct RunKeep {
    /// Dropped to have the sandbox removed …
    leave: oneshot::Sender<()>,
    /// … and heard when it is.
    removed: oneshot::Receiver<()>,
}

impl RunKeep {
    /// Has the sandbox removed and returns when it is.
    pub async fn remove(self) {
        drop(self.leave);
        // Its sender is dropped when the sandbox is removed.
        let _ = self.removed.await;
    }
}

impl RunSession {
    /// The command by itself, and what keeps its sandbox: drop that, or [`RunKeep::remove`] it, when the command has ended.
    pub fn into_parts(self) -> (ExecSession, RunKeep) {
        (self.exec, self.keep)
    }

    /// Waits for the command, then stops and removes the sandbox. The pipes stay with the caller: take them out first.
    pub async fn wait(self) -> ExitInfo {
        let Self {
            mut exec,
            sandbox,
            keep,
        } = self;
        let exit = match exec.wait().await {
            Ok(exit) => exit,
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.id(), "waiting for a command: {}", berth_workspace::chain(&error));
                ExitInfo::default()
            }
        };
        keep.remove().await;
        exit
    }
}

pub(crate) async fn start(
    ground: &Arc<Ground>,
    stop: CancellationToken,
    request: RunRequest,
    revision: &RevisionId,
    plan: &Plan,
) -> Result<RunSession, RunError> {
    let app = request.app.clone();
    let failed = |reason| RunError::Sandbox {
        app: app.clone(),
        reason,
    };
    let (_, Some(id)) = ground.next_sandbox(&app) else {
        return Err(RunError::NoSuchApp(app));
    };
    let mut spec = ground.spec(id, &app, revision, plan);
    spec.start = None;
    if !request.install {
        spec.install.clear();
    }
    // Who tries by hand may install by hand: the registries, proxies and certificates of installs are there too.
    spec.env.extend(spec.install_env.clone());
    let last = last_phase(spec.copy_source, spec.install.len());
    let order = Order {
        spec,
        image: plan.image.clone(),
    };
    ground.source.ready().await;
    let Made {
        running, mut events, ..
    } = ground.sandboxes.create(order).await.map_err(failed)?;
    // From here on the sandbox is removed whatever happens: when `keep` is dropped, or when the host shuts down.
    let keep = remove_when_left(ground, stop, Arc::clone(&running));
    let limit = ground.config.install_timeout;
    match tokio::time::timeout(limit, prepared(&mut events, last)).await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return Err(failed(reason)),
        Err(_) => {
            let text = format!("the preparation took longer than {} s", limit.as_secs());
            return Err(failed(FailReason::new(FailKind::InstallTimeout, text)));
        }
    }
    let Some(sandbox) = running.sandbox() else {
        return Err(RunError::NoSuchApp(app));
    };
    let command = request.exec.argv.join(" ");
    let exec = sandbox.exec(request.exec).await.map_err(|error| RunError::Exec {
        app: app.clone(),
        command,
        message: berth_workspace::chain(&error),
    })?;
    Ok(RunSession { exec, sandbox, keep })
}

fn remove_when_left(ground: &Ground, stop: CancellationToken, running: Arc<dyn Running>) -> RunKeep {
    let (leave, left) = oneshot::channel::<()>();
    let (done, removed) = oneshot::channel::<()>();
    let grace = ground.config.stop_grace;
    ground.tasks.spawn(async move {
        tokio::select! {
            _ = left => {}
            () = stop.cancelled() => {}
        }
        if let Err(error) = running.stop(grace).await {
            tracing::warn!(
                "stopping a sandbox that was run by hand: {}",
                berth_workspace::chain(&error)
            );
        }
        drop(done);
    });
    RunKeep { leave, removed }
}

/// The phase after which a sandbox without a start command is complete.
fn last_phase(copy_source: bool, steps: usize) -> Phase {
    match steps.checked_sub(1) {
        Some(last) => Phase::Installed(last),
        None if copy_source => Phase::Copied,
        None => Phase::Created,
    }
}

async fn prepared(events: &mut mpsc::Receiver<SandboxEvent>, last: Phase) -> Result<(), FailReason> {
    loop {
        match events.recv().await {
            Some(SandboxEvent::Phase { phase, .. }) if phase >= last => return Ok(()),
            Some(SandboxEvent::Phase { .. }) => {}
            Some(SandboxEvent::InstallFailed { step, exit, tail }) => {
                return Err(life::install_failed(&step, exit, &tail));
            }
            Some(SandboxEvent::Exited(exit)) => {
                return Err(FailReason::new(
                    FailKind::Sandbox,
                    format!("the sandbox ended with {exit}"),
                ));
            }
            None => {
                return Err(FailReason::new(
                    FailKind::Sandbox,
                    "the sandbox's keeper ended without a word",
                ));
            }
        }
    }
}
