//! `berth import` and `berth export`: options and exit codes around `berth-transfer`.
//!
//! Both speak S3 themselves and ask no daemon for anything; but the embedded S3 answers only while the daemon runs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use berth_store::{Access, Store, StoreConfig, StoreError};
use berth_transfer::{Destination, Options, Report, Source, Tally, TransferError, Watch};
use berth_workspace::{AppName, Excludes, WorkspaceFile, chain};
use tokio_util::sync::CancellationToken;

use super::{bucket, print_json, print_line, progress};
use crate::{cli, config::Config, failure::Failure};

/// As a shell tells of a program that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;
/// How long uploads in parts that were called off may take to be removed on the server.
const LINGER: Duration = Duration::from_secs(3);

pub fn import(wanted: &cli::Import, config: &Config) -> Result<ExitCode, Failure> {
    let mut patterns = config.mount.exclude.clone();
    patterns.extend(wanted.transfer.exclude.iter().cloned());
    let options = options(&wanted.transfer);
    let sources = sources(wanted, config, &compiled(&patterns)?)?;
    let access = if options.dry_run { Access::Read } else { Access::Write };
    transfer("import", &wanted.transfer, config, access, async |store, watch| {
        berth_transfer::import(store, &sources, &options, watch).await
    })
}

pub fn export(wanted: &cli::Export, config: &Config) -> Result<ExitCode, Failure> {
    let options = options(&wanted.transfer);
    let destination = destination(wanted)?;
    transfer(
        "export",
        &wanted.transfer,
        config,
        Access::Read,
        async |store, watch| berth_transfer::export(store, &destination, &options, watch).await,
    )
}

fn options(wanted: &cli::Transfer) -> Options {
    Options {
        jobs: usize::from(wanted.jobs),
        force: wanted.force,
        dry_run: wanted.dry_run,
    }
}

fn compiled(patterns: &[String]) -> Result<Excludes, Failure> {
    Excludes::new(patterns).map_err(|error| Failure::usage(error.to_string()))
}

/// The list, and what the folder's own `workspace.json` adds to it.
fn with_own(excludes: &Excludes, folder: &Path) -> Result<Excludes, Failure> {
    let path = folder.join("workspace.json");
    let Ok(text) = std::fs::read(&path) else {
        return Ok(excludes.clone());
    };
    // Without its patterns, what its author wants to keep out would go in.
    let file = WorkspaceFile::parse(&text)
        .map_err(|error| Failure::failed(format!("nothing was written: in {}, {error}", folder.display())))?;
    excludes
        .with(&file.exclude)
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// The folders and the names they get.
fn sources(wanted: &cli::Import, config: &Config, excludes: &Excludes) -> Result<Vec<Source>, Failure> {
    if wanted.name.is_some() && wanted.dirs.len() != 1 {
        return Err(Failure::usage("--name gives one folder another name: name one folder"));
    }
    let mut sources = Vec::new();
    let mut names = BTreeSet::new();
    for dir in &wanted.dirs {
        // `.` and links have their names only in full.
        let folder = dir.canonicalize().map_err(|error| unusable(dir, &error.to_string()))?;
        if !folder.is_dir() {
            return Err(unusable(dir, "it is no folder"));
        }
        if is_mounted(&folder, &config.mount.path) {
            let path = config.mount.path.display();
            return Err(unusable(
                dir,
                &format!("it is in {path}, so it is in the bucket already"),
            ));
        }
        let own = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let text = wanted.name.clone().or(own).unwrap_or_default();
        let name = AppName::parse(&text).map_err(|error| unusable(dir, &format!("{error} (--name)")))?;
        if excludes.excluded_dir(name.as_str()) {
            return Err(unusable(
                dir,
                &format!("a folder {name} is excluded, so it is no workspace; give another --name"),
            ));
        }
        if !names.insert(name.clone()) {
            return Err(Failure::usage(format!(
                "two folders would be the workspace {name}; import one with --name"
            )));
        }
        let excludes = with_own(excludes, &folder)?;
        sources.push(Source { name, folder, excludes });
    }
    Ok(sources)
}

fn unusable(dir: &Path, why: &str) -> Failure {
    Failure::usage(format!("cannot import {}: {why}", dir.display()))
}

/// Whether a folder is the bucket itself, through the mount. Without a mount there it is a folder like any other.
fn is_mounted(folder: &Path, mount: &Path) -> bool {
    let Ok(mount) = mount.canonicalize() else { return false };
    let is_mountpoint = || {
        let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&path.metadata().ok()?).into();
        let own: Option<u64> = device(&mount);
        own.is_some() && own != mount.parent().and_then(device)
    };
    folder.starts_with(&mount) && is_mountpoint() && is_berths(&mount)
}

/// Whether the kernel says that the mount there is Berth's.
fn is_berths(mount: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut at_it = fields.filter(|fields| fields.get(1).is_some_and(|at| Path::new(at) == mount));
    at_it
        .next_back()
        .is_some_and(|fields| fields.iter().take(3).any(|field| field.contains("berth")))
}

/// `NAME... DIR`, or with `--all` just `DIR`.
fn destination(wanted: &cli::Export) -> Result<Destination, Failure> {
    let (dir, names) = match (wanted.names_and_dir.split_last(), wanted.all) {
        (Some((dir, [])), true) => (dir, None),
        (Some((dir, names)), false) if !names.is_empty() => (dir, Some(names.to_vec())),
        (_, true) => return Err(Failure::usage("--all exports every workspace: name only the folder")),
        (_, false) => {
            return Err(Failure::usage(
                "name the workspaces and then the folder: `berth export NAME... DIR`, or `berth export --all DIR`",
            ));
        }
    };
    let mut seen = BTreeSet::new();
    let names = names.map(|names| names.into_iter().filter(|name| seen.insert(name.clone())).collect());
    Ok(Destination {
        names,
        dir: PathBuf::from(dir),
        // What is in the bucket comes back whole: the exclude list of the host is about what goes in.
        excludes: compiled(&wanted.transfer.exclude)?,
    })
}

/// Runs one transfer with progress, Ctrl-C and report.
fn transfer<W>(
    what: &str,
    wanted: &cli::Transfer,
    config: &Config,
    access: Access,
    work: W,
) -> Result<ExitCode, Failure>
where
    W: AsyncFnOnce(&Store, Watch<'_>) -> Result<Report, TransferError>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let cancel = CancellationToken::new();
    let tally = Tally::default();
    let done = runtime.block_on(async {
        tokio::spawn(call_off(cancel.clone()));
        let opened = async {
            let cfg = store_config(config)?;
            let open = berth_transfer::at_first(|| Store::open(cfg.clone(), access));
            open.await.map_err(|error| refused(&error, config))
        };
        let Some(store) = cancel.run_until_cancelled(opened).await else {
            return Ok(Report {
                interrupted: true,
                ..Report::default()
            });
        };
        let watch = Watch {
            tally: &tally,
            cancel: &cancel,
        };
        let done = progress::shown(what, &tally, work(&store?, watch)).await;
        done.map_err(|error| failed(error, config))
    });
    runtime.shutdown_timeout(LINGER);
    let report = done?;
    if wanted.json {
        print_json(&report)?;
    } else {
        print_line(report.to_string().trim_end());
    }
    outcome(what, &report)
}

/// The first SIGINT or SIGTERM calls it off, the second ends at once.
async fn call_off(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if cancel.is_cancelled() {
            std::process::exit(INTERRUPTED.into());
        }
        cancel.cancel();
    }
}

fn outcome(what: &str, report: &Report) -> Result<ExitCode, Failure> {
    if report.interrupted {
        eprintln!("berth: interrupted; what is done stays. Run the same command again to go on");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(why) = &report.stopped {
        return Err(Failure::failed(format!(
            "{why}; what is done stays. Run the same command again to go on"
        )));
    }
    if report.is_refused() {
        let can_be_forced = report
            .workspaces
            .iter()
            .flat_map(|w| &w.refused)
            .all(|difference| difference.can_be_forced);
        let way = if can_be_forced {
            "--force overwrites"
        } else {
            "move away what is in the way"
        };
        return Err(Failure::failed(format!(
            "nothing was written: the destination has something else ({way})"
        )));
    }
    if !report.is_complete() {
        return Err(Failure::failed(format!(
            "the {what} is not complete: see above what is missing, and why"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn store_config(config: &Config) -> Result<StoreConfig, Failure> {
    let s3 = &config.s3;
    let embedded = s3.endpoint.is_none();
    if embedded && s3.access_key.is_none() && !config.credentials_file().exists() {
        return Err(no_embedded(config, "it has not run yet"));
    }
    let (access_key, secret_key) = bucket::keys(config)?;
    Ok(StoreConfig {
        endpoint: Some(s3.endpoint.clone().unwrap_or_else(|| format!("http://{}", s3.listen))),
        region: s3.region.clone(),
        bucket: s3.bucket.clone(),
        access_key,
        secret_key,
        session_token: s3.session_token.clone(),
        path_style: s3.path_style || embedded,
        poll_interval: s3.poll_interval.0,
    })
}

/// The embedded server is part of the daemon.
fn no_embedded(config: &Config, why: &str) -> Failure {
    Failure::no_daemon(format!(
        "the embedded S3 on {} does not answer ({why}): start the daemon with `berth serve`, or configure [s3] endpoint",
        config.s3.listen
    ))
}

fn failed(error: TransferError, config: &Config) -> Failure {
    match &error {
        TransferError::Store(error) => refused(error, config),
        TransferError::NoSuchWorkspace { .. } => Failure::not_found(error.to_string()),
        _ => Failure::from_error(&error),
    }
}

fn refused(error: &StoreError, config: &Config) -> Failure {
    match error {
        StoreError::Unreachable { .. } if config.s3.endpoint.is_none() => no_embedded(config, "nothing listens there"),
        StoreError::WrongKey { .. } | StoreError::Config { .. } => Failure::usage(chain(error)),
        _ => Failure::from_error(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn export(arguments: &[&str]) -> Result<Destination, Failure> {
        let cli = Cli::try_parse_from(["berth", "export"].iter().chain(arguments)).unwrap();
        let Command::Export(wanted) = cli.command else {
            panic!("no export")
        };
        destination(&wanted)
    }

    fn import(arguments: &[&str]) -> Result<Vec<Source>, Failure> {
        let cli = Cli::try_parse_from(["berth", "import"].iter().chain(arguments)).unwrap();
        let Command::Import(wanted) = cli.command else {
            panic!("no import")
        };
        sources(&wanted, &Config::default(), Excludes::standard())
    }

    #[test]
    fn the_last_word_of_an_export_is_the_folder() {
        let it = export(&["a", "b", "a", "/out"]).unwrap();
        assert_eq!((it.names, it.dir), (Some(vec!["a".into(), "b".into()]), "/out".into()));
        let it = export(&["--all", "/out"]).unwrap();
        assert_eq!((it.names, it.dir), (None, "/out".into()));
        assert!(export(&["/out"]).is_err());
        assert!(export(&["--all", "a", "/out"]).is_err());
    }

    #[test]
    fn a_folder_whose_name_does_not_fit_is_refused_with_one_that_does() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let error = import(&[&made("My_App")]).unwrap_err().to_string();
        assert!(error.contains("try my-app") && error.contains("--name"), "{error}");
        let fits = import(&[&made("My_App"), "--name", "mine"]).unwrap();
        assert_eq!(fits[0].name.as_str(), "mine");
        assert!(import(&[&made("dist")]).unwrap_err().to_string().contains("excluded"));
        let error = import(&[&made("x/same"), &made("y/same")]).unwrap_err().to_string();
        assert!(error.contains("two folders"), "{error}");
        assert!(import(&[&made("a"), &made("b"), "--name", "c"]).is_err());
        assert!(import(&["/nonexistent"]).is_err());
    }
}
