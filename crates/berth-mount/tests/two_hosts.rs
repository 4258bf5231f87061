//! Two hosts and one bucket, random saves on both, networks that fail: nothing acknowledged is lost, torn or overwritten
//! unseen.
//!
//! Every save has a content of its own. A save says through its descriptor what it replaces, a removal what it takes away
//! (the file is first moved to a local-only name and read there). So in the end each acknowledged content must be in the
//! bucket, under its name or as a conflict copy, or somebody must have replaced it knowingly.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::fd::IntoRawFd,
    time::{Duration, Instant},
};

use berth_harness::fault_proxy::{Fault, Reach, Rule};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use world::{Host, World};

/// Closes and says what close said.
fn close(file: File) -> io::Result<()> {
    nix::unistd::close(file.into_raw_fd()).map_err(io::Error::from)
}

#[derive(Default)]
struct History {
    /// Contents of acknowledged saves.
    saved: BTreeMap<String, String>,
    /// Every content that was ever written, acknowledged or not.
    written: BTreeSet<String>,
    /// Contents that somebody replaced or removed, having seen them.
    replaced: BTreeSet<String>,
    count: usize,
}

impl History {
    fn content(&mut self, who: &str) -> String {
        self.count += 1;
        // Some longer than one page, so that a torn one would show.
        let body = format!("<{who} {}>", self.count).repeat(if self.count.is_multiple_of(5) { 2_000 } else { 1 });
        self.written.insert(body.clone());
        body
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
            .and_then(|()| file.write_all(body.as_bytes()));
        let acknowledged = wrote.and_then(|()| close(file)).is_ok();
        self.replaced.insert(seen);
        if acknowledged {
            self.saved.insert(body, format!("{who} over {name}"));
        }
    }

    fn create(&mut self, who: &str, host: &Host, name: &str) {
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(host.path(name)) else {
            return;
        };
        let body = self.content(who);
        if file.write_all(body.as_bytes()).and_then(|()| close(file)).is_ok() {
            self.saved.insert(body, format!("{who} as {name}"));
        }
    }

    fn remove(&mut self, who: &str, host: &Host, name: &str) {
        let taken = host.path(&format!("app/.{who}.swp"));
        if fs::rename(host.path(name), &taken).is_ok() {
            self.replaced.insert(fs::read_to_string(&taken).unwrap());
            fs::remove_file(&taken).unwrap();
        }
    }

    fn step(&mut self, random: &mut StdRng, who: &str, host: &Host) {
        const NAMES: [&str; 6] = ["app/a", "app/b", "app/c", "app/sub/d", "app/sub/e", "app/f"];
        let name = NAMES.choose(random).unwrap();
        match random.random_range(0..10) {
            0..=3 => self.overwrite(who, host, name),
            4..=6 => self.create(who, host, name),
            7 => self.remove(who, host, name),
            8 => {
                let other = host.path(NAMES.choose(random).unwrap());
                let flags = RenameFlags::RENAME_NOREPLACE;
                // It may not be there, or the other may: both are fine.
                let _ = renameat2(AT_FDCWD, &host.path(name), AT_FDCWD, &other, flags);
            }
            _ => {
                let folder = ["app/sub", "app/dir"].choose(random).unwrap();
                let other = ["app/sub", "app/dir"].choose(random).unwrap();
                let _ = fs::rename(host.path(folder), host.path(other));
                let _ = fs::create_dir(host.path("app/sub"));
            }
        }
    }
}

fn misbehave(random: &mut StdRng, host: &Host) {
    let faults = [
        Fault::Status(503),
        Fault::Status(500),
        Fault::CutBefore,
        Fault::CutDuring,
        Fault::CutAfter,
        Fault::Truncated,
        Fault::Slow(Duration::from_millis(5)),
    ];
    match random.random_range(0..6) {
        0 => host.proxy.reach(Reach::Refused),
        1 | 2 => host.proxy.heal(),
        _ => {
            host.proxy.reach(Reach::Up);
            let fault = *faults.choose(random).unwrap();
            host.proxy.set([Rule::sometimes(random.random_range(5..50), fault)]);
        }
    }
}

fn shown(host: &Host) -> BTreeMap<String, String> {
    fn walk(dir: &std::path::Path, prefix: &str, out: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), out);
            } else {
                out.insert(name, fs::read_to_string(entry.path()).unwrap_or_else(|e| e.to_string()));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(&host.path(""), "", &mut out);
    out
}

/// Waits until the mount shows what the bucket has, and nothing else.
fn converges(seed: u64, world: &World, host: &Host) {
    let since = Instant::now();
    loop {
        let (shown, stored) = (shown(host), world.objects());
        if shown == stored {
            return;
        }
        let differs = |(key, body): &(&String, &String)| stored.get(*key) != Some(*body);
        let wrong: Vec<_> = shown
            .iter()
            .filter(differs)
            .map(|(key, body)| format!("{key}={body:.30}"))
            .collect();
        let missing: Vec<_> = stored.keys().filter(|key| !shown.contains_key(*key)).collect();
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "seed {seed}: {} shows {wrong:?}, and not {missing:?}; the bucket has {:?}",
            host.config.mountpoint.display(),
            stored
                .iter()
                .map(|(key, body)| format!("{key}={body:.30}"))
                .collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(seed: u64, steps: usize) {
    let world = World::new();
    let mut random = StdRng::seed_from_u64(seed);
    world.put("app/a", "seed a");
    world.put("app/sub/d", "seed d");
    let mut hosts = [world.host("left", seed, |_| {}), world.host("right", seed + 1, |_| {})];
    let mut history = History::default();
    history.written.extend(["seed a".to_owned(), "seed d".to_owned()]);
    for _ in 0..steps {
        let which = random.random_range(0..2);
        let who = ["left", "right"][which];
        match random.random_range(0..20) {
            0 | 1 => misbehave(&mut random, &hosts[which]),
            2 => {
                world.kill(&mut hosts[which]);
                hosts[which].proxy.heal();
                hosts[which].proxy.reach(Reach::Up);
                world.start(&mut hosts[which]);
            }
            3 => std::thread::sleep(Duration::from_millis(random.random_range(0..30))),
            _ => history.step(&mut random, who, &hosts[which]),
        }
    }
    for host in &hosts {
        host.proxy.reach(Reach::Up);
        host.proxy.heal();
    }
    for host in &hosts {
        world.settle(host);
    }
    let objects = world.objects();
    let there: BTreeSet<&String> = objects.values().collect();
    for (key, body) in &objects {
        assert!(
            history.written.contains(body),
            "seed {seed}: {key} is torn: {:.80}",
            body
        );
    }
    for (body, how) in &history.saved {
        assert!(
            there.contains(body) || history.replaced.contains(body),
            "seed {seed}: lost {body:.60}, saved by {how}; there are {:?}",
            objects
                .iter()
                .map(|(key, body)| format!("{key}={body:.30}"))
                .collect::<Vec<_>>()
        );
    }
    for host in &hosts {
        converges(seed, &world, host);
    }
}

#[test]
fn whatever_two_hosts_do_nothing_acknowledged_is_lost_torn_or_overwritten_unseen() {
    let histories: u64 = std::env::var("BERTH_HISTORIES").map_or(6, |n| n.parse().unwrap());
    let first: u64 = std::env::var("BERTH_SEED").map_or(1, |n| n.parse().unwrap());
    for seed in first..first + histories {
        run(seed, 80);
    }
}
