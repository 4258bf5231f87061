//! Figures of reading through the mount, printed: `cargo bench -p berth-mount --bench read --profile dev`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use berth_mount::CacheMode;
use fixture::{Fixture, wait_for};

const FILES: u32 = 5000;

fn timed(what: &str, work: impl FnOnce()) {
    let since = Instant::now();
    work();
    let took = since.elapsed();
    println!(
        "{what}: {:.3} s ({:.1} us each)",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / f64::from(FILES)
    );
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.metadata().unwrap().is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn find(root: &Path) {
    let mut files = Vec::new();
    walk(root, &mut files);
    assert_eq!(files.len(), FILES as usize);
}

fn cat(root: &Path) {
    let mut files = Vec::new();
    walk(root, &mut files);
    assert!(files.iter().all(|path| fs::read(path).unwrap().len() == 4096));
}

fn drop_caches(what: &str) {
    fs::write("/proc/sys/vm/drop_caches", what).unwrap();
}

fn main() {
    let mut f = Fixture::with(
        |config| {
            config.cache_max = 512 << 20;
            config.cache_mode = CacheMode::Off;
        },
        |put| {
            for n in 0..FILES {
                let mut body = vec![b'x'; 4096];
                body[..4].copy_from_slice(&n.to_le_bytes());
                put(&format!("app/d{}/f{n}", n % 100), &body);
            }
        },
    );
    let root = f.path("app");
    f.unmount();
    f.set(|config| config.cache_mode = CacheMode::Full);
    timed("mount, find + stat", || {
        f.mount_again();
        find(&root);
    });
    f.unmount();
    fs::remove_dir_all(f.config().cache_dir).unwrap();
    f.mount_again();
    timed("cold read", || cat(&root));
    wait_for("all is on disk", || f.cached() > u64::from(FILES) * 4096);
    timed("find + stat, warm", || find(&root));
    timed("read, warm", || cat(&root));
    timed("read, warm, again", || cat(&root));
    drop_caches("2");
    timed("find + stat, dentries dropped", || find(&root));
    timed("read, dentries dropped", || cat(&root));
    f.remount();
    timed("read after a restart", || cat(&root));
    let one = root.join("d7/f7");
    fs::read(&one).unwrap();
    let since = Instant::now();
    for _ in 0..20_000 {
        let mut buffer = [0; 4096];
        let file = fs::File::open(&one).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, 0).unwrap();
    }
    println!(
        "open + read 4 KiB + close, warm: {:.1} us",
        since.elapsed().as_secs_f64() * 1e6 / 20_000.0
    );
}
