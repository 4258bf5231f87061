//! What can fail, one variant for each act, with the object and the way out.

use std::io;
use std::path::PathBuf;

/// The spawner could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Threads exist already.
    #[error("the spawner must be forked before the first thread starts, but this process has more than one")]
    Threads,
    /// No socket pair or no process.
    #[error("cannot fork the spawner")]
    Fork(#[source] io::Error),
}

/// Something about a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The spawner does not answer.
    #[error("the spawner is gone: restart the daemon (running apps go on and are adopted)")]
    SpawnerGone(#[source] io::Error),
    /// The specification is larger than one message may be.
    #[error(
        "sandbox {id}: its specification has {size} bytes, more than the {limit} that fit in a message; shorten the environment"
    )]
    SpecTooLarge {
        /// Which.
        id: String,
        /// Bytes it has.
        size: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// The keeper could not make the sandbox.
    #[error("sandbox {id}: cannot {act}: {reason}")]
    Create {
        /// Which.
        id: String,
        /// What was being done.
        act: String,
        /// Why it failed.
        reason: String,
    },
    /// The keeper went away while the sandbox was being made.
    #[error("sandbox {id}: its keeper died while making it; see the kernel log for an out-of-memory kill")]
    KeeperDied {
        /// Which.
        id: String,
    },
    /// The sandbox has ended.
    #[error("sandbox {id} has ended")]
    Ended {
        /// Which.
        id: String,
    },
    /// The keeper's socket cannot be used.
    #[error("sandbox {id}: cannot talk to its keeper at {path}")]
    Keeper {
        /// Which.
        id: String,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command could not be run inside.
    #[error("sandbox {id}: cannot run the command: {reason}")]
    Exec {
        /// Which.
        id: String,
        /// Why.
        reason: String,
    },
    /// Something on the host could not be opened.
    #[error("sandbox {id}: cannot open {what}")]
    Open {
        /// Which.
        id: String,
        /// What.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sandbox did not go away.
    #[error("sandbox {id}: still there {seconds} s after it was killed")]
    Stuck {
        /// Which.
        id: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The folder of a sandbox is not one.
    #[error("{path} is not the folder of a sandbox; remove it by hand")]
    BadFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
