//! A large file's way to S3 in parts, which begins while the file is still being written.
//!
//! ```text
//!   write ─▶ body file ─▶ sheet: what is complete, and what changed since it was sent
//!                            │  parts behind the writer, a few at a time
//!                            ▼
//!                        the upload ── the save's turn: the rest, then "complete" ──▶ the object
//! ```
//! Nothing of it shows in S3 before "complete", which is the request of the save's intent, with its precondition. Parts are
//! sent ahead only where the writer goes on from start to end, and each of them once; what is written again is sent again at
//! the end. A name that looks temporary is not sent ahead: the upload's key cannot be changed any more.
//!
//! An upload that fails because S3 does not answer, or has something else at the key, keeps its parts for the next try.
//! One that the process did not live to complete is given up by the next: each has a *slip* beside the journal that names it.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_store::{Multipart, ObjectInfo, Precondition, StoreError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    core::Core,
    crash,
    file::{Attachment, File},
    journal::BodyFile,
    pending::looks_temporary,
};

/// Bytes of a part, unless S3's [`PARTS_MAX`] of them are too few.
const PART: u64 = 8 << 20;
/// The most parts of one object. Source: Amazon S3, "Multipart upload limits".
const PARTS_MAX: u64 = 10_000;
/// Content beyond this goes in parts.
pub(crate) const IN_PARTS: u64 = 16 << 20;
/// Parts of one upload on their way at once: so many are in memory.
const AT_ONCE: usize = 4;
/// The longest pause of one who sends ahead, after S3 did not answer.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What is known of a body's parts.
#[derive(Debug)]
struct Sheet {
    /// Bytes of a part.
    part: u64,
    /// Up to here it was written without a gap.
    next: u64,
    /// Counts changes.
    clock: u64,
    /// By part: its last change.
    changed: BTreeMap<u64, u64>,
    /// By part: the clock when it was read to be sent.
    sent: BTreeMap<u64, u64>,
    /// Up to here S3 alone has the content: its place on the disk was given back.
    released: u64,
    /// Where the upload under way is to be an object.
    key: Option<String>,
    /// Somebody sends ahead.
    followed: bool,
    /// A part was completed since that was last asked.
    news: bool,
}

impl Default for Sheet {
    fn default() -> Self {
        Self {
            part: PART,
            next: 0,
            clock: 0,
            changed: BTreeMap::new(),
            sent: BTreeMap::new(),
            released: 0,
            key: None,
            followed: false,
            news: false,
        }
    }
}

/// One part to be sent: its number from 0, where it begins and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    number: u64,
    at: u64,
    len: u64,
}

impl Sheet {
    fn wrote(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = offset + len;
        self.clock += 1;
        for part in offset / self.part..=(end - 1) / self.part {
            self.changed.insert(part, self.clock);
        }
        if offset <= self.next && end > self.next {
            self.news |= end / self.part > self.next / self.part && end > IN_PARTS;
            self.next = end;
        }
    }

    fn resized(&mut self, old: u64, new: u64) {
        self.clock += 1;
        self.changed.insert(old.min(new) / self.part, self.clock);
        if new < old {
            self.next = self.next.min(new);
            self.sent.split_off(&new.div_ceil(self.part));
        }
    }

    fn is_sent(&self, part: u64) -> bool {
        let changed = self.changed.get(&part).copied().unwrap_or(0);
        self.sent.get(&part).is_some_and(|sent| *sent >= changed)
    }

    /// What is to be sent of the first `until` bytes; `all`: of a part that they do not fill as well.
    fn due(&self, until: u64, all: bool) -> Vec<Due> {
        let parts = if all {
            until.div_ceil(self.part)
        } else {
            until / self.part
        };
        (0..parts.min(PARTS_MAX))
            .filter(|part| !self.is_sent(*part))
            .map(|number| Due {
                number,
                at: number * self.part,
                len: self.part.min(until - number * self.part),
            })
            .collect()
    }

    /// How far S3 has it without a gap, beyond what was released.
    fn sent_to(&self) -> u64 {
        let first = self.released / self.part;
        let parts = (first..self.next / self.part).take_while(|part| self.is_sent(*part));
        self.released + parts.count() as u64 * self.part
    }

    /// As if nothing had been sent; parts have a length by which `len` bytes are not too many.
    fn start_over(&mut self, len: u64) {
        self.part = PART.max(len.div_ceil(PARTS_MAX));
        self.sent.clear();
        self.changed.clear();
        self.key = None;
    }
}

/// How far a body file is on its way.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    sheet: Mutex<Sheet>,
    /// Held by whoever sends.
    pub(crate) begun: tokio::sync::Mutex<Option<Begun>>,
    /// The writer went on, or the body is no more.
    wake: Arc<Notify>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Upload {
    pub(crate) fn wrote(&self, offset: u64, len: u64) {
        self.sheet.lock().wrote(offset, len);
    }

    pub(crate) fn resized(&self, old: u64, new: u64) {
        self.sheet.lock().resized(old, new);
    }

    /// So many bytes from the start are in S3 alone, as parts of no object yet.
    pub(crate) fn released(&self) -> u64 {
        self.sheet.lock().released
    }

    /// How many parts of `len` bytes S3 lacks.
    pub(crate) fn unsent(&self, len: u64) -> u64 {
        self.sheet.lock().due(len, true).len() as u64
    }

    /// Whether a part was completed since this was last asked.
    pub(crate) fn take_news(&self) -> bool {
        std::mem::take(&mut self.sheet.lock().news)
    }

    /// Gives back the disk's place of what S3 has; the number of bytes. Only if the upload is for `key`: nowhere else can
    /// it be completed.
    pub(crate) fn release(&self, file: &std::fs::File, key: &str) -> io::Result<u64> {
        let mut sheet = self.sheet.lock();
        if sheet.key.as_deref() != Some(key) {
            return Ok(0);
        }
        let (from, to) = (sheet.released, sheet.sent_to());
        if to == from {
            return Ok(0);
        }
        let offset = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
        let hole = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(file, hole, offset(from)?, offset(to - from)?)?;
        sheet.released = to;
        Ok(to - from)
    }

    /// Sends what is due of the first `until` bytes (none: of what was written), as long as it is `wanted`.
    pub(crate) async fn send(
        body: &Arc<BodyFile>,
        begun: &Begun,
        until: Option<u64>,
        wanted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), StoreError> {
        let due = {
            let sheet = body.upload.sheet.lock();
            sheet.due(until.unwrap_or(sheet.next), until.is_some())
        };
        let send = |due: Due| async move {
            let clock = body.upload.sheet.lock().clock;
            let bytes = read(body.clone(), due)
                .await
                .map_err(|source| unreadable(begun, source))?;
            // At most 10,000 of them.
            begun.part(due.number as u16 + 1, bytes).await?;
            body.upload.sheet.lock().sent.insert(due.number, clock);
            crash::point("upload.part");
            Ok(())
        };
        let (mut first, failed) = (Ok(()), AtomicBool::new(false));
        let go_on = |_: &Due| std::future::ready(!failed.load(Ordering::Relaxed) && wanted());
        // Boxed: only so is the whole future known to be `Send`.
        let mut ended = stream::iter(due)
            .take_while(go_on)
            .map(send)
            .buffer_unordered(AT_ONCE)
            .boxed();
        // After a failure none is begun, and those under way are waited for: what has come is not sent again.
        while let Some(sent) = ended.next().await {
            if sent.is_err() && first.is_ok() {
                failed.store(true, Ordering::Relaxed);
                first = sent;
            }
        }
        drop(ended);
        if first.is_ok() && !wanted() {
            return Err(unreadable(begun, io::Error::other("it is not wanted any more")));
        }
        first
    }
}

async fn read(body: Arc<BodyFile>, due: Due) -> io::Result<Bytes> {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; usize::try_from(due.len).map_err(io::Error::other)?];
        body.read_exact_at(&mut bytes, due.at)?;
        Ok(Bytes::from(bytes))
    });
    read.await.map_err(io::Error::other)?
}

fn unreadable(begun: &Begun, source: io::Error) -> StoreError {
    StoreError::LocalFile {
        target: begun.key.clone(),
        path: PathBuf::from("the journal's body file"),
        source,
    }
}

/// An upload that S3 knows of. Dropped before [`Begun::done`], it is given up.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) key: String,
    multipart: Option<Multipart>,
    slip: PathBuf,
    runtime: tokio::runtime::Handle,
}

/// What a slip says.
#[derive(Debug, Serialize, Deserialize)]
struct Slip {
    key: String,
    id: String,
}

impl Begun {
    async fn part(&self, number: u16, bytes: Bytes) -> Result<(), StoreError> {
        match &self.multipart {
            Some(multipart) => multipart.part(number, bytes).await,
            None => Ok(()),
        }
    }

    /// Makes the parts the object of `len` bytes. May be called again after an error.
    pub(crate) async fn complete(
        &self,
        body: &BodyFile,
        len: u64,
        pre: Precondition,
    ) -> Result<ObjectInfo, StoreError> {
        let Some(multipart) = &self.multipart else {
            return Err(unreadable(self, io::Error::other("the upload has ended")));
        };
        let parts = len.div_ceil(body.upload.sheet.lock().part);
        multipart.keep_first(u16::try_from(parts).unwrap_or(u16::MAX));
        crash::point("upload.complete");
        multipart.complete(pre).await
    }

    /// It is an object now.
    pub(crate) fn done(mut self) {
        self.multipart = None;
        // One that stays is taken away at the next start.
        let _ = std::fs::remove_file(&self.slip);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(multipart) = self.multipart.take() else { return };
        let slip = std::mem::take(&mut self.slip);
        self.runtime.spawn(async move {
            match multipart.abort().await {
                Ok(()) => drop(std::fs::remove_file(slip)),
                Err(error) => tracing::debug!(%error, "an upload in parts is given up at the next start"),
            }
        });
    }
}

impl Core {
    fn slips(&self) -> PathBuf {
        self.cfg.journal_dir.join("uploads")
    }

    /// Begins an upload for `body` at `key`.
    pub(crate) async fn begin_upload(&self, body: &BodyFile, key: &str) -> Result<Begun, StoreError> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let token = format!("{}p{:x}", self.token(key), time.as_nanos());
        let multipart = self.store.begin(key, Some(&token)).await?;
        let slip = write_slip(&self.slips(), key, multipart.id()).map_err(|source| StoreError::LocalFile {
            target: key.to_owned(),
            path: self.slips(),
            source,
        })?;
        body.upload.sheet.lock().key = Some(key.to_owned());
        crash::point("upload.begun");
        Ok(Begun {
            key: key.to_owned(),
            multipart: Some(multipart),
            slip,
            runtime: self.rt.clone(),
        })
    }

    /// Makes a whole body the object at `key`, with what was sent ahead; gives it up when it is not `wanted` any more.
    pub(crate) async fn put_in_parts(
        &self,
        key: &str,
        body: &Arc<BodyFile>,
        len: u64,
        pre: Precondition,
        wanted: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<ObjectInfo, StoreError> {
        let mut begun = body.upload.begun.lock().await;
        let fits = len.div_ceil(body.upload.sheet.lock().part) <= PARTS_MAX;
        let kept = begun.take().filter(|begun| begun.key == key && fits);
        let upload = begun.insert(match kept {
            Some(kept) => kept,
            None => {
                body.upload.sheet.lock().start_over(len);
                self.begin_upload(body, key).await?
            }
        });
        let ended = match Upload::send(body, upload, Some(len), wanted).await {
            Ok(()) => upload.complete(body, len, pre).await,
            Err(error) => Err(error),
        };
        match &ended {
            Ok(_) => {
                if let Some(upload) = begun.take() {
                    upload.done();
                }
            }
            Err(error) if error.is_conflict() || error.is_unavailable() => {}
            // Perhaps S3 does not know it any more.
            Err(_) => {
                *begun = None;
                body.upload.sheet.lock().start_over(len);
            }
        }
        ended
    }

    /// A part of `body`, which is being written as `file`, is complete: it goes to S3 ahead of the save.
    pub(crate) fn follow_writer(self: &Arc<Self>, file: &Arc<File>, body: &Arc<BodyFile>) {
        if std::mem::replace(&mut body.upload.sheet.lock().followed, true) {
            return body.upload.wake.notify_one();
        }
        let (core, file, body) = (self.clone(), Arc::downgrade(file), Arc::downgrade(body));
        self.rt.spawn(core.send_behind(file, body));
    }

    async fn send_behind(self: Arc<Self>, file: Weak<File>, body: Weak<BodyFile>) {
        let mut pause = Duration::from_millis(100);
        loop {
            let wake = {
                let (Some(file), Some(body)) = (file.upgrade(), body.upgrade()) else {
                    return;
                };
                if self.ended.load(Ordering::Relaxed) || !file.state().writes_to(&body) {
                    return;
                }
                match self.send_ahead(&file, &body, false).await {
                    Ok(()) => {
                        pause = Duration::from_millis(100);
                        body.upload.wake.clone()
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a file being written is not sent ahead");
                        drop((file, body));
                        tokio::time::sleep(pause).await;
                        pause = MAX_PAUSE.min(pause * 2);
                        continue;
                    }
                }
            };
            wake.notified().await;
        }
    }

    /// Where `body`, the content of `file`, is to be an object; `None`: nowhere.
    pub(crate) fn upload_key(&self, file: &File, body: &BodyFile) -> Option<String> {
        let tree = self.tree.lock();
        let attachment = file.state().attachment;
        match attachment {
            Attachment::Linked => tree.key(file.ino).ok(),
            Attachment::Unlinked => None,
            // Somebody else's file has the name now. What S3 has of ours was begun for it all the same.
            Attachment::Replaced => body.upload.sheet.lock().key.clone(),
        }
    }

    /// Sends the complete parts of a file that is being written. `temporary`: also if its name looks so.
    pub(crate) async fn send_ahead(
        &self,
        file: &Arc<File>,
        body: &Arc<BodyFile>,
        temporary: bool,
    ) -> Result<(), StoreError> {
        let Some(key) = self.upload_key(file, body) else {
            return Ok(());
        };
        if !temporary && looks_temporary(&key) {
            return Ok(());
        }
        let mut begun = body.upload.begun.lock().await;
        if !file.state().writes_to(body) {
            return Ok(());
        }
        if begun.is_none() {
            *begun = Some(self.begin_upload(body, &key).await?);
        }
        match begun.as_ref().filter(|begun| begun.key == key) {
            Some(begun) => {
                let wanted = || file.state().writes_to(body);
                Upload::send(body, begun, None, &wanted).await
            }
            // It was renamed: the save begins anew.
            None => Ok(()),
        }
    }

    /// Gives up what an earlier process did not complete.
    pub(crate) fn give_up_leftovers(self: &Arc<Self>) {
        let left: Vec<(PathBuf, Slip)> = std::fs::read_dir(self.slips())
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let slip = serde_json::from_slice(&std::fs::read(&path).ok()?).ok();
                if slip.is_none() {
                    // Torn: its upload had not taken a part.
                    let _ = std::fs::remove_file(&path);
                }
                Some((path, slip?))
            })
            .collect();
        let core = self.clone();
        self.rt.spawn(async move {
            for (path, slip) in left {
                match core.store.give_up(&slip.key, &slip.id).await {
                    Ok(()) => drop(std::fs::remove_file(path)),
                    Err(error) => {
                        tracing::debug!(%error, key = slip.key, "an upload in parts is given up at the next start")
                    }
                }
            }
        });
    }
}

fn write_slip(dir: &Path, key: &str, id: &str) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(hex::encode(&Md5::digest(id.as_bytes())[..8]));
    let slip = Slip {
        key: key.to_owned(),
        id: id.to_owned(),
    };
    std::fs::write(&path, serde_json::to_vec(&slip).map_err(io::Error::other)?)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn numbers(due: &[Due]) -> Vec<u64> {
        due.iter().map(|due| due.number).collect()
    }

    fn send(sheet: &mut Sheet, until: u64, all: bool) {
        for due in sheet.due(until, all) {
            sheet.sent.insert(due.number, sheet.clock);
        }
    }

    #[test]
    fn a_part_is_due_when_the_writer_has_passed_it_and_again_when_it_was_changed() {
        let mut sheet = Sheet::default();
        for at in 0..23 {
            sheet.wrote(at * M, M);
        }
        assert_eq!((sheet.next, sheet.news), (23 * M, false), "it may still go as a whole");
        sheet.wrote(23 * M, 4 * M);
        assert!(sheet.news);
        assert_eq!(numbers(&sheet.due(sheet.next, false)), [0, 1, 2]);
        send(&mut sheet, 27 * M, false);
        assert!(sheet.due(sheet.next, false).is_empty());
        sheet.wrote(7 * M, 2 * M);
        assert_eq!(numbers(&sheet.due(sheet.next, false)), [0, 1], "both were changed");
        sheet.sent.insert(1, sheet.clock);
        assert_eq!((numbers(&sheet.due(27 * M, true)), sheet.sent_to()), (vec![0, 3], 0));
        let last = sheet.due(27 * M, true)[1];
        assert_eq!((last.at, last.len), (24 * M, 3 * M));
    }

    #[test]
    fn what_is_written_behind_a_gap_waits_for_it() {
        let mut sheet = Sheet::default();
        sheet.wrote(24 * M, M);
        assert_eq!((sheet.next, sheet.news), (0, false));
        sheet.wrote(0, 24 * M);
        assert_eq!((sheet.next, sheet.news), (24 * M, true));
        assert_eq!(numbers(&sheet.due(sheet.next, false)), [0, 1, 2]);
    }

    #[test]
    fn a_part_that_a_cut_went_through_is_sent_again() {
        let mut sheet = Sheet::default();
        sheet.wrote(0, 40 * M);
        send(&mut sheet, 40 * M, false);
        sheet.resized(40 * M, 20 * M);
        assert_eq!((sheet.next, numbers(&sheet.due(20 * M, true))), (20 * M, vec![2]));
        assert_eq!(sheet.sent.len(), 3);
        sheet.resized(20 * M, 40 * M);
        assert_eq!(numbers(&sheet.due(40 * M, true)), [2, 3, 4]);
    }

    #[test]
    fn content_too_long_for_parts_of_the_usual_length_gets_longer_ones() {
        let mut sheet = Sheet::default();
        let len = 100 << 30;
        sheet.start_over(len);
        assert!(sheet.due(len, true).len() as u64 <= PARTS_MAX);
        let last = sheet.due(len, true).pop().map(|due| due.at + due.len);
        assert_eq!(last, Some(len));
    }
}
