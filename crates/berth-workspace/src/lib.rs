#![forbid(unsafe_code)]
//! What a workspace is: its name, its revision, its `workspace.json`, and the plan by which it is run.
//!
//! Everything here is pure: values in, values out, no files, no network, no clock. The host lists a workspace's files, hands
//! them to [`plan()`] together with a way to read the few small manifests, and gets back what to install and what to start.
//! The mount asks [`Excludes`] which paths stay local, and keeps what S3 objects cannot say in a [`WorkspaceIndex`].
//!
//! Not here: who fetches the files (`berth-store`), who runs the plan (`berth-host`, `berth-sandbox`).

mod causes;
mod excludes;
mod file;
pub mod index;
mod json;
mod kind;
mod name;
mod plan;
mod revision;
mod schema;
mod suggest;

pub use causes::chain;
pub use excludes::{DEFAULT_EXCLUDES, Excludes, ExcludesError};
pub use file::{Command, FileError, Install, LimitsOverride, WorkspaceFile};
pub use index::{EntryKind, IndexEntry, WorkspaceIndex};
pub use kind::{Kind, UnknownKind};
pub use name::{AppName, NameError};
pub use plan::{Detected, Plan, PlanError, Source, Step, detect, manifest_paths, plan};
pub use revision::{FileMode, RevisionId, RevisionIdError, SourceFile, revision, revision_with};
pub use schema::json_schema;
