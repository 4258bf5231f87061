//! What can go wrong in the life of an app, in words for two readers.
//!
//! A stranger who called the app gets [`FailReason::public`]: short, without paths or output. The operator gets
//! [`FailReason::detail`] too: the step that failed and the end of what it printed.

use std::fmt;
use std::time::Duration;

use berth_workspace::AppName;
use serde::{Deserialize, Serialize};

/// The sort of a failure; each has its own public text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailKind {
    /// The folder holds nothing that says how to run it.
    NotAnApp,
    /// A manifest (`workspace.json`, `package.json`, …) cannot be understood.
    BadPlan,
    /// The image the app needs is not on this host or cannot be mounted.
    Image,
    /// The sandbox could not be made.
    Sandbox,
    /// A step of the installation ended badly.
    InstallFailed,
    /// The installation took longer than the install limit.
    InstallTimeout,
    /// The start command ended before the app listened on any port.
    ExitedEarly,
    /// The start command runs, but the app listened on no port within the start limit.
    NeverListened,
    /// The app listens, but its health path does not answer below 500 within the start limit.
    Unhealthy,
    /// The app served and then ended by itself.
    Crashed,
    /// The kernel ended the app because it needed more memory than its limit.
    OutOfMemory,
}

impl FailKind {
    /// The text that a visitor of the app may read.
    pub fn public(self) -> &'static str {
        match self {
            Self::NotAnApp => "There is no app in this folder yet.",
            Self::BadPlan => "The app's description has a mistake.",
            Self::Image => "This host cannot run this kind of app at the moment.",
            Self::Sandbox => "The app could not be started on this host.",
            Self::InstallFailed => "The app's dependencies could not be installed.",
            Self::InstallTimeout => "Installing the app's dependencies took too long.",
            Self::ExitedEarly => "The app ended before it was ready.",
            Self::NeverListened => "The app did not open its port in time.",
            Self::Unhealthy => "The app runs, but does not report itself healthy.",
            Self::Crashed => "The app ended unexpectedly.",
            Self::OutOfMemory => "The app ran out of memory.",
        }
    }
}

/// Why an app does not serve (or why its newest revision does not).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailReason {
    /// The sort of the failure.
    pub kind: FailKind,
    /// One sentence for a visitor, without any internals.
    pub public: String,
    /// For the operator: what failed, and the end of its output. Several lines.
    pub detail: String,
}

impl FailReason {
    /// A reason of `kind` with its standard public text and the operator's `detail`.
    pub fn new(kind: FailKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            public: kind.public().to_owned(),
            detail: detail.into(),
        }
    }

    /// The first line of the detail: what fits a table.
    pub fn headline(&self) -> &str {
        self.detail.lines().next().unwrap_or(&self.public)
    }
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.headline())
    }
}

/// Why a request cannot have the app now.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AcquireError {
    /// No workspace of this name, or a folder that is no app.
    #[error("there is no app of this name")]
    NoSuchApp,
    /// The app cannot run at the moment; asking again before `retry_after` will not change that.
    #[error("the app cannot run: {reason}")]
    Failed {
        /// What is wrong with it.
        reason: FailReason,
        /// When a new request may start it again; zero if only a new save can mend it.
        retry_after: Duration,
    },
    /// The app was still on its way when the longest wait was over. It goes on starting.
    #[error("the app did not start within {} s", waited.as_secs())]
    Timeout {
        /// How long the request was held.
        waited: Duration,
    },
    /// The app was stopped by hand while the request waited for it.
    #[error("the app was stopped")]
    Stopping,
    /// The host is going down.
    #[error("the host is shutting down")]
    ShuttingDown,
    /// So many requests wait for this app already that one more is not held.
    #[error("too many requests wait for this app")]
    TooMany,
}

/// Why an order by hand (stop, restart) was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No workspace of this name.
    #[error("there is no app {0}; `berth ps` lists them")]
    NoSuchApp(AppName),
    /// There is no plan to start the app from.
    #[error("{app} cannot be started: {reason}")]
    CannotStart {
        /// The app in question.
        app: AppName,
        /// What is wrong with it.
        reason: FailReason,
    },
    /// The host is going down.
    #[error("the host is shutting down")]
    ShuttingDown,
}

/// Why the host could not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Sandboxes of an earlier daemon could not be cleaned away.
    #[error("cannot clean what an earlier daemon left under {path}: {message}")]
    Leftovers {
        /// The run directory.
        path: std::path::PathBuf,
        /// What the sandbox layer reported.
        message: String,
    },
    /// The bucket could not be listed.
    #[error("cannot list the bucket; is the S3 server up and are the credentials right?")]
    List(#[source] berth_store::StoreError),
    /// A run or log directory could not be made.
    #[error("cannot make the directory {path}")]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Why `berth run` could not make its sandbox.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No workspace of this name, or nothing to run it with.
    #[error("there is no app {0}; `berth ps` lists them")]
    NoSuchApp(AppName),
    /// The workspace has no usable plan, so no image is known for it.
    #[error("{app} cannot be run: {reason}")]
    NoPlan {
        /// The app in question.
        app: AppName,
        /// What is wrong with it.
        reason: FailReason,
    },
    /// The sandbox could not be made or its installation failed.
    #[error("cannot make a sandbox of {app}: {reason}")]
    Sandbox {
        /// The app in question.
        app: AppName,
        /// What went wrong.
        reason: FailReason,
    },
    /// The command could not be started in the sandbox.
    #[error("cannot run `{command}` in {app}: {message}")]
    Exec {
        /// The app in question.
        app: AppName,
        /// The command as asked for.
        command: String,
        /// What the sandbox reported.
        message: String,
    },
}
