//! Workspaces out of the bucket, each into a folder of its name.
//!
//! Every file is written under another name in [`STAGING`], compared with its object's checksum, given its bits and time,
//! brought to disk, and only then renamed to its place: a run that is killed leaves whole files or none, and the next one
//! goes on. Links come after all files and folders, so that no file is ever written through a link; the bits and times of
//! folders come last, because everything else changes them.

use std::{
    cell::RefCell,
    fs::{self, File, FileTimes, Permissions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use berth_store::{ObjectInfo, Store, StoreError};
use berth_workspace::{EntryKind, Excludes};
use futures::{StreamExt, TryStreamExt, stream};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, Flock, FlockArg},
    sys::{
        stat::{UtimensatFlags, utimensat},
        time::TimeSpec,
    },
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    Options, TransferError, Watch,
    bucket::{self, Bucket},
    content::{self, CompareError, Verdict, blocking},
    import::{MEMORY, PARTS},
    plan::{self, Wanted, WantedKind},
    report::{Difference, Failed, LeftOut, Report, WorkspaceReport},
    retry::{Trouble, patiently, until},
    scan::{Scan, Scope, scan},
};

/// Where unfinished files are, within the workspace's folder and so on its file system.
const STAGING: &str = ".berth-export.partial";
/// Workspaces looked at at once.
const WORKSPACES: usize = 8;
/// How often an object that is overwritten meanwhile, or that came damaged, is fetched anew.
const FETCHES: u32 = 3;

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

/// What all files on their way share.
struct Fetching<'a> {
    store: &'a Store,
    watch: Watch<'a>,
    /// Cancelled with the transfer, and when no file would fare better.
    cancel: CancellationToken,
    memory: Semaphore,
    number: AtomicU64,
    stopped: Mutex<Option<StoreError>>,
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

/// Makes the folders, and the one for unfinished files, which is emptied and locked.
async fn make_folders(target: &Path, plan: &plan::Export) -> Result<Flock<File>, TransferError> {
    let folders = plan.wanted.iter().filter(|(_, wanted)| wanted.kind == WantedKind::Dir);
    let folders: Vec<PathBuf> = folders.map(|(path, _)| target.join(path)).collect();
    let staging = target.join(STAGING);
    let target = target.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        let failed = |path: &Path, source| TransferError::Make {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(&target).map_err(|error| failed(&target, error))?;
        let lock = lock(&staging).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => TransferError::Busy { path: target.clone() },
            _ => failed(&staging, error),
        })?;
        // Parents come before what is in them.
        for folder in folders {
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&folder, error)),
                _ => {}
            }
        }
        Ok(lock)
    });
    made.await.map_err(|error| TransferError::Make {
        path: PathBuf::new(),
        source: io::Error::other(error),
    })?
}

fn lock(staging: &Path) -> io::Result<Flock<File>> {
    match fs::create_dir(staging) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let locked = Flock::lock(File::open(staging)?, FlockArg::LockExclusiveNonblock);
    let lock = locked.map_err(|(_, errno)| io::Error::from(errno))?;
    for leftover in fs::read_dir(staging)? {
        fs::remove_file(leftover?.path())?;
    }
    Ok(lock)
}

/// Links, bits and times; then the folder for unfinished files goes.
async fn finish(
    target: &Path,
    plan: &plan::Export,
    same: &[String],
    scan: &Scan,
    whole: bool,
    report: &mut WorkspaceReport,
) -> Result<(), TransferError> {
    let mut work: Vec<(PathBuf, Wanted, bool)> = Vec::new();
    let is_link = |wanted: &Wanted| matches!(wanted.kind, WantedKind::Symlink(_));
    let links = plan.wanted.iter().filter(|(_, wanted)| is_link(wanted));
    let files = same.iter().filter_map(|path| Some((path, plan.wanted.get(path)?)));
    let folders = plan
        .wanted
        .iter()
        .rev()
        .filter(|(_, wanted)| wanted.kind == WantedKind::Dir);
    for (path, wanted) in links.chain(files).chain(folders) {
        work.push((target.join(path), wanted.clone(), scan.entries.contains_key(path)));
    }
    let staging = target.join(STAGING);
    let root = target.to_owned();
    let done = blocking(move || {
        let mut failed = Vec::new();
        for (path, wanted, _) in work.into_iter().filter(|_| whole) {
            let made = match &wanted.kind {
                WantedKind::Symlink(to) => link(&staging, to, &path, wanted.mtime),
                _ => dress(&path, &wanted),
            };
            if let Err(error) = made {
                failed.push((path, error.to_string()));
            }
        }
        fs::remove_dir_all(&staging)?;
        // Names too are on disk when this is told to be done.
        nix::unistd::syncfs(File::open(&root)?)?;
        Ok(failed)
    });
    let failed = done.await.map_err(|source| TransferError::Make {
        path: target.to_owned(),
        source,
    })?;
    report.failed.extend(failed.into_iter().map(|(path, why)| Failed {
        path: path.strip_prefix(target).unwrap_or(&path).display().to_string(),
        why,
    }));
    Ok(())
}

/// A link that replaces what has its name, unless it points there already.
fn link(staging: &Path, to: &str, path: &Path, mtime: Option<SystemTime>) -> io::Result<()> {
    if !fs::read_link(path).is_ok_and(|there| there == Path::new(to)) {
        let fresh = staging.join("link");
        std::os::unix::fs::symlink(to, &fresh)?;
        fs::rename(&fresh, path)?;
    }
    let Some(mtime) = mtime else { return Ok(()) };
    let since = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = TimeSpec::from_duration(since);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Bits and time of a file or folder.
fn dress(path: &Path, wanted: &Wanted) -> io::Result<()> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    dress_open(&file, wanted)
}

fn dress_open(file: &File, wanted: &Wanted) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(wanted.mode))?;
    match wanted.mtime {
        Some(mtime) => file.set_times(FileTimes::new().set_modified(mtime)),
        None => Ok(()),
    }
}

impl Fetching<'_> {
    /// One file; gives its size.
    async fn file(&self, workspace: &Prepared, path: &str) -> Result<u64, Trouble> {
        let Some(wanted) = workspace.plan.wanted.get(path) else {
            return Err(Trouble::CalledOff);
        };
        let staged = workspace
            .target
            .join(STAGING)
            .join(self.number.fetch_add(1, Ordering::Relaxed).to_string());
        let done = self.fetch(workspace, path, wanted.clone(), &staged).await;
        if done.is_err() {
            let _ = blocking(move || fs::remove_file(staged)).await;
        }
        match done {
            Ok(size) => {
                self.watch.tally.file_done();
                Ok(size)
            }
            Err(Trouble::All(error)) => {
                self.stopped.lock().get_or_insert(error);
                self.cancel.cancel();
                Err(Trouble::CalledOff)
            }
            Err(other) => Err(other),
        }
    }

    async fn fetch(&self, workspace: &Prepared, path: &str, mut wanted: Wanted, staged: &Path) -> Result<u64, Trouble> {
        for _ in 0..FETCHES {
            let Some(object) = wanted.object().cloned() else {
                return Err(Trouble::CalledOff);
            };
            let mib = u32::try_from(object.size.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
            let room = self.memory.acquire_many(mib.clamp(1, (PARTS * 8) as u32));
            let Some(room) = self.cancel.run_until_cancelled(room).await else {
                return Err(Trouble::CalledOff);
            };
            // The semaphore is never closed.
            let _room = room.map_err(|_| Trouble::CalledOff)?;
            match self.into_staging(&object, staged).await? {
                Staged::Whole(file) => {
                    let (staged, target) = (staged.to_owned(), workspace.target.join(path));
                    let placed = blocking(move || {
                        dress_open(&file, &wanted)?;
                        file.sync_all()?;
                        fs::rename(staged, target)
                    });
                    placed.await.map_err(unwritable)?;
                    return Ok(object.size);
                }
                Staged::Damaged => {}
                Staged::Overwritten => {
                    let head = until(&self.cancel, patiently(|| self.store.head(&object.key))).await?;
                    let Some(now) = head else {
                        return Err(Trouble::File("was removed from the bucket meanwhile".into()));
                    };
                    wanted.mtime = Some(workspace.bucket.mtime(path, &now));
                    wanted.kind = WantedKind::File(now);
                }
            }
            self.watch
                .tally
                .undone(object.size.min(self.watch.tally.progress().bytes_done));
        }
        Err(Trouble::File(
            "did not come whole, or is overwritten all the time; run the same command again".into(),
        ))
    }

    /// Fetches one version of an object into a file and compares it with the checksum.
    async fn into_staging(&self, object: &ObjectInfo, staged: &Path) -> Result<Staged, Trouble> {
        let path = staged.to_owned();
        let made = blocking(move || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(path)
        });
        let file = Arc::new(made.await.map_err(unwritable)?);
        let part = content::part_size(object.size);
        let offsets = (0..object.size.div_ceil(part)).map(|number| number * part);
        let fetched = stream::iter(offsets).map(|offset| {
            let file = Arc::clone(&file);
            async move {
                let range = offset..object.size.min(offset + part);
                let whole = range.end - range.start == object.size;
                let got = patiently(|| async {
                    match whole {
                        true => self.store.get_if(&object.key, &object.etag).await,
                        false => self.store.get_range_if(&object.key, &object.etag, range.clone()).await,
                    }
                });
                let Some(got) = self.cancel.run_until_cancelled(got).await else {
                    return Err(Trouble::CalledOff);
                };
                let body = match got {
                    Ok(body) => body,
                    Err(error) if error.is_conflict() || error.is_no_such_key() => return Ok(false),
                    Err(error) => return Err(error.into()),
                };
                self.watch.tally.moved(body.len() as u64);
                blocking(move || file.write_all_at(&body, offset))
                    .await
                    .map_err(unwritable)?;
                Ok(true)
            }
        });
        let current: Vec<bool> = fetched.buffer_unordered(PARTS).try_collect().await?;
        if current.contains(&false) {
            return Ok(Staged::Overwritten);
        }
        self.check(object, file).await
    }

    /// Compares what is in the file now with the object.
    async fn check(&self, object: &ObjectInfo, file: Arc<File>) -> Result<Staged, Trouble> {
        let (size, etag, handle) = (object.size, object.etag.clone(), Arc::clone(&file));
        let judged = blocking(move || {
            let whole = handle.metadata()?.len() == size;
            Ok((whole, content::judge(&handle, size, &etag)?))
        });
        match judged.await.map_err(unwritable)? {
            (false, _) => Ok(Staged::Damaged),
            (true, Verdict::Same) => Ok(Staged::Whole(file)),
            // The ETag is no checksum that we know: the object is read once more.
            (true, Verdict::Unknown) => {
                let compared = content::same_bytes(self.store, object, Arc::clone(&file));
                match self.cancel.run_until_cancelled(compared).await {
                    None => Err(Trouble::CalledOff),
                    Some(Ok(true)) => Ok(Staged::Whole(file)),
                    Some(Ok(false)) => Ok(Staged::Damaged),
                    Some(Err(CompareError::Store(error))) if error.is_conflict() => Ok(Staged::Overwritten),
                    Some(Err(CompareError::Store(error))) => Err(error.into()),
                    Some(Err(CompareError::File(error))) => Err(unwritable(error)),
                }
            }
        }
    }
}

/// A file that was fetched.
enum Staged {
    Whole(Arc<File>),
    /// Its bytes are not the object's.
    Damaged,
    /// The object is another version now, or gone.
    Overwritten,
}

fn unwritable(error: io::Error) -> Trouble {
    let full = error
        .raw_os_error()
        .is_some_and(|code| Errno::from_raw(code) == Errno::ENOSPC);
    let hint = if full {
        "; make room and run the same command again"
    } else {
        ""
    };
    Trouble::File(format!("cannot be written: {error}{hint}"))
}
