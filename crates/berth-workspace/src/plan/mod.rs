//! The plan: from the files of a workspace to what is installed and started.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AppName, FileError, Kind, LimitsOverride, SourceFile};

/// The files of a workspace as the store lists them, and a way to read the few small ones that the plan needs.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// All files, paths relative to the workspace, in any order.
    pub files: &'a [SourceFile],
    /// Reads one file by its path; `None` if it cannot be read. Asked only for [`manifest_paths`] and files named in them.
    pub read: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Program and arguments; the program is looked up on PATH.
    pub argv: Vec<String>,
    /// Environment of this step on top of the plan's.
    pub env: BTreeMap<String, String>,
    /// What it does, for people: `npm ci`.
    pub what: String,
}

/// How an app is installed and started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is.
    pub kind: Kind,
    /// Name of the image it runs in.
    pub image: String,
    /// The port it is told to listen on (`PORT`).
    pub port: u16,
    /// Whether `/workspace` is copied to `/app` first; `false` for static, which is served from `/workspace`.
    pub copy_source: bool,
    /// What is run once in the new sandbox before the start, in this order.
    pub install: Vec<Step>,
    /// The app itself.
    pub start: Step,
    /// Environment of the app: `PORT`, `HOST`, what its kind needs, and `env` of `workspace.json`.
    pub env: BTreeMap<String, String>,
    /// Custom host names.
    pub hosts: Vec<String>,
    /// Limits the app sets for itself.
    pub limits: LimitsOverride,
    /// Path that must answer before the app counts as ready.
    pub health: Option<String>,
    /// Idle time after which it is stopped; [`Duration::MAX`] means never, `None` the host's default.
    pub idle_stop: Option<Duration>,
    /// Static only: the served folder relative to the workspace, `""` for the workspace itself.
    pub static_root: Option<String>,
}

/// What [`detect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The kind.
    pub kind: Kind,
    /// The file that told it.
    pub by: &'static str,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing that makes an app: just a folder.
    #[error("no app")]
    NotAnApp,
    /// A mistake in `workspace.json`.
    #[error(transparent)]
    BadWorkspaceFile(FileError),
}

/// Tells the kind of an app by its files alone (`workspace.json` not looked at); `None` if it is just a folder.
#[must_use]
pub fn detect(files: &[SourceFile]) -> Option<Detected> {
    let _ = files;
    unimplemented!()
}

/// The files [`plan`] may read.
#[must_use]
pub fn manifest_paths() -> &'static [&'static str] {
    &["workspace.json"]
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`].
pub fn plan(app: &AppName, source: &Source<'_>) -> Result<Plan, PlanError> {
    let _ = (app, source);
    unimplemented!()
}
