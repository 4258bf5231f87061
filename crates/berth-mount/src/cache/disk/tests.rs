#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::file::Base;

fn id(n: u64) -> Id {
    let base = Base {
        key: "a".into(),
        etag: format!("{n:032x}"),
        size: 1000,
    };
    Id::of(&base, 0).unwrap()
}

fn body(n: u64, len: usize) -> Bytes {
    Bytes::from(vec![n as u8; len])
}

fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| path.extension().is_some_and(|k| k == kind)).collect();
    files.sort();
    files
}

#[test]
fn small_bodies_share_a_file_and_large_ones_have_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path().into(), 64 << 20).unwrap();
    for n in 0..100 {
        disk.keep(id(n), body(n, 4096));
    }
    disk.keep(id(100), body(100, 100_000));
    disk.settle();
    assert_eq!(files(dir.path(), "pack").len(), 1);
    assert_eq!(files(dir.path(), "chunk").len(), 1);
    assert_eq!(disk.read(&id(7)), Some(body(7, 4096)));
    assert_eq!(disk.read(&id(100)), Some(body(100, 100_000)));
}

#[test]
fn contents_survive_a_restart_and_a_cut_off_tail_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path().into(), 64 << 20).unwrap();
    disk.keep(id(1), body(1, 5000));
    disk.keep(id(2), body(2, 5000));
    disk.keep(id(3), body(3, 70_000));
    drop(disk);
    let pack = files(dir.path(), "pack").remove(0);
    let file = OpenOptions::new().write(true).open(&pack).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();

    let disk = Disk::open(dir.path().into(), 64 << 20).unwrap();
    disk.settle();
    assert_eq!(disk.read(&id(1)), Some(body(1, 5000)));
    assert_eq!(disk.read(&id(2)), None, "its end is missing");
    assert_eq!(disk.read(&id(3)), Some(body(3, 70_000)));
    disk.keep(id(4), body(4, 5000));
    disk.settle();
    assert_eq!(disk.read(&id(4)), Some(body(4, 5000)));
    assert_eq!(files(dir.path(), "pack"), [pack]);
}

#[test]
fn a_damaged_entry_is_a_miss_and_can_be_kept_anew() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path().into(), 64 << 20).unwrap();
    disk.keep(id(1), body(1, 5000));
    disk.settle();
    let pack = files(dir.path(), "pack").remove(0);
    let file = OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(b"x", 3000).unwrap();
    assert_eq!(disk.read(&id(1)), None);
    assert!(!disk.holds(&id(1)));
    disk.keep(id(1), body(1, 5000));
    disk.settle();
    assert_eq!(disk.read(&id(1)), Some(body(1, 5000)));
}

#[test]
fn the_cache_stays_within_its_bound_and_what_is_used_stays() {
    let dir = tempfile::tempdir().unwrap();
    let max = 2 << 20;
    let disk = Disk::open(dir.path().into(), max).unwrap();
    disk.keep(id(0), body(0, 4000));
    disk.keep(id(1), body(1, 4000));
    disk.keep(id(2), body(2, 100_000));
    disk.keep(id(3), body(3, 100_000));
    for n in 10..2000 {
        disk.keep(id(n), body(n, 4000));
        if n % 100 == 0 {
            disk.settle();
            assert!(disk.read(&id(0)).is_some() && disk.read(&id(2)).is_some(), "at {n}");
            assert!(disk.bytes() <= max);
        }
    }
    disk.settle();
    assert!(!disk.holds(&id(1)) && !disk.holds(&id(3)), "never used");
    let all = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len());
    assert!(all.sum::<u64>() <= max);
}
