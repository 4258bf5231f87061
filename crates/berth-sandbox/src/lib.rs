#![forbid(unsafe_code)]
//! Sandboxes: one running container of one revision, its network, its logs and its end.
//!
//! ```text
//!  daemon (threads, never forks)
//!    │ SandboxSpec + socket                       ┌────────── keeper (one per sandbox, one thread) ─────────┐
//!    ▼                                            │ owns: network namespace, log pipes, exit status,        │
//!  spawner (one thread, forked before any thread) │       keeper.sock                                       │
//!    └─────────────── fork ──────────────────────▶│  └─ init (pid 1 inside): copies, installs, runs, reaps  │
//!                                                 │       └─ the app                                        │
//!                                                 └─────────────────────────────────────────────────────────┘
//! ```
//!
//! A container cannot be made safely by a process with threads (libcontainer forks without exec and allocates in the child), and an app
//! must outlive the daemon that started it. Both follow from one arrangement: [`Spawner`] is forked first thing in `main`, and forks one
//! *keeper* per sandbox. The keeper is what the daemon talks to, over a socket that any later daemon can open again.
//!
//! - [`spec`]: what goes in and what comes out, plain data.
//! - [`Sandbox`]: the daemon's handle.
//! - [`logs`]: what an app wrote.
//! - [`network`]: slots, firewall, DNS.
//! - [`clean_leftovers`]: after a daemon that was killed.

mod error;
pub mod logs;
pub mod network;
pub mod spec;

mod birth;
mod bundle;
mod cgroup;
mod command;
mod copy;
mod exec;
mod init;
mod keeper;
mod leftovers;
mod lines;
mod listening;
mod protocol;
mod sandbox;
mod seccomp;
mod spawner;

pub use error::{SandboxError, SpawnError};
pub use leftovers::{clean_leftovers, running};
pub use network::{Network, NetworkConfig, NetworkError, Slot, SlotSpec};
pub use sandbox::{ExecSession, Sandbox};
pub use spawner::Spawner;
pub use spec::{
    APP_HOME, APP_PATH, APP_UID, BadSandboxId, ExecRequest, ExitInfo, Limits, Phase, Reclaim, RoBind, SandboxEvent,
    SandboxId, SandboxSpec, Stats, UID_RANGE,
};
