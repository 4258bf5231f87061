//! What the daemon says about a sandbox before it exists, and what it hears about it afterwards.
//!
//! [`SandboxSpec`] travels as JSON from the daemon to the spawner and on to the keeper, which also keeps it as `spec.json` in the
//! sandbox's run folder: a later daemon reads it there to adopt what still runs. Everything in it is plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use berth_workspace::{AppName, RevisionId, Step};
use serde::{Deserialize, Serialize};

use crate::network::SlotSpec;

/// How many ids each sandbox's user namespace maps, from [`SandboxSpec::uid_base`] up.
pub const UID_RANGE: u32 = 65_536;

/// The user and group id an app runs with, as seen inside its sandbox.
pub const APP_UID: u32 = 1000;

/// Where programs are looked for inside a sandbox.
pub const APP_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The home folder of an app inside its sandbox (on the tmpfs `/tmp`).
pub const APP_HOME: &str = "/tmp/home";

/// Names one sandbox on this host: `[a-z0-9-]{1,48}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// A text that is not a sandbox's name.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` is no sandbox id: 1 to 48 of a-z, 0-9 and `-`")]
pub struct BadSandboxId(pub String);

impl SandboxId {
    /// Checks `text` and takes it as an id.
    ///
    /// # Errors
    /// [`BadSandboxId`] for any other text: the id becomes a folder's and a cgroup's name.
    pub fn parse(text: &str) -> Result<Self, BadSandboxId> {
        let good = (1..=48).contains(&text.len())
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadSandboxId(text.to_owned()))
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SandboxId {
    type Error = BadSandboxId;
    fn try_from(text: String) -> Result<Self, BadSandboxId> {
        Self::parse(&text)
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory for the app's processes. The pages of `/app` and `/tmp` are charged to the same cgroup, so the cgroup's limit is
    /// `memory + app_size + tmp_size`: a full `/app` must not get the app killed.
    pub memory: u64,
    /// CPUs' worth of time; 0.5 is half of one.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes that fit into `/app`.
    pub app_size: u64,
    /// Bytes that fit into `/tmp`.
    pub tmp_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            cpus: 1.0,
            pids: 512,
            app_size: 1 << 30,
            tmp_size: 256 << 20,
        }
    }
}

impl Limits {
    /// The memory cgroup's limit in bytes.
    #[must_use]
    pub fn cgroup_memory(&self) -> u64 {
        self.memory.saturating_add(self.app_size).saturating_add(self.tmp_size)
    }
}

/// A file or folder of the host shown read-only inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoBind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside; it must exist in the image.
    pub target: PathBuf,
}

/// Everything needed to make one sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its name, unique on the host.
    pub id: SandboxId,
    /// The app it belongs to; also the host name inside.
    pub app: AppName,
    /// The revision it runs.
    pub revision: RevisionId,
    /// Names the cgroup parent: `/<instance>/<id>`.
    pub instance: String,
    /// The image's root folder on the host, mounted read-only inside.
    pub image_root: PathBuf,
    /// The folder of the host shown read-only at `/workspace`.
    pub source: PathBuf,
    /// The daemon's run folder; the sandbox lives in `sandboxes/ID` below it.
    pub run_dir: PathBuf,
    /// Where `current.log` is written.
    pub log_dir: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// Copy `/workspace` to `/app` first, and run there; otherwise run in `/workspace`.
    pub copy_source: bool,
    /// Paths left out of the copy, in the patterns of `berth_workspace::Excludes`; empty for the default ones.
    #[serde(default)]
    pub copy_excludes: Vec<String>,
    /// Commands before the app's, in order.
    pub install: Vec<Step>,
    /// The app's command; `None` idles until stopped.
    pub start: Option<Step>,
    /// The app's environment (over the base: PATH, HOME, ...).
    pub env: BTreeMap<String, String>,
    /// The install steps' environment (over the base).
    pub install_env: BTreeMap<String, String>,
    /// A CA bundle of the host shown at `/etc/ssl/certs/ca-certificates.crt`.
    pub ca_bundle: Option<PathBuf>,
    /// The network slot; `None` leaves loopback only.
    pub slot: Option<SlotSpec>,
    /// First host uid and gid of the sandbox's user namespace.
    pub uid_base: u32,
    /// Further read-only binds.
    #[serde(default)]
    pub extra_ro_binds: Vec<RoBind>,
}

impl SandboxSpec {
    /// `run_dir/sandboxes/ID`.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        sandbox_dir(&self.run_dir, self.id.as_str())
    }

    /// Where the app works inside.
    #[must_use]
    pub fn cwd(&self) -> &'static str {
        if self.copy_source { "/app" } else { "/workspace" }
    }
}

/// The run folder of one sandbox.
#[must_use]
pub fn sandbox_dir(run_dir: &Path, id: &str) -> PathBuf {
    run_dir.join("sandboxes").join(id)
}

/// How a command or a whole sandbox ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// The exit code, when it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process of the sandbox because its memory limit was reached.
    pub oom: bool,
}

impl ExitInfo {
    /// Exit code 0 and nothing else.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The code a shell would show: the exit code, or 128 + signal.
    #[must_use]
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

impl fmt::Display for ExitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => write!(f, "unknown end")?,
        }
        if self.oom {
            write!(f, " (out of memory)")
        } else {
            Ok(())
        }
    }
}

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its init runs: namespaces, mounts, limits and the system call filter are in force.
    Created,
    /// The source is in `/app`.
    Copied,
    /// The install step with this index has ended well.
    Installed(usize),
    /// The app's process was started.
    AppStarted,
}

/// What a sandbox tells the daemon, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxEvent {
    /// A phase was reached.
    Phase {
        /// Which.
        phase: Phase,
        /// Milliseconds since [`crate::Sandbox::create`] was called.
        at_ms: f64,
    },
    /// The copy (step "copy") or an install step failed; the sandbox ends.
    InstallFailed {
        /// The step, in words for people.
        step: String,
        /// How it ended.
        exit: ExitInfo,
        /// The last lines it wrote, oldest first.
        tail: Vec<String>,
    },
    /// The sandbox ended and everything of it was removed. The last event.
    Exited(ExitInfo),
}

/// A command to run inside a living sandbox.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Over the app's environment.
    pub env: BTreeMap<String, String>,
    /// Working folder; the app's when `None`.
    pub cwd: Option<String>,
    /// A terminal of this many rows and columns; pipes when `None`.
    pub tty: Option<(u16, u16)>,
}

/// What of a sandbox's memory is handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    /// Its own: what its processes have written to memory, `/app` and `/tmp`. It needs a place in the host's swap; without swap there is
    /// nothing to be done. Pages of files stay: the kernel takes those itself when it needs them, and a node server whose program
    /// has to be read again answers 60 ms late, which is as long as a start.
    Own,
    /// Pages of files as well.
    All,
}

/// What a sandbox uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes charged, `/app` and `/tmp` included.
    pub memory: u64,
    /// CPU time in microseconds since it was made.
    pub cpu_usec: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_safe_as_a_file_name() {
        assert!(SandboxId::parse("hello-3f2a").is_ok());
        for bad in ["", "..", "a/b", "A", "-x", "a b", &"x".repeat(49)] {
            assert!(SandboxId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_memory_limit_leaves_room_for_the_tmpfs() {
        let limits = Limits {
            memory: 10,
            cpus: 1.0,
            pids: 1,
            app_size: 20,
            tmp_size: 30,
        };
        assert_eq!(limits.cgroup_memory(), 60);
    }
}
