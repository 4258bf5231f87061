//! Figures of the mount, printed: `cargo bench -p berth-mount --profile dev`. They promise nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::{fs, time::Instant};

use fixture::Fixture;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(mut work: impl FnMut()) -> f64 {
    let since = Instant::now();
    work();
    since.elapsed().as_secs_f64() * 1e3
}

/// A clone with `.git` on the mount, as `cargo xtask bench mount --only git` measures it for the whole daemon.
fn git() {
    let f = Fixture::new();
    f.sh(r#"mkdir "$OUT/plain" "$OUT/repository" && mount -t tmpfs tmpfs "$OUT/repository""#);
    for n in 0..1000_u64 {
        let folder = f.out(&format!("repository/src/m{}", n / 20));
        fs::create_dir_all(&folder).unwrap();
        let text: String = (0..80 + n / 20)
            .map(|line| format!("{:016x}\n", (n * 1000 + line).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        fs::write(folder.join(format!("f{n}.js")), text).unwrap();
    }
    f.sh(r#"cd "$OUT/repository" && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm one"#);
    let clone = |to: &str| timed(|| drop(f.sh(&format!(r#"git clone -q --no-hardlinks "$OUT/repository" {to}"#))));
    for round in 0..5 {
        let plain = clone(&format!(r#""$OUT/plain/{round}""#));
        f.settle();
        let ours = clone(&format!("clone{round}"));
        let arrived = timed(|| f.settle());
        let removed = timed(|| drop(f.sh(&format!("rm -r clone{round}"))));
        println!(
            "git clone of 1,000 files: {ours:.0} ms ({plain:.0} on the disk), in S3 after {arrived:.0} more; rm -r: {removed:.0}"
        );
    }
    f.sh(r#"umount "$OUT/repository""#);
}

fn main() {
    git();
    if std::env::args().any(|argument| argument == "git") {
        return;
    }
    let f = Fixture::with(
        |_| {},
        |put| {
            for n in 0..2000 {
                put(&format!("many/d{}/f{n}", n % 20), &[b'x'; 1000]);
            }
        },
    );
    let cold = timed(|| drop(f.sh("find many -type f | wc -l")));
    let warm = timed(|| drop(f.sh("find many -type f | wc -l")));
    println!("find over 2,000 files: first {cold:.1} ms, again {warm:.1} ms (with the start of a shell)");
    let since = Instant::now();
    let mut count = 0;
    for dir in fs::read_dir(f.path("many")).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            count += usize::from(file.unwrap().metadata().unwrap().is_file());
        }
    }
    println!(
        "walk + lstat of {count} files in one process: {:.1} ms",
        since.elapsed().as_secs_f64() * 1e3
    );
    let read = timed(|| drop(f.sh("cat many/*/* | wc -c")));
    println!("cat of 2,000 files, cold: {read:.0} ms");
    let read = timed(|| drop(f.sh("cat many/*/* | wc -c")));
    println!("cat of 2,000 files, warm: {read:.0} ms");

    fs::create_dir(f.path("app")).unwrap();
    let body = vec![b'x'; 4096];
    let saves = (0..300)
        .map(|n| timed(|| fs::write(f.path(&format!("app/{n}")), &body).unwrap()))
        .collect();
    println!("create + write 4 KiB + close, in S3: p50 {:.2} ms", median(saves));
    let again = (0..300)
        .map(|_| timed(|| fs::write(f.path("app/0"), &body).unwrap()))
        .collect();
    println!("open + truncate + write 4 KiB + close: p50 {:.2} ms", median(again));
    let reads = (0..2000)
        .map(|_| timed(|| drop(fs::read(f.path("app/0")).unwrap())))
        .collect();
    println!("open + read 4 KiB + close, warm: p50 {:.1} us", median(reads) * 1e3);
    fs::create_dir(f.path("dist")).unwrap();
    let local = (0..2000)
        .map(|n| timed(|| fs::write(f.path(&format!("dist/{n}")), &body).unwrap()))
        .collect();
    println!(
        "create + write 4 KiB + close, local-only: p50 {:.1} us",
        median(local) * 1e3
    );

    f.sh(r#"mkdir "$OUT/src" && for n in $(seq 500); do head -c 4096 /dev/urandom > "$OUT/src/$n"; done"#);
    println!(
        "cp -a of 500 files of 4 KiB, all in S3: {:.0} ms",
        timed(|| drop(f.sh(r#"cp -a "$OUT/src" copy"#)))
    );
    println!(
        "mv of a folder of 500 files: {:.0} ms",
        timed(|| fs::rename(f.path("copy"), f.path("moved")).unwrap())
    );
    println!("rm -r of 500 files: {:.0} ms", timed(|| drop(f.sh("rm -r moved"))));
    let big = vec![7_u8; 64 << 20];
    println!(
        "write of 64 MiB, in S3: {:.0} ms",
        timed(|| fs::write(f.path("app/big"), &big).unwrap())
    );
    println!(
        "sed -i, in S3: {:.1} ms",
        median((0..50).map(|_| timed(|| drop(f.sh("sed -i s/x/y/ app/1")))).collect())
    );
}
