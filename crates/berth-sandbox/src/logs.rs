//! What an app wrote: one JSON object a line in `LOG_DIR/current.log`, rotated to `current.log.1` and `current.log.2`.
//!
//! The keeper writes, anybody reads. A line is written whole (`O_APPEND`), at most [`MAX_TEXT`] bytes of text; longer lines are cut into
//! several. When `current.log` reaches [`ROTATE_AT`] bytes it is renamed; a reader that follows notices by the inode, reads the rest of
//! the renamed file and goes on in the new one. Two keepers of the same app (the old and the new revision) may write to one folder: each
//! looks at the path's inode before it writes, so that it never appends to, or rotates, a file that the other has put away.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A log file is put away when it has this many bytes.
pub const ROTATE_AT: u64 = 4 << 20;
/// How many files that were put away are kept.
pub const KEEP: usize = 2;
/// Bytes of text in one line at most.
pub const MAX_TEXT: usize = 16 << 10;
/// The file that is written to.
pub const CURRENT: &str = "current.log";
/// Bytes written at once at most, and by how much a file may pass its limit.
const BATCH: usize = 64 << 10;
/// How often a follower looks.
const POLL: Duration = Duration::from_millis(100);

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The app's standard output.
    Stdout,
    /// The app's standard error.
    Stderr,
    /// Said by Berth about the app.
    Berth,
}

/// What the sandbox was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogPhase {
    /// Copying the source.
    Copy,
    /// Installing dependencies.
    Install,
    /// Running the app.
    App,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, RFC 3339 in UTC.
    pub t: String,
    /// Where from.
    pub stream: LogStream,
    /// During what.
    pub phase: LogPhase,
    /// The text, without its line end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl LogLine {
    /// A line of now.
    #[must_use]
    pub fn now(stream: LogStream, phase: LogPhase, text: impl Into<String>) -> Self {
        let t = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        Self {
            t,
            stream,
            phase,
            text: text.into(),
        }
    }
}

/// Appends lines, rotates, and goes on through a full disk (lines are lost and counted then).
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    file: Option<(File, u64)>,
    rotate_at: u64,
    lost: u64,
}

impl LogWriter {
    /// A writer into `dir`, which is made if missing. Never fails: what cannot be opened now is tried again at each write.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self::with_limit(dir, ROTATE_AT)
    }

    /// The same with another size of files.
    #[must_use]
    pub fn with_limit(dir: &Path, rotate_at: u64) -> Self {
        let mut writer = Self {
            dir: dir.to_owned(),
            file: None,
            rotate_at,
            lost: 0,
        };
        if writer.reopen().is_err() {
            writer.file = None;
        }
        writer
    }

    /// How many lines could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes `lines`, many with one system call.
    pub fn write(&mut self, lines: &[LogLine]) {
        let mut batch = Vec::new();
        let mut held = 0;
        for line in lines {
            if serde_json::to_writer(&mut batch, line).is_ok() {
                batch.push(b'\n');
            }
            held += 1;
            if batch.len() >= BATCH {
                self.flush(&mut batch, &mut held);
            }
        }
        self.flush(&mut batch, &mut held);
    }

    fn flush(&mut self, batch: &mut Vec<u8>, held: &mut u64) {
        if !batch.is_empty() && self.append(batch).is_err() {
            self.lost += *held;
            self.file = None;
        }
        batch.clear();
        *held = 0;
    }

    fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let path = self.dir.join(CURRENT);
        let ours = match (&self.file, fs::metadata(&path)) {
            (Some((_, inode)), Ok(meta)) if meta.ino() == *inode => Some(meta.len()),
            _ => None,
        };
        match ours {
            None => self.reopen()?,
            Some(size) if size >= self.rotate_at => {
                self.rotate();
                self.reopen()?;
            }
            Some(_) => {}
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(batch),
            None => Err(io::Error::other("no log file")),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        fs::create_dir_all(&self.dir)?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(CURRENT))?;
        let inode = file.metadata()?.ino();
        self.file = Some((file, inode));
        Ok(())
    }

    fn rotate(&mut self) {
        let current = self.dir.join(CURRENT);
        for n in (1..KEEP).rev() {
            let _ = fs::rename(put_away(&self.dir, n), put_away(&self.dir, n + 1));
        }
        let _ = fs::rename(current, put_away(&self.dir, 1));
    }
}

fn put_away(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{CURRENT}.{n}"))
}

/// The last `n` lines, oldest first, over all files of `dir`. A folder that is not there has no lines.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn read_tail(dir: &Path, n: usize) -> io::Result<Vec<LogLine>> {
    let mut lines: VecDeque<LogLine> = VecDeque::new();
    let paths = std::iter::once(dir.join(CURRENT)).chain((1..=KEEP).map(|k| put_away(dir, k)));
    for path in paths {
        if lines.len() >= n {
            break;
        }
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let older = last_lines(file, n - lines.len())?;
        for line in older.into_iter().rev() {
            lines.push_front(line);
        }
    }
    Ok(lines.into())
}

fn last_lines(file: File, n: usize) -> io::Result<Vec<LogLine>> {
    let mut keep: VecDeque<LogLine> = VecDeque::with_capacity(n.min(1024));
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(line) = serde_json::from_slice::<LogLine>(&line?) {
            if keep.len() == n {
                keep.pop_front();
            }
            keep.push_back(line);
        }
    }
    Ok(keep.into())
}

/// The last `tail` lines and then every line as it is written. Ends never; drop it. Looks every 100 ms and survives rotation.
pub fn follow(dir: &Path, tail: usize) -> impl Stream<Item = LogLine> + Send + 'static {
    let follower = Follower::start(dir, tail);
    futures::stream::unfold(follower, |mut follower| async move {
        loop {
            if let Some(line) = follower.ready.pop_front() {
                return Some((line, follower));
            }
            if !follower.read_more() {
                tokio::time::sleep(POLL).await;
            }
        }
    })
}

/// Reads on in `current.log`, and in its successor once it was put away.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
    ready: VecDeque<LogLine>,
}

impl Follower {
    fn start(dir: &Path, tail: usize) -> Self {
        let path = dir.join(CURRENT);
        // Opened at its end before the tail is read: a line written in between is seen twice at worst, never lost; the copy is dropped.
        let mut file = File::open(&path).ok();
        let end = file.as_mut().and_then(|f| f.seek(SeekFrom::End(0)).ok()).unwrap_or(0);
        let mut ready = VecDeque::new();
        if tail > 0 {
            ready.extend(tail_until(dir, file.as_ref().map(|_| end), tail));
        }
        Self {
            path,
            file,
            rest: Vec::new(),
            ready,
        }
    }

    /// Takes in what was written since. False when there was nothing.
    fn read_more(&mut self) -> bool {
        let Some(file) = &mut self.file else {
            self.file = File::open(&self.path).ok();
            return self.file.is_some();
        };
        let mut bytes = Vec::new();
        // The path is looked at before reading: what was written before it was put away is then in these bytes.
        let replaced = match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(mine), Ok(now)) => mine.ino() != now.ino(),
            _ => false,
        };
        let read = Read::by_ref(file).take(1 << 20).read_to_end(&mut bytes).unwrap_or(0);
        if read == 0 && replaced {
            self.file = File::open(&self.path).ok();
            self.rest.clear();
            return self.file.is_some();
        }
        self.rest.extend_from_slice(&bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Ok(line) = serde_json::from_slice(&line) {
                self.ready.push_back(line);
            }
        }
        read > 0
    }
}

/// The last lines up to byte `end` of the current file.
fn tail_until(dir: &Path, end: Option<u64>, n: usize) -> Vec<LogLine> {
    let mut lines = Vec::new();
    if let (Some(end), Ok(file)) = (end, File::open(dir.join(CURRENT))) {
        for line in BufReader::new(file.take(end)).split(b'\n').map_while(Result::ok) {
            lines.extend(serde_json::from_slice::<LogLine>(&line).ok());
        }
    }
    if lines.len() < n
        && let Ok(file) = File::open(put_away(dir, 1))
        && let Ok(mut older) = last_lines(file, n - lines.len())
    {
        older.append(&mut lines);
        lines = older;
    }
    lines.split_off(lines.len().saturating_sub(n))
}
