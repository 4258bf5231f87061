//! One save: open with truncation, 4 KiB, close; and how long after close the object is in S3.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
};

/// Saves timed by themselves.
const SAVES: usize = 200;
/// Saves followed into S3, how long they may take all together, and the pause between them.
const FOLLOWED: usize = 100;
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);
/// Files saved in turns.
const FILES: usize = 20;

/// A save, acknowledged when `close` itself has said so; milliseconds. `durable`: with fsync, as a plain folder needs
/// it to last.
pub fn save(path: &Path, body: &[u8], durable: bool) -> Result<f64> {
    let begun = Instant::now();
    let mut file = File::create(path)?;
    file.write_all(body)?;
    if durable {
        file.sync_all()?;
    }
    nix::unistd::close(OwnedFd::from(file))?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    subject.fresh(&format!("save-{}", name.replace(' ', "-")))?;
    let _watch = subject.watch(PATIENCE * 6);
    let folder = subject.folder().join("save");
    fs::create_dir_all(&folder)?;
    let floor = subject.bucket().is_none();
    let file = |number: usize| format!("f{:02}.js", number % FILES);
    let followed = |number: usize| format!("s{:02}.js", number % FILES);
    for number in 0..FILES {
        save(&folder.join(file(number)), &subject::text(number, 4096), floor)?;
    }
    if let Some(bucket) = subject.bucket() {
        bucket.wait_for("save/", FILES, 4096, PATIENCE)?;
    }
    let mut taken = Vec::new();
    for number in 0..SAVES / bench.size.part {
        taken.push(save(
            &folder.join(file(number)),
            &subject::text(number + 1000, 4096),
            floor,
        )?);
    }
    bench.table.add_quietly("save", name, taken);
    let Some(bucket) = subject.bucket() else { return Ok(()) };
    // Files of their own, each saved again after a while, as people do: a file that is saved without a pause is sent
    // once a second.
    for number in 0..FILES {
        save(&folder.join(followed(number)), &subject::text(number, 4096), false)?;
    }
    bucket.wait_for("save/s", FILES, 4096, PATIENCE)?;
    let (mut taken, since) = (Vec::new(), Instant::now());
    for number in 0..FOLLOWED / bench.size.part {
        std::thread::sleep(PAUSE);
        let name_of = followed(number);
        let (key, body) = (format!("save/{name_of}"), subject::text(number + 5000, 4096));
        save(&folder.join(&name_of), &body, false)?;
        let begun = Instant::now();
        if !command::until(PATIENCE, Duration::from_micros(500), || bucket.has(&key, &body)) {
            bench
                .table
                .note("save.s3", name, format!("one not after {} s", PATIENCE.as_secs()));
            break;
        }
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        if since.elapsed() > PATIENCE {
            break;
        }
    }
    bench.table.add_quietly("save.s3", name, taken);
    Ok(())
}
