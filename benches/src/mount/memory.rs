//! What the mount's process keeps in memory for 100,000 files whose names are known.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    Bench, command,
    subject::{self, Subject},
};

const LIMIT: Duration = Duration::from_secs(45);

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    // A peer asks the server for every one of the files: that takes minutes, and is no figure of memory.
    if !subject.is_ours() {
        return Ok(());
    }
    let name = subject.name();
    let count = 100_000 / bench.size.part;
    let files: Vec<String> = (0..count)
        .map(|number| format!("many/folder{:03}/component{:03}.js", number / 100, number % 100))
        .collect();
    let resident = |subject: &dyn Subject| command::resident(subject.pid().context("no process")?);
    // The daemon without the files first, with a folder to be looked into.
    subject.fresh(&format!("few-{}", name.replace(' ', "-")))?;
    subject.bucket().context("no bucket")?.put("few/a.js", b"1".to_vec())?;
    subject.fresh(&format!("few-{}", name.replace(' ', "-")))?;
    command::timed("find . -type f", &subject.folder(), LIMIT)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = resident(subject)?;
    // On Garage all mounts show the same objects.
    subject.fresh("many")?;
    subject::populate(subject, &files, |number| subject::text(number, 60))?;
    subject.fresh("many")?;
    let _watch = subject.watch(LIMIT * 2);
    let (_, out) = command::timed("find many -type f", &subject.folder(), LIMIT)?;
    anyhow::ensure!(
        out.lines().count() == count,
        "found {} of {count} files",
        out.lines().count()
    );
    std::thread::sleep(Duration::from_secs(1));
    let after = resident(subject)?;
    bench.table.add("memory", name, after - before);
    bench.table.add("memory.rss", name, after);
    Ok(())
}
