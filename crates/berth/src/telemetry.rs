//! The daemon's own log: to standard error, where systemd and terminals look, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Installs the log for the life of the process. A filter that cannot be read is reported and `info` taken.
pub fn install(log: &Log) {
    // The S3 protocol crate calls every 404 and 412 an error; what matters of them is told by the store.
    let quiet = |level: &str| {
        if level.contains("s3s") {
            level.to_owned()
        } else {
            format!("{level},s3s=off")
        }
    };
    let filter = EnvFilter::try_new(quiet(&log.level)).unwrap_or_else(|error| {
        eprintln!(
            "berth: [log] level {:?} is no filter ({error}); info is taken",
            log.level
        );
        EnvFilter::new(quiet("info"))
    });
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second installation in one process is a test's: the first stays.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
