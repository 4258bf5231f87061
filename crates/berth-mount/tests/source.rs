//! What sandboxes read: the mount's second, read-only session. What is told there, and when.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use berth_mount::{CacheMode, Mount, MountError};
use fixture::{Fixture, wait_for};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

#[test]
fn nothing_can_be_written_there() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    let folder = f.source("app");
    for refused in [
        fs::write(folder.join("a"), "b"),
        fs::write(folder.join("new"), "b"),
        fs::remove_file(folder.join("a")),
        fs::create_dir(folder.join("dir")),
        fs::rename(folder.join("a"), folder.join("b")),
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o777)),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
    assert_eq!(fs::read(f.path("app/a")).unwrap(), b"a");
}

#[test]
fn a_save_is_seen_whole_and_not_before_it_is_closed() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"the first"));
    let shown = f.source("app/a");
    assert_eq!(fs::read(&shown).unwrap(), b"the first");
    let before = fs::metadata(&shown).unwrap();
    for (round, size) in [3, 70_000, 0, 9, 2_000_000, 5].into_iter().enumerate() {
        let old = fs::read(&shown).unwrap();
        let old_time = fs::metadata(&shown).unwrap().modified().unwrap();
        let body = vec![b'a' + round as u8; size];
        let mut file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(f.path("app/a"))
            .unwrap();
        file.write_all(&body[..size / 2]).unwrap();
        f.told();
        assert_eq!(fs::read(&shown).unwrap(), old, "half of round {round} is seen");
        let now = fs::metadata(&shown).unwrap();
        assert_eq!((now.len(), now.modified().unwrap()), (old.len() as u64, old_time));
        file.write_all(&body[size / 2..]).unwrap();
        drop(file);
        f.told();
        assert!(fs::read(&shown).unwrap() == body, "round {round} is not seen");
        assert_eq!(fs::metadata(&shown).unwrap().len(), size as u64);
        assert_ne!(fs::metadata(&shown).unwrap().modified().unwrap(), old_time);
    }
    let now = fs::metadata(&shown).unwrap();
    assert_eq!(now.ino(), before.ino(), "a save in place is the same file");
    assert_eq!(fs::metadata(f.path("app/a")).unwrap().ino(), now.ino());
}

#[test]
fn a_new_file_is_not_there_before_it_is_saved() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let shown = f.source("app/new");
    assert!(is_missing(&shown), "and this is remembered");
    let mut file = File::create(f.path("app/new")).unwrap();
    file.write_all(b"half").unwrap();
    f.told();
    assert!(is_missing(&shown) && names(&f.source("app")).is_empty());
    file.write_all(b" and half").unwrap();
    file.sync_all().unwrap();
    f.told();
    assert_eq!(fs::read_to_string(&shown).unwrap(), "half and half", "open, and synced");
    assert_eq!(names(&f.source("app")), ["new"]);
    // One that is renamed before it is closed is saved by that.
    let mut file = File::create(f.path("app/.tmp")).unwrap();
    file.write_all(b"renamed").unwrap();
    fs::rename(f.path("app/.tmp"), f.path("app/new")).unwrap();
    f.told();
    assert_eq!(fs::read_to_string(&shown).unwrap(), "renamed");
    assert_eq!(names(&f.source("app")), ["new"]);
}

#[test]
fn who_has_a_file_open_reads_what_was_saved_since() {
    let f = Fixture::with(|_| {}, |put| put("app/a", &[b'1'; 10_000]));
    let mut open = File::open(f.source("app/a")).unwrap();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [b'1'; 10_000]);
    for (byte, size) in [(b'2', 20_000), (b'3', 300), (b'4', 4_000)] {
        fs::write(f.path("app/a"), vec![byte; size]).unwrap();
        f.told();
        bytes.clear();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, vec![byte; size]);
    }
}

#[test]
fn names_made_moved_and_removed_here_are_told() {
    let f = Fixture::new();
    f.sh("mkdir -p app/dir/deep other; echo 1 > app/one; echo 2 > app/dir/two; echo 3 > app/dir/deep/three");
    let app = f.source("app");
    assert_eq!(fs::read_to_string(app.join("dir/deep/three")).unwrap(), "3\n");
    for missing in ["new", "link", "made", "dir/one", "moved"] {
        assert!(is_missing(&app.join(missing)));
    }
    assert_eq!(names(&app), ["dir", "one"]);
    f.sh("mv app/one app/dir/one; ln -s dir app/link; mkdir app/made; echo n > app/new; chmod 755 app/new");
    f.told();
    assert_eq!(names(&app), ["dir", "link", "made", "new"]);
    assert!(is_missing(&app.join("one")));
    assert_eq!(fs::read_to_string(app.join("link/one")).unwrap(), "1\n");
    assert_eq!(fs::metadata(app.join("new")).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(&app).unwrap().nlink(), 4, "its subfolders are counted");
    // A folder moves with all below it, for who stands in it too.
    let inside = File::open(app.join("dir/deep")).unwrap();
    f.sh("mv app/dir app/moved; mv app/moved/deep other/deep; rm app/link; ln -s moved app/link; rmdir app/made");
    f.told();
    assert!(is_missing(&app.join("dir")) && is_missing(&app.join("made")) && is_missing(&app.join("moved/deep")));
    assert_eq!(fs::read_to_string(app.join("link/two")).unwrap(), "2\n");
    assert_eq!(fs::read_to_string(f.source("other/deep/three")).unwrap(), "3\n");
    let there = format!("/proc/self/fd/{}/three", std::os::fd::AsRawFd::as_raw_fd(&inside));
    assert_eq!(fs::read_to_string(there).unwrap(), "3\n");
    f.sh("rm -r app/moved; mv other app2; chmod 600 app/new; touch -d 2001-02-03 app/new");
    f.told();
    assert_eq!(names(&app), ["link", "new"]);
    assert_eq!(names(&f.source("")), ["app", "app2"]);
    let new = fs::metadata(app.join("new")).unwrap();
    assert_eq!(new.mode() & 0o777, 0o600);
    assert_eq!(
        new.modified().unwrap(),
        fs::metadata(f.path("app/new")).unwrap().modified().unwrap()
    );
}

#[test]
fn a_file_changed_elsewhere_is_new_for_who_opens_it_and_old_for_who_has_it() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"old"));
    let shown = f.source("app/a");
    let open = File::open(&shown).unwrap();
    let mut bytes = [0; 3];
    open.read_exact_at(&mut bytes, 0).unwrap();
    f.put("app/a", "another");
    f.put("app/b", "new");
    wait_for("the change", || {
        f.told();
        fs::read(&shown).unwrap() == b"another" && f.source("app/b").exists()
    });
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old");
    f.delete("app/a");
    wait_for("the removal", || {
        f.told();
        is_missing(&shown)
    });
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((&bytes, names(&f.source("app"))), (b"old", vec!["b".to_owned()]));
}

#[test]
fn old_bytes_that_are_nowhere_any_more_are_stale() {
    // Nothing is cached, so that S3 alone has what nobody has read yet.
    let f = Fixture::with(|config| config.cache_mode = CacheMode::Off, |put| put("app/a", b"old"));
    let shown = f.source("app/a");
    let open = File::open(&shown).unwrap();
    f.put("app/a", "new");
    let mut bytes = [0; 3];
    let error = open.read_exact_at(&mut bytes, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    wait_for("the change", || {
        f.told();
        fs::read(&shown).is_ok_and(|bytes| bytes == b"new")
    });
}

#[test]
fn a_removed_file_keeps_its_bytes_for_who_has_it_open() {
    let f = Fixture::new();
    f.sh("mkdir app; echo removed > app/a; echo replaced > app/b; echo c > app/c");
    f.settle();
    let open: Vec<File> = ["a", "b"]
        .map(|name| File::open(f.source("app").join(name)).unwrap())
        .into();
    f.sh("rm app/a; mv app/c app/b");
    f.told();
    for (file, was) in open.iter().zip(["removed\n", "replaced\n"]) {
        let mut bytes = vec![0; was.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), was);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
    assert_eq!(fs::read_to_string(f.source("app/b")).unwrap(), "c\n");
}

#[test]
fn local_only_files_are_seen_as_they_are() {
    let f = Fixture::new();
    f.sh("mkdir -p app/node_modules/x; echo 1 > app/node_modules/x/index.js; echo secret > app/.env");
    assert_eq!(fs::read_to_string(f.source("app/.env")).unwrap(), "secret\n");
    assert_eq!(names(&f.source("app/node_modules/x")), ["index.js"]);
    let shown = f.source("app/server.log");
    assert!(is_missing(&shown));
    // A log is followed while it is open.
    let mut log = File::create(f.path("app/server.log")).unwrap();
    let mut all = String::new();
    for line in 0..50 {
        writeln!(log, "line {line}").unwrap();
        all.push_str(&format!("line {line}\n"));
        f.told();
        assert_eq!(fs::read_to_string(&shown).unwrap(), all);
    }
    log.set_len(6).unwrap();
    f.told();
    assert_eq!(fs::read_to_string(&shown).unwrap(), "line 0");
    // Over the border, both ways.
    f.sh("mv app/server.log app/kept; mv app/.env app/env; mkdir app/dist; mv app/kept app/dist/kept");
    f.told();
    assert_eq!(fs::read_to_string(f.source("app/dist/kept")).unwrap(), "line 0");
    assert_eq!(fs::read_to_string(f.source("app/env")).unwrap(), "secret\n");
    assert!(is_missing(&shown));
}

#[test]
fn a_large_file_is_read_from_s3_and_as_it_was_saved() {
    let body: Vec<u8> = (0..10_000_000_u32).map(|n| (n % 251) as u8).collect();
    let seed = body.clone();
    let f = Fixture::with(|_| {}, move |put| put("app/large", &seed));
    assert!(fs::read(f.source("app/large")).unwrap() == body);
    let mut file = OpenOptions::new().write(true).open(f.path("app/large")).unwrap();
    file.seek(SeekFrom::Start(5_000_000)).unwrap();
    file.write_all(&[255; 100]).unwrap();
    f.told();
    assert!(fs::read(f.source("app/large")).unwrap() == body, "not saved yet");
    drop(file);
    f.told();
    let now = fs::read(f.source("app/large")).unwrap();
    assert!(now[5_000_000..5_000_100] == [255; 100] && now.len() == body.len());
}

#[test]
fn each_cache_mode_can_be_read_from() {
    let body = vec![7_u8; 9 << 20];
    for mode in [CacheMode::Off, CacheMode::Minimal, CacheMode::Writes, CacheMode::Full] {
        let seed = body.clone();
        let mut f = Fixture::with(
            |config| config.cache_mode = mode,
            move |put| {
                put("app/small", b"small");
                put("app/large", &seed);
            },
        );
        assert_eq!(fs::read(f.source("app/small")).unwrap(), b"small", "{mode:?}");
        assert!(fs::read(f.source("app/large")).unwrap() == body, "{mode:?}");
        if mode == CacheMode::Off {
            // Kept until the kernel knows the file no more, as elsewhere until it is closed.
            let small = f.source("app/small");
            f.stop_server();
            wait_for("the content to be let go", || {
                drop_names();
                fs::read(&small).is_err()
            });
        }
    }
}

/// The kernel forgets names, inodes and pages that nobody uses.
fn drop_names() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Asks all the time, in the way of reader `n`: whatever it sees, the kernel remembers.
fn keep_asking(dir: &Path, n: usize, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        match n {
            0 => drop(fs::read(dir.join("a"))),
            1 => {
                let names = fs::read_dir(dir).into_iter().flatten().flatten();
                names.for_each(|name| drop(name.metadata()));
            }
            _ => drop((fs::metadata(dir.join("a")), fs::read(dir.join("new")))),
        }
    }
}

/// Saves `a` in one of the ways in which programs save, with a size that it did not have before; every fourth time `new` too.
fn save(f: &Fixture, n: usize) -> String {
    let body = format!("{n}").repeat(1 + n * 37 % 5000);
    let path = f.path("app/dir/a");
    match n % 4 {
        1 => {
            fs::write(f.path("app/dir/tmp"), &body).unwrap();
            fs::rename(f.path("app/dir/tmp"), path).unwrap();
            return body;
        }
        2 => fs::remove_file(&path).unwrap(),
        3 => fs::write(f.path("app/dir/new"), "new").unwrap(),
        _ => {}
    }
    fs::write(path, &body).unwrap();
    body
}

#[test]
fn what_was_saved_is_seen_whatever_the_kernel_is_asked_meanwhile() {
    const ROUNDS: usize = 400;
    let f = Fixture::new();
    f.sh("mkdir -p app/dir; echo 0 > app/dir/a");
    let over = AtomicBool::new(false);
    let dir = f.source("app/dir");
    let rounds = || {
        for n in 1..=ROUNDS {
            let body = save(&f, n);
            f.told();
            let size = fs::metadata(dir.join("a")).map_err(|e| e.to_string())?.len();
            let read = fs::read(dir.join("a")).map_err(|e| e.to_string())?;
            let new = n % 4 == 3;
            if size != body.len() as u64 || read != body.as_bytes() || is_missing(&dir.join("new")) == new {
                return Err(format!("{size} bytes, {} read, of {}", read.len(), body.len()));
            }
            if names(&dir).len() != 1 + usize::from(new) {
                return Err(format!("{:?}", names(&dir)));
            }
            if new {
                fs::remove_file(f.path("app/dir/new")).map_err(|e| e.to_string())?;
            }
            if n % 40 == 0 {
                drop_names();
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (over, dir) = (&over, &dir);
            scope.spawn(move || keep_asking(dir, n, over));
        }
        let seen = rounds();
        // First of all the others are told, else a failure would wait for them for ever.
        over.store(true, Ordering::Relaxed);
        assert_eq!(seen, Ok(()));
    });
}

#[test]
fn both_places_end_together_and_come_back() {
    let mut f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    let (main, shown) = (f.path("app"), f.source("app"));
    assert!(main.exists() && shown.exists());
    f.unmount();
    assert!(!main.exists() && !shown.exists());
    f.mount_again();
    assert_eq!(fs::read(f.source("app/a")).unwrap(), b"a");
}

#[test]
fn a_place_that_is_taken_is_named_and_nothing_stays_mounted() {
    let mut f = Fixture::new();
    let taken = f.source("");
    let root = f.root().to_owned();
    f.unmount();
    nix::mount::mount(
        Some("somebody"),
        &taken,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let refused = f.block_on(Mount::start(f.config(), f.store.clone()));
    let path = taken.canonicalize().unwrap();
    nix::mount::umount(&taken).unwrap();
    match refused {
        Err(MountError::AlreadyMounted { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!table.contains(root.to_str().unwrap()));
    f.mount_again();
}

#[test]
fn links_and_odd_names_are_shown() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    symlink("/etc/hostname", f.path("app/link")).unwrap();
    let name = "n".repeat(255);
    fs::write(f.path("app").join(&name), "x").unwrap();
    assert_eq!(fs::read_link(f.source("app/link")).unwrap(), Path::new("/etc/hostname"));
    assert_eq!(fs::read_to_string(f.source("app").join(&name)).unwrap(), "x");
    let long = fs::metadata(f.source("app").join("n".repeat(256))).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
}
