//! One large file: written in sequence with fsync, and read again from the host's cache with nothing of it in the
//! kernel's.

use std::{
    fs::{self, File},
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Bench, command,
    subject::{self, Subject},
    world,
};

const MIB: usize = 1 << 20;
/// How long it may take to S3 afterwards.
const LIMIT: Duration = Duration::from_secs(90);

pub fn run(bench: &mut Bench, subject: &mut dyn Subject) -> Result<()> {
    let name = subject.name();
    // Peers have no cache of this size with the flags they run with; the target is ext4.
    if !subject.is_ours() && !subject.is_floor() {
        return Ok(());
    }
    subject.fresh(&format!("stream-{}", name.replace(' ', "-")))?;
    let blocks = 1024 / bench.size.part;
    let block = subject::text(7, MIB);
    let folder = subject.folder().join("stream");
    fs::create_dir_all(&folder)?;
    for round in 0..bench.size.n.min(2) {
        world::go_on()?;
        let _watch = subject.watch(LIMIT * 2);
        let path = folder.join(format!("large{round}.bin"));
        let begun = Instant::now();
        let mut file = File::create(&path)?;
        for _ in 0..blocks {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        drop(file);
        bench
            .table
            .add("stream.write", name, blocks as f64 / begun.elapsed().as_secs_f64());
        if let Some(bucket) = subject.bucket() {
            let key = format!("stream/large{round}.bin");
            let all = (blocks * MIB) as u64;
            if !command::until(LIMIT, Duration::from_millis(200), || bucket.size(&key) == Some(all)) {
                bench
                    .table
                    .note("stream.write", name, format!("not in S3 after {} s", LIMIT.as_secs()));
            }
        }
        command::drop_caches(3)?;
        let begun = Instant::now();
        let (mut file, mut buffer, mut read) = (File::open(&path)?, vec![0; MIB], 0);
        loop {
            let now = file.read(&mut buffer)?;
            if now == 0 {
                break;
            }
            read += now;
        }
        anyhow::ensure!(read == blocks * MIB, "read {read} bytes of {}", blocks * MIB);
        bench
            .table
            .add("stream.read", name, blocks as f64 / begun.elapsed().as_secs_f64());
        fs::remove_file(&path)?;
    }
    Ok(())
}
