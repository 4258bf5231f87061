//! `workspace.json`: what a person says about an app, read with exact complaints.
//!
//! All keys are optional, and what is left out is found by looking at the files ([`crate::plan()`]). A mistake is never
//! passed over: an unknown key, a port out of range, a size without sense each give a [`FileError`] with the line and column
//! of the very value and with what to write instead, because the text is shown as it is by the CLI, the console and the
//! app's page. Only the first mistake is told.
//!
//! The keys are described once more, for editors, in `schema.rs`; a test holds both lists together. The readers of the
//! single values are in `file/values.rs`.

mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::json::{self, Member, Mistake, Node, Position, Value};
use crate::suggest::nearest;

/// Where it is in a workspace.
pub(crate) const PATH: &str = "workspace.json";

/// All keys. `$schema` is for editors and means nothing here.
pub(crate) const KEYS: [&str; 13] = [
    "$schema",
    "type",
    "port",
    "command",
    "env",
    "install",
    "hosts",
    "limits",
    "health",
    "idle_freeze",
    "idle_stop",
    "root",
    "exclude",
];

/// All keys of `limits`.
pub(crate) const LIMIT_KEYS: [&str; 5] = ["memory", "cpus", "pids", "app_size", "tmp_size"];

/// Words people use for a key that has another name here; too far apart for a spelling check.
const OTHER_NAMES: [(&str, &str); 24] = [
    ("kind", "type"),
    ("runtime", "type"),
    ("language", "type"),
    ("image", "type"),
    ("ports", "port"),
    ("start", "command"),
    ("cmd", "command"),
    ("run", "command"),
    ("entrypoint", "command"),
    ("environment", "env"),
    ("variables", "env"),
    ("build", "install"),
    ("domains", "hosts"),
    ("domain", "hosts"),
    ("resources", "limits"),
    ("healthcheck", "health"),
    ("health_check", "health"),
    ("idle", "idle_stop"),
    ("idle_timeout", "idle_stop"),
    ("freeze", "idle_freeze"),
    ("static", "root"),
    ("static_root", "root"),
    ("excludes", "exclude"),
    ("ignore", "exclude"),
];

/// The same for the keys of `limits`.
const OTHER_LIMIT_NAMES: [(&str, &str); 6] = [
    ("mem", "memory"),
    ("ram", "memory"),
    ("cpu", "cpus"),
    ("processes", "pids"),
    ("disk", "app_size"),
    ("tmp", "tmp_size"),
];

/// The most patterns of `exclude`: the mount asks them for every name.
pub(crate) const MAX_PATTERNS: usize = 64;
/// The longest of them, in bytes: a file's name has no more.
pub(crate) const MAX_PATTERN: usize = 255;

/// A command as it may be written in `workspace.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// One text, run by `sh -c`.
    Shell(String),
    /// Program and arguments, run as they are. Never empty.
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

impl FileError {
    pub(crate) fn new(path: &str, mistake: Mistake) -> Self {
        let Mistake {
            at: Position { line, column },
            message,
        } = mistake;
        Self {
            path: path.to_owned(),
            line,
            column,
            message,
        }
    }
}

/// The content of a `workspace.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WorkspaceFile {
    /// `type`.
    pub kind: Option<Kind>,
    /// `port`, or `env.PORT` if only that is given.
    pub port: Option<u16>,
    /// `command`: replaces the start.
    pub command: Option<Command>,
    /// `env`; numbers, `true` and `false` have become texts.
    pub env: BTreeMap<String, String>,
    /// `install`: replaces the installation.
    pub install: Option<Install>,
    /// `hosts`: custom host names, lower case, without doubles.
    pub hosts: Vec<String>,
    /// `limits`.
    pub limits: LimitsOverride,
    /// `health`: a path asked before the app counts as ready.
    pub health: Option<String>,
    /// `idle_freeze`; [`Duration::MAX`] for `"never"`.
    pub idle_freeze: Option<Duration>,
    /// `idle_stop`; [`Duration::MAX`] for `"never"`.
    pub idle_stop: Option<Duration>,
    /// `root`: the folder served by a static app, relative to the workspace, without slashes at its ends; `""` is the
    /// workspace itself.
    pub root: Option<String>,
    /// `exclude`: patterns beside the host's of what is never stored, each checked.
    pub exclude: Vec<String>,
    /// Where the values stand, for complaints that need the other files to be made.
    places: BTreeMap<String, Position>,
}

impl WorkspaceFile {
    /// Where it is in a workspace.
    pub const PATH: &str = PATH;

    /// Reads a `workspace.json`.
    ///
    /// # Errors
    /// The first mistake, with line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        read(bytes).map_err(|mistake| FileError::new(PATH, mistake))
    }

    /// A complaint at the value of `key`, made by who knows more than this file.
    pub(crate) fn complain(&self, key: &str, message: impl Into<String>) -> FileError {
        let at = self.places.get(key).copied().unwrap_or(Position { line: 1, column: 1 });
        FileError::new(
            PATH,
            Mistake {
                at,
                message: message.into(),
            },
        )
    }
}

fn read(bytes: &[u8]) -> Result<WorkspaceFile, Mistake> {
    let document = json::parse(bytes).map_err(|mut e| {
        if e.message == "the file is empty" {
            e.message.push_str("; write {} or remove it");
        }
        e
    })?;
    let members = object(&document, "workspace.json")?;
    known_keys(members, &KEYS, &OTHER_NAMES, "")?;
    let mut file = WorkspaceFile::default();
    for Member { key, value, .. } in members {
        file.places.insert(key.clone(), value.at);
        match key.as_str() {
            "type" => file.kind = Some(values::kind(value)?),
            "port" => file.port = Some(values::port(value)?),
            "command" => file.command = Some(values::command(value, "command")?),
            "env" => file.env = values::env(value)?,
            "install" => file.install = values::install(value)?,
            "hosts" => file.hosts = values::hosts(value)?,
            "limits" => file.limits = limits(value)?,
            "health" => file.health = Some(values::health(value)?),
            "idle_freeze" => file.idle_freeze = Some(values::idle(value, "idle_freeze", "keep it running")?),
            "idle_stop" => file.idle_stop = Some(values::idle(value, "idle_stop", "keep the app running")?),
            "root" => file.root = Some(values::root(value)?),
            "exclude" => file.exclude = values::exclude(value)?,
            _ => {}
        }
    }
    port_of_env(&mut file, &document)?;
    if let (Some(kind), Some(_)) = (file.kind, &file.root)
        && kind != Kind::Static
    {
        let at = file.places.get("root").copied().unwrap_or(document.at);
        let message = format!("`root` is for static apps only, but the type is {kind}; remove one of the two");
        return Err(Mistake { at, message });
    }
    Ok(file)
}

/// `env.PORT` is what people bring from other hosts. It counts as `port`; two different answers are a mistake.
fn port_of_env(file: &mut WorkspaceFile, document: &Node) -> Result<(), Mistake> {
    let Some(node) = document.get("env").and_then(|env| env.get("PORT")) else {
        return Ok(());
    };
    let said = file.env.get("PORT").map(String::as_str).unwrap_or_default();
    let port = match said.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => {
            let message = format!("PORT {:?} is not between 1 and 65535", json::shorten(said));
            return Err(Mistake { at: node.at, message });
        }
    };
    match file.port {
        None => file.port = Some(port),
        Some(other) if other == port => {}
        Some(other) => {
            let message = format!("PORT {port} contradicts `port` {other}; set `port` alone, PORT follows it");
            return Err(Mistake { at: node.at, message });
        }
    }
    Ok(())
}

fn limits(node: &Node) -> Result<LimitsOverride, Mistake> {
    let members = object(node, "`limits`")?;
    known_keys(members, &LIMIT_KEYS, &OTHER_LIMIT_NAMES, "limits.")?;
    let mut limits = LimitsOverride::default();
    for Member { key, value, .. } in members {
        match key.as_str() {
            "memory" => limits.memory = Some(values::size(value, "limits.memory", 16 << 20)?),
            "cpus" => limits.cpus = Some(values::cpus(value)?),
            "pids" => limits.pids = Some(values::pids(value)?),
            "app_size" => limits.app_size = Some(values::size(value, "limits.app_size", 1 << 20)?),
            "tmp_size" => limits.tmp_size = Some(values::size(value, "limits.tmp_size", 1 << 20)?),
            _ => {}
        }
    }
    Ok(limits)
}

fn object<'a>(node: &'a Node, what: &str) -> Result<&'a [Member], Mistake> {
    match &node.value {
        Value::Object(members) => Ok(members),
        other => {
            let message = format!("{what} is an object {{...}}, not {}", other.describe());
            Err(Mistake { at: node.at, message })
        }
    }
}

/// Refuses keys that are unknown or stand twice.
fn known_keys(members: &[Member], known: &[&str], others: &[(&str, &str)], within: &str) -> Result<(), Mistake> {
    for (i, Member { key, at, .. }) in members.iter().enumerate() {
        let shown = json::shorten(key);
        if !known.contains(&key.as_str()) {
            let meant = others.iter().find(|(other, _)| other == key).map(|(_, key)| *key);
            // "static" as a key is near to nothing, but `PORT` and `prot` are near to `port`.
            let message = match meant.or_else(|| nearest(key, known.iter().copied())) {
                Some(word) => format!("unknown key `{within}{shown}`: did you mean `{within}{word}`?"),
                None => format!("unknown key `{within}{shown}`: the keys are {}", list(known)),
            };
            return Err(Mistake { at: *at, message });
        }
        if let Some(first) = members[..i].iter().find(|m| m.key == *key) {
            let message = format!(
                "`{within}{shown}` stands twice, first in line {}; remove one",
                first.at.line
            );
            return Err(Mistake { at: *at, message });
        }
    }
    Ok(())
}

fn list(known: &[&str]) -> String {
    let shown: Vec<&str> = known.iter().copied().filter(|k| !k.starts_with('$')).collect();
    shown.join(", ")
}

#[cfg(test)]
mod tests;
