//! Contents: all files of the tree read cold and warm, and one of them opened, read and closed.

use std::{
    fs::File,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Bench, command, subject::Subject, walk};

/// How long it may take to read all of them.
const LIMIT: Duration = Duration::from_secs(90);
/// Reads of one file.
const ONES: usize = 2000;

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    let files = 5000 / bench.size.part;
    let cat = |subject: &dyn Subject| -> Result<f64> {
        let line = "find tree -type f -print0 | xargs -0 cat | wc -c";
        let (taken, out) = command::timed(line, &subject.folder(), LIMIT)?;
        let bytes: usize = out.trim().parse()?;
        anyhow::ensure!(bytes == files * 4096, "read {bytes} bytes of {}", files * 4096);
        Ok(taken)
    };
    // The peers take ten seconds each; two samples of theirs say enough.
    let n = if subject.is_ours() || subject.is_floor() {
        bench.size.n
    } else {
        bench.size.n.min(2)
    };
    for _ in 0..n {
        walk::mount_tree(bench, subject)?;
        let _watch = subject.watch(LIMIT * 2);
        bench.table.add("read.cold", name, cat(subject)?);
        bench.table.add("read.warm", name, cat(subject)?);
    }
    let _watch = subject.watch(LIMIT);
    bench
        .table
        .add_quietly("read.one", name, one_by_one(&subject.folder(), files)?);
    if let Some(session) = subject.session() {
        bench
            .table
            .add_quietly("read.session", name, one_by_one(&session, files)?);
    }
    Ok(())
}

/// Microseconds of each open + read + close of twenty files, when each has been read once.
fn one_by_one(folder: &Path, files: usize) -> Result<Vec<f64>> {
    let paths: Vec<_> = walk::tree(files)
        .into_iter()
        .take(20)
        .map(|file| folder.join(file))
        .collect();
    let mut block = [0; 8192];
    let mut taken = Vec::with_capacity(ONES);
    for path in paths.iter().cycle().take(ONES) {
        let begun = Instant::now();
        let read = File::open(path)?.read(&mut block)?;
        taken.push(begun.elapsed().as_secs_f64() * 1e6);
        anyhow::ensure!(read == 4096, "read {read} bytes of 4096");
    }
    Ok(taken.split_off(paths.len()))
}
