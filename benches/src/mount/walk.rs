//! Names and attributes: a fresh mount walked by `find`, again with the kernel's memory of names dropped, and warm.

use std::time::Duration;

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
};

/// How long one walk may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Paths of the tree that is walked and read: 20 files a folder.
pub fn tree(files: usize) -> Vec<String> {
    (0..files)
        .map(|number| format!("tree/d{:03}/f{:02}.js", number / 20, number % 20))
        .collect()
}

/// Mounts the bucket with the tree, populating it first.
pub fn mount_tree(bench: &mut Bench, subject: &mut dyn Subject) -> Result<Duration> {
    let files = tree(5000 / bench.size.part);
    // The peers' and our mount on Garage show the same objects.
    let taken = subject.fresh("tree")?;
    let known = subject
        .bucket()
        .is_some_and(|bucket| bucket.list("tree/").is_ok_and(|have| have.len() >= files.len()));
    if known {
        return Ok(taken);
    }
    subject::populate(subject, &files, |number| subject::text(number, 4096))?;
    subject.fresh("tree")
}

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    let files = 5000 / bench.size.part;
    let find = |subject: &dyn Subject, print: &str| -> Result<f64> {
        let (taken, out) = command::timed(&format!("find tree -type f {print}"), &subject.folder(), LIMIT)?;
        let found = out.lines().count();
        anyhow::ensure!(found == files, "found {found} of {files} files");
        Ok(taken)
    };
    let stat = "-printf '%s\\n'";
    for _ in 0..bench.size.n {
        let up = mount_tree(bench, subject)?;
        let _watch = subject.watch(LIMIT * 4);
        if subject.pid().is_some() {
            bench.table.add("mount", name, up.as_secs_f64());
        }
        let names = find(subject, "")?;
        bench.table.add("walk.fresh", name, names + find(subject, stat)?);
        command::drop_caches(2)?;
        bench.table.add("walk.dropped", name, find(subject, stat)?);
        bench.table.add("walk.warm", name, find(subject, stat)?);
    }
    Ok(())
}
