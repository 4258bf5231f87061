//! The mount's process is killed (-9) right after 200 saves were acknowledged: how many never come to S3 when it is
//! mounted again.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    Bench, command,
    save::save,
    subject::{self, Subject},
    world,
};

const SAVES: usize = 200;
/// How long they may take to S3 after the next mount; rclone's take 5 s.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    if subject.is_floor() {
        return Ok(());
    }
    let saves = SAVES / bench.size.part;
    for round in 0..bench.size.n {
        world::go_on()?;
        subject.fresh(&format!("crash-{}", name.replace(' ', "-")))?;
        let _watch = subject.watch(PATIENCE * 3);
        let work = format!("killed{round}");
        let folder = subject.folder().join(&work);
        fs::create_dir_all(&folder)?;
        let mut acknowledged = Vec::new();
        for number in 0..saves {
            let path = folder.join(format!("f{number:03}.js"));
            if save(&path, &subject::text(number, 4096), false).is_ok() {
                acknowledged.push(number);
            }
        }
        subject.kill()?;
        if acknowledged.len() < saves {
            bench.table.note(
                "crash.lost",
                name,
                format!("{} saves refused", saves - acknowledged.len()),
            );
        }
        let before = subject.bucket().context("no bucket")?.list(&format!("{work}/"));
        // The embedded server died with the mount.
        if let (Ok(before), true) = (before, subject.on_garage()) {
            let there = before.values().filter(|size| **size == 4096).count();
            bench.table.add("crash.there", name, there as f64);
        }
        subject.again()?;
        let bucket = subject.bucket().context("no bucket")?;
        let there = |number: &usize| bucket.has(&format!("{work}/f{number:03}.js"), &subject::text(*number, 4096));
        let mut missing = acknowledged;
        command::until(PATIENCE, Duration::from_millis(100), || {
            missing.retain(|number| !there(number));
            missing.is_empty()
        });
        bench.table.add("crash.lost", name, missing.len() as f64);
    }
    Ok(())
}
