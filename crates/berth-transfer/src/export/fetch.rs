//! One file out of the bucket: fetched by parts into the folder for unfinished files, compared with the object's checksum, and
//! renamed to its place. What is overwritten meanwhile, or comes damaged, is fetched anew.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use berth_store::{ObjectInfo, Store, StoreError};
use futures::{StreamExt, TryStreamExt, stream};
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Prepared, STAGING, place::dress_open};
use crate::{
    Watch,
    content::{self, CompareError, Verdict, blocking},
    import::PARTS,
    plan::{Wanted, WantedKind},
    retry::{Trouble, patiently, until},
};

/// How often an object that is overwritten meanwhile, or that came damaged, is fetched anew.
const FETCHES: u32 = 3;

/// What all files on their way share.
pub(super) struct Fetching<'a> {
    pub(super) store: &'a Store,
    pub(super) watch: Watch<'a>,
    /// Cancelled with the transfer, and when no file would fare better.
    pub(super) cancel: CancellationToken,
    pub(super) memory: Semaphore,
    pub(super) number: AtomicU64,
    pub(super) stopped: Mutex<Option<StoreError>>,
}

impl Fetching<'_> {
    /// One file; gives its size.
    pub(super) async fn file(&self, workspace: &Prepared, path: &str) -> Result<u64, Trouble> {
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
            match self.stage(&object, staged).await? {
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
    async fn stage(&self, object: &ObjectInfo, staged: &Path) -> Result<Staged, Trouble> {
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
