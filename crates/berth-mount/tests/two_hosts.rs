//! Two hosts, a plain S3 client and one bucket; random work on all three, networks that fail, daemons that die: nothing
//! acknowledged is lost, torn or overwritten unseen, and in the end both hosts show what the bucket has.
//!
//! Every save has a content of its own. A save says through its descriptor what it replaces, a removal what it takes away
//! (the file is first moved to a local-only name and read there), the client by its precondition. So in the end each
//! acknowledged content must be in the bucket, under its name or as a conflict copy, or somebody must have replaced it knowingly.
//!
//! `BERTH_SEED=N BERTH_HISTORIES=M` runs other histories; a failure prints its seed, and what was done before it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    time::{Duration, Instant},
};

use berth_harness::fault_proxy::{Fault, Reach, Rule};
use berth_store::Precondition;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use world::{Host, World};

const NAMES: [&str; 6] = ["app/a", "app/b", "app/c", "app/sub/d", "app/sub/e", "app/f"];
const STEPS: usize = 80;

/// Closes and says what close said.
fn close(file: File) -> io::Result<()> {
    nix::unistd::close(file.into_raw_fd()).map_err(io::Error::from)
}

fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE).map_err(io::Error::from)
}

struct History {
    since: Instant,
    /// Contents of acknowledged saves.
    saved: BTreeMap<String, String>,
    /// Every content that was ever written, acknowledged or not.
    written: BTreeSet<String>,
    /// Contents that somebody replaced or removed, having seen them.
    replaced: BTreeSet<String>,
    count: usize,
    told: Vec<String>,
}

impl History {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            saved: BTreeMap::new(),
            written: BTreeSet::from(["seed a".to_owned(), "seed d".to_owned()]),
            replaced: BTreeSet::new(),
            count: 0,
            told: Vec::new(),
        }
    }

    fn tell(&mut self, what: String) {
        let at = self.since.elapsed();
        self.told
            .push(format!("{:>9.3} ms  {what}", at.as_secs_f64() * 1_000.0));
    }

    fn content(&mut self, who: &str) -> String {
        self.count += 1;
        // Some longer than one page, so that a torn one would show.
        let body = format!("<{who} {}>", self.count).repeat(if self.count.is_multiple_of(5) { 2_000 } else { 1 });
        self.written.insert(body.clone());
        body
    }

    fn acknowledged(&mut self, what: String, body: String, result: &io::Result<()>) {
        self.tell(format!("{what}: {body:.16} {}", ended(result)));
        if result.is_ok() {
            self.saved.insert(body, what);
        }
    }

    /// Overwrites in place, through one descriptor.
    fn overwrite(&mut self, who: &str, host: &Host, name: &str) {
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(host.path(name)) else {
            return;
        };
        let mut seen = String::new();
        if file.read_to_string(&mut seen).is_err() {
            return;
        }
        let body = self.content(who);
        let wrote = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(body.as_bytes()))
            .and_then(|()| close(file));
        let what = format!("{who} over {name} ({seen:.16})");
        self.replaced.insert(seen);
        self.acknowledged(what, body, &wrote);
    }

    fn create(&mut self, who: &str, host: &Host, name: &str) {
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(host.path(name)) else {
            return;
        };
        let body = self.content(who);
        let wrote = file.write_all(body.as_bytes()).and_then(|()| close(file));
        self.acknowledged(format!("{who} as {name}"), body, &wrote);
    }

    /// Takes the file away to a local-only name; what it was.
    fn take(&mut self, who: &str, host: &Host, name: &str) -> Option<String> {
        let taken = host.path(&format!("app/.{who}.swp"));
        fs::rename(host.path(name), &taken).ok()?;
        let seen = fs::read_to_string(&taken).unwrap();
        self.tell(format!("{who} takes away {name} ({seen:.16})"));
        Some(seen)
    }

    fn remove(&mut self, who: &str, host: &Host, name: &str) {
        if let Some(seen) = self.take(who, host, name) {
            self.replaced.insert(seen);
            fs::remove_file(host.path(&format!("app/.{who}.swp"))).unwrap();
        }
    }

    /// As editors do: the old file becomes a backup, a new one is written beside it and gets the name.
    fn save_with_backup(&mut self, who: &str, host: &Host, name: &str) {
        let Some(seen) = self.take(who, host, name) else { return };
        let beside = host.path(&format!("{name}.{who}.tmp"));
        let body = self.content(who);
        let saved = fs::write(&beside, &body).and_then(|()| rename_to_free_name(&beside, &host.path(name)));
        if saved.is_err() {
            // Somebody else has the name: nothing was saved.
            let _ = fs::remove_file(&beside);
        }
        self.replaced.insert(seen);
        self.acknowledged(format!("{who} beside, then as {name}"), body, &saved);
        let _ = fs::remove_file(host.path(&format!("app/.{who}.swp")));
    }

    fn rename(&mut self, random: &mut StdRng, who: &str, host: &Host, name: &str) {
        let other = *NAMES.choose(random).unwrap();
        // It may not be there, or the other may: both are fine.
        if rename_to_free_name(&host.path(name), &host.path(other)).is_ok() {
            self.tell(format!("{who} renames {name} to {other}"));
        }
    }

    fn rename_folder(&mut self, random: &mut StdRng, who: &str, host: &Host) {
        let folders = ["app/sub", "app/dir"];
        let (from, to) = (*folders.choose(random).unwrap(), *folders.choose(random).unwrap());
        if from != to && fs::rename(host.path(from), host.path(to)).is_ok() {
            self.tell(format!("{who} renames {from} to {to}"));
        }
        let _ = fs::create_dir(host.path("app/sub"));
    }

    fn step(&mut self, random: &mut StdRng, who: &str, host: &Host) {
        let name = *NAMES.choose(random).unwrap();
        match random.random_range(0..13) {
            0..=3 => self.overwrite(who, host, name),
            4..=6 => self.create(who, host, name),
            7 => self.remove(who, host, name),
            8 => self.rename(random, who, host, name),
            9 => self.rename_folder(random, who, host),
            10 => self.save_with_backup(who, host, name),
            11 => {
                let mode = *[0o600, 0o644, 0o755].choose(random).unwrap();
                if fs::set_permissions(host.path(name), Permissions::from_mode(mode)).is_ok() {
                    self.tell(format!("{who} gives {name} the mode {mode:o}"));
                }
            }
            _ => {
                let link = host.path("app/link");
                let made = fs::remove_file(&link).and_then(|()| symlink(name, &link));
                let made = made.or_else(|_| symlink(name, &link));
                self.tell(format!("{who} links to {name} {}", ended(&made)));
            }
        }
    }

    /// A tool that knows nothing of Berth, but asks for what it replaces.
    fn elsewhere(&mut self, random: &mut StdRng, world: &World) {
        let name = *NAMES.choose(random).unwrap();
        let there = match world.block_on(world.store.get(name)) {
            Ok((info, bytes)) => Some((info.etag, String::from_utf8(bytes.to_vec()).unwrap())),
            Err(error) if error.is_no_such_key() => None,
            Err(error) => panic!("{error}"),
        };
        match there {
            Some((etag, seen)) if random.random_range(0..4) == 0 => {
                if world.block_on(world.store.delete_if(name, &etag)).is_ok() {
                    self.tell(format!("a client removes {name} ({seen:.16})"));
                    self.replaced.insert(seen);
                }
            }
            there => {
                let body = self.content("client");
                let (pre, seen) = match there {
                    Some((etag, seen)) => (Precondition::Matches(etag), Some(seen)),
                    None => (Precondition::Absent, None),
                };
                let put = world.block_on(world.store.put(name, body.clone().into(), pre));
                if put.is_ok() {
                    self.replaced.extend(seen);
                }
                let result = put.map(drop).map_err(io::Error::other);
                self.acknowledged(format!("a client as {name}"), body, &result);
            }
        }
    }
}

fn ended(result: &io::Result<()>) -> String {
    result.as_ref().map_or_else(ToString::to_string, |()| "done".to_owned())
}

fn misbehave(random: &mut StdRng, host: &Host) -> String {
    let faults = [
        Fault::Status(503),
        Fault::Status(500),
        Fault::CutBefore,
        Fault::CutDuring,
        Fault::CutAfter,
        Fault::Truncated,
        Fault::Hang,
        Fault::Slow(Duration::from_millis(5)),
    ];
    match random.random_range(0..7) {
        0 => host.proxy.reach(Reach::Refused),
        1 => host.proxy.reach(Reach::Closed),
        2 | 3 => host.proxy.heal(),
        _ => {
            host.proxy.reach(Reach::Up);
            let fault = *faults.choose(random).unwrap();
            // What hangs does so until the rules change.
            let percent = if fault == Fault::Hang {
                5
            } else {
                random.random_range(5..50)
            };
            host.proxy.set([Rule::sometimes(percent, fault)]);
            return format!("{percent} % {fault:?}");
        }
    }
    "all or nothing".to_owned()
}

/// What the mount shows: files with contents, symbolic links; and the bits of the files.
fn shown(host: &Host) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    fn walk(dir: &Path, prefix: &str, out: &mut (BTreeMap<String, String>, BTreeMap<String, String>)) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                walk(&entry.path(), &format!("{name}/"), out);
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path());
                out.1
                    .insert(name, target.map_or_else(|e| e.to_string(), |t| t.display().to_string()));
            } else {
                out.1.insert(name.clone(), format!("{:o}", meta.mode() & 0o7777));
                out.0
                    .insert(name, fs::read_to_string(entry.path()).unwrap_or_else(|e| e.to_string()));
            }
        }
    }
    let mut out = (BTreeMap::new(), BTreeMap::new());
    walk(&host.path(""), "", &mut out);
    out
}

fn brief(files: &BTreeMap<String, String>) -> Vec<String> {
    files.iter().map(|(key, body)| format!("{key}={body:.30}")).collect()
}

/// Waits until both mounts show what the bucket has, nothing else, and the same bits and links.
fn converges(world: &World, hosts: &[Host; 2]) {
    let since = Instant::now();
    loop {
        let stored = world.objects();
        let [left, right] = hosts.each_ref().map(shown);
        if left.0 == stored && right.0 == stored && left.1 == right.1 {
            return;
        }
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "never the same:\n  left shows {:?} {:?}\n  right shows {:?} {:?}\n  the bucket has {:?}",
            brief(&left.0),
            left.1,
            brief(&right.0),
            right.1,
            brief(&stored)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn nothing_lost(world: &World, history: &History) {
    let objects = world.objects();
    let there: BTreeSet<&String> = objects.values().collect();
    for (key, body) in &objects {
        assert!(history.written.contains(body), "{key} is torn: {body:.80}");
    }
    for (body, how) in &history.saved {
        assert!(
            there.contains(body) || history.replaced.contains(body),
            "lost {body:.60}, saved by {how}; there are {:?}",
            brief(&objects)
        );
    }
}

fn run(seed: u64, history: &mut History) {
    let world = World::new();
    let mut random = StdRng::seed_from_u64(seed);
    world.put("app/a", "seed a");
    world.put("app/sub/d", "seed d");
    let mut hosts = [world.host("left", seed, |_| {}), world.host("right", seed + 1, |_| {})];
    for _ in 0..STEPS {
        let which = random.random_range(0..2);
        let who = ["left", "right"][which];
        match random.random_range(0..22) {
            0 | 1 => {
                let how = misbehave(&mut random, &hosts[which]);
                history.tell(format!("the network of {who}: {how}"));
            }
            2 => {
                history.tell(format!("{who} dies"));
                world.kill(&mut hosts[which]);
                hosts[which].proxy.heal();
                hosts[which].proxy.reach(Reach::Up);
                world.start(&mut hosts[which]);
                history.tell(format!("{who} is up again"));
            }
            3 => std::thread::sleep(Duration::from_millis(random.random_range(0..30))),
            4 | 5 => history.elsewhere(&mut random, &world),
            _ => history.step(&mut random, who, &hosts[which]),
        }
    }
    for host in &hosts {
        host.proxy.reach(Reach::Up);
        host.proxy.heal();
    }
    history.tell("the networks are well again".to_owned());
    for host in &hosts {
        world.settle(host);
    }
    nothing_lost(&world, history);
    converges(&world, &hosts);
    nothing_lost(&world, history);
}

/// Says with a failure which history it was.
struct Teller {
    seed: u64,
    history: History,
}

impl Drop for Teller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}; what was done:\n{}", self.seed, self.history.told.join("\n"));
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |n| n.parse().expect("a number"))
}

#[test]
fn whatever_two_hosts_do_nothing_acknowledged_is_lost_torn_or_overwritten_unseen() {
    let first = number("BERTH_SEED", 1);
    for seed in first..first + number("BERTH_HISTORIES", 6) {
        let history = History::new();
        let mut teller = Teller { seed, history };
        run(seed, &mut teller.history);
    }
}
