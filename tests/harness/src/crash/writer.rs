//! The process that saves: what people's programs do on the mount, at random, and what each call answered.
//!
//! Several threads, each with names of its own: its folders in two workspaces, files in a folder that all share, and whole
//! workspaces that it makes, moves and removes. A step is acknowledged by the call that ends it (`close`, `fsync`, `rename`,
//! ...), and by nothing before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use super::{
    model::{Entry, Expected, Step},
    names::{owner, roots, sum},
    record::{Order, Record, Recorder},
};

/// The variable that makes a process a writer; the path of its order.
pub const ORDER: &str = "BERTH_CRASH_ORDER";
/// Failed steps in a row after which an impatient thread gives up.
const PATIENCE: u32 = 20;
/// Pause of a patient one after a step that failed.
const PAUSE: Duration = Duration::from_millis(2);

/// Does what `BERTH_CRASH_ORDER` says; `false` if it says nothing.
///
/// # Panics
/// When the order cannot be read or the records cannot be written: nothing would be proved.
#[allow(clippy::expect_used)]
#[must_use]
pub fn run_if_ordered() -> bool {
    let Some(path) = std::env::var_os(ORDER) else {
        return false;
    };
    let text = fs::read(path).expect("the writer's order can be read");
    let order: Order = serde_json::from_slice(&text).expect("the writer's order is one");
    let log = Arc::new(Recorder::open(&order.log).expect("the records can be opened"));
    let threads: Vec<_> = (0..order.threads)
        .map(|id| {
            let (order, log) = (order.clone(), Arc::clone(&log));
            std::thread::spawn(move || Writer::new(id, order, log).work())
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread of the writer panics");
    }
    true
}

/// Why a step did not succeed.
struct Failure {
    errno: i32,
    /// What a save had written.
    left: Option<Vec<u8>>,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            left: None,
        }
    }
}

impl From<nix::Error> for Failure {
    fn from(errno: nix::Error) -> Self {
        io::Error::from(errno).into()
    }
}

/// What ends an operation early.
enum Stop {
    /// The daemon is gone: nothing works any more.
    Gone,
    /// A step failed; others may work.
    Failed,
    /// Something was read that nobody wrote.
    Misread,
}

type Done<T = ()> = Result<T, Stop>;

struct Writer {
    id: usize,
    order: Order,
    log: Arc<Recorder>,
    chance: StdRng,
    names: u32,
    expected: Expected,
}

impl Writer {
    fn new(id: usize, order: Order, log: Arc<Recorder>) -> Self {
        let own = |path: &String| owner(path) == Some(id);
        let tree = order.tree.iter().filter(|(path, _)| own(path));
        Self {
            id,
            expected: Expected::from(tree.map(|(path, entry)| (path.clone(), entry.clone())).collect()),
            chance: StdRng::seed_from_u64(order.seed ^ (id as u64) << 56),
            names: 0,
            order,
            log,
        }
    }

    fn work(mut self) {
        let mut failures = 0;
        let mut why = "all done";
        for _ in 0..self.order.operations {
            match self.operation() {
                Ok(()) => failures = 0,
                Err(Stop::Gone) => {
                    why = "the daemon is gone";
                    break;
                }
                Err(Stop::Misread) => {
                    why = "misread";
                    break;
                }
                Err(Stop::Failed) if self.order.patient => std::thread::sleep(PAUSE),
                Err(Stop::Failed) => {
                    failures += 1;
                    if failures == PATIENCE {
                        why = "every step fails";
                        break;
                    }
                }
            }
        }
        self.note(&Record::Ended(self.id, why.into()));
    }

    #[allow(clippy::expect_used)]
    fn note(&self, record: &Record) {
        self.log.note(record).expect("a record can be written");
    }

    /// Writes down the step, takes it, and writes down how it ended.
    fn step(&mut self, step: Step, take: impl FnOnce(&Self) -> Result<(), Failure>) -> Done {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.note(&Record::Begun(self.id, step.clone(), now.as_millis() as u64));
        self.expected.begun(step);
        match take(self) {
            Ok(()) => {
                self.note(&Record::Done(self.id));
                self.expected.acknowledged();
                Ok(())
            }
            // What the kernel says of a mount whose daemon has died.
            Err(Failure { errno, .. }) if gone(errno) => Err(Stop::Gone),
            Err(Failure { errno, left }) => {
                let left = left.map(|left| (left.len() as u64, sum(&left)));
                self.note(&Record::Failed(self.id, errno, left.clone()));
                self.expected.failed(left.as_ref());
                Err(Stop::Failed)
            }
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.order.mount.join(path)
    }

    fn operation(&mut self) -> Done {
        let files = self.pick(|entry| matches!(entry, Entry::File { .. }));
        let full = self.expected.tree.len() > 45;
        let Some(file) = files.filter(|_| self.chance.random_range(0..100) < 85) else {
            return match self.chance.random_range(0..10) {
                0 => self.make_folder(),
                1 => self.link(),
                _ if full => self.remove_folder(),
                _ => self.save_new(),
            };
        };
        match self.chance.random_range(0..100) {
            0..10 if !full => self.save_new(),
            10..18 => self.overwrite(&file),
            18..28 => self.append(&file),
            28..42 => {
                let content = self.content();
                self.save(&file, &content, Way::Cut)
            }
            42..56 => self.by_temporary(&file),
            56..60 => self.by_hidden_temporary(&file),
            60..68 => self.as_vim(&file),
            68..73 => self.saved_twice(&file),
            73..76 => self.cut(&file),
            76..80 => self.change_bits(&file),
            80..84 => self.move_file(&file),
            84..87 => self.move_over(&file),
            87..90 => self.move_folder(),
            90..92 => self.remove_folder(),
            92..94 if !full => self.make_folder(),
            _ => self.unlink(&file),
        }
    }

    /// One of this thread's names that is certain and fits.
    fn pick(&mut self, fits: impl Fn(&Entry) -> bool) -> Option<String> {
        let all = self.expected.tree.iter();
        let certain = all.filter(|(path, entry)| fits(entry) && self.expected.is_certain(path));
        let names: Vec<&String> = certain.map(|(path, _)| path).collect();
        let at = (!names.is_empty()).then(|| self.chance.random_range(0..names.len()))?;
        Some(names[at].clone())
    }

    /// A folder to make things in.
    fn folder(&mut self) -> String {
        if self.chance.random_range(0..6) == 0 {
            return "one/shared".into();
        }
        self.pick(|entry| matches!(entry, Entry::Dir))
            .unwrap_or_else(|| "one/shared".into())
    }

    /// A name that was never used, of all kinds that file names come in.
    fn name(&mut self, folder: &str) -> String {
        self.names += 1;
        let (id, round, number) = (self.id, self.order.round, self.names);
        let name = match number % 5 {
            0 => format!("t{id}-{round}-{number} with spaces"),
            1 => format!("t{id}-{round}-{number}-ünïcode.txt"),
            2 => format!("t{id}-{round}-{number}+%20&=?.dat"),
            _ => format!("t{id}-{round}-{number}.txt"),
        };
        format!("{folder}/{name}")
    }

    fn content(&mut self) -> Vec<u8> {
        let most = match self.chance.random_range(0..100) {
            0..6 => 1,
            6..8 if self.order.heavy && !self.order.patient => 40 << 20,
            6..8 if !self.order.patient => 12 << 20,
            8..20 => 300 << 10,
            _ if self.order.heavy => 900 << 10,
            _ => 8 << 10,
        };
        let mut content = vec![0; self.chance.random_range(0..most)];
        self.chance.fill_bytes(&mut content);
        // So that a person who looks at a torn file sees what it was to be.
        let tag = format!("round {} thread {} content {}\n", self.order.round, self.id, self.names);
        let len = tag.len().min(content.len());
        content[..len].copy_from_slice(&tag.as_bytes()[..len]);
        content
    }

    /// What the file holds; it must be what was acknowledged.
    fn read(&mut self, path: &str) -> Done<Vec<u8>> {
        let mut content = Vec::new();
        let read = File::open(self.at(path)).and_then(|mut file| file.read_to_end(&mut content));
        let want = self.expected.tree.get(path);
        let what = match (read, want) {
            (Err(error), _) if gone(error.raw_os_error().unwrap_or(0)) => return Err(Stop::Gone),
            // Not here and S3 does not answer.
            (Err(error), _) if error.raw_os_error() == Some(libc::EIO) => return Err(Stop::Failed),
            (Err(error), _) => format!("{path}: {error}"),
            (Ok(_), Some(Entry::File { len, sum: of, .. })) => {
                if *len == content.len() as u64 && *of == sum(&content) {
                    return Ok(content);
                }
                format!("{path}: {} bytes, acknowledged were {len}", content.len())
            }
            (Ok(_), other) => format!("{path}, which is {other:?}"),
        };
        self.note(&Record::Misread(self.id, what));
        Err(Stop::Misread)
    }

    fn save_new(&mut self) -> Done {
        let folder = self.folder();
        let path = self.name(&folder);
        let content = self.content();
        self.save(&path, &content, Way::New)
    }

    fn save(&mut self, path: &str, content: &[u8], way: Way) -> Done {
        let pieces = self.chance.random_range(1..4);
        let step = saved(path, content, way == Way::New);
        self.step(step, |this| {
            let mut options = OpenOptions::new();
            options.write(true).mode(0o644);
            match way {
                Way::New => options.create_new(true),
                Way::Cut => options.truncate(true),
            };
            let mut file = options.open(this.at(path))?;
            put(&mut file, content, pieces)?;
            close(file).map_err(|failure| failure.with(content))
        })
    }

    fn overwrite(&mut self, path: &str) -> Done {
        let mut content = self.read(path)?;
        let at = self.chance.random_range(0..=content.len());
        let mut new = self.content();
        new.truncate(64 << 10);
        let end = content.len().max(at + new.len());
        content.resize(end, 0);
        content[at..at + new.len()].copy_from_slice(&new);
        self.step(saved(path, &content, false), |this| {
            let file = OpenOptions::new().write(true).open(this.at(path))?;
            let written = file.write_all_at(&new, at as u64);
            let closed = close(file);
            written?;
            closed
        })
    }

    fn append(&mut self, path: &str) -> Done {
        let mut content = self.read(path)?;
        let mut new = self.content();
        new.truncate(64 << 10);
        content.extend_from_slice(&new);
        self.step(saved(path, &content, false), |this| {
            let mut file = OpenOptions::new().append(true).open(this.at(path))?;
            let written = file.write_all(&new);
            let closed = close(file);
            written?;
            closed
        })
    }

    /// As most editors save, and `sed -i`, and `rsync`.
    fn by_temporary(&mut self, path: &str) -> Done {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.names += 1;
        let (id, number) = (self.id, format!("{}{}", self.order.round, self.names));
        let temporary = match self.chance.random_range(0..3) {
            0 => format!("{folder}/t{id}-{name}.tmp{number}"),
            1 => format!("{folder}/t{id}-sed{number}"),
            _ => format!("{folder}/t{id}-{number}.new"),
        };
        let content = self.content();
        let synced = self.chance.random_range(0..4) != 0;
        let mut open = None;
        self.step(saved(&temporary, &content, true), |this| {
            let new = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(this.at(&temporary));
            let mut file = new?;
            put(&mut file, &content, 2)?;
            if synced {
                file.sync_all().map_err(|error| Failure::from(error).with(&content))?;
                open = Some(file);
                return Ok(());
            }
            close(file).map_err(|failure| failure.with(&content))
        })?;
        self.step(Step::Rename(temporary.clone(), path.into()), |this| {
            if let Some(file) = open {
                close(file)?;
            }
            Ok(fs::rename(this.at(&temporary), this.at(path))?)
        })
    }

    /// As GLib saves: its temporary file never goes to S3, so only the rename says anything.
    fn by_hidden_temporary(&mut self, path: &str) -> Done {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        self.names += 1;
        let temporary = format!("{folder}/.goutputstream-{}-{}", self.id, self.names);
        let content = self.content();
        self.step(saved(path, &content, true), |this| {
            let mut file = File::create(this.at(&temporary))?;
            file.write_all(&content)?;
            file.sync_all()?;
            close(file)?;
            Ok(fs::rename(this.at(&temporary), this.at(path))?)
        })
    }

    /// As vim saves, with `backupcopy` no or yes.
    fn as_vim(&mut self, path: &str) -> Done {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mode = match self.expected.tree.get(path) {
            Some(Entry::File { mode, .. }) => *mode,
            _ => return Ok(()),
        };
        let swap = self.at(&format!("{folder}/.{name}.swp"));
        let backup = self.at(&format!("{path}~"));
        let local = |done: io::Result<()>| match done {
            Err(error) if gone(error.raw_os_error().unwrap_or(0)) => Err(Stop::Gone),
            _ => Ok(()),
        };
        local(fs::write(&swap, "swap"))?;
        let content = self.content();
        if self.chance.random_range(0..2) == 0 {
            let probe = self.at(&format!("{folder}/4913"));
            local(fs::write(&probe, ""))?;
            local(fs::remove_file(&probe))?;
            self.step(Step::Aside(path.into()), |this| Ok(fs::rename(this.at(path), &backup)?))?;
            self.step(saved(path, &content, true), |this| {
                let new = OpenOptions::new().write(true).create_new(true).open(this.at(path));
                let mut file = new?;
                put(&mut file, &content, 1)?;
                file.sync_all().map_err(|error| Failure::from(error).with(&content))?;
                close(file).map_err(|failure| failure.with(&content))
            })?;
            self.bits(path, mode)?;
        } else {
            let old = self.read(path)?;
            local(fs::write(&backup, old))?;
            self.save(path, &content, Way::Cut)?;
        }
        local(fs::remove_file(&backup))?;
        local(fs::remove_file(&swap))
    }

    /// Acknowledged by `fsync`, then written on and acknowledged by `close`.
    fn saved_twice(&mut self, path: &str) -> Done {
        let first = self.content();
        let mut open = None;
        self.step(saved(path, &first, false), |this| {
            let mut file = OpenOptions::new().write(true).truncate(true).open(this.at(path))?;
            put(&mut file, &first, 2)?;
            file.sync_all().map_err(|error| Failure::from(error).with(&first))?;
            open = Some(file);
            Ok(())
        })?;
        let Some(mut file) = open else { return Ok(()) };
        let mut more = self.content();
        more.truncate(100 << 10);
        let all = [first, more.clone()].concat();
        self.step(saved(path, &all, false), |_| {
            let written = file.write_all(&more);
            let closed = close(file);
            written?;
            closed
        })
    }

    fn cut(&mut self, path: &str) -> Done {
        let mut content = self.read(path)?;
        let len = self.chance.random_range(0..=content.len() + 100);
        content.resize(len, 0);
        self.step(saved(path, &content, false), |this| {
            Ok(nix::unistd::truncate(&this.at(path), len as i64)?)
        })
    }

    fn change_bits(&mut self, path: &str) -> Done {
        let mode = [0o755, 0o644, 0o600][self.chance.random_range(0..3)];
        self.bits(path, mode)
    }

    fn bits(&mut self, path: &str, mode: u32) -> Done {
        self.step(Step::Chmod(path.into(), mode), |this| {
            Ok(fs::set_permissions(this.at(path), fs::Permissions::from_mode(mode))?)
        })
    }

    fn move_file(&mut self, path: &str) -> Done {
        let folder = self.folder();
        let to = self.name(&folder);
        self.rename(path, &to)
    }

    fn move_over(&mut self, path: &str) -> Done {
        match self.pick(|entry| matches!(entry, Entry::File { .. })) {
            Some(to) if to != path => self.rename(path, &to),
            _ => Ok(()),
        }
    }

    fn move_folder(&mut self) -> Done {
        let Some(from) = self.removable() else { return Ok(()) };
        let to = match self.chance.random_range(0..5) {
            0 => self.workspace(),
            _ => {
                let folder = self.folder();
                if super::model::within(&folder, &from) {
                    return Ok(());
                }
                self.name(&folder)
            }
        };
        self.rename(&from, &to)
    }

    fn rename(&mut self, from: &str, to: &str) -> Done {
        self.step(Step::Rename(from.into(), to.into()), |this| {
            Ok(fs::rename(this.at(from), this.at(to))?)
        })
    }

    fn unlink(&mut self, path: &str) -> Done {
        self.step(Step::Unlink(path.into()), |this| Ok(fs::remove_file(this.at(path))?))
    }

    fn workspace(&mut self) -> String {
        self.names += 1;
        format!("solo-t{}-{}-{}", self.id, self.order.round, self.names)
    }

    fn make_folder(&mut self) -> Done {
        let path = if self.chance.random_range(0..5) == 0 {
            self.workspace()
        } else {
            let folder = self.folder();
            self.name(&folder)
        };
        self.step(Step::Mkdir(path.clone()), |this| Ok(fs::create_dir(this.at(&path))?))
    }

    fn link(&mut self) -> Done {
        let folder = self.folder();
        let path = self.name(&folder);
        let target = format!("to/{}", self.names);
        self.step(Step::Symlink(path.clone(), target.clone()), |this| {
            Ok(std::os::unix::fs::symlink(&target, this.at(&path))?)
        })
    }

    /// A folder of this thread that need not stay.
    fn removable(&mut self) -> Option<String> {
        let roots = roots(self.order.threads);
        let folder = self.pick(|entry| matches!(entry, Entry::Dir))?;
        (!roots.contains(&folder)).then_some(folder)
    }

    /// `rm -r`.
    fn remove_folder(&mut self) -> Done {
        let Some(folder) = self.removable() else { return Ok(()) };
        let all = self.expected.tree.iter().rev();
        let inside: Vec<(String, Entry)> = all
            .filter(|(path, _)| super::model::within(path, &folder))
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect();
        for (path, entry) in inside {
            match entry {
                Entry::Dir => self.step(Step::Rmdir(path.clone()), |this| Ok(fs::remove_dir(this.at(&path))?))?,
                _ => self.unlink(&path)?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    New,
    Cut,
}

impl Failure {
    fn with(mut self, left: &[u8]) -> Self {
        self.left = Some(left.to_vec());
        self
    }
}

fn saved(path: &str, content: &[u8], fresh: bool) -> Step {
    Step::Save {
        path: path.into(),
        len: content.len() as u64,
        sum: sum(content),
        fresh,
    }
}

/// Writes all, in pieces; after an error the file is closed by the caller's drop and holds what was taken until then.
fn put(file: &mut File, content: &[u8], pieces: usize) -> Result<(), Failure> {
    let piece = content.len().div_ceil(pieces).max(1);
    let mut at = 0;
    while at < content.len() {
        let end = content.len().min(at + piece);
        match file.write(&content[at..end]) {
            Ok(taken) => at += taken,
            Err(error) => return Err(Failure::from(error).with(&content[..at])),
        }
    }
    Ok(())
}

/// close(2), and what it said.
fn close(file: File) -> Result<(), Failure> {
    Ok(nix::unistd::close(file.into_raw_fd())?)
}

/// Whether the error says that the mount's daemon has died.
fn gone(errno: i32) -> bool {
    matches!(errno, libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV)
}
