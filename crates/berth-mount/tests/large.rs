//! Files far larger than what the mount may hold in memory. One test: it watches the memory of its own process, in which the
//! mount and the embedded server run too.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::FileExt,
    process::Stdio,
    time::{Duration, Instant},
};

use fixture::{Fixture, need};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;
/// More memory than this no step may need, however large the file is: parts of an upload, the cache's newest chunks.
const STEP: u64 = 160 * MIB;
/// And all together, with what the allocator keeps for the next.
const TOTAL: u64 = 420 * MIB;

/// The content: random, so that nothing of it is equal to anything else, and the same at each run.
struct Content {
    random: SmallRng,
    left: u64,
}

impl Content {
    fn of(size: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(1),
            left: size,
        }
    }

    /// The next mebibyte, or what is left.
    fn next<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let size = self.left.min(buffer.len() as u64) as usize;
        self.left -= size as u64;
        self.random.fill_bytes(&mut buffer[..size]);
        (size > 0).then(|| &buffer[..size])
    }
}

fn sum_of(mut from: impl Read) -> String {
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; MIB as usize]);
    loop {
        match from.read(&mut buffer).unwrap() {
            0 => return hex::encode(sum.finalize()),
            read => sum.update(&buffer[..read]),
        }
    }
}

/// The checksum of the object, read by rclone.
fn sum_in_s3(f: &Fixture, key: &str) -> String {
    let mut command = f.bucket().command();
    command.args(["cat", &format!("b:{key}")]).stdout(Stdio::piped());
    let mut rclone = command.spawn().unwrap();
    let sum = sum_of(rclone.stdout.take().unwrap());
    assert!(rclone.wait().unwrap().success());
    sum
}

/// A figure of this process's memory: `VmRSS`, what it holds, or `VmHWM`, the most it has held since [`forget_peak`].
fn memory(figure: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(figure)).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Does one step, and says what it took.
#[track_caller]
fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    forget_peak();
    let (since, before) = (Instant::now(), memory("VmRSS"));
    let result = work();
    let peak = memory("VmHWM");
    let (grown, all) = ((peak - before.min(peak)) / MIB, peak / MIB);
    eprintln!(
        "{what}: {:.1} s, {grown} MiB more, {all} MiB of memory",
        since.elapsed().as_secs_f64()
    );
    assert!(
        grown < STEP / MIB && peak < TOTAL,
        "{what} took {grown} MiB, to {all} MiB"
    );
    result
}

#[test]
fn a_file_larger_than_memory_may_be_goes_to_s3_and_comes_back() {
    need("rclone", "rclone");
    let full = std::env::var("BERTH_SUITES").is_ok_and(|size| size == "full");
    let size = if full { 5 << 30 } else { 300 * MIB };
    let hours = Duration::from_secs(if full { 3600 } else { 120 });
    let mut f = Fixture::with(|cfg| cfg.journal_max = 3 * size, |_| {});
    fs::create_dir(f.path("app")).unwrap();
    let mut buffer = vec![0; MIB as usize];

    let (mut content, mut sum) = (Content::of(size), Sha256::new());
    step("written", || {
        let mut file = File::create(f.path("app/large")).unwrap();
        while let Some(part) = content.next(&mut buffer) {
            file.write_all(part).unwrap();
            sum.update(part);
        }
        file.sync_all().unwrap();
    });
    let sum = hex::encode(sum.finalize());
    step("in S3", || f.settle_within(hours));
    assert_eq!(step("read from S3", || sum_in_s3(&f, "app/large")), sum);
    step("mounted again", || f.remount());
    assert_eq!(fs::metadata(f.path("app/large")).unwrap().len(), size);
    assert_eq!(step("read", || sum_of(File::open(f.path("app/large")).unwrap())), sum);

    // Bytes in the middle are changed: the rest is brought here for it.
    step("changed in the middle", || {
        let file = OpenOptions::new().write(true).open(f.path("app/large")).unwrap();
        file.write_all_at(b"changed", size / 2 - 3).unwrap();
        file.set_len(size - 1).unwrap();
        file.sync_all().unwrap();
    });
    step("in S3", || f.settle_within(hours));
    let (mut content, mut at, mut sum) = (Content::of(size), 0, Sha256::new());
    let change = size / 2 - 3..size / 2 + 4;
    while let Some(part) = content.next(&mut buffer) {
        let mut part = part.to_vec();
        for (n, byte) in part.iter_mut().enumerate() {
            let place = at + n as u64;
            if change.contains(&place) {
                *byte = b"changed"[(place - change.start) as usize];
            }
        }
        at += part.len() as u64;
        if at == size {
            part.pop();
        }
        sum.update(&part);
    }
    let sum = hex::encode(sum.finalize());
    assert_eq!(step("read from S3", || sum_in_s3(&f, "app/large")), sum);
}
