#![forbid(unsafe_code)]
//! The life of an app: from a folder in the bucket to a sandbox that answers, and back to nothing.
//!
//! ```text
//!   store ──changes──▶ monitor ──revision + plan──▶ driver (one task per app) ──▶ sandboxes
//!                                                     │  ▲                          │
//!                        machine (pure transitions) ◀─┘  └── phases, exit, probe ───┘
//!                                                     │
//!                     edge ──acquire()──▶ lease ◀─────┘  (warm: two reads and one atomic add)
//! ```
//!
//! * [`monitor`] learns from the store (never from the mount) which workspaces exist, which revision each one is at
//!   and what that revision asks for (its plan).
//! * [`machine`] is the state machine of one app, a pure function from a state and an event to a state and actions.
//! * `driver` owns one app's state, performs the machine's actions and feeds it what came of them.
//! * `gate` is the warm path: a counter that lets requests in while a sandbox serves, and tells when the last one left;
//!   `freezing` keeps it and the freezer in step, so that a request finds a running app.
//! * `pressure` tells the app unused for longest when memory is short.
//! * [`Host`] is the door to all of it for the edge, the console and the command line.
//!
//! Not here: how a sandbox is made (`berth-sandbox`), how a request is proxied (`berth-edge`).

mod app;
mod config;
mod driver;
mod failure;
mod freezing;
mod gate;
mod history;
mod host;
mod life;
pub mod machine;
pub mod monitor;
mod pressure;
mod probe;
mod routes;
mod run;
mod sandboxes;
mod snapshot;
mod source;

pub use config::{HostConfig, InstallEnv};
pub use failure::{AcquireError, ControlError, FailKind, FailReason, HostError, RunError};
pub use gate::{Lease, Upstream};
pub use host::{Host, HostParts};
pub use routes::{Conflict, RouteTable};
pub use run::{RunRequest, RunSession};
pub use snapshot::{AppSnapshot, AppState, ColdStart, EventKind, HostEvent, InvalidWorkspace};
pub use source::Source;
