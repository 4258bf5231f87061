//! Opening: the newest state, the records after it, and what is left of contents.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use parking_lot::{Condvar, Mutex};

use super::{
    Bell, Bodies, BodyFile, Held, Inner, JournalError, Log, Recovered, Shared, Slot, Tracked,
    bodies::on_disk,
    held::{At, Body, Graves, Kind, Place},
    record::{self, Entry, Header},
    segment::{self, Segment},
    state,
};

/// Seqs left out at each open: more than a crash can have left behind a torn tail.
const GAP: u64 = 1 << 32;

struct Replay<'a> {
    dir: &'a Path,
    id: u64,
    slots: HashMap<String, (Entry, u64)>,
    order: u64,
    expected: u64,
    damage: Vec<JournalError>,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |error| JournalError::Open {
        path,
        source: Arc::new(error),
    }
}

pub(super) fn open(dir: &Path, max: u64, size: u64) -> Result<(Arc<Shared>, Vec<Recovered>), JournalError> {
    let (segments, bodies) = (dir.join("segments"), dir.join("bodies"));
    for dir in [dir, &segments, &bodies] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed(dir))?;
    let path = dir.join("lock");
    let file = segment::create(&path).map_err(failed(&path))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => JournalError::InUse { path: dir.to_owned() },
        errno => failed(&path)(errno.into()),
    })?;
    let path = dir.join("id");
    let id = id(&path).map_err(failed(&path))?;
    if let Some(parent) = dir.parent() {
        segment::sync_dir(parent).map_err(failed(parent))?;
    }

    let mut replay = Replay {
        dir,
        id,
        slots: HashMap::new(),
        order: 0,
        expected: 1,
        damage: Vec::new(),
    };
    replay.state().map_err(failed(dir))?;
    let files = files(&segments).map_err(failed(&segments))?;
    let mut broken = None;
    for (number, path) in files
        .iter()
        .filter(|(.., ext)| ext == "log")
        .map(|(number, path, _)| (*number, path))
    {
        replay.log(number, path, &mut broken).map_err(failed(path))?;
    }
    finish(replay, files, lock, max.max(3 * size), size)
}

/// The journal's own number: made once.
fn id(path: &Path) -> io::Result<u64> {
    match fs::read_to_string(path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut random = [0; 8];
            fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
            let id = u64::from_le_bytes(random);
            segment::replace(path, format!("{id:016x}\n").as_bytes(), || ())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// The numbered files of a folder, by number.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some((number, ext)) = segment::parse(&path) {
            found.push((number, path, ext));
        }
    }
    found.sort();
    Ok(found)
}

impl Replay<'_> {
    fn state(&mut self) -> io::Result<()> {
        for (_, path) in state::state_files(self.dir)? {
            let bytes = fs::read(&path)?;
            let state = Header::read(record::STATE, self.id, &bytes)
                .and_then(|header| Some((header.seq, header.entries(&bytes)?)));
            match state {
                Some((seq, entries)) => {
                    entries.into_iter().for_each(|entry| self.set(entry));
                    self.expected = seq + 1;
                    return Ok(());
                }
                None => self.damaged(&path, 0),
            }
        }
        Ok(())
    }

    fn set(&mut self, entry: Entry) {
        self.order += 1;
        match entry.value {
            Some(_) => self.slots.insert(entry.slot.clone(), (entry, self.order)),
            None => self.slots.remove(&entry.slot),
        };
    }

    fn damaged(&mut self, path: &Path, offset: u64) {
        let mut copy = path.as_os_str().to_owned();
        copy.push(".damaged");
        let error = JournalError::Damaged {
            path: path.to_owned(),
            offset,
        };
        tracing::warn!(%error, copy = %copy.display(), "what can be read of the journal is used");
        if path.exists()
            && !Path::new(&copy).exists()
            && let Err(error) = fs::copy(path, &copy)
        {
            tracing::warn!(%error, "the damaged file could not be copied");
        }
        self.damage.push(error);
    }

    /// The records of one segment. `broken` is where the last whole one ended.
    fn log(&mut self, number: u64, path: &Path, broken: &mut Option<(PathBuf, u64)>) -> io::Result<()> {
        let bytes = fs::read(path)?;
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= record::HEADER) {
            let Some((header, entries)) = whole(self.id, rest, number, at as u64) else {
                broken.get_or_insert_with(|| (path.to_owned(), at as u64));
                at += 8;
                // To the next header that could follow.
                while bytes.get(at..).is_some_and(|rest| {
                    rest.len() >= record::HEADER
                        && Header::read(record::RECORD, self.id, rest).is_none_or(|header| header.seq < self.expected)
                }) {
                    at += 8;
                }
                continue;
            };
            at += header.len as usize;
            if header.seq < self.expected || (header.seq > self.expected && header.durable < self.expected) {
                continue;
            }
            let before = broken.take();
            if header.seq > self.expected {
                let (path, offset) = before.unwrap_or_else(|| (path.to_owned(), 0));
                self.damaged(&path, offset);
            }
            self.expected = header.seq + 1;
            entries.into_iter().for_each(|entry| self.set(entry));
        }
        Ok(())
    }
}

/// The record at the start of `bytes`, if it and the contents behind it are whole.
fn whole(id: u64, bytes: &[u8], number: u64, base: u64) -> Option<(Header, Vec<Entry>)> {
    let header = Header::read(record::RECORD, id, bytes)?;
    let len = usize::try_from(header.len).ok()?;
    let record = bytes.get(..len).filter(|_| len >= record::HEADER)?;
    let entries = header.entries(record)?;
    for place in entries.iter().filter_map(|entry| entry.place) {
        let inside = place.kind == Kind::Log && place.number == number && place.offset >= base;
        if inside {
            let start = usize::try_from(place.offset - base).ok()?;
            let content = record.get(start..start.checked_add(usize::try_from(place.len).ok()?)?)?;
            if crc32fast::hash(content) != place.crc {
                return None;
            }
        }
    }
    Some((header, entries))
}

fn finish(
    mut replay: Replay<'_>,
    files: Vec<(u64, PathBuf, String)>,
    lock: Flock<fs::File>,
    max: u64,
    size: u64,
) -> Result<(Arc<Shared>, Vec<Recovered>), JournalError> {
    let (dir, id) = (replay.dir, replay.id);
    let body_dir = dir.join("bodies");
    let graves = Arc::new(Graves::default());
    let mut log = Log {
        next_number: files.last().map_or(0, |(number, ..)| number + 1),
        ..Log::default()
    };
    let mut inner = Inner {
        last_seq: replay.expected - 1 + GAP,
        order: replay.order,
        ..Inner::default()
    };
    inner.durable = inner.last_seq;
    graves
        .appended
        .store(inner.last_seq, std::sync::atomic::Ordering::SeqCst);
    let mut by_number: HashMap<(Kind, u64), Arc<Segment>> = HashMap::new();
    for (number, path, ext) in files {
        let kind = if ext == "pack" { Kind::Pack } else { Kind::Log };
        if !matches!(ext.as_str(), "log" | "pack" | "free") {
            continue;
        }
        let file = segment::open(&path).map_err(failed(&path))?;
        let len = file.metadata().map_err(failed(&path))?.len();
        let found = Segment {
            kind,
            number,
            path,
            file,
            size: len,
        };
        if ext == "free" {
            if len == size && log.free.len() < super::FREE_MAX {
                log.free.push_back(found);
                inner.free += 1;
                inner.segments += len;
            } else {
                fs::remove_file(&found.path).map_err(failed(&found.path))?;
            }
            continue;
        }
        inner.segments += len;
        let found = Arc::new(found);
        log.segments.push(found.clone());
        by_number.insert((kind, number), found);
    }

    let mut bodies = Bodies::default();
    let mut body_files = self::files(&body_dir).map_err(failed(&body_dir))?;
    bodies.next_number = body_files.last().map_or(0, |(number, ..)| number + 1);
    let mut held: HashMap<Place, Arc<Held>> = HashMap::new();
    let mut used = HashSet::new();
    let mut recovered = Vec::new();
    let mut slots: Vec<(Entry, u64)> = std::mem::take(&mut replay.slots).into_values().collect();
    slots.sort_by_key(|(entry, order)| (entry.seq, *order));
    for (entry, order) in slots {
        let content = match entry.place {
            None => None,
            Some(place) => {
                let found = held.get(&place).cloned().or_else(|| match place.kind {
                    Kind::Body => body(&body_dir, place, &graves, &mut bodies, &mut inner.bodies),
                    kind => in_segment(by_number.get(&(kind, place.number))?, place, &graves),
                });
                let Some(found) = found else {
                    let (path, offset) = match place.kind {
                        Kind::Body => (segment::path(&body_dir, place.number, "body"), 0),
                        Kind::Log => (segment::path(&dir.join("segments"), place.number, "log"), place.offset),
                        Kind::Pack => (segment::path(&dir.join("segments"), place.number, "pack"), place.offset),
                    };
                    replay.damaged(&path, offset);
                    continue;
                };
                if place.kind == Kind::Body {
                    used.insert(place.number);
                }
                held.insert(place, found.clone());
                Some(found)
            }
        };
        let value = entry.value.unwrap_or_default();
        let slot = Slot {
            value: Bytes::from(value.clone()),
            held: content.clone(),
            seq: entry.seq,
            order,
        };
        inner.slots.insert(entry.slot.as_str().into(), slot);
        recovered.push(Recovered {
            slot: entry.slot,
            value,
            held: content,
            seq: entry.seq,
        });
    }
    drop((held, by_number));

    let shared = Shared {
        dir: dir.to_owned(),
        id,
        id_text: format!("{id:016x}"),
        max,
        segment: size,
        inner: Mutex::new(inner),
        written: Condvar::new(),
        log: Mutex::new(log),
        bodies: Mutex::new(bodies),
        graves,
        checkpointing: Mutex::new(()),
        sparing: Mutex::default(),
        give_way: std::sync::OnceLock::new(),
        bell: Mutex::new(Bell {
            rung: true,
            stop: false,
        }),
        rung: Condvar::new(),
        damage: replay.damage,
        names_unsynced: AtomicBool::new(true),
        lock: Mutex::new(Some(lock)),
    };
    // From here on nothing of the log before is needed but the contents.
    shared.checkpoint()?;
    body_files.retain(|(number, ..)| !used.contains(number));
    for (_, path, ext) in body_files {
        // One that stays is tried again at the next open. A damaged one's copy has no number and is not among them.
        if ext == "body" {
            let _ = fs::remove_file(path);
        }
    }
    Ok((Arc::new(shared), recovered))
}

fn in_segment(segment: &Arc<Segment>, place: Place, graves: &Arc<Graves>) -> Option<Arc<Held>> {
    let held = Held::new(At::Segment(segment.clone(), place.offset), place.len, place.crc, graves);
    let whole = place.offset.checked_add(place.len)? <= segment.size;
    let bytes = whole
        .then(|| held.read(0, usize::try_from(place.len).ok()?).ok())
        .flatten()?;
    (crc32fast::hash(&bytes) == place.crc).then_some(held)
}

fn body(dir: &Path, place: Place, graves: &Arc<Graves>, bodies: &mut Bodies, total: &mut u64) -> Option<Arc<Held>> {
    let path = segment::path(dir, place.number, "body");
    let file = BodyFile::new(segment::open(&path).ok()?);
    let meta = file.metadata().ok()?;
    if meta.len() < place.len {
        return None;
    }
    let body = Arc::new(Body {
        number: place.number,
        path: path.clone(),
        file: file.clone(),
        len: place.len,
        disk: on_disk(&meta),
        synced: AtomicBool::new(true),
        suspect: AtomicBool::new(false),
        graves: graves.clone(),
    });
    let tracked = Tracked {
        number: place.number,
        path,
        file: Arc::downgrade(&file),
        body: Arc::downgrade(&body),
    };
    bodies.by_inode.insert(meta.ino(), tracked);
    *total += body.disk;
    Some(Held::new(At::Body(body), place.len, 0, graves))
}
