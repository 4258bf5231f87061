//! Many files in: `cp -r` from tmpfs into the mount, until the last of them is in S3.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
};

/// How long one copy may take until all is in S3.
const LIMIT: Duration = Duration::from_secs(60);

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    subject.fresh(&format!("copy-{}", name.replace(' ', "-")))?;
    for (all, cp, count, bytes) in [
        ("copy.4k", "copy.4k.cp", 1000, 4096),
        ("copy.30k", "copy.30k.cp", 640, 30_000),
    ] {
        let count = count / bench.size.part;
        let source = bench.memory.join(format!("source-{bytes}"));
        for number in 0..count {
            let path = source.join(format!("d{:03}/f{number:04}.js", number / 20));
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(path, subject::text(number, bytes))?;
        }
        for round in 0..bench.size.n {
            let _watch = subject.watch(LIMIT * 2);
            let target = format!("copy{bytes}-{round}");
            let begun = Instant::now();
            let line = format!("cp -r {} {target}", source.display());
            let (taken, _) = command::timed(&line, &subject.folder(), LIMIT)?;
            bench.table.add(cp, name, taken);
            let Some(bucket) = subject.bucket() else { continue };
            let there = bucket.wait_for(&format!("{target}/"), count, bytes as u64, LIMIT)?;
            if there < count {
                bench
                    .table
                    .note(all, name, format!("{there} of {count} after {} s", LIMIT.as_secs()));
            } else {
                bench.table.add(all, name, begun.elapsed().as_secs_f64());
            }
        }
        fs::remove_dir_all(source)?;
    }
    Ok(())
}
