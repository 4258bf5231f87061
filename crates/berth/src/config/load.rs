//! How the configuration is read: file, then environment, each mistake with its place.
//!
//! The file is first read alone, so that an error carries the line and column that the reader of the file needs. Then the
//! variables are laid over its table, one at a time, each judged at once: the error names the variable. Values in variables take
//! the type of the default they replace; lists are separated by commas.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::Config;

/// Where the configuration is looked for when nobody says.
pub const DEFAULT_FILE: &str = "/etc/berth/berth.toml";

/// The smallest journal that is of any use, bytes.
const SMALLEST_JOURNAL: u64 = 16 << 20;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}, line {line}, column {column}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A variable in the environment has a wrong value.
    #[error("the variable {name} in the environment is wrong: {message}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A variable that starts with `BERTH_` belongs to nothing.
    #[error("the variable {name} in the environment sets nothing; see `berth config show` for what can be set")]
    UnknownVariable {
        /// Its name.
        name: String,
    },
    /// Values that do not fit together, or a rule that no type expresses.
    #[error("{place}: {message}")]
    Rule {
        /// The key, as `[section] key`.
        place: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Names known from other tools, and the key each one sets. Later ones win.
const FAMILIAR: [(&str, &str, &str); 9] = [
    ("DOMAIN", "", "domain"),
    ("MINIO_ROOT_USER", "s3", "access_key"),
    ("MINIO_ROOT_PASSWORD", "s3", "secret_key"),
    ("AWS_ACCESS_KEY_ID", "s3", "access_key"),
    ("AWS_SECRET_ACCESS_KEY", "s3", "secret_key"),
    ("AWS_SESSION_TOKEN", "s3", "session_token"),
    ("AWS_REGION", "s3", "region"),
    ("AWS_ENDPOINT_URL", "s3", "endpoint"),
    ("AWS_ENDPOINT_URL_S3", "s3", "endpoint"),
];

/// Keys that have no default and so do not show in the table of defaults; all are text.
const WITHOUT_DEFAULT: [(&str, &str); 8] = [
    ("paths", "images"),
    ("paths", "recipes"),
    ("s3", "endpoint"),
    ("s3", "access_key"),
    ("s3", "secret_key"),
    ("s3", "session_token"),
    ("s3", "hint_listen"),
    ("admin", "socket"),
];

/// Variables with the prefix that are no keys: the CLI and the image builder read them.
const NOT_KEYS: [&str; 4] = ["BERTH_CONFIG", "BERTH_SOCKET", "BERTH_RECIPES", "BERTH_CRASH_POINT"];

/// Reads the configuration: `file` if one is named, else [`DEFAULT_FILE`] where it exists, then the environment.
///
/// # Errors
/// [`ConfigError`], with the place of the first mistake.
pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let (path, text) = read(file)?;
    load_from(&path, &text, env::vars().collect())
}

fn read(file: Option<&Path>) -> Result<(PathBuf, String), ConfigError> {
    let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok((path, String::new())),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

/// The same from values, for tests and for [`load`].
pub(super) fn load_from(path: &Path, text: &str, variables: Vec<(String, String)>) -> Result<Config, ConfigError> {
    let at = |error: toml::de::Error| {
        let (line, column) = error.span().map_or((1, 1), |span| place_of(text, span.start));
        ConfigError::File {
            path: path.to_path_buf(),
            line,
            column,
            message: error.message().to_owned(),
        }
    };
    let mut config: Config = toml::from_str(text).map_err(at)?;
    let mut table: toml::Table = toml::from_str(text).map_err(at)?;
    for (name, section, key, value) in settings(variables)? {
        set(&mut table, &section, &key, value);
        config = table
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Variable {
                name,
                message: error.message().to_owned(),
            })?;
    }
    check(&config)?;
    Ok(config)
}

/// Line and column, from 1, of a byte offset.
fn place_of(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

type Setting = (String, String, String, toml::Value);

/// Which variables set which keys, in the order in which they are laid over the file.
fn settings(variables: Vec<(String, String)>) -> Result<Vec<Setting>, ConfigError> {
    let defaults = toml::Table::try_from(Config::default()).map_err(|error| ConfigError::Rule {
        place: "defaults",
        message: error.to_string(),
    })?;
    let mut found = Vec::new();
    for (name, section, key) in FAMILIAR {
        if let Some((_, value)) = variables.iter().find(|(n, v)| n == name && !v.is_empty()) {
            found.push((
                name.to_owned(),
                section.to_owned(),
                key.to_owned(),
                toml::Value::String(value.clone()),
            ));
        }
    }
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix("BERTH_") else {
            continue;
        };
        if NOT_KEYS.contains(&name.as_str()) {
            continue;
        }
        let wanted = rest.to_ascii_lowercase();
        let (section, key, default) =
            find_key(&defaults, &wanted).ok_or_else(|| ConfigError::UnknownVariable { name: name.clone() })?;
        let value = typed(&value, default.as_ref()).map_err(|message| ConfigError::Variable {
            name: name.clone(),
            message,
        })?;
        found.push((name, section, key, value));
    }
    Ok(found)
}

/// The key that `section_key` names, with its default.
fn find_key(defaults: &toml::Table, wanted: &str) -> Option<(String, String, Option<toml::Value>)> {
    for (name, value) in defaults {
        match value {
            toml::Value::Table(section) => {
                for (key, default) in section {
                    if wanted == format!("{name}_{key}") {
                        return Some((name.clone(), key.clone(), Some(default.clone())));
                    }
                }
            }
            plain if wanted == name => return Some((String::new(), name.clone(), Some(plain.clone()))),
            _ => {}
        }
    }
    WITHOUT_DEFAULT
        .iter()
        .find(|(section, key)| wanted == format!("{section}_{key}"))
        .map(|(section, key)| ((*section).to_owned(), (*key).to_owned(), None))
}

/// A variable's text as a value of the same type as the default.
fn typed(text: &str, default: Option<&toml::Value>) -> Result<toml::Value, String> {
    Ok(match default {
        Some(toml::Value::Boolean(_)) => toml::Value::Boolean(
            text.parse()
                .map_err(|_| format!("{text:?} is neither true nor false"))?,
        ),
        Some(toml::Value::Integer(_)) => {
            toml::Value::Integer(text.parse().map_err(|_| format!("{text:?} is no whole number"))?)
        }
        Some(toml::Value::Float(_)) => toml::Value::Float(text.parse().map_err(|_| format!("{text:?} is no number"))?),
        Some(toml::Value::Array(_)) => toml::Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| part.to_owned().into())
                .collect(),
        ),
        Some(toml::Value::Table(_)) => return Err("a table can only be set in the file".into()),
        _ => toml::Value::String(text.to_owned()),
    })
}

fn set(table: &mut toml::Table, section: &str, key: &str, value: toml::Value) {
    if section.is_empty() {
        table.insert(key.to_owned(), value);
        return;
    }
    let entry = table
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(inner) = entry {
        inner.insert(key.to_owned(), value);
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Rules that types do not express.
fn check(config: &Config) -> Result<(), ConfigError> {
    let rule = |place, message: String| Err(ConfigError::Rule { place, message });
    let instance_fits = (1..=8).contains(&config.instance.len())
        && config
            .instance
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !instance_fits {
        return rule(
            "instance",
            format!("{:?} is not 1 to 8 of a-z and 0-9", config.instance),
        );
    }
    if config.s3.access_key.is_some() != config.s3.secret_key.is_some() {
        return rule(
            "[s3] access_key",
            "access_key and secret_key go together: one of them is missing".into(),
        );
    }
    if config.s3.endpoint.is_some() && config.s3.access_key.is_none() {
        return rule(
            "[s3] endpoint",
            "an external server needs access_key and secret_key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
                .into(),
        );
    }
    if let Some(peer) = config.s3.hint_peers.iter().find(|peer| !is_host_and_port(peer)) {
        return rule("[s3] hint_peers", format!("{peer:?} is not HOST:PORT"));
    }
    if config.edge.listen.is_empty() {
        return rule("[edge] listen", "at least one address is needed".into());
    }
    if !(config.limits.cpus > 0.0 && config.limits.cpus.is_finite()) {
        return rule(
            "[limits] cpus",
            format!("{} is no number of processors above 0", config.limits.cpus),
        );
    }
    if let Err(error) = berth_workspace::Excludes::new(&config.mount.exclude) {
        return rule("[mount] exclude", error.to_string());
    }
    for name in config.mount.workspace.keys() {
        if let Err(error) = berth_workspace::AppName::parse(name) {
            return rule("[mount.workspace]", error.to_string());
        }
    }
    if config.mount.journal_max.0 < SMALLEST_JOURNAL {
        return rule(
            "[mount] journal_max",
            "at least 16M is needed: one large save must fit".into(),
        );
    }
    for (place, path) in [
        ("[mount] path", &config.mount.path),
        ("[paths] state", &config.paths.state),
        ("[paths] run", &config.paths.run),
        ("[paths] logs", &config.paths.logs),
    ] {
        if !path.is_absolute() {
            return rule(place, format!("{} must start with /", path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn from(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        load_from(Path::new("berth.toml"), text, variables)
    }

    #[test]
    fn the_documented_file_says_exactly_the_defaults() {
        assert_eq!(from(include_str!("../../berth.toml"), &[]).unwrap(), Config::default());
        assert_eq!(from("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_column() {
        let error = from("domain = \"x\"\n\n[edge]\nlisten = [\"nowhere\"]\n", &[])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("berth.toml, line 4, column "), "{error}");
        let error = from("[limits]\nmemory = \"lots\"\n", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("no size"), "{error}");
        let error = from("[limits]\nmemroy = \"1G\"\n", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("memroy"), "{error}");
    }

    #[test]
    fn variables_win_over_the_file_and_keep_its_types() {
        let config = from(
            "domain = \"file\"\n[limits]\npids = 5\n",
            &[
                ("BERTH_LIMITS_PIDS", "7"),
                ("BERTH_EDGE_LISTEN", "127.0.0.1:81, 127.0.0.1:82"),
                ("DOMAIN", "env"),
                ("BERTH_NETWORK_EGRESS", "false"),
            ],
        )
        .unwrap();
        assert_eq!(
            (config.limits.pids, config.domain.as_str(), config.edge.listen.len()),
            (7, "env", 2)
        );
        assert!(!config.network.egress);
    }

    #[test]
    fn the_knobs_of_the_mount_are_read_and_single_workspaces_may_differ() {
        let text = "[mount]\nsync = \"journal\"\ncache_mode = \"writes\"\ndrain_timeout = \"5s\"\n\
                    [mount.workspace.shop]\nsync = \"remote\"\n";
        let mount = from(text, &[("BERTH_MOUNT_JOURNAL_MAX", "64M")]).unwrap().mount;
        assert_eq!(
            (mount.journal_max.0, mount.cache_mode),
            (64 << 20, crate::config::CacheMode::Writes)
        );
        assert_eq!(mount.workspace["shop"].sync, Some(crate::config::Sync::Remote));
        let error = from("[mount]\nsync = \"disk\"\n", &[]).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("journal"), "{error}");
        let error = from("[mount.workspace.My_App]\nsync = \"remote\"\n", &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("my-app"), "{error}");
        let error = from("[mount]\njournal_max = \"1M\"\n", &[]).unwrap_err().to_string();
        assert!(error.contains("journal_max"), "{error}");
    }

    #[test]
    fn a_wrong_or_unknown_variable_is_named() {
        let error = from("", &[("BERTH_LIMITS_PIDS", "many")]).unwrap_err().to_string();
        assert!(
            error.contains("BERTH_LIMITS_PIDS") && error.contains("whole number"),
            "{error}"
        );
        let error = from("", &[("BERTH_EGDE_LISTEN", "x")]).unwrap_err().to_string();
        assert!(error.contains("BERTH_EGDE_LISTEN"), "{error}");
    }

    #[test]
    fn hosts_to_tell_of_changes_are_checked_when_the_file_is_read() {
        let config = from(
            "[s3]\nhint_listen = \"[::]:7947\"\nhint_peers = [\"b.example:7947\"]\n",
            &[],
        )
        .unwrap();
        assert_eq!(config.s3.hint_listen.map(|address| address.port()), Some(7947));
        for wrong in ["b.example", "b.example:0", ":7947", "b.example:port"] {
            let error = from(&format!("[s3]\nhint_peers = [\"{wrong}\"]\n"), &[]).unwrap_err();
            assert!(error.to_string().contains("HOST:PORT"), "{error}");
        }
        let config = from("", &[("BERTH_S3_HINT_LISTEN", "0.0.0.0:7947")]).unwrap();
        assert!(config.s3.hint_listen.is_some());
    }

    #[test]
    fn keys_known_from_minio_and_aws_work() {
        let minio = from("", &[("MINIO_ROOT_USER", "u"), ("MINIO_ROOT_PASSWORD", "p")]).unwrap();
        assert_eq!(
            (minio.s3.access_key.as_deref(), minio.s3.secret_key.as_deref()),
            (Some("u"), Some("p"))
        );
        let error = from("", &[("AWS_ENDPOINT_URL", "http://s3")]).unwrap_err().to_string();
        assert!(error.contains("access_key"), "{error}");
    }
}
