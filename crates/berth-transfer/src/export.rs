//! Workspaces out of the bucket, each into a folder of its name.
//!
//! Every file is written under another name in [`STAGING`], compared with its object's checksum, given its bits and time,
//! brought to disk, and only then renamed to its place: a run that is killed leaves whole files or none, and the next one
//! goes on. Links come after all files and folders, so that no file is ever written through a link; the bits and times of
//! folders come last, because everything else changes them.

mod fetch;
mod place;

use std::{
    cell::RefCell,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use berth_store::{ObjectInfo, Store};
use berth_workspace::{EntryKind, Excludes};
use fetch::Fetching;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use place::{finish, make_folders};
use tokio::sync::Semaphore;

use crate::{
    Options, TransferError, Watch,
    bucket::{self, Bucket},
    content::{self, CompareError, blocking},
    import::MEMORY,
    plan::{self, Wanted, WantedKind},
    report::{Difference, Failed, LeftOut, Report, WorkspaceReport},
    retry::Trouble,
    scan::{Scan, Scope, scan},
};

/// Where unfinished files are, within the workspace's folder and so on its file system.
const STAGING: &str = ".berth-export.partial";
/// Workspaces looked at at once.
const WORKSPACES: usize = 8;

/// What is exported, and where to.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The workspaces; none: all.
    pub names: Option<Vec<String>>,
    /// The folder in which each gets a folder of its name.
    pub dir: PathBuf,
    /// What is left out.
    pub excludes: Excludes,
}

struct Prepared {
    target: PathBuf,
    bucket: Bucket,
    scan: Scan,
    plan: plan::Export,
    /// Files whose content is right already.
    same: Vec<String>,
    report: WorkspaceReport,
}

/// Brings workspaces into a folder.
///
/// # Errors
/// [`TransferError`] when it could not begin, or when folders could not be made. All else is in the report.
pub async fn export(
    store: &Store,
    destination: &Destination,
    options: &Options,
    watch: Watch<'_>,
) -> Result<Report, TransferError> {
    let Some(prepared) = watch
        .cancel
        .run_until_cancelled(prepare_all(store, destination, options))
        .await
    else {
        return Ok(Report {
            interrupted: true,
            ..Report::default()
        });
    };
    let (mut prepared, strange) = prepared?;
    let mut report = Report {
        dry_run: options.dry_run,
        ..Report::default()
    };
    let refused = prepared.iter().any(|p| !p.report.refused.is_empty());
    if options.dry_run && !refused {
        for Prepared { plan, report, .. } in &mut prepared {
            plan.fetch
                .iter()
                .filter_map(|path| plan.wanted.get(path))
                .for_each(|wanted| report.moved.add(wanted.size()));
        }
    } else if !options.dry_run && !refused {
        fetch_all(store, &mut prepared, options, watch, &mut report).await?;
    }
    report.workspaces = prepared
        .into_iter()
        .map(|workspace| workspace.report)
        .chain(strange)
        .collect();
    Ok(report)
}

async fn prepare_all(
    store: &Store,
    destination: &Destination,
    options: &Options,
) -> Result<(Vec<Prepared>, Vec<WorkspaceReport>), TransferError> {
    let (names, strange) = match &destination.names {
        Some(names) => (names.clone(), Vec::new()),
        None => bucket::workspaces(store).await?,
    };
    let prepared = stream::iter(&names)
        .map(|name| prepare(store, name, destination, options))
        .buffered(WORKSPACES)
        .try_collect::<Vec<_>>()
        .await?;
    let missing: Vec<_> = names
        .iter()
        .zip(&prepared)
        .filter(|(_, p)| p.is_none())
        .map(|(name, _)| name.clone())
        .collect();
    if !missing.is_empty() {
        return Err(TransferError::NoSuchWorkspace { names: missing });
    }
    let strange = strange.into_iter().map(|name| WorkspaceReport {
        failed: vec![Failed {
            path: String::new(),
            why: "the name cannot be a folder's".to_owned(),
        }],
        name,
        ..WorkspaceReport::default()
    });
    Ok((prepared.into_iter().flatten().collect(), strange.collect()))
}

/// Looks at both sides and compares; none when there is no such workspace.
async fn prepare(
    store: &Store,
    name: &str,
    destination: &Destination,
    options: &Options,
) -> Result<Option<Prepared>, TransferError> {
    // Berth's own objects are no workspace.
    if name.contains('/') || name.starts_with('.') || bucket::no_path(name).is_some() {
        return Ok(None);
    }
    let target = destination.dir.join(name);
    let (bucket, found) = futures::try_join!(Bucket::load(store, name), look(&target))?;
    if bucket.is_empty() {
        return Ok(None);
    }
    let left_out = RefCell::new(LeftOut::default());
    let mut keep = |path: &str, kind: EntryKind, size: u64| {
        let slash = if kind == EntryKind::Dir { "/" } else { "" };
        let rule = destination.excludes.excluding(&format!("{name}/{path}{slash}"));
        if let Some(rule) = rule
            && kind != EntryKind::Dir
        {
            left_out
                .borrow_mut()
                .excluded
                .entry(rule.to_owned())
                .or_default()
                .add(size);
        }
        rule.is_none()
    };
    let mut report = WorkspaceReport {
        name: name.to_owned(),
        folder: target.clone(),
        ..WorkspaceReport::default()
    };
    let scan = match found {
        Some(scan) => scan,
        None => {
            let why = "is there and is no folder".to_owned();
            report.refused.push(Difference {
                path: target.display().to_string(),
                why,
                can_be_forced: false,
            });
            Scan::default()
        }
    };
    let mut plan = plan::export(&bucket, &scan, &mut keep);
    report.left_out = left_out.into_inner();
    report.left_out.names = std::mem::take(&mut plan.odd);
    report.left_out.set_id_bits = plan.set_id_bits;
    report.folders = plan
        .wanted
        .values()
        .filter(|wanted| wanted.kind == WantedKind::Dir)
        .count() as u64;
    report.links = plan
        .wanted
        .values()
        .filter(|wanted| matches!(wanted.kind, WantedKind::Symlink(_)))
        .count() as u64;
    let same = compare(store, &target, options.jobs, &mut plan, &mut report).await?;
    let strange = scan
        .left_out
        .names
        .iter()
        .chain(&scan.left_out.unreadable)
        .map(|failed| failed.path.clone());
    plan.only_there.extend(strange);
    if options.force {
        report.only_there = plan.only_there.len() as u64;
    } else {
        let mixed = plan.only_there.iter().map(|path| Difference {
            path: path.clone(),
            why: "only in the folder: the workspace would be mixed with it".to_owned(),
            can_be_forced: true,
        });
        plan.refused.extend(mixed);
    }
    let refused = std::mem::take(&mut plan.refused).into_iter();
    report
        .refused
        .extend(refused.filter(|difference| !(options.force && difference.can_be_forced)));
    Ok(Some(Prepared {
        target,
        bucket,
        scan,
        plan,
        same,
        report,
    }))
}

/// What is in the folder already; none when it is no folder.
async fn look(target: &Path) -> Result<Option<Scan>, TransferError> {
    let path = target.to_owned();
    let looked = blocking(move || {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Scan::default())),
            Err(error) => return Err(error),
            Ok(meta) if !meta.is_dir() => return Ok(None),
            Ok(_) => {}
        }
        let mut scan = scan(&path, Scope::Everything)?;
        let below = format!("{STAGING}/");
        scan.entries
            .retain(|path, _| path != STAGING && !path.starts_with(&below));
        Ok(Some(scan))
    });
    looked.await.map_err(|source| TransferError::Folder {
        path: target.to_owned(),
        source,
    })
}

/// The files that are right already; the others are added to what is to be fetched.
async fn compare(
    store: &Store,
    target: &Path,
    jobs: usize,
    plan: &mut plan::Export,
    report: &mut WorkspaceReport,
) -> Result<Vec<String>, TransferError> {
    let objects: Vec<_> = std::mem::take(&mut plan.compare)
        .into_iter()
        .filter_map(|path| Some((plan.wanted.get(&path)?.object()?.clone(), path)))
        .collect();
    let compared = stream::iter(objects)
        .map(|(object, path)| async move {
            let same = content::same(store, &object, target.join(&path)).await;
            (object, path, same)
        })
        .buffered(jobs)
        .collect::<Vec<_>>()
        .await;
    let mut right = Vec::new();
    for (object, path, same) in compared {
        let why = match same {
            Ok(true) => {
                report.same.add(object.size);
                right.push(path);
                continue;
            }
            Err(CompareError::Store(error)) if !(error.is_conflict() || error.is_no_such_key()) => {
                return Err(error.into());
            }
            Err(CompareError::File(error)) => format!("cannot be compared: {error}"),
            _ => format!("{} bytes with other content here", object.size),
        };
        plan.refused.push(Difference {
            path: path.clone(),
            why,
            can_be_forced: true,
        });
        plan.fetch.push(path);
    }
    Ok(right)
}

impl Wanted {
    fn object(&self) -> Option<&ObjectInfo> {
        match &self.kind {
            WantedKind::File(object) => Some(object),
            _ => None,
        }
    }

    fn size(&self) -> u64 {
        self.object().map_or(0, |object| object.size)
    }
}

async fn fetch_all(
    store: &Store,
    prepared: &mut [Prepared],
    options: &Options,
    watch: Watch<'_>,
    report: &mut Report,
) -> Result<(), TransferError> {
    let fetching = Fetching {
        store,
        watch,
        cancel: watch.cancel.child_token(),
        memory: Semaphore::new(MEMORY),
        number: AtomicU64::new(0),
        stopped: Mutex::default(),
    };
    let mut locks = Vec::new();
    for Prepared { target, plan, .. } in prepared.iter() {
        locks.push(make_folders(target, plan).await?);
    }
    let work: Vec<_> = prepared
        .iter()
        .enumerate()
        .flat_map(|(at, p)| p.plan.fetch.iter().map(move |path| (at, path)))
        .collect();
    for (at, path) in &work {
        watch
            .tally
            .expect(1, prepared[*at].plan.wanted.get(*path).map_or(0, Wanted::size));
    }
    let (fetching, all) = (&fetching, &*prepared);
    let done = stream::iter(work)
        .map(|(at, path)| async move { (at, path.clone(), fetching.file(&all[at], path).await) })
        .buffer_unordered(options.jobs)
        .collect::<Vec<_>>()
        .await;
    for (at, path, done) in done {
        let report = &mut prepared[at].report;
        match done {
            Ok(size) => report.moved.add(size),
            Err(Trouble::File(why)) => report.failed.push(Failed { path, why }),
            Err(_) => {}
        }
    }
    let whole = !fetching.cancel.is_cancelled();
    if !whole {
        report.interrupted = watch.cancel.is_cancelled();
        report.stopped = fetching
            .stopped
            .lock()
            .take()
            .map(|error| berth_workspace::chain(&error));
    }
    for Prepared {
        target,
        plan,
        same,
        scan,
        report,
        ..
    } in prepared
    {
        finish(target, plan, same, scan, whole, report).await?;
    }
    Ok(())
}
