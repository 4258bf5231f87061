//! What stays on this host, and what is fetched before it is asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{SystemTime, UNIX_EPOCH},
};

use berth_mount::CacheMode;
use fixture::{Fixture, wait_for};

fn workspaces(put: &dyn Fn(&str, &[u8])) {
    for n in 0..100 {
        put(
            &format!("app/src/d{}/f{n}", n % 4),
            format!("{n}").repeat(2000).as_bytes(),
        );
    }
}

fn read_all(f: &Fixture) {
    for n in 0..100 {
        let read = fs::read_to_string(f.path(&format!("app/src/d{}/f{n}", n % 4))).unwrap();
        assert_eq!(read, format!("{n}").repeat(2000));
    }
}

/// Bytes of all the files of [`workspaces`].
const ALL: u64 = 10 * 2000 + 90 * 4000;

#[test]
fn what_was_read_is_read_after_a_restart_without_s3() {
    let mut f = Fixture::with(|_| {}, workspaces);
    read_all(&f);
    f.remount();
    f.stop_server();
    read_all(&f);
}

#[test]
fn small_files_are_here_before_they_are_asked_for() {
    let mut f = Fixture::with(|_| {}, workspaces);
    wait_for("all is on disk", || f.cached() >= ALL);
    f.stop_server();
    read_all(&f);
}

#[test]
fn the_first_file_opened_brings_the_rest_of_its_workspace() {
    // `other` changed last and takes all that the background may fetch.
    let mut f = Fixture::with(
        |config| config.cache_max = 2 << 20,
        |put| {
            workspaces(put);
            // S3's times are whole seconds.
            let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let then = second();
            wait_for("another second", || second() > then);
            for n in 0..4 {
                put(&format!("other/{n}"), &[n; 255 << 10]);
            }
        },
    );
    wait_for("the newest workspace is on disk", || f.cached() >= 1000 << 10);
    fs::read(f.path("app/src/d1/f1")).unwrap();
    wait_for("the other is too", || f.cached() >= (1000 << 10) + ALL);
    f.stop_server();
    read_all(&f);
}

#[test]
fn a_damaged_cache_is_fetched_again() {
    let mut f = Fixture::with(|_| {}, workspaces);
    wait_for("all is on disk", || f.cached() >= ALL);
    f.unmount();
    let dir = f.config().cache_dir.join("contents");
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for at in (0..file.metadata().unwrap().len()).step_by(1000) {
            file.write_all_at(b"?", at).unwrap();
        }
    }
    f.mount_again();
    read_all(&f);
}

#[test]
fn without_a_cache_nothing_is_on_disk_and_all_can_be_read() {
    for mode in [CacheMode::Off, CacheMode::Minimal] {
        let f = Fixture::with(
            |config| config.cache_mode = mode,
            |put| {
                workspaces(put);
                put("app/large", &[7; 9 << 20]);
            },
        );
        read_all(&f);
        assert_eq!(f.cached(), 0, "{mode:?}");
        assert!(fs::read(f.path("app/large")).unwrap().iter().all(|byte| *byte == 7));
        fs::write(f.path("app/new"), "written").unwrap();
        assert_eq!(fs::read_to_string(f.path("app/new")).unwrap(), "written");
        assert_eq!(f.text("app/new").as_deref(), Some("written"));
    }
}
