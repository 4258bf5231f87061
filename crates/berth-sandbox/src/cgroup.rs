//! The cgroups of a sandbox, whatever the host's layout: v1, hybrid or v2.
//!
//! libcontainer makes them (`/<instance>/<id>` in every hierarchy); here they are read, joined by `exec`, frozen, relieved of memory
//! and removed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::spec::{Reclaim, Stats};

/// Memory asked back at a time: between two of them is looked whether the sandbox has been thawed.
const RECLAIM_STEP: u64 = 4 << 20;

/// One mounted hierarchy.
#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    /// Empty for v2.
    controllers: Vec<String>,
}

/// The cgroups of one sandbox, one for each hierarchy where it has one.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    name: PathBuf,
}

impl Cgroup {
    pub fn new(instance: &str, id: &str) -> Self {
        Self {
            name: Path::new(instance).join(id),
        }
    }

    /// Its folders that exist.
    pub fn folders(&self) -> Vec<PathBuf> {
        hierarchies()
            .iter()
            .map(|h| h.mount.join(&self.name))
            .filter(|p| p.is_dir())
            .collect()
    }

    /// The folder of a v1 controller, or the v2 one.
    pub fn controller(&self, name: &str) -> Option<PathBuf> {
        let v1 = hierarchies().iter().find(|h| h.controllers.iter().any(|c| c == name));
        let v2 = hierarchies().iter().find(|h| h.controllers.is_empty());
        v1.or(v2).map(|h| h.mount.join(&self.name))
    }

    /// Moves a process in.
    pub fn join(&self, pid: i32) -> io::Result<()> {
        let folders = self.folders();
        if folders.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the sandbox has no cgroup"));
        }
        for folder in folders {
            fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// How many of its processes the kernel killed for memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(memory) = self.controller("memory") else {
            return 0;
        };
        [memory.join("memory.oom_control"), memory.join("memory.events")]
            .iter()
            .find_map(|p| field(p, "oom_kill"))
            .unwrap_or(0)
    }

    pub fn stats(&self) -> Stats {
        let read = |controller: &str, files: &[&str]| {
            let folder = self.controller(controller)?;
            files.iter().find_map(|f| number(&folder.join(f)))
        };
        let cpu_usec = read("cpuacct", &["cpuacct.usage"]).map(|ns| ns / 1000);
        let cpu_usec = cpu_usec.or_else(|| field(&self.controller("cpu")?.join("cpu.stat"), "usage_usec"));
        Stats {
            memory: read("memory", &["memory.usage_in_bytes", "memory.current"]).unwrap_or(0),
            cpu_usec: cpu_usec.unwrap_or(0),
            pids: read("pids", &["pids.current"]).unwrap_or(0),
            oom_kills: self.oom_kills(),
        }
    }

    /// Freezes or thaws all its processes.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        self.freezer()?.set(frozen)
    }

    /// Its freezer, opened.
    pub fn freezer(&self) -> io::Result<Freezer> {
        let folder = self
            .controller("freezer")
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no freezer on this host"))?;
        Freezer::open(&folder)
    }

    /// Hands memory to the kernel, for as long as `go_on` says so and the kernel takes something. Blocks.
    pub fn reclaim(&self, what: Reclaim, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        if what == Reclaim::Own && !has_swap(&fs::read_to_string("/proc/meminfo")?) {
            return Ok(());
        }
        let folder = self
            .controller("memory")
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no memory controller on this host"))?;
        let v1 = folder.join("memory.force_empty");
        if v1.exists() {
            // All at once: v1 has no way to ask for a part, nor for one sort. It returns when a few rounds got nothing more.
            return if go_on() { fs::write(v1, "0") } else { Ok(()) };
        }
        // Kernels before 6.16 know no "max", those before 6.10 no word at all.
        let words: &[&str] = match what {
            Reclaim::Own => &[" swappiness=max", " swappiness=200", ""],
            Reclaim::All => &[""],
        };
        let steps = number(&folder.join("memory.current")).unwrap_or(0) / RECLAIM_STEP + 1;
        for _ in 0..steps {
            if !go_on() || !reclaim_step(&folder.join("memory.reclaim"), words)? {
                break;
            }
        }
        Ok(())
    }

    /// Kills what is inside and removes the folders, trying for `patience`. Returns what is left.
    pub fn remove(&self, patience: Duration) -> Vec<PathBuf> {
        let _ = self.set_frozen(false);
        let until = Instant::now() + patience;
        loop {
            let left: Vec<PathBuf> = self.folders().into_iter().filter(|f| !remove_one(f)).collect();
            if left.is_empty() || Instant::now() >= until {
                return left;
            }
            // rmdir answers EBUSY until the killed processes are gone; the kernel offers no event for it on v1.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Asks for one step, with the first of `words` that the kernel knows. False when there is no more to be had.
fn reclaim_step(file: &Path, words: &[&str]) -> io::Result<bool> {
    let mut refused = io::Error::from(io::ErrorKind::InvalidInput);
    for word in words {
        match fs::write(file, format!("{RECLAIM_STEP}{word}")) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Of the text of `/proc/meminfo`.
fn has_swap(meminfo: &str) -> bool {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapFree:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.is_some_and(|kib| kib > 0)
}

/// The switch that gives a cgroup's processes CPU time or not, kept open: a request that finds its app frozen waits for one write.
#[derive(Debug)]
pub(crate) struct Freezer {
    switch: File,
    frozen: &'static [u8],
    thawed: &'static [u8],
}

impl Freezer {
    /// The switch of the cgroup at `folder`: `freezer.state` on v1, `cgroup.freeze` on v2.
    fn open(folder: &Path) -> io::Result<Self> {
        let open = |name: &str| OpenOptions::new().write(true).open(folder.join(name));
        match open("freezer.state") {
            Ok(switch) => Ok(Self {
                switch,
                frozen: b"FROZEN",
                thawed: b"THAWED",
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self {
                switch: open("cgroup.freeze")?,
                frozen: b"1",
                thawed: b"0",
            }),
            Err(error) => Err(error),
        }
    }

    /// Turns it. Returns at once: a process that is inside a system call stops at its end.
    pub fn set(&self, frozen: bool) -> io::Result<()> {
        let word = if frozen { self.frozen } else { self.thawed };
        self.switch.write_all_at(word, 0)
    }
}

fn remove_one(folder: &Path) -> bool {
    for pid in pids(folder) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    match fs::remove_dir(folder) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// `cgroup.procs` of the cgroup that this process is in, in any hierarchy.
pub(crate) fn own_procs_file() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let own = controllers.split(',').next().unwrap_or("");
        let found = hierarchies()
            .iter()
            .find(|h| h.controllers.iter().any(|c| c == own) || (own.is_empty() && h.controllers.is_empty()))?;
        let file = found.mount.join(path.trim_start_matches('/')).join("cgroup.procs");
        file.exists().then_some(file)
    })
}

/// The names of all sandboxes that have a cgroup under `instance`.
pub(crate) fn all_of(instance: &str) -> Vec<String> {
    let mut names: Vec<String> = hierarchies()
        .iter()
        .filter_map(|h| fs::read_dir(h.mount.join(instance)).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Removes the parent folders of an instance when they are empty.
pub(crate) fn remove_parent(instance: &str) {
    for hierarchy in hierarchies() {
        let _ = fs::remove_dir(hierarchy.mount.join(instance));
    }
}

fn pids(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 1)
        .collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn hierarchies() -> &'static [Hierarchy] {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    FOUND.get_or_init(|| parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
}

/// The cgroup mounts in the text of `/proc/self/mountinfo`. A named hierarchy (`name=systemd`) has nothing to limit and is left out.
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (right.next(), right.nth(1).unwrap_or(""));
        let Some(mount) = left.split(' ').nth(4) else { continue };
        let controllers: Vec<String> = match kind {
            Some("cgroup2") => Vec::new(),
            Some("cgroup") if options.split(',').any(|o| o.starts_with("name=")) => continue,
            Some("cgroup") => options
                .split(',')
                .filter(|o| *o != "rw" && *o != "ro")
                .map(str::to_owned)
                .collect(),
            _ => continue,
        };
        if !found.iter().any(|h| h.controllers == controllers) {
            found.push(Hierarchy {
                mount: PathBuf::from(mount),
                controllers,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn swap_is_found() {
        assert!(has_swap("MemTotal:  100 kB\nSwapTotal:  262140 kB\nSwapFree:  4 kB\n"));
        assert!(!has_swap("MemTotal:  100 kB\nSwapTotal:  262140 kB\nSwapFree:  0 kB\n"));
        assert!(!has_swap(""));
    }

    #[test]
    fn the_switch_of_either_layout_is_found_and_told_its_own_words() {
        for (file, frozen, thawed) in [("freezer.state", "FROZEN", "THAWED"), ("cgroup.freeze", "1", "0")] {
            let folder = tempfile::tempdir().unwrap();
            let switch = folder.path().join(file);
            for (on, word) in [(true, frozen), (false, thawed)] {
                // A file of a cgroup takes each write as a whole word; a plain one would keep what stood behind it.
                fs::write(&switch, "").unwrap();
                Freezer::open(folder.path()).unwrap().set(on).unwrap();
                assert_eq!(fs::read_to_string(&switch).unwrap(), word);
            }
        }
        let nothing = tempfile::tempdir().unwrap();
        assert!(Freezer::open(nothing.path()).is_err());
    }

    #[test]
    fn every_layout_of_cgroups_is_understood() {
        let hybrid = "30 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:2 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:3 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            33 30 0:4 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            34 30 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = parse_mounts(hybrid);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found[1].mount, Path::new("/sys/fs/cgroup/memory"));
        assert!(found[2].controllers.is_empty());
        let unified = parse_mounts("30 1 0:1 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(unified.len(), 1);
    }
}
