//! Changes made elsewhere: how long after a PUT beside the mount they are read, seen by stat, found by name, told by
//! inotify.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{
    Bench,
    subject::{self, Subject},
    world,
};

/// After this long nobody waits any more: rclone's directory cache holds for one minute.
const PATIENCE: Duration = Duration::from_secs(65);
/// A slower mount is asked once.
const SLOW: Duration = Duration::from_secs(10);

/// Row, and the file that is changed for it.
const KINDS: [(&str, &str); 4] = [
    ("remote.read", "read/app.js"),
    ("remote.stat", "stat/app.js"),
    ("remote.new", "new/fresh.js"),
    ("remote.inotify", "watched/app.js"),
];

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    if subject.is_floor() {
        return Ok(());
    }
    subject.fresh(&format!("remote-{}", subject.name().replace(' ', "-")))?;
    let _watch = subject.watch(PATIENCE * 4);
    for round in 0..bench.size.n {
        if one(bench, subject, &format!("live{round}"))? > SLOW {
            break;
        }
    }
    Ok(())
}

/// One change of each kind, all at once; how long the slowest took.
fn one(bench: &mut Bench, subject: &dyn Subject, work: &str) -> Result<Duration> {
    let name = subject.name();
    let bucket = subject.bucket().context("no bucket")?;
    let (old, new, longer) = (subject::text(1, 4096), subject::text(2, 4096), subject::text(3, 6000));
    for (_, file) in KINDS {
        let key = if file.starts_with("new/") { "new/old.js" } else { file };
        bucket.put(&format!("{work}/{key}"), old.clone())?;
    }
    let folder = subject.folder().join(work);
    let patience = if bench.size.part > 1 { PATIENCE / 3 } else { PATIENCE };
    let known = |file: &str| fs::read(folder.join(file)).is_ok_and(|body| body == old);
    for file in ["read/app.js", "stat/app.js", "new/old.js", "watched/app.js"] {
        let seen = super::command::until(patience, Duration::from_millis(20), || known(file));
        anyhow::ensure!(
            seen,
            "{file} put elsewhere does not show after {} s",
            patience.as_secs()
        );
    }
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
    let told = AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE;
    inotify.add_watch(&folder.join("watched"), told)?;
    inotify.add_watch(&folder.join("watched/app.js"), told)?;
    std::thread::sleep(Duration::from_secs(1));
    while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}

    let seen = |row: &str| match row {
        "remote.read" => fs::read(folder.join("read/app.js")).is_ok_and(|body| body == new),
        "remote.stat" => fs::metadata(folder.join("stat/app.js")).is_ok_and(|meta| meta.len() == 6000),
        "remote.new" => fs::read(folder.join("new/fresh.js")).is_ok_and(|body| body == new),
        _ => inotify.read_events().is_ok_and(|events| !events.is_empty()),
    };
    // A name that was looked up in vain is the hardest to see come.
    let _ = fs::metadata(folder.join("new/fresh.js"));
    let mut waiting = Vec::new();
    for (row, file) in KINDS {
        let body = if row == "remote.stat" { &longer } else { &new };
        bucket.put(&format!("{work}/{file}"), body.clone())?;
        waiting.push((row, Instant::now()));
    }
    let since = Instant::now();
    while !waiting.is_empty() && since.elapsed() < patience {
        world::go_on()?;
        waiting.retain(|(row, put)| {
            let seen = seen(row);
            if seen {
                bench.table.add(row, name, put.elapsed().as_secs_f64() * 1e3);
            }
            !seen
        });
        std::thread::sleep(Duration::from_millis(2));
    }
    for (row, _) in waiting {
        bench.table.note(row, name, format!("> {} s", patience.as_secs()));
    }
    Ok(since.elapsed())
}
