//! Folders into the bucket.
//!
//! ```text
//!   scan + LIST + index ─▶ compare ─▶ refused? stop here ─▶ objects, many at once ─▶ links' places cleared ─▶ index
//! ```
//! The index comes last: a mount on the same bucket shows bits, times and links of what it knows already, and an
//! interrupted import leaves plain files, which the next run finds to be the same. Each PUT names the version it replaces,
//! or that there is none: what somebody else stores meanwhile stays.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_store::{Precondition, Store, StoreError};
use berth_workspace::{AppName, EntryKind, Excludes, index};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    Options, TransferError, Watch,
    bucket::{Bucket, Indexed},
    content::{self, CompareError, blocking},
    plan::{self, Send},
    report::{Failed, Report, WorkspaceReport},
    retry::{Trouble, patiently, until},
    scan::{Found, FoundKind, Scan, Scope, scan},
};

/// Workspaces looked at, and indexes written, at once.
const WORKSPACES: usize = 8;
/// MiB of content in memory at once, all files together.
pub(crate) const MEMORY: usize = 128;
/// Parts of one large file on their way at once.
pub(crate) const PARTS: usize = 4;
/// How often a file that is written to meanwhile is begun anew.
const STEADY_TRIES: u32 = 3;
/// How often an index that somebody else writes too is merged.
const MERGES: u32 = 8;

/// A folder, and the workspace it becomes.
#[derive(Debug, Clone)]
pub struct Source {
    /// The workspace.
    pub name: AppName,
    /// The folder.
    pub folder: PathBuf,
    /// What of it is left out.
    pub excludes: Excludes,
}

/// A workspace looked at: what is to be done, and what is said about it.
struct Prepared<'a> {
    source: &'a Source,
    scan: Scan,
    bucket: Bucket,
    plan: plan::Import,
    report: WorkspaceReport,
}

/// Moves folders into the bucket.
///
/// # Errors
/// [`TransferError`] when it could not begin, or could not write an index. All else is in the report: its
/// [`Report::is_complete`] tells whether everything is in the bucket now.
pub async fn import(
    store: &Store,
    sources: &[Source],
    options: &Options,
    watch: Watch<'_>,
) -> Result<Report, TransferError> {
    let looked = stream::iter(sources)
        .map(|source| prepare(store, source, options))
        .buffered(WORKSPACES)
        .try_collect::<Vec<_>>();
    let Some(prepared) = watch.cancel.run_until_cancelled(looked).await else {
        return Ok(Report {
            interrupted: true,
            ..Report::default()
        });
    };
    let mut prepared = prepared?;
    let mut report = Report {
        dry_run: options.dry_run,
        ..Report::default()
    };
    let refused = prepared.iter().any(|p| !p.report.refused.is_empty());
    if options.dry_run && !refused {
        for workspace in &mut prepared {
            workspace
                .plan
                .send
                .iter()
                .for_each(|send| workspace.report.moved.add(send.size));
        }
    } else if !options.dry_run && !refused {
        send_all(store, &mut prepared, options, watch, &mut report).await?;
    }
    report.workspaces = prepared.into_iter().map(|workspace| workspace.report).collect();
    Ok(report)
}

/// Looks at both sides and compares.
async fn prepare<'a>(store: &Store, source: &'a Source, options: &Options) -> Result<Prepared<'a>, TransferError> {
    let app = source.name.as_str();
    let scanned = scan_storable(source);
    let (mut scan, bucket) = futures::try_join!(scanned, load(store, app, options))?;
    let mut plan = plan::import(&scan, &bucket);
    let mut report = WorkspaceReport {
        name: app.to_owned(),
        folder: source.folder.clone(),
        folders: scan.count(EntryKind::Dir),
        links: scan.count(EntryKind::Symlink),
        only_there: plan.only_there,
        ..WorkspaceReport::default()
    };
    let compared = stream::iter(std::mem::take(&mut plan.compare))
        .map(|(path, object)| async move {
            let same = content::same(store, &object, source.folder.join(&path)).await;
            (path, object, same)
        })
        .buffered(options.jobs)
        .collect::<Vec<_>>();
    for (path, object, same) in compared.await {
        match same {
            Ok(true) => report.same.add(object.size),
            Ok(false) => plan.differs(&path, object.size, &object),
            // Overwritten since it was listed.
            Err(CompareError::Store(error)) if error.is_conflict() || error.is_no_such_key() => {
                plan.differs(&path, object.size, &object);
            }
            Err(CompareError::Store(error)) => return Err(error.into()),
            Err(CompareError::File(error)) => {
                scan.entries.remove(&path);
                scan.left_out.unreadable.push(Failed {
                    path,
                    why: error.to_string(),
                });
            }
        }
    }
    report.left_out = std::mem::take(&mut scan.left_out);
    let refused = std::mem::take(&mut plan.refused).into_iter();
    report.refused = refused
        .filter(|difference| !(options.force && difference.can_be_forced))
        .collect();
    Ok(Prepared {
        source,
        scan,
        bucket,
        plan,
        report,
    })
}

async fn scan_storable(source: &Source) -> Result<Scan, TransferError> {
    let Source { name, folder, excludes } = source.clone();
    let scanned = blocking(move || {
        scan(
            &folder,
            Scope::Storable {
                app: name.as_str(),
                excludes: &excludes,
            },
        )
    });
    scanned.await.map_err(|error| TransferError::Folder {
        path: source.folder.clone(),
        source: error,
    })
}

async fn load(store: &Store, app: &str, options: &Options) -> Result<Bucket, TransferError> {
    match Bucket::load(store, app).await {
        // A real run makes it.
        Err(TransferError::Store(StoreError::NoSuchBucket { .. })) if options.dry_run => Ok(Bucket::default()),
        other => other,
    }
}

/// What all files on their way share.
struct Sending<'a> {
    store: &'a Store,
    watch: Watch<'a>,
    /// Cancelled with the transfer, and when no file would fare better.
    cancel: CancellationToken,
    memory: Semaphore,
    /// Marks the objects of this run as its own.
    token: String,
    stopped: Mutex<Option<StoreError>>,
}

async fn send_all(
    store: &Store,
    prepared: &mut [Prepared<'_>],
    options: &Options,
    watch: Watch<'_>,
    report: &mut Report,
) -> Result<(), TransferError> {
    let sending = Sending {
        store,
        watch,
        cancel: watch.cancel.child_token(),
        memory: Semaphore::new(MEMORY),
        token: format!("import-{:016x}", rand::random::<u64>()),
        stopped: Mutex::default(),
    };
    let mut work = Vec::new();
    for (at, workspace) in prepared.iter_mut().enumerate() {
        for send in std::mem::take(&mut workspace.plan.send) {
            watch.tally.expect(1, send.size);
            work.push((at, workspace.source, send));
        }
    }
    let done = stream::iter(work)
        .map(|(at, source, send)| {
            let sending = &sending;
            async move { (at, sending.file(source, &send).await, send) }
        })
        .buffer_unordered(options.jobs)
        .collect::<Vec<_>>();
    for (at, done, send) in done.await {
        let Prepared { scan, report, .. } = &mut prepared[at];
        match done {
            Ok(found) => {
                if let FoundKind::File { size } = found.kind {
                    report.moved.add(size);
                }
                scan.entries.insert(send.path, found);
            }
            Err(trouble) => {
                scan.entries.remove(&send.path);
                sending.note(trouble, send.path, report);
            }
        }
    }
    if sending.cancel.is_cancelled() {
        report.interrupted = watch.cancel.is_cancelled();
        report.stopped = sending
            .stopped
            .lock()
            .take()
            .map(|error| berth_workspace::chain(&error));
        return Ok(());
    }
    let finishing = stream::iter(prepared).map(|workspace| finish(store, workspace));
    finishing.buffer_unordered(WORKSPACES).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Links, bits, times and folders.
async fn finish(store: &Store, workspace: &mut Prepared<'_>) -> Result<(), TransferError> {
    let Prepared {
        source,
        scan,
        bucket,
        plan,
        report,
    } = workspace;
    for (path, object) in std::mem::take(&mut plan.remove) {
        match patiently(|| store.delete_if(&object.key, &object.etag)).await {
            Ok(()) => {}
            Err(error) if error.is_conflict() => {
                scan.entries.remove(&path);
                let why = "was changed by somebody else meanwhile; nothing was overwritten".to_owned();
                report.failed.push(Failed { path, why });
            }
            Err(error) => return Err(error.into()),
        }
    }
    let app = source.name.as_str();
    if report.moved.files == 0 && report.same.files == 0 && bucket.is_empty() {
        let marker = format!("{app}/");
        match patiently(|| store.put(&marker, Bytes::new(), Precondition::Absent)).await {
            Err(error) if !error.is_conflict() => return Err(error.into()),
            _ => {}
        }
    }
    write_index(store, app, &scan.entries, std::mem::take(&mut bucket.index)).await
}

/// Adds what was found to the index, whatever others write into it meanwhile.
async fn write_index(
    store: &Store,
    app: &str,
    found: &BTreeMap<String, Found>,
    mut there: Indexed,
) -> Result<(), TransferError> {
    let key = index::key(app);
    for _ in 0..MERGES {
        let merged = plan::merged(&there.index, found);
        if merged == there.index {
            return Ok(());
        }
        let pre = match &there.version {
            Some(version) => Precondition::Matches(version.etag.clone()),
            None => Precondition::Absent,
        };
        let bytes = Bytes::from(merged.to_bytes());
        match patiently(|| store.put(&key, bytes.clone(), pre.clone())).await {
            Err(error) if !error.is_conflict() => return Err(error.into()),
            // Written, or changed by somebody else: in both cases what is there now has to say what was found.
            _ => there = Indexed::load(store, app).await?,
        }
    }
    Err(TransferError::IndexBusy { key })
}

impl Sending<'_> {
    /// Writes down why a file was not moved.
    fn note(&self, trouble: Trouble, path: String, report: &mut WorkspaceReport) {
        if let Trouble::File(why) = trouble {
            report.failed.push(Failed { path, why });
        }
    }

    /// One file; gives it as it was sent.
    async fn file(&self, source: &Source, send: &Send) -> Result<Found, Trouble> {
        let key = format!("{}/{}", source.name, send.path);
        let path = source.folder.join(&send.path);
        match self.steady(&key, &path, send).await {
            Ok(found) => {
                self.watch.tally.file_done();
                Ok(found)
            }
            Err(Trouble::All(error)) => {
                self.stopped.lock().get_or_insert(error);
                self.cancel.cancel();
                Err(Trouble::CalledOff)
            }
            Err(other) => Err(other),
        }
    }

    /// Begins anew when the file was written to meanwhile.
    async fn steady(&self, key: &str, path: &Path, send: &Send) -> Result<Found, Trouble> {
        for _ in 0..STEADY_TRIES {
            let size = {
                let path = path.to_owned();
                blocking(move || Ok(content::open(&path)?.metadata()?.len()))
                    .await
                    .map_err(unreadable)?
            };
            let wanted = u32::try_from(size.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
            let wanted = wanted.clamp(1, (PARTS * 8) as u32);
            let Some(room) = self.cancel.run_until_cancelled(self.memory.acquire_many(wanted)).await else {
                return Err(Trouble::CalledOff);
            };
            // The semaphore is never closed.
            let _room = room.map_err(|_| Trouble::CalledOff)?;
            let sent = match size > content::LARGE {
                true => self.large(key, path, send).await?,
                false => self.small(key, path, send).await?,
            };
            if let Some(found) = sent {
                return Ok(found);
            }
        }
        Err(Trouble::File(
            "was written to all the time; run the same command again".into(),
        ))
    }

    /// In one request. None: the file was written to meanwhile, and nothing was sent.
    async fn small(&self, key: &str, path: &Path, send: &Send) -> Result<Option<Found>, Trouble> {
        let path = path.to_owned();
        let read = blocking(move || {
            let file = content::open(&path)?;
            let before = file.metadata()?;
            let body = content::read_part(&file, 0, content::LARGE + 1)?;
            let unchanged = is_unchanged(&before, &file)? && body.len() as u64 == before.len();
            let etag = hex::encode(content::md5(&body));
            Ok((file, before, body, etag, unchanged))
        });
        let (file, meta, body, etag, unchanged) = read.await.map_err(unreadable)?;
        if !unchanged {
            return Ok(None);
        }
        let token = Some(self.token.as_str());
        let put = patiently(|| self.store.put_as(key, body.clone(), send.replaces.clone(), token));
        let stored = until(&self.cancel, put).await?;
        if stored.etag != etag {
            self.read_back(&stored, file).await?;
        }
        self.watch.tally.moved(meta.len());
        Ok(Some(found(&meta)))
    }

    /// In parts. None: as for small ones.
    async fn large(&self, key: &str, path: &Path, send: &Send) -> Result<Option<Found>, Trouble> {
        let opened = {
            let path = path.to_owned();
            blocking(move || {
                let file = content::open(&path)?;
                let meta = file.metadata()?;
                Ok((Arc::new(file), meta))
            })
        };
        let (file, meta) = opened.await.map_err(unreadable)?;
        let token = Some(self.token.as_str());
        let upload = until(&self.cancel, patiently(|| self.store.begin(key, token))).await?;
        let moved = std::sync::atomic::AtomicU64::new(0);
        let done = self.parts(&upload, &file, &meta, send, &moved).await;
        if !matches!(done, Ok(Some(_))) {
            self.watch.tally.undone(moved.into_inner());
            // Also when called off: what was sent must not lie about on the server.
            // Best effort: a server forgets uploads in the end by its own rules.
            let _ = upload.abort().await;
        }
        done
    }

    async fn parts(
        &self,
        upload: &berth_store::Multipart,
        file: &Arc<File>,
        meta: &Metadata,
        send: &Send,
        moved: &std::sync::atomic::AtomicU64,
    ) -> Result<Option<Found>, Trouble> {
        let size = meta.len();
        let part = content::part_size(size);
        let count = u16::try_from(size.div_ceil(part)).unwrap_or(u16::MAX);
        let sent = stream::iter(1..=count).map(|number| async move {
            let (file, offset) = (Arc::clone(file), u64::from(number - 1) * part);
            let read = blocking(move || {
                let body = content::read_part(&file, offset, part)?;
                let md5 = content::md5(&body);
                Ok((body, md5))
            });
            let (body, md5) = read.await.map_err(unreadable)?;
            let bytes = body.len() as u64;
            until(&self.cancel, patiently(|| upload.part(number, body.clone()))).await?;
            moved.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            self.watch.tally.moved(bytes);
            Ok::<_, Trouble>(md5)
        });
        let md5s: Vec<_> = sent.buffered(PARTS).try_collect().await?;
        let (handle, before) = (Arc::clone(file), meta.clone());
        if !blocking(move || is_unchanged(&before, &handle))
            .await
            .map_err(unreadable)?
        {
            return Ok(None);
        }
        let stored = until(&self.cancel, patiently(|| upload.complete(send.replaces.clone()))).await?;
        if stored.etag != content::etag_of(&md5s) {
            let file = file.try_clone().map_err(unreadable)?;
            self.read_back(&stored, file).await?;
        }
        Ok(Some(found(meta)))
    }

    /// The server's ETag is no checksum that we know: only reading what it stored can tell.
    async fn read_back(&self, stored: &berth_store::ObjectInfo, file: File) -> Result<(), Trouble> {
        let compared = content::same_bytes(self.store, stored, Arc::new(file));
        match self.cancel.run_until_cancelled(compared).await {
            None => Err(Trouble::CalledOff),
            Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(Trouble::File(
                "what S3 stored is not what was sent; run the same command again".into(),
            )),
            Some(Err(CompareError::Store(error))) => Err(error.into()),
            Some(Err(CompareError::File(error))) => Err(unreadable(error)),
        }
    }
}

fn unreadable(error: io::Error) -> Trouble {
    Trouble::File(format!("cannot be read: {error}"))
}

fn found(meta: &Metadata) -> Found {
    Found::of(meta, FoundKind::File { size: meta.len() })
}

/// Whether nobody has written to the file since.
fn is_unchanged(before: &Metadata, file: &File) -> io::Result<bool> {
    let now = file.metadata()?;
    let stamp = |meta: &Metadata| {
        (
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        )
    };
    Ok(stamp(before) == stamp(&now))
}
