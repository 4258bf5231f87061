//! What people see of an app: a value that the command line, the console and the metrics read, and the host's events.
//!
//! A snapshot is a copy taken at one moment; it holds no lock and keeps nothing alive.

use std::time::SystemTime;

use berth_workspace::{AppName, Kind, RevisionId};
use serde::{Deserialize, Serialize};

use crate::failure::FailReason;

/// Where an app stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppState {
    /// Nothing runs; the next request starts it.
    Cold,
    /// Its dependencies are being installed.
    Installing,
    /// Its start command runs, its port is not open yet.
    Starting,
    /// It serves.
    Ready,
    /// It serves, but nobody has called for a while: it gets no CPU time until somebody does.
    Frozen,
    /// Its last sandbox is on its way out.
    Stopping,
    /// It cannot run; see the error.
    Failed,
}

impl AppState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cold,
        Self::Installing,
        Self::Starting,
        Self::Ready,
        Self::Frozen,
        Self::Stopping,
        Self::Failed,
    ];

    /// The word for people, as in `berth ps`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Installing => "installing",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Frozen => "frozen",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The time line of one cold start. All figures are milliseconds since the request that caused it; a phase that did
/// not happen is `None`. The phases add up: each figure is the length of its phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    /// Waiting for a turn, because many apps started at once.
    pub queue_ms: f64,
    /// Image mounted and network slot leased.
    pub network_ms: f64,
    /// The sandbox made: namespaces, cgroup, mounts, its first process.
    pub create_ms: f64,
    /// The source copied to `/app`.
    pub copy_ms: Option<f64>,
    /// The dependencies installed.
    pub install_ms: Option<f64>,
    /// The start command launched.
    pub launch_ms: f64,
    /// From the launch of the start command to the first answer at its port: the app's own time.
    pub ready_ms: f64,
    /// From the request to ready.
    pub total_ms: f64,
}

/// One app at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AppSnapshot {
    /// The workspace's name.
    pub name: AppName,
    /// What it is; `None` for a folder that is no app (yet) or whose description cannot be read.
    pub kind: Option<Kind>,
    /// Where it stands.
    pub state: AppState,
    /// The newest revision in the bucket.
    pub revision: Option<RevisionId>,
    /// The revision that answers requests now.
    pub serving_revision: Option<RevisionId>,
    /// The port the app was found at, or the planned one while it is not up.
    pub port: Option<u16>,
    /// What is wrong: why it is down, or, while `state` is ready, why the newest save does not serve.
    pub error: Option<FailReason>,
    /// When the app entered its state.
    #[serde(with = "time::serde::rfc3339")]
    pub since: time::OffsetDateTime,
    /// When a request may start a failed app again; `None` if it may at once.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retry_at: Option<time::OffsetDateTime>,
    /// Sandboxes started since the daemon came up.
    pub starts: u64,
    /// Requests let in since the daemon came up.
    pub requests: u64,
    /// Requests and tunnels open now.
    pub in_flight: u64,
    /// Requests held until the app is up.
    pub waiting: u64,
    /// Unique number of the sandbox that serves.
    pub generation: Option<u64>,
    /// The sandbox's id, for `berth exec` and the logs.
    pub sandbox: Option<String>,
    /// The last cold start's time line.
    pub last_cold_start: Option<ColdStart>,
    /// Custom host names routed to this app.
    pub hosts: Vec<String>,
    /// Things a person should mend that stop nothing (a host name that another app owns).
    pub warnings: Vec<String>,
    /// Memory of the serving sandbox in bytes.
    pub memory: Option<u64>,
    /// Processor time of the serving sandbox in microseconds.
    pub cpu_usec: Option<u64>,
    /// Processes of the serving sandbox.
    pub pids: Option<u64>,
    /// The sandbox's address in the host's app network is of no use to people; this is the address inside it.
    pub address: Option<std::net::SocketAddr>,
}

/// A folder of the bucket that cannot be an app because of its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvalidWorkspace {
    /// The folder as it stands in the bucket.
    pub name: String,
    /// What is wrong with it and how a valid name looks.
    pub reason: String,
}

/// The sort of a host event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A workspace appeared.
    Appeared,
    /// A workspace was deleted.
    Gone,
    /// A new revision was saved.
    Saved,
    /// A sandbox is being started.
    Starting,
    /// An app is ready.
    Ready,
    /// A new revision took over from the one before.
    Swapped,
    /// Something failed.
    Failed,
    /// An idle app was frozen.
    Frozen,
    /// A frozen app runs again.
    Thawed,
    /// An app's sandbox was stopped.
    Stopped,
    /// Something a person should know that stops nothing.
    Warning,
}

/// One line of the host's history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostEvent {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub time: time::OffsetDateTime,
    /// The app (or invalid folder) it is about.
    pub app: String,
    /// The sort of the event.
    pub kind: EventKind,
    /// One line for people.
    pub text: String,
}

impl HostEvent {
    /// An event that happens now.
    pub fn now(app: impl Into<String>, kind: EventKind, text: impl Into<String>) -> Self {
        Self {
            time: SystemTime::now().into(),
            app: app.into(),
            kind,
            text: text.into(),
        }
    }
}
