//! What daemon, spawner, keeper and init say to each other.
//!
//! Daemon, spawner and keeper exchange JSON messages over packet sockets ([`berth_sys::packet`]); the init inside writes JSON lines to a
//! pipe, because that is all it needs and a pipe carries nothing back in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::packet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::logs::LogPhase;
use crate::spec::{ExecRequest, ExitInfo, Phase, SandboxEvent, SandboxSpec};

/// Daemon → spawner, together with the keeper's end of the control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpawnRequest {
    pub spec: SandboxSpec,
    /// CLOCK_MONOTONIC at the call of `create`, in nanoseconds: phases are told relative to it.
    pub created_ns: u64,
}

/// Daemon → keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToKeeper {
    Stop {
        grace_ms: u64,
    },
    Signal {
        signal: i32,
    },
    /// On a connection of its own, which then belongs to this command.
    Exec(ExecRequest),
    ExecSignal {
        signal: i32,
    },
}

/// Keeper → daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromKeeper {
    /// First message on every connection.
    Hello {
        keeper_pid: i32,
        init_pid: i32,
        phase: Option<Phase>,
    },
    /// In place of `Hello`: it could not be made, and nothing of it is left.
    Failed {
        act: String,
        reason: String,
    },
    Event(SandboxEvent),
    /// With the descriptors: the terminal's master, or stdin, stdout, stderr.
    ExecStarted {
        pid: i32,
    },
    ExecFailed {
        reason: String,
    },
    ExecExited(ExitInfo),
}

/// Init → keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Phase(Phase),
    /// What the lines that follow belong to.
    Logging(LogPhase),
    StepFailed {
        step: String,
        exit: ExitInfo,
        detail: Option<String>,
    },
    AppExited(ExitInfo),
    /// The init cannot do its work.
    Fatal {
        reason: String,
    },
}

/// Step of an exec that has entered the sandbox → keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExecReport {
    /// With the terminal's master.
    Terminal,
    Child {
        pid: i32,
    },
    Failed {
        reason: String,
    },
}

/// Sends one message.
pub(crate) fn send(fd: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    packet::send(fd, &bytes, fds)
}

/// Takes in one message; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(fd: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match packet::receive(fd)? {
        None => Ok(None),
        Some((bytes, fds)) => {
            let message = serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            Ok(Some((message, fds)))
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the same in every process of the host.
pub(crate) fn monotonic_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}
