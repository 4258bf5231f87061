//! `workspace.json`: what a person says about an app, read with exact complaints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Kind;

/// A command as it may be written in `workspace.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// One text, run by `sh -c`.
    Shell(String),
    /// Program and arguments, run as they are.
    Argv(Vec<String>),
}

/// What `install` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Install {
    /// `"install": false`: nothing is installed.
    Skip,
    /// This command instead of the kind's own steps.
    Run(Command),
}

/// Limits that an app sets for itself; `None` leaves the host's default. The host's own maximum still holds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LimitsOverride {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// CPUs, 0.5 = half of one.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Size of `/app` in bytes.
    pub app_size: Option<u64>,
    /// Size of `/tmp` in bytes.
    pub tmp_size: Option<u64>,
}

/// A mistake in a file, with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} line {line}, column {column}: {message}")]
pub struct FileError {
    /// The file, relative to the workspace.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what to do.
    pub message: String,
}

/// The content of a `workspace.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WorkspaceFile {
    /// `type`.
    pub kind: Option<Kind>,
    /// `port`.
    pub port: Option<u16>,
    /// `command`: replaces the start.
    pub command: Option<Command>,
    /// `env`.
    pub env: BTreeMap<String, String>,
    /// `install`: replaces the installation.
    pub install: Option<Install>,
    /// `hosts`: custom host names, lower case.
    pub hosts: Vec<String>,
    /// `limits`.
    pub limits: LimitsOverride,
    /// `health`: a path asked before the app counts as ready.
    pub health: Option<String>,
    /// `idle_stop`; [`Duration::MAX`] for `"never"`.
    pub idle_stop: Option<Duration>,
    /// `root`: the folder served by a static app, relative to the workspace.
    pub root: Option<String>,
}

impl WorkspaceFile {
    /// Reads a `workspace.json`.
    ///
    /// # Errors
    /// The first mistake, with line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let _ = bytes;
        unimplemented!()
    }
}
