//! The command: asks the configuration and the rest of Berth for what the checks need, and shows what they found.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use berth_console::DaemonStatus;
use berth_image::ImageStore;
use berth_mount::Why;
use berth_store::{Store, StoreConfig, StoreError};

use super::{
    Check, DaemonState, ImageProblem, ImageState, Port, Status, StoreAnswer, StoreProblem, Subject, resolve, run, worst,
};
use crate::client::Client;
use crate::commands::{s3_keys, waiting};
use crate::config::{Config, IMAGES};
use crate::failure::Failure;

/// How long S3 is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// `berth doctor`: exit code 1 when something does not work, 0 otherwise, warnings included.
pub async fn command(config: Config, json: bool) -> Result<ExitCode, Failure> {
    let daemon = Client::new(config.admin_socket())
        .get::<DaemonStatus>("/v1/status")
        .await
        .ok();
    let endpoint = config
        .s3
        .endpoint
        .clone()
        .unwrap_or_else(|| format!("http://{}", config.s3.listen));
    // The embedded server answers only while the daemon runs.
    let store = match config.s3.endpoint.is_some() || daemon.is_some() {
        true => Some(examine(&config, &endpoint).await),
        false => None,
    };
    // The checks block: on names and on disks.
    let checks = tokio::task::spawn_blocking(move || look(&config, &endpoint, daemon.as_ref(), store.as_ref())).await;
    let checks = checks.map_err(|error| Failure::from_error(&error))?;
    let text = if json {
        serde_json::to_string_pretty(&checks).map_err(|error| Failure::from_error(&error))?
    } else {
        shown(&checks)
    };
    // A reader that has gone away (`berth doctor | head`) is no error.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(if worst(&checks) == Status::Fail {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn look(
    config: &Config,
    endpoint: &str,
    daemon: Option<&DaemonStatus>,
    store: Option<&Result<StoreAnswer, StoreProblem>>,
) -> Vec<Check> {
    let mut ports: Vec<_> = config
        .edge
        .listen
        .iter()
        .map(|&address| Port {
            purpose: "edge".into(),
            address,
        })
        .collect();
    if config.s3.endpoint.is_none() {
        ports.push(Port {
            purpose: "S3".into(),
            address: config.s3.listen,
        });
    }
    let mut names = vec![config.domain.clone()];
    names.extend(host_of(endpoint).filter(|_| config.s3.endpoint.is_some()));
    names.dedup();
    run(&Subject {
        state_dir: config.paths.state.clone(),
        run_dir: config.paths.run.clone(),
        log_dir: config.paths.logs.clone(),
        mountpoint: config.mount.path.clone(),
        running: daemon.is_some(),
        daemon: daemon.map(daemon_state),
        embedded_store: config.s3.endpoint.is_none(),
        network: config.network.egress,
        ports,
        names,
        ca_bundle: std::env::var_os("SSL_CERT_FILE").map(Into::into),
        resolve: &resolve,
        store: &|| match store {
            Some(found) => found.clone(),
            None => Err(StoreProblem {
                found: "was not asked".into(),
                mend: "start `berth serve`".into(),
            }),
        },
        images: &|| images(config),
    })
}

fn images(config: &Config) -> Vec<ImageState> {
    let store = ImageStore::open(config.images_dir(), config.paths.run.join("images"));
    let check = |name: &str| match &store {
        Err(error) => Err(ImageProblem::Broken(berth_workspace::chain(error))),
        Ok(store) => match store.verify(name) {
            Ok(info) => Ok(format!(
                "{}, as built",
                bytesize::ByteSize::b(info.size).display().iec()
            )),
            Err(error) if error.is_not_found() => Err(ImageProblem::Missing),
            Err(error) => Err(ImageProblem::Broken(berth_workspace::chain(&error))),
        },
    };
    IMAGES
        .iter()
        .map(|&name| ImageState {
            name: name.into(),
            verified: check(name),
        })
        .collect()
}

/// Checks as lines: the state, what was looked at, what was found, and under it how to mend it.
fn shown(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        text.push_str(&format!("{:5} {:width$}  {}\n", check.status, check.name, check.found));
        if let Some(mend) = &check.mend {
            text.push_str(&format!("{:5} {:width$}  to mend: {mend}\n", "", ""));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    text.push_str(&format!(
        "{} checks, {} warnings, {} failures",
        checks.len(),
        count(Status::Warn),
        count(Status::Fail)
    ));
    text
}

/// The host that an S3 endpoint names.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    uri.scheme_str()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

/// Finds out about the S3 server, with the keys that the daemon uses.
async fn examine(config: &Config, endpoint: &str) -> Result<StoreAnswer, StoreProblem> {
    let (access_key, secret_key) = s3_keys(config).map_err(|failure| StoreProblem {
        found: failure.to_string(),
        mend: "run this as root, or set access_key and secret_key in [s3]".into(),
    })?;
    let embedded = config.s3.endpoint.is_none();
    let wanted = StoreConfig {
        endpoint: Some(endpoint.to_owned()),
        region: config.s3.region.clone(),
        bucket: config.s3.bucket.clone(),
        access_key,
        secret_key,
        session_token: config.s3.session_token.clone(),
        path_style: config.s3.path_style || embedded,
        poll_interval: config.s3.poll_interval.0,
    };
    let found = match tokio::time::timeout(PATIENCE, Store::examine(&wanted)).await {
        Ok(found) => found.map_err(|error| problem(&error))?,
        Err(_) => {
            return Err(StoreProblem {
                found: format!(
                    "{endpoint} takes connections and gives no answer within {} s",
                    PATIENCE.as_secs()
                ),
                mend: "see the server's log, and that nothing between it and this host holds requests back".into(),
            });
        }
    };
    let abilities = found.abilities;
    let conditions = [
        ("PUT", abilities.conditional_put),
        ("DELETE", abilities.conditional_delete),
        ("COPY", abilities.conditional_copy && abilities.conditional_copy_source),
    ];
    Ok(StoreAnswer {
        server_time: found.server_time,
        received: found.at,
        took: found.took,
        ignored: conditions
            .into_iter()
            .filter(|(_, heeded)| !heeded)
            .map(|(name, _)| name)
            .collect(),
        etag_in_list: found.etag_in_list,
        events: found.events,
        fed: embedded,
        poll_interval: wanted.poll_interval,
    })
}

/// What to do about it; the error says most of it itself.
fn problem(error: &StoreError) -> StoreProblem {
    let mend = match error {
        StoreError::WrongKey { .. } => "set [s3] access_key and secret_key (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        StoreError::Forbidden { .. } => "give the key the rights to list, read, write and delete in the bucket",
        StoreError::ClockSkew { .. } => "let the host keep time: timedatectl set-ntp true, or install chrony",
        StoreError::Tls { .. } => "mend the certificate or this host's trust in it, as said; or see [s3] endpoint",
        StoreError::NotS3 { .. } => "see [s3] endpoint: the address and the port",
        StoreError::NoSuchBucket { .. } => {
            "`berth serve` makes it where the key may do that; else make it, or see [s3] bucket"
        }
        _ => "see that [s3] endpoint is right and reachable; the embedded server answers only while `berth serve` runs",
    };
    StoreProblem {
        found: berth_workspace::chain(error),
        mend: mend.into(),
    }
}

/// What the daemon says, as the checks need it.
fn daemon_state(status: &DaemonStatus) -> DaemonState {
    let now = SystemTime::now();
    let named = status
        .unshown
        .objects
        .iter()
        .filter(|object| object.why != Why::Excluded);
    let journal = status.journal.clone().unwrap_or_default();
    DaemonState {
        waiting: waiting(&status.pending, status.s3.trouble.as_deref(), now),
        oldest: status.pending.oldest.and_then(|since| now.duration_since(since).ok()),
        journal_dir: journal.dir,
        journal_size: (journal.disk, journal.max),
        journal_damage: journal.damaged,
        unshown: status.unshown.count,
        unshown_objects: named
            .map(|object| format!("{} ({})", object.key, object.why.words()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_names_a_host() {
        assert_eq!(host_of("https://s3.example").as_deref(), Some("s3.example"));
        assert_eq!(host_of("http://10.0.0.1:9000/").as_deref(), Some("10.0.0.1"));
        assert_eq!(host_of("http://[::1]:9000").as_deref(), Some("::1"));
        assert_eq!(host_of("s3.example"), None);
        assert_eq!(host_of(""), None);
    }

    #[test]
    fn what_is_wrong_with_s3_is_told_with_the_key_of_the_configuration_to_look_at() {
        let wrong = StoreError::WrongKey {
            act: berth_store::Act::Connect,
            target: "s3://b".into(),
            endpoint: "http://s3".into(),
            code: "SignatureDoesNotMatch".into(),
        };
        let told = problem(&wrong);
        assert!(told.found.contains("SignatureDoesNotMatch"), "{told:?}");
        assert!(told.mend.contains("secret_key"), "{told:?}");
    }

    #[test]
    fn what_is_shown_has_the_way_to_mend_under_what_was_found() {
        let text = shown(&[Check::ok("a", "fine"), Check::fail("long name", "broken", "mend it")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok    a          fine");
        assert_eq!(lines[1], "FAIL  long name  broken");
        assert_eq!(lines[2], "                 to mend: mend it");
        assert_eq!(lines[3], "2 checks, 0 warnings, 1 failures");
    }
}
