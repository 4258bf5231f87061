//! The way careful editors save: a temp file, fsync, and a rename over the old one; 100 of them over 10 files.

use std::{
    fs::{self, File},
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
};

const SAVES: usize = 100;
const FILES: usize = 10;
/// How long the last content may take to S3.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this long without a request, nothing more comes.
const QUIET: Duration = Duration::from_secs(2);

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    subject.fresh(&format!("replace-{}", name.replace(' ', "-")))?;
    let _watch = subject.watch(PATIENCE * 6);
    let n = bench.size.n;
    for round in 0..n {
        super::world::go_on()?;
        let work = format!("edit{round}");
        let folder = subject.folder().join(&work);
        fs::create_dir_all(&folder)?;
        for number in 0..FILES {
            fs::write(folder.join(format!("a{number}.js")), subject::text(number, 4096))?;
        }
        if let Some(bucket) = subject.bucket() {
            bucket.wait_for(&format!("{work}/"), FILES, 4096, PATIENCE)?;
            std::thread::sleep(Duration::from_millis(500));
        }
        let mark = bench.garage.mark();
        let begun = Instant::now();
        for number in 0..SAVES {
            let temp = folder.join(format!(".a{}.js.tmp{number}", number % FILES));
            let mut file = File::create(&temp)?;
            file.write_all(&subject::text(1000 + number, 4096))?;
            file.sync_all()?;
            drop(file);
            fs::rename(&temp, folder.join(format!("a{}.js", number % FILES)))?;
        }
        bench.table.add("replace", name, begun.elapsed().as_secs_f64());
        let Some(bucket) = subject.bucket() else { continue };
        let there = |number: usize| {
            bucket.has(
                &format!("{work}/a{number}.js"),
                &subject::text(1000 + SAVES - FILES + number, 4096),
            )
        };
        if command::until(PATIENCE, Duration::from_millis(5), || (0..FILES).all(there)) {
            bench.table.add("replace.s3", name, begun.elapsed().as_secs_f64());
        } else {
            bench
                .table
                .note("replace.s3", name, format!("not within {} s", PATIENCE.as_secs()));
        }
        if subject.on_garage() {
            count(bench, name, &work, mark);
        }
        let left = bucket.list(&format!("{work}/"))?;
        let left = left.keys().filter(|key| key.contains(".tmp")).count();
        bench.table.add("replace.left", name, left as f64);
    }
    Ok(())
}

/// What was asked of the server for it, once nothing more comes.
fn count(bench: &mut Bench, name: &'static str, work: &str, mark: u64) {
    let puts = |bench: &Bench| -> Vec<String> {
        let paths = bench.garage.requests("PUT", mark);
        paths
            .into_iter()
            .filter(|path| path.contains(&format!("/{work}/")))
            .collect()
    };
    let (since, mut quiet, mut seen) = (Instant::now(), Instant::now(), puts(bench));
    while quiet.elapsed() < QUIET && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(100));
        let now = puts(bench);
        if now.len() != seen.len() {
            quiet = Instant::now();
            seen = now;
        }
    }
    let temps = seen.iter().filter(|path| path.contains(".tmp")).count();
    bench.table.add("replace.puts", name, seen.len() as f64);
    bench.table.add("replace.temps", name, temps as f64);
}
