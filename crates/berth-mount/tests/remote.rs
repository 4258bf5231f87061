//! Changes made past the mount, and a mount whose server died.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    time::Instant,
};

use berth_store::Precondition;
use fixture::{Fixture, wait_for};

#[test]
fn a_file_made_elsewhere_appears_even_after_it_was_missed() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    assert!(!f.path("app/b").exists(), "the kernel remembers that there is none");
    assert!(!f.path("fresh").exists());
    let since = Instant::now();
    f.put("app/b", "b");
    wait_for("the file shows", || {
        fs::read_to_string(f.path("app/b")).is_ok_and(|text| text == "b")
    });
    eprintln!("a remote file showed after {:?}", since.elapsed());
    f.put("fresh/deep/er/file", "x");
    wait_for("new folders show", || f.path("fresh/deep/er/file").exists());
    assert_eq!(fs::read_dir(f.path("fresh")).unwrap().count(), 1);
}

#[test]
fn a_file_changed_elsewhere_is_new_for_who_opens_it_and_old_for_who_has_it() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"old content"));
    let mut open = File::open(f.path("app/a")).unwrap();
    let ino = open.metadata().unwrap().ino();
    f.put("app/a", "new");
    wait_for("the new content shows", || {
        fs::read_to_string(f.path("app/a")).is_ok_and(|text| text == "new")
    });
    assert_eq!(fs::metadata(f.path("app/a")).unwrap().len(), 3);
    assert_ne!(fs::metadata(f.path("app/a")).unwrap().ino(), ino);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old content");
}

#[test]
fn what_is_removed_elsewhere_disappears() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"a");
            put("app/dir/b", b"b");
            put("other/c", b"c");
        },
    );
    assert!(f.path("app/dir/b").exists());
    f.delete("app/dir/b");
    wait_for("the file and its folder go", || !f.path("app/dir").exists());
    assert!(f.path("app/a").exists());
    f.delete("other/c");
    wait_for("the workspace goes", || !f.path("other").exists());
    f.put("marked/", "");
    wait_for("a marker makes a workspace", || f.path("marked").is_dir());
    f.delete("marked/");
    wait_for("and takes it away", || !f.path("marked").exists());
}

#[test]
fn a_workspace_removed_elsewhere_goes_with_its_index() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("app/empty")).unwrap();
    std::os::unix::fs::symlink("x", f.path("app/link")).unwrap();
    fs::write(f.path("app/a"), "a").unwrap();
    assert!(f.text(".berth/index/app.json").is_some());
    f.delete("app/a");
    f.delete("app/");
    wait_for("the workspace is gone", || !f.path("app").exists());
    wait_for("and its index", || f.text(".berth/index/app.json").is_none());
}

#[test]
fn both_versions_are_kept_when_both_sides_wrote() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"base"));
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(f.path("app/a"))
        .unwrap();
    file.write_all(b"ours").unwrap();
    f.put("app/a", "theirs");
    file.sync_all().unwrap();
    drop(file);
    let conflict = || f.keys().into_iter().find(|key| key.starts_with("app/a.conflict-"));
    assert_eq!(f.text("app/a").as_deref(), Some("theirs"));
    assert_eq!(
        f.text(&conflict().expect("ours has a name of its own")).as_deref(),
        Some("ours")
    );
    wait_for("the mount shows both", || {
        fs::read_to_string(f.path("app/a")).is_ok_and(|text| text == "theirs")
            && fs::read_to_string(f.path(&conflict().unwrap())).is_ok_and(|text| text == "ours")
    });
    assert_eq!(f.mount().pending().count, 0);
}

#[test]
fn an_edit_of_a_file_removed_elsewhere_stays() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"base"));
    let file = OpenOptions::new().write(true).open(f.path("app/a")).unwrap();
    file.write_all_at(b"BA", 0).unwrap();
    f.delete("app/a");
    drop(file);
    wait_for("the edit is in S3", || f.text("app/a").as_deref() == Some("BAse"));
}

#[test]
fn creating_a_file_that_was_just_made_elsewhere_loses_neither() {
    let f = Fixture::with(|_| {}, |put| put("app/x", b"x"));
    let mut file = File::create(f.path("app/new")).unwrap();
    file.write_all(b"ours").unwrap();
    let put = f.store.put("app/new", "theirs".into(), Precondition::Absent);
    f.block_on(put).unwrap();
    drop(file);
    wait_for("both are in S3", || {
        let mut texts: Vec<_> = f
            .keys()
            .iter()
            .filter(|key| key.starts_with("app/new"))
            .filter_map(|key| f.text(key))
            .collect();
        texts.sort();
        texts == ["ours", "theirs"]
    });
}

#[test]
fn own_writes_that_come_back_change_nothing() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    fs::write(f.path("app/a"), "0").unwrap();
    let ino = fs::metadata(f.path("app/a")).unwrap().ino();
    for n in 0..200 {
        fs::write(f.path("app/a"), format!("{n}")).unwrap();
        assert_eq!(fs::read_to_string(f.path("app/a")).unwrap(), format!("{n}"));
    }
    f.put("app/last", "x");
    wait_for("the feed is read to its end", || f.path("app/last").exists());
    assert_eq!(fs::metadata(f.path("app/a")).unwrap().ino(), ino);
    assert_eq!(fs::read_to_string(f.path("app/a")).unwrap(), "199");
    assert_eq!(f.keys().len(), 3);
}

#[test]
fn every_one_of_many_saves_is_in_s3_when_close_has_returned() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    for n in 0..100 {
        fs::write(f.path(&format!("app/{n}")), format!("content {n}")).unwrap();
        assert_eq!(
            f.text(&format!("app/{n}")),
            Some(format!("content {n}")),
            "in S3 when close returned"
        );
    }
}

#[test]
fn a_dead_mount_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!berth_mount::clear_stale(dir.path()).unwrap());
    // A mount whose server is gone: the device is closed while it is mounted.
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .expect("/dev/fuse is needed");
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    nix::mount::mount(
        Some("dead"),
        dir.path(),
        Some("fuse.berth"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    drop(device);
    assert_eq!(
        fs::metadata(dir.path()).unwrap_err().raw_os_error(),
        Some(libc::ENOTCONN)
    );
    assert!(berth_mount::clear_stale(dir.path()).unwrap());
    assert!(fs::metadata(dir.path()).is_ok());
}
