//! The configuration: one value for each thing an operator can choose, read whole before any port is bound.
//!
//! Three layers, the later winning: the defaults (which are also `berth.toml` beside this crate, a test holds them equal),
//! the file (`--config`, `BERTH_CONFIG`, else `/etc/berth/berth.toml` where it exists), the environment (`BERTH_*` and the names
//! people know from other tools). Every mistake names its file and line, or its variable. How that is done: [`load`].

mod load;
mod values;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

pub use berth_mount::{CacheMode, Sync};
pub use load::load;
use serde::{Deserialize, Serialize};
pub use values::{Idle, Size, Span};

/// The images every host should have.
pub const IMAGES: [&str; 4] = ["node", "python", "go", "nginx"];

/// Where distributions keep the bundle of trusted certificates.
pub const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// All that an operator can choose. The meaning of each value is told in `berth.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Config {
    pub domain: String,
    pub instance: String,
    pub paths: Paths,
    pub s3: S3,
    pub mount: MountSection,
    pub edge: EdgeSection,
    pub apps: Apps,
    pub limits: LimitsSection,
    pub network: NetworkSection,
    pub install: Install,
    pub admin: Admin,
    pub log: Log,
}

/// `[paths]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Paths {
    pub state: PathBuf,
    pub run: PathBuf,
    pub logs: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipes: Option<PathBuf>,
}

/// `[s3]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct S3 {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    pub listen: SocketAddr,
    pub bucket: String,
    pub region: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    pub path_style: bool,
    pub poll_interval: Span,
    pub cache: Size,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint_listen: Option<SocketAddr>,
    pub hint_peers: Vec<String>,
}

/// `[mount]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct MountSection {
    pub path: PathBuf,
    pub exclude: Vec<String>,
    pub local_max: Size,
    pub cache_mode: CacheMode,
    pub cache_max: Size,
    pub dir_ttl: Span,
    pub journal_max: Size,
    pub sync: Sync,
    pub drain_timeout: Span,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub workspace: BTreeMap<String, WorkspaceMount>,
}

/// `[mount.workspace.NAME]`: what is different for one workspace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct WorkspaceMount {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
}

/// `[edge]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct EdgeSection {
    pub listen: Vec<SocketAddr>,
    pub start_timeout: Span,
}

/// `[apps]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Apps {
    pub idle_freeze: Idle,
    pub idle_reclaim: Idle,
    pub idle_stop: Idle,
    pub stop_grace: Span,
    pub ready_timeout: Span,
    pub install_timeout: Span,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct LimitsSection {
    pub memory: Size,
    pub cpus: f64,
    pub pids: u32,
    pub app_size: Size,
    pub tmp_size: Size,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct NetworkSection {
    pub egress: bool,
    pub subnet: String,
    pub allow: Vec<String>,
}

/// `[install]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Install {
    pub env: BTreeMap<String, String>,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Admin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    pub group: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// How the daemon's own log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: "localhost".into(),
            instance: "berth".into(),
            paths: Paths::default(),
            s3: S3::default(),
            mount: MountSection::default(),
            edge: EdgeSection::default(),
            apps: Apps::default(),
            limits: LimitsSection::default(),
            network: NetworkSection::default(),
            install: Install::default(),
            admin: Admin::default(),
            log: Log::default(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/berth".into(),
            run: "/run/berth".into(),
            logs: "/var/log/berth".into(),
            images: None,
            recipes: None,
        }
    }
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            bucket: "workspaces".into(),
            region: "us-east-1".into(),
            access_key: None,
            secret_key: None,
            session_token: None,
            path_style: true,
            poll_interval: Span(std::time::Duration::from_secs(15)),
            cache: Size(berth_store::EmbeddedConfig::CACHE),
            hint_listen: None,
            hint_peers: Vec::new(),
        }
    }
}

impl Default for MountSection {
    fn default() -> Self {
        Self {
            path: "/workspaces".into(),
            exclude: berth_workspace::DEFAULT_EXCLUDES
                .iter()
                .map(|pattern| (*pattern).to_owned())
                .collect(),
            local_max: Size(1 << 30),
            cache_max: Size(500 << 20),
            cache_mode: CacheMode::Full,
            dir_ttl: Span(std::time::Duration::from_secs(60)),
            journal_max: Size(2 << 30),
            sync: Sync::Journal,
            drain_timeout: Span(std::time::Duration::from_secs(30)),
            workspace: BTreeMap::new(),
        }
    }
}

impl Default for EdgeSection {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8080))],
            start_timeout: Span(std::time::Duration::from_secs(120)),
        }
    }
}

impl Default for Apps {
    fn default() -> Self {
        let seconds = |s| Span(std::time::Duration::from_secs(s));
        Self {
            idle_freeze: Idle(std::time::Duration::from_secs(120)),
            idle_reclaim: Idle(std::time::Duration::from_secs(600)),
            idle_stop: Idle(std::time::Duration::from_secs(3600)),
            stop_grace: seconds(10),
            ready_timeout: seconds(60),
            install_timeout: seconds(600),
        }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            memory: Size(512 << 20),
            cpus: 2.0,
            pids: 512,
            app_size: Size(1 << 30),
            tmp_size: Size(512 << 20),
        }
    }
}

impl Default for NetworkSection {
    fn default() -> Self {
        Self {
            egress: true,
            subnet: "10.213.0.0/16".into(),
            allow: Vec::new(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: None,
            group: "berth".into(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// The folder of image files.
    pub fn images_dir(&self) -> PathBuf {
        self.paths
            .images
            .clone()
            .unwrap_or_else(|| self.paths.state.join("images"))
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin
            .socket
            .clone()
            .unwrap_or_else(|| self.paths.run.join("berth.sock"))
    }

    /// The file with the embedded server's keys.
    pub fn credentials_file(&self) -> PathBuf {
        self.paths.state.join("s3-credentials")
    }
}
