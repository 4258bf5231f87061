//! Large files on their way: parts that go to S3 while the file is being written, and files that the journal cannot hold.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use berth_harness::fault_proxy::{Fault, Reach, Rule};
use world::{Host, World, wait_for};

const MIB: usize = 1 << 20;

/// A mebibyte that only this place of this content has.
fn block(content: u8, number: usize) -> Vec<u8> {
    let mut block = vec![content; MIB];
    block[..8].copy_from_slice(&(number as u64).to_le_bytes());
    block
}

fn append(file: &mut File, content: u8, blocks: std::ops::Range<usize>) {
    for number in blocks {
        file.write_all(&block(content, number)).unwrap();
    }
}

#[track_caller]
fn assert_is(bytes: &[u8], content: u8, blocks: usize) {
    assert_eq!(bytes.len(), blocks * MIB);
    for (number, bytes) in bytes.chunks(MIB).enumerate() {
        assert!(bytes == block(content, number), "block {number} differs");
    }
}

fn object(world: &World, key: &str) -> Vec<u8> {
    world.block_on(world.store.get(key)).unwrap().1.to_vec()
}

/// Parts that were sent, each with its number.
fn parts(host: &Host) -> Vec<usize> {
    let number = |path: &str| path.split_once("partNumber=")?.1.split('&').next()?.parse().ok();
    let seen = host.proxy.seen().into_iter().filter(|seen| seen.method == "PUT");
    seen.filter_map(|seen| number(&seen.path)).collect()
}

/// Uploads in parts that this host has begun and neither completed nor given up.
fn uploads(host: &Host) -> usize {
    fs::read_dir(host.config.journal_dir.join("uploads")).map_or(0, Iterator::count)
}

/// Ends a thread that watches it, also when the test fails.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn with_journal(world: &World, mebibytes: u64) -> Host {
    let host = world.host("a", 1, |config| config.journal_max = mebibytes << 20);
    fs::create_dir(host.path("app")).unwrap();
    world.settle(&host);
    host
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

#[test]
fn a_file_of_most_of_the_journal_is_kept_while_s3_is_down() {
    let world = World::new();
    let mut host = with_journal(&world, 136);
    host.proxy.reach(Reach::Refused);
    let mut file = File::create(host.path("app/large")).unwrap();
    append(&mut file, b'a', 0..75);
    file.sync_all().unwrap();
    drop(file);
    fs::write(host.path("app/small"), "small").unwrap();
    world.kill(&mut host);
    host.proxy.reach(Reach::Up);
    world.start(&mut host);
    assert_is(&fs::read(host.path("app/large")).unwrap(), b'a', 75);
    world.settle(&host);
    assert_is(&object(&world, "app/large"), b'a', 75);
    assert_eq!(world.text("app/small").as_deref(), Some("small"));
}

#[test]
fn parts_are_sent_while_the_file_is_written_and_none_twice() {
    let world = World::new();
    let host = with_journal(&world, 256);
    let mut file = File::create(host.path("app/large")).unwrap();
    append(&mut file, b'a', 0..42);
    wait_for("what is complete is sent", || parts(&host).len() == 5);
    assert!(world.block_on(world.store.head("app/large")).unwrap().is_none());
    append(&mut file, b'a', 42..60);
    drop(file);
    world.settle(&host);
    assert_is(&object(&world, "app/large"), b'a', 60);
    let mut sent = parts(&host);
    sent.sort_unstable();
    assert_eq!(sent, (1..=8).collect::<Vec<_>>());
    assert_eq!(uploads(&host), 0);
}

#[test]
fn what_is_written_again_is_sent_again_and_what_is_cut_off_is_not_there() {
    let world = World::new();
    let host = with_journal(&world, 256);
    let mut file = File::create(host.path("app/large")).unwrap();
    append(&mut file, b'b', 0..42);
    wait_for("what is complete is sent", || parts(&host).len() == 5);
    for number in 0..3 {
        file.write_all_at(&block(b'a', number), (number * MIB) as u64).unwrap();
    }
    file.set_len((35 * MIB) as u64).unwrap();
    for number in 3..20 {
        file.write_all_at(&block(b'a', number), (number * MIB) as u64).unwrap();
    }
    file.set_len((20 * MIB) as u64).unwrap();
    drop(file);
    world.settle(&host);
    assert_is(&object(&world, "app/large"), b'a', 20);
}

#[test]
fn a_large_file_that_is_renamed_removed_or_torn_away_leaves_no_upload() {
    let world = World::new();
    let mut host = with_journal(&world, 256);
    let mut renamed = File::create(host.path("app/before")).unwrap();
    append(&mut renamed, b'a', 0..34);
    wait_for("it is sent ahead", || parts(&host).len() == 4);
    fs::rename(host.path("app/before"), host.path("app/after")).unwrap();
    append(&mut renamed, b'a', 34..40);
    drop(renamed);
    world.settle(&host);
    assert_is(&object(&world, "app/after"), b'a', 40);
    assert!(world.text("app/before").is_none());
    wait_for("the first upload is given up", || uploads(&host) == 0);

    let mut removed = File::create(host.path("app/removed")).unwrap();
    append(&mut removed, b'a', 0..34);
    wait_for("it is sent ahead", || uploads(&host) == 1);
    fs::remove_file(host.path("app/removed")).unwrap();
    drop(removed);
    wait_for("its upload is given up", || uploads(&host) == 0);
    assert_eq!(host.proxy.count("DELETE", "/app/removed?"), 1);

    let mut torn = File::create(host.path("app/torn")).unwrap();
    append(&mut torn, b'a', 0..34);
    wait_for("it is sent ahead", || uploads(&host) == 1);
    world.kill(&mut host);
    drop(torn);
    world.start(&mut host);
    wait_for("the next process gives it up", || uploads(&host) == 0);
    assert!(host.proxy.count("DELETE", "/app/torn?") >= 1);
}

#[test]
fn a_name_that_looks_temporary_is_not_sent_before_its_rename() {
    let world = World::new();
    let host = with_journal(&world, 256);
    let mut file = File::create(host.path("app/.large.Xy12Zw")).unwrap();
    append(&mut file, b'a', 0..40);
    file.sync_all().unwrap();
    fs::rename(host.path("app/.large.Xy12Zw"), host.path("app/large")).unwrap();
    drop(file);
    world.settle(&host);
    assert_is(&object(&world, "app/large"), b'a', 40);
    assert_eq!(parts(&host).len(), 5);
    assert_eq!(host.proxy.count("PUT", "Xy12Zw"), 0);
}

#[test]
fn a_file_larger_than_the_journal_is_in_s3_when_close_has_returned() {
    let world = World::new();
    let host = with_journal(&world, 112);
    let (most, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let end = SetWhenDropped(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(host.mount().journal().disk, Ordering::Relaxed);
                // A sample now and then, not a race for the journal's lock.
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let mut file = File::create(host.path("app/large")).unwrap();
        append(&mut file, b'a', 0..250);
        // What S3 has only parts of is no content yet.
        assert_eq!(errno(file.write_all_at(b"x", 0)), libc::EFBIG);
        assert_eq!(errno(file.set_len(1)), libc::EFBIG);
        assert_eq!(
            errno(fs::rename(host.path("app/large"), host.path("app/other"))),
            libc::EBUSY
        );
        file.sync_all().unwrap();
        assert_is(&object(&world, "app/large"), b'a', 250);
        drop(file);
        drop(end);
    });
    let most = most.into_inner();
    // A segment may be made in the very moment in which a write was let in.
    assert!(most > 50 << 20 && most <= (112 + 17) << 20, "{most} bytes");
    assert_is(&fs::read(host.path("app/large")).unwrap(), b'a', 250);
    assert_eq!((parts(&host).len(), uploads(&host)), (32, 0));
    // Small files were saved meanwhile, and it can be renamed and removed like any other.
    fs::rename(host.path("app/large"), host.path("app/other")).unwrap();
    world.settle(&host);
    assert_is(&object(&world, "app/other"), b'a', 250);
    fs::remove_file(host.path("app/other")).unwrap();
    world.settle(&host);
    assert!(world.objects().is_empty());
}

#[test]
fn a_file_larger_than_the_journal_keeps_its_bits_and_replaces_the_old_one() {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let world = World::new();
    world.put("app/large", "old");
    let mut host = world.host("a", 1, |config| config.journal_max = 112 << 20);
    fs::remove_file(host.path("app/large")).unwrap();
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(host.path("app/large"))
        .unwrap();
    append(&mut file, b'a', 0..150);
    drop(file);
    assert_is(&object(&world, "app/large"), b'a', 150);
    world.settle(&host);
    assert_eq!(world.objects_named(), ["app/large"]);
    world.kill(&mut host);
    world.start(&mut host);
    let shown = fs::metadata(host.path("app/large")).unwrap();
    assert_eq!((shown.len(), shown.permissions().mode() & 0o777), (150 << 20, 0o755));
}

#[test]
fn without_s3_a_file_larger_than_the_journal_ends_in_enospc_and_others_are_saved() {
    let world = World::new();
    let host = with_journal(&world, 112);
    host.proxy.reach(Reach::Refused);
    let mut file = File::create(host.path("app/large")).unwrap();
    let written = (0..250)
        .take_while(|number| file.write_all(&block(b'a', *number)).is_ok())
        .count();
    assert!((20..112).contains(&written), "{written} MiB");
    let more = errno(file.write_all(&block(b'a', written)));
    assert_eq!(more, libc::ENOSPC);
    fs::write(host.path("app/small"), "small").unwrap();
    // S3 comes back: the writer that goes on where it stopped gets all of it there.
    host.proxy.reach(Reach::Up);
    let at = file.metadata().unwrap().len() as usize;
    assert_eq!(at % MIB, 0, "a refused write is refused as a whole");
    append(&mut file, b'a', at / MIB..250);
    drop(file);
    assert_is(&object(&world, "app/large"), b'a', 250);
    world.settle(&host);
    assert_eq!(world.text("app/small").as_deref(), Some("small"));
}

#[test]
fn s3_that_fails_now_and_then_gets_a_file_larger_than_the_journal_all_the_same() {
    let world = World::new();
    let host = with_journal(&world, 112);
    host.proxy.set([
        Rule::sometimes(15, Fault::Status(503)),
        Rule::sometimes(5, Fault::CutAfter),
    ]);
    let mut file = File::create(host.path("app/large")).unwrap();
    append(&mut file, b'a', 0..200);
    drop(file);
    host.proxy.heal();
    assert_is(&object(&world, "app/large"), b'a', 200);
}

#[test]
fn what_others_stored_under_the_name_meanwhile_is_kept_beside_a_file_larger_than_the_journal() {
    let world = World::new();
    let host = with_journal(&world, 112);
    let mut file = File::create(host.path("app/large")).unwrap();
    append(&mut file, b'a', 0..150);
    world.put("app/large", "theirs");
    append(&mut file, b'a', 150..160);
    drop(file);
    assert_is(&object(&world, "app/large"), b'a', 160);
    world.settle(&host);
    let names = world.objects_named();
    let aside: Vec<_> = names.iter().filter(|key| key.contains("/large.conflict-")).collect();
    assert_eq!((names.len(), aside.len()), (2, 1), "{names:?}");
    assert_eq!(world.text(aside[0]).as_deref(), Some("theirs"));
    wait_for("both are shown", || {
        fs::metadata(host.path("app/large")).is_ok_and(|shown| shown.len() == 160 << 20)
            && fs::read_to_string(host.path(aside[0])).is_ok_and(|text| text == "theirs")
    });
}

#[test]
fn a_file_of_holes_takes_little_of_the_journal_and_nothing_is_sent_of_one_that_is_removed() {
    let world = World::new();
    let host = with_journal(&world, 112);
    host.proxy.reach(Reach::Refused);
    let file = File::create(host.path("app/holes")).unwrap();
    file.write_all_at(b"end", 2 << 30).unwrap();
    drop(file);
    assert!(host.mount().journal().disk < 100 << 20);
    fs::write(host.path("app/small"), "small").unwrap();
    host.proxy.reach(Reach::Up);
    wait_for("parts are sent", || !parts(&host).is_empty());
    fs::remove_file(host.path("app/holes")).unwrap();
    world.settle(&host);
    assert_eq!(world.objects_named(), ["app/small"]);
    wait_for("the upload is given up", || uploads(&host) == 0);
    assert!(parts(&host).len() < 200, "{} of 257 parts", parts(&host).len());
}
