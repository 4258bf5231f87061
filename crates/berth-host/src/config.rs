//! The host's settings: defaults for every app (`workspace.json` overrides some), directories and time limits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use berth_sandbox::Limits;
use berth_workspace::Excludes;

/// Where an app finds the host's CA bundle inside its sandbox.
const CA_INSIDE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Settings of a [`crate::Host`].
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Names this daemon's cgroups, links and tables; `[a-z0-9]{1,8}`.
    pub instance: String,
    /// Short-lived state, on a tmpfs (`/run/berth`).
    pub run_dir: PathBuf,
    /// One directory of logs per app (`/var/log/berth`).
    pub log_dir: PathBuf,
    /// Limits of an app whose `workspace.json` says nothing.
    pub limits: Limits,
    /// Paths that are no part of an app's source.
    pub excludes: Excludes,
    /// An app without requests or open connections for this long, which does next to nothing by itself, is frozen:
    /// it gets no CPU time until the next request. [`Duration::MAX`] for never.
    pub idle_freeze: Duration,
    /// The memory of a frozen app that is idle for this long is handed to the host's swap, where there is one.
    pub idle_reclaim: Duration,
    /// An app without requests or open connections for this long is stopped.
    pub idle_stop: Duration,
    /// An idle app is kept for at most this long while the newest save does not start: it is the only copy of the
    /// revision that works.
    pub keep_last_good: Duration,
    /// Between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How long requests and tunnels of a replaced sandbox may go on.
    pub drain_limit: Duration,
    /// From the launch of the start command to an open port.
    pub start_timeout: Duration,
    /// All steps of an installation together.
    pub install_timeout: Duration,
    /// The longest that one request is held for an app that is on its way.
    pub acquire_timeout: Duration,
    /// Requests held per app.
    pub max_waiting: usize,
    /// Sandboxes installing at once.
    pub max_installs: usize,
    /// Sandboxes starting at once (without an installation).
    pub max_starts: usize,
    /// Environment of installations (proxies, registries, `[install.env]`).
    pub install_env: InstallEnv,
    /// The host's CA bundle, shown to sandboxes read-only.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for HostConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            instance: "berth".to_owned(),
            run_dir: PathBuf::from("/run/berth"),
            log_dir: PathBuf::from("/var/log/berth"),
            limits: Limits {
                memory: 512 << 20,
                cpus: 2.0,
                pids: 512,
                app_size: 1 << 30,
                tmp_size: 512 << 20,
            },
            excludes: Excludes::default(),
            idle_freeze: Duration::from_secs(120),
            idle_reclaim: Duration::from_secs(600),
            idle_stop: Duration::from_secs(3600),
            keep_last_good: Duration::from_secs(24 * 3600),
            stop_grace: Duration::from_secs(10),
            drain_limit: Duration::from_secs(30),
            start_timeout: Duration::from_secs(60),
            install_timeout: Duration::from_secs(600),
            acquire_timeout: Duration::from_secs(680),
            max_waiting: 1000,
            max_installs: cores * 2,
            max_starts: cores * 4,
            install_env: InstallEnv::default(),
            ca_bundle: None,
        }
    }
}

/// The environment of installations.
///
/// Package managers need to know the host's proxy, registries and certificates; apps do not, and some of these
/// variables cost an app dearly (`NODE_EXTRA_CA_CERTS` doubles node's start), so they are set for installs only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstallEnv(BTreeMap<String, String>);

/// Variables taken over from the daemon's environment by their whole name. Proxies come in both cases because some
/// tools read only one of them.
const TAKEN: [&str; 16] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "GOPROXY",
    "GOSUMDB",
    "GONOSUMDB",
    "GONOSUMCHECK",
    "GOFLAGS",
    "GOPRIVATE",
    "GOINSECURE",
    "GONOPROXY",
];
/// … and by the start of their name (in any case).
const TAKEN_PREFIXES: [&str; 5] = ["npm_config_", "pip_", "uv_", "yarn_", "bun_config_"];
/// Variables whose value is the path of a CA bundle: inside, the bundle stands at one known place.
const CA_PATHS: [&str; 8] = [
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "npm_config_cafile",
    "NIX_SSL_CERT_FILE",
];
/// Registry settings that name places on the host's disk: they mean nothing inside a sandbox.
const HOST_PATHS: [&str; 8] = [
    "npm_config_cache",
    "npm_config_prefix",
    "npm_config_userconfig",
    "npm_config_globalconfig",
    "pip_cache_dir",
    "uv_cache_dir",
    "uv_python_install_dir",
    "uv_tool_dir",
];

impl InstallEnv {
    /// What installs get: the fitting part of `environment`, then `configured` (`[install.env]`) over it.
    ///
    /// With `ca_bundle`, variables that hold the path of a CA bundle are set to where the bundle stands inside; node
    /// is told about it as well, since it brings its own certificates otherwise.
    pub fn new(
        environment: impl IntoIterator<Item = (String, String)>,
        configured: &BTreeMap<String, String>,
        with_ca_bundle: bool,
    ) -> Self {
        let mut set = BTreeMap::new();
        for (name, value) in environment {
            if CA_PATHS.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
                if with_ca_bundle {
                    set.insert(name, CA_INSIDE.to_owned());
                }
            } else if taken(&name) && !value.is_empty() {
                set.insert(name, value);
            }
        }
        if with_ca_bundle {
            for name in ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
                set.insert(name.to_owned(), CA_INSIDE.to_owned());
            }
        }
        set.extend(configured.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self(set)
    }

    /// The variables.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn taken(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if HOST_PATHS.contains(&lower.as_str()) {
        return false;
    }
    TAKEN.contains(&name) || TAKEN_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_install_gets_proxies_and_registries_but_nothing_else_of_the_daemon() {
        let env = InstallEnv::new(
            pairs(&[
                ("HTTPS_PROXY", "http://proxy:3128"),
                ("npm_config_registry", "https://registry.internal"),
                ("PIP_INDEX_URL", "https://index.internal/simple"),
                ("GOPROXY", "https://go.internal"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("npm_config_cache", "/root/.npm"),
                ("PATH", "/usr/bin"),
            ]),
            &BTreeMap::new(),
            false,
        );
        let names: Vec<_> = env.variables().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["GOPROXY", "HTTPS_PROXY", "PIP_INDEX_URL", "npm_config_registry"]
        );
    }

    #[test]
    fn certificate_paths_point_to_the_bundle_inside() {
        let env = InstallEnv::new(
            pairs(&[
                ("REQUESTS_CA_BUNDLE", "/home/me/ca.pem"),
                ("PIP_CERT", "/home/me/ca.pem"),
            ]),
            &BTreeMap::new(),
            true,
        );
        for name in ["REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
            assert_eq!(env.variables()[name], CA_INSIDE, "{name}");
        }
        let without = InstallEnv::new(pairs(&[("PIP_CERT", "/home/me/ca.pem")]), &BTreeMap::new(), false);
        assert!(
            without.variables().is_empty(),
            "a path of the host means nothing inside"
        );
    }

    #[test]
    fn the_configuration_wins_over_the_environment() {
        let configured = BTreeMap::from([("GOPROXY".to_owned(), "direct".to_owned())]);
        let env = InstallEnv::new(pairs(&[("GOPROXY", "https://go.internal")]), &configured, false);
        assert_eq!(env.variables()["GOPROXY"], "direct");
    }
}
