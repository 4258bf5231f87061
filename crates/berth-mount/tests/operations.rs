//! Each file system operation through a real mount, and what it leaves in S3.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use fixture::{Fixture, wait_for};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_closed_file_goes_to_s3_at_once() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    fs::write(f.path("app/index.js"), "hello").unwrap();
    assert_eq!(f.text("app/index.js").as_deref(), Some("hello"));
    assert_eq!(fs::read_to_string(f.path("app/index.js")).unwrap(), "hello");
    fs::write(f.path("app/index.js"), "").unwrap();
    assert_eq!(
        f.text("app/index.js").as_deref(),
        Some(""),
        "an empty file is an empty object"
    );
    assert_eq!(f.mount().pending().count, 0);
}

#[test]
fn a_synced_file_goes_to_s3_while_it_is_open() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let mut file = File::create(f.path("app/a")).unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(f.text("app/a"), None);
    assert_eq!(f.mount().pending().count, 1);
    file.sync_all().unwrap();
    assert_eq!(f.text("app/a").as_deref(), Some("one"));
    file.write_all(b" two").unwrap();
    file.sync_data().unwrap();
    assert_eq!(f.text("app/a").as_deref(), Some("one two"));
}

#[test]
fn a_file_held_open_for_long_is_saved_without_being_asked() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let mut file = File::create(f.path("app/a")).unwrap();
    file.write_all(b"kept open").unwrap();
    wait_for("the open file is in S3", || {
        f.text("app/a").as_deref() == Some("kept open")
    });
}

#[test]
fn a_file_created_and_removed_before_close_uploads_nothing() {
    let f = Fixture::new();
    let mut feed = f.store.changes();
    let mut file = File::create(f.path("short")).unwrap();
    file.write_all(b"gone").unwrap();
    fs::remove_file(f.path("short")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    drop(file);
    assert!(feed.try_recv().is_err(), "S3 never heard of it");
    assert_eq!(f.mount().pending().count, 0);
}

#[test]
fn writes_land_at_their_offset_and_gaps_are_zeros() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"0123456789"));
    let file = OpenOptions::new().write(true).open(f.path("app/a")).unwrap();
    file.write_all_at(b"XY", 4).unwrap();
    file.write_all_at(b"end", 12).unwrap();
    drop(file);
    assert_eq!(f.object("app/a").unwrap(), b"0123XY6789\0\0end");
    let mut file = OpenOptions::new().append(true).open(f.path("app/a")).unwrap();
    file.write_all(b"+").unwrap();
    file.write_all(b"+").unwrap();
    drop(file);
    assert_eq!(f.object("app/a").unwrap(), b"0123XY6789\0\0end++");
}

#[test]
fn truncate_cuts_and_lengthens() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"0123456789"));
    nix::unistd::truncate(&f.path("app/a"), 4).unwrap();
    assert_eq!(f.object("app/a").unwrap(), b"0123", "without a descriptor, at once");
    let file = OpenOptions::new().write(true).open(f.path("app/a")).unwrap();
    file.set_len(6).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6);
    drop(file);
    assert_eq!(f.object("app/a").unwrap(), b"0123\0\0");
    drop(File::create(f.path("app/a")).unwrap());
    assert_eq!(f.object("app/a").unwrap(), b"", "O_TRUNC");
    assert_eq!(
        errno(
            OpenOptions::new()
                .write(true)
                .open(f.path("app/a"))
                .unwrap()
                .set_len(1 << 50)
        ),
        libc::EFBIG
    );
}

#[test]
fn a_file_with_a_time_that_somebody_set_is_cut_through_its_descriptor() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"0123456789"));
    f.sh("touch -d 2001-02-03 app/a");
    let file = OpenOptions::new().read(true).write(true).open(f.path("app/a")).unwrap();
    file.set_len(4).unwrap();
    drop(file);
    assert_eq!(f.object("app/a").unwrap(), b"0123");
}

#[test]
fn a_large_file_goes_and_comes_by_parts() {
    let mut f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let content: Vec<u8> = (0..40_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    fs::write(f.path("app/big"), &content).unwrap();
    assert!(f.object("app/big").unwrap() == content, "S3 has it");
    f.remount();
    assert!(fs::read(f.path("app/big")).unwrap() == content, "and it comes back");
    let file = OpenOptions::new().write(true).open(f.path("app/big")).unwrap();
    file.write_all_at(b"patched", 30 << 20).unwrap();
    drop(file);
    assert_eq!(&f.object("app/big").unwrap()[30 << 20..][..7], b"patched");
    assert_eq!(f.object("app/big").unwrap().len(), content.len());
}

#[test]
fn folders_are_made_listed_and_removed() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("app/src/deep")).unwrap();
    assert!(
        f.keys().contains(&"app/".to_owned()),
        "every S3 tool sees a new workspace"
    );
    assert_eq!(errno(fs::create_dir(f.path("app"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(f.path("app/src"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::read_dir(f.path("nothing"))), libc::ENOENT);
    assert_eq!(fs::metadata(f.path("app")).unwrap().nlink(), 3);
    fs::remove_dir(f.path("app/src/deep")).unwrap();
    fs::remove_dir(f.path("app/src")).unwrap();
    fs::remove_dir(f.path("app")).unwrap();
    assert_eq!(f.keys(), Vec::<String>::new());
    assert_eq!(fs::read_dir(f.root()).unwrap().count(), 0);
}

#[test]
fn berths_own_folder_cannot_be_seen_or_made() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("app/empty")).unwrap();
    let names: Vec<_> = fs::read_dir(f.root())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["app"]);
    assert_eq!(errno(fs::create_dir(f.path(".berth"))), libc::EPERM);
    assert!(f.text(".berth/index/app.json").unwrap().contains("empty"));
}

#[test]
fn a_restart_shows_the_same_tree() {
    let mut f = Fixture::new();
    fs::create_dir_all(f.path("app/empty/deeper")).unwrap();
    fs::create_dir(f.path("app/bin")).unwrap();
    fs::write(f.path("app/bin/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(f.path("app/bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(f.path("app/plain"), "plain").unwrap();
    symlink("bin/run", f.path("app/link")).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(f.path("app/plain")).unwrap().set_modified(time).unwrap();
    fs::write(f.path("app/theirs"), "theirs").unwrap();
    std::os::unix::fs::chown(f.path("app/theirs"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(f.path("app/bin"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(f.path("alone")).unwrap();
    let tree = "find . -printf '%P %y %m %U %G %l %s\\n' | sort";
    let before = f.sh(tree);
    f.remount();
    assert_eq!(f.sh(tree), before);
    assert_eq!(fs::metadata(f.path("app/plain")).unwrap().modified().unwrap(), time);
    assert_eq!(fs::read_link(f.path("app/link")).unwrap().to_str(), Some("bin/run"));
    assert_eq!(fs::read_to_string(f.path("app/link")).unwrap(), "#!/bin/sh\n");
    fs::remove_file(f.path("app/link")).unwrap();
    fs::remove_dir(f.path("app/empty/deeper")).unwrap();
    f.remount();
    assert!(!f.path("app/link").is_symlink());
    assert!(f.path("app/empty").is_dir() && !f.path("app/empty/deeper").exists());
}

#[test]
fn modes_and_links_go_to_s3_at_once() {
    let f = Fixture::with(|_| {}, |put| put("app/run", b"x"));
    let index = || {
        f.settle();
        f.text(".berth/index/app.json").unwrap_or_default()
    };
    fs::set_permissions(f.path("app/run"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(index().contains("755"), "{}", index());
    symlink("run", f.path("app/link")).unwrap();
    assert!(index().contains("link"), "{}", index());
    fs::create_dir(f.path("app/empty")).unwrap();
    assert!(index().contains("empty"), "{}", index());
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o755)
        .open(f.path("app/born"))
        .unwrap();
    assert!(index().contains("born"), "{}", index());
}

#[test]
fn rename_replaces_at_once_and_leaves_no_old_object() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"a");
            put("app/b", b"b");
        },
    );
    let old = File::open(f.path("app/b")).unwrap();
    fs::rename(f.path("app/a"), f.path("app/b")).unwrap();
    assert_eq!(f.keys(), ["app/b"]);
    assert_eq!(f.text("app/b").as_deref(), Some("a"));
    assert_eq!(fs::read_to_string(f.path("app/b")).unwrap(), "a");
    let mut kept = String::new();
    (&old).read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "b", "who had the replaced file open keeps it");
    assert_eq!(errno(fs::rename(f.path("app/none"), f.path("app/b"))), libc::ENOENT);
}

#[test]
fn rename_flags_are_honoured() {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"a");
            put("app/b", b"b");
        },
    );
    let rename = |flags| renameat2(AT_FDCWD, &f.path("app/a"), AT_FDCWD, &f.path("app/b"), flags);
    assert_eq!(
        rename(RenameFlags::RENAME_NOREPLACE).unwrap_err(),
        nix::errno::Errno::EEXIST
    );
    assert_eq!(
        rename(RenameFlags::RENAME_EXCHANGE).unwrap_err(),
        nix::errno::Errno::EINVAL
    );
}

#[test]
fn a_file_written_and_renamed_before_close_is_put_under_the_new_name_alone() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let mut feed = f.store.changes();
    let mut file = File::create(f.path("app/temp")).unwrap();
    file.write_all(b"new").unwrap();
    fs::rename(f.path("app/temp"), f.path("app/real")).unwrap();
    assert_eq!(
        f.text("app/real").as_deref(),
        Some("new"),
        "a rename is an acknowledgement too"
    );
    file.write_all(b"er").unwrap();
    drop(file);
    assert_eq!(f.text("app/real").as_deref(), Some("newer"));
    while let Ok(change) = feed.try_recv() {
        assert_ne!(change.key(), "app/temp");
    }
}

#[test]
fn a_folder_moves_with_all_below_it() {
    let mut f = Fixture::with(
        |_| {},
        |put| {
            for n in 0..30 {
                put(&format!("app/src/{n}"), format!("{n}").as_bytes());
            }
        },
    );
    symlink("0", f.path("app/src/link")).unwrap();
    fs::create_dir(f.path("app/src/empty")).unwrap();
    let mut open = OpenOptions::new().append(true).open(f.path("app/src/7")).unwrap();
    open.write_all(b"!").unwrap();
    fs::rename(f.path("app/src"), f.path("app/lib")).unwrap();
    open.write_all(b"?").unwrap();
    drop(open);
    assert_eq!(f.text("app/lib/7").as_deref(), Some("7!?"), "open files follow");
    fs::rename(f.path("app"), f.path("moved")).unwrap();
    assert!(f.keys().iter().all(|key| key.starts_with("moved/")), "{:?}", f.keys());
    assert_eq!(f.text(".berth/index/app.json"), None, "the index moves too");
    f.remount();
    assert_eq!(fs::read_to_string(f.path("moved/lib/link")).unwrap(), "0");
    assert!(f.path("moved/lib/empty").is_dir());
    for n in 0..30 {
        let expected = if n == 7 { "7!?".to_owned() } else { n.to_string() };
        let key = format!("moved/lib/{n}");
        assert_eq!(f.text(&key).as_deref(), Some(expected.as_str()), "{key} in S3");
        assert_eq!(
            fs::read_to_string(f.path(&key)).unwrap(),
            expected,
            "{key} on the mount"
        );
    }
    fs::create_dir(f.path("moved/full")).unwrap();
    fs::write(f.path("moved/full/x"), "x").unwrap();
    assert_eq!(
        errno(fs::rename(f.path("moved/lib"), f.path("moved/full"))),
        libc::ENOTEMPTY
    );
}

#[test]
fn local_only_paths_work_and_never_reach_s3() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let keys = f.keys();
    fs::create_dir_all(f.path("app/node_modules/x/y")).unwrap();
    fs::write(f.path("app/node_modules/x/y/index.js"), vec![b'x'; 10_000]).unwrap();
    fs::write(f.path("app/.env"), "SECRET=1").unwrap();
    fs::write(f.path("app/debug.log"), "log").unwrap();
    symlink("y", f.path("app/node_modules/x/z")).unwrap();
    fs::rename(f.path("app/node_modules/x"), f.path("app/node_modules/w")).unwrap();
    assert_eq!(fs::read(f.path("app/node_modules/w/z/index.js")).unwrap().len(), 10_000);
    nix::unistd::mkfifo(&f.path("app/node_modules/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&f.path("app/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::rename(f.path("app/fifo"), f.path("app/pipe")).unwrap();
    assert_eq!(f.keys(), keys);
    assert_eq!(f.mount().local_usage().files, 3);
    assert_eq!(f.mount().local_usage().bytes, 10_000 + 8 + 3);
    fs::remove_dir_all(f.path("app/node_modules")).unwrap();
    wait_for("the memory is given back", || f.mount().local_usage().bytes == 11);
}

#[test]
fn local_only_content_is_bounded() {
    let f = Fixture::with(|config| config.local_max = 1 << 20, |_| {});
    fs::create_dir(f.path("dist")).unwrap();
    fs::write(f.path("dist/a"), vec![0; 600_000]).unwrap();
    assert_eq!(errno(fs::write(f.path("dist/b"), vec![0; 600_000])), libc::ENOSPC);
    fs::remove_file(f.path("dist/a")).unwrap();
    wait_for("there is room again", || {
        fs::write(f.path("dist/b"), vec![0; 600_000]).is_ok()
    });
}

#[test]
fn renames_cross_the_local_border_both_ways() {
    let f = Fixture::with(|_| {}, |put| put("app/src/a", b"a"));
    fs::rename(f.path("app/src"), f.path("app/dist")).unwrap();
    assert!(!f.keys().iter().any(|key| key.ends_with("/a")), "{:?}", f.keys());
    assert_eq!(fs::read_to_string(f.path("app/dist/a")).unwrap(), "a");
    fs::write(f.path("app/dist/b"), "b").unwrap();
    fs::rename(f.path("app/dist"), f.path("app/out")).unwrap();
    assert_eq!(f.text("app/out/a").as_deref(), Some("a"));
    assert_eq!(f.text("app/out/b").as_deref(), Some("b"));
    fs::rename(f.path("app/out/a"), f.path("app/a.log")).unwrap();
    assert_eq!(f.text("app/out/a"), None);
    fs::rename(f.path("app/a.log"), f.path("app/a.txt")).unwrap();
    assert_eq!(f.text("app/a.txt").as_deref(), Some("a"));
    assert_eq!(f.mount().local_usage().files, 0);
}

#[test]
fn a_backup_rename_never_leaves_s3_without_the_file() {
    let f = Fixture::with(|_| {}, |put| put("app/x", b"old"));
    let mut feed = f.store.changes();
    fs::rename(f.path("app/x"), f.path("app/x~")).unwrap();
    assert!(!f.path("app/x").exists());
    fs::write(f.path("app/x"), "new").unwrap();
    fs::remove_file(f.path("app/x~")).unwrap();
    assert_eq!(f.text("app/x").as_deref(), Some("new"));
    assert_eq!(f.keys(), ["app/", "app/x"]);
    while let Ok(change) = feed.try_recv() {
        assert!(matches!(change, berth_store::Change::Put(_)), "{change:?}");
    }
    // The backup is in memory alone: S3 keeps what it was made from for as long as it is there, and the mount shows it once.
    fs::rename(f.path("app/x"), f.path("app/x~")).unwrap();
    wait_for("nothing is pending", || f.mount().pending().count == 0);
    assert_eq!(f.text("app/x").as_deref(), Some("new"));
    let names = || -> Vec<_> {
        fs::read_dir(f.path("app"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    };
    assert_eq!(names(), ["x~"]);
    // Back again: nothing was lost on the way.
    fs::rename(f.path("app/x~"), f.path("app/x")).unwrap();
    assert_eq!(fs::read_to_string(f.path("app/x")).unwrap(), "new");
    assert_eq!(f.text("app/x").as_deref(), Some("new"));
    // A copy of it elsewhere takes over, and what it was made from goes.
    fs::rename(f.path("app/x"), f.path("app/x~")).unwrap();
    fs::rename(f.path("app/x~"), f.path("app/y")).unwrap();
    wait_for("the old name goes", || f.text("app/x").is_none());
    assert_eq!(f.text("app/y").as_deref(), Some("new"));
    fs::rename(f.path("app/y"), f.path("app/y~")).unwrap();
    assert_eq!(fs::read_to_string(f.path("app/y~")).unwrap(), "new");
    fs::remove_file(f.path("app/y~")).unwrap();
    wait_for("removed with its backup", || f.text("app/y").is_none());
}

#[test]
fn a_backup_gives_way_when_its_name_is_saved_elsewhere() {
    let f = Fixture::with(|_| {}, |put| put("app/x", b"old"));
    fs::rename(f.path("app/x"), f.path("app/x~")).unwrap();
    f.put("app/x", "theirs");
    wait_for("theirs is shown", || {
        fs::read_to_string(f.path("app/x")).is_ok_and(|text| text == "theirs")
    });
    fs::remove_file(f.path("app/x~")).unwrap();
    wait_for("nothing is pending", || f.mount().pending().count == 0);
    assert_eq!(f.text("app/x").as_deref(), Some("theirs"));
}

#[test]
fn links_owners_and_attributes_are_as_documented() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    assert_eq!(errno(fs::hard_link(f.path("app/a"), f.path("app/b"))), libc::EPERM);
    std::os::unix::fs::chown(f.path("app/a"), Some(1234), Some(1234)).unwrap();
    let owner = fs::metadata(f.path("app/a")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1234, 1234));
    let name = format!("app/{}", "n".repeat(255));
    fs::write(f.path(&name), "long").unwrap();
    assert_eq!(
        errno(fs::write(f.path(&format!("{name}n")), "longer")),
        libc::ENAMETOOLONG
    );
    assert_eq!(
        errno(OpenOptions::new().write(true).create_new(true).open(f.path("app/a"))),
        libc::EEXIST
    );
    assert!(nix::sys::statvfs::statvfs(f.root()).unwrap().blocks_available() > 1 << 40);
    nix::sys::stat::mknod(
        &f.path("app/node"),
        nix::sys::stat::SFlag::S_IFREG,
        nix::sys::stat::Mode::S_IRUSR,
        0,
    )
    .unwrap();
    assert_eq!(f.text("app/node").as_deref(), Some(""));
    let file = OpenOptions::new().write(true).open(f.path("app/a")).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
}

#[test]
fn an_unlinked_file_stays_readable_while_it_is_open() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/small", b"small");
            put("app/big", &vec![7; 6 << 20]);
        },
    );
    let (mut small, mut big) = (
        File::open(f.path("app/small")).unwrap(),
        File::open(f.path("app/big")).unwrap(),
    );
    fs::remove_file(f.path("app/small")).unwrap();
    fs::remove_file(f.path("app/big")).unwrap();
    assert_eq!(f.keys(), ["app/"], "the folder stays, as on a disk");
    let mut bytes = Vec::new();
    small.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"small");
    assert_eq!(big.read_to_end(&mut bytes).unwrap(), 6 << 20);
}

#[test]
fn many_threads_write_different_files() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    std::thread::scope(|scope| {
        for t in 0..8 {
            let f = &f;
            scope.spawn(move || {
                for n in 0..20 {
                    let path = f.path(&format!("app/{t}-{n}"));
                    fs::write(&path, format!("{t} {n}")).unwrap();
                    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{t} {n}"));
                    if n % 2 == 0 {
                        fs::rename(&path, f.path(&format!("app/{t}-{n}-moved"))).unwrap();
                    }
                }
            });
        }
    });
    f.settle();
    let objects = f.block_on(f.store.list("app/")).unwrap();
    assert_eq!(objects.len(), 161, "160 files and the marker");
    assert_eq!(f.text("app/3-4-moved").as_deref(), Some("3 4"));
    assert_eq!(f.text("app/3-5").as_deref(), Some("3 5"));
}

#[test]
fn two_descriptors_of_one_file_see_each_other() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"start"));
    let a = OpenOptions::new().read(true).write(true).open(f.path("app/a")).unwrap();
    let b = OpenOptions::new().read(true).write(true).open(f.path("app/a")).unwrap();
    a.write_all_at(b"S", 0).unwrap();
    b.write_all_at(b"T", 1).unwrap();
    let mut bytes = [0; 5];
    a.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"STart");
    drop(a);
    assert_eq!(f.text("app/a").as_deref(), Some("STart"));
}

#[test]
fn a_second_mount_at_the_same_place_is_refused() {
    let f = Fixture::new();
    let again = f.block_on(berth_mount::Mount::start(f.config(), f.store.clone()));
    assert!(
        matches!(again, Err(berth_mount::MountError::AlreadyMounted { .. })),
        "{again:?}"
    );
    fs::create_dir(f.path("still-works")).unwrap();
}
