//! The promises of docs/semantics.md that no other test holds: each system call on the mount, beside a local disk.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::Path,
    time::{Duration, SystemTime},
};

use fixture::{Fixture, need};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, PosixFadviseAdvice, copy_file_range, fallocate, posix_fadvise},
    sys::statvfs::statvfs,
    unistd::{Whence, lseek},
};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn app() -> Fixture {
    Fixture::with(|_| {}, |put| put("app/a", b"0123456789"))
}

fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

#[test]
fn open_flags_mean_what_they_mean_on_a_disk() {
    let f = app();
    let a = f.path("app/a");
    assert_eq!(errno(open(&f.path("app/none"), 0)), libc::ENOENT);
    assert_eq!(errno(open(&f.path("app"), 0)), libc::EISDIR);
    assert_eq!(errno(open(&a, libc::O_DIRECTORY)), libc::ENOTDIR);
    symlink("a", f.path("app/link")).unwrap();
    assert_eq!(errno(open(&f.path("app/link"), libc::O_NOFOLLOW)), libc::ELOOP);
    assert_eq!(errno(open(&a, libc::O_CREAT | libc::O_EXCL)), libc::EEXIST);
    let reader = OpenOptions::new().read(true).open(&a).unwrap();
    assert_eq!(errno((&reader).write(b"x")), libc::EBADF);
    let writer = OpenOptions::new().write(true).open(&a).unwrap();
    assert_eq!(errno((&writer).read(&mut [0])), libc::EBADF);
    assert_eq!(
        errno(open(&f.path("app"), libc::O_TMPFILE)),
        libc::EOPNOTSUPP,
        "nameless files"
    );
}

#[test]
fn appends_of_two_descriptors_come_after_each_other() {
    let f = app();
    let open = || OpenOptions::new().append(true).open(f.path("app/a")).unwrap();
    let (mut one, mut two) = (open(), open());
    for n in 0..20 {
        let writer = if n % 2 == 0 { &mut one } else { &mut two };
        writer.write_all(&[b'a' + n]).unwrap();
    }
    assert_eq!(errno(one.seek(SeekFrom::End(-99))), libc::EINVAL);
    drop((one, two));
    assert_eq!(f.text("app/a").unwrap(), "0123456789abcdefghijklmnopqrst");
}

#[test]
fn o_sync_is_in_the_journal_when_write_has_returned() {
    let f = app();
    let mut file = open(&f.path("app/a"), libc::O_SYNC).unwrap();
    file.write_all(b"sync").unwrap();
    assert_eq!(f.text("app/a").as_deref(), Some("sync456789"), "while it is open");
    drop(file);
}

#[test]
fn o_direct_reads_and_writes_the_same_bytes() {
    let f = Fixture::with(|_| {}, |put| put("app/a", &[b'.'; 16384]));
    let file = open(&f.path("app/a"), libc::O_DIRECT).unwrap();
    file.write_all_at(&[b'x'; 4096], 4096).unwrap();
    let mut bytes = vec![0; 8192];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == b'.') && bytes[4096..].iter().all(|b| *b == b'x'));
    assert_eq!(
        fs::read(f.path("app/a")).unwrap()[..8192],
        bytes,
        "and who reads through the page cache sees them"
    );
    drop(file);
    assert_eq!(f.object("app/a").unwrap()[4096..8192], [b'x'; 4096]);
}

#[test]
fn what_is_written_is_read_at_once_by_everybody_on_this_host() {
    let f = app();
    let reader = File::open(f.path("app/a")).unwrap();
    let writer = OpenOptions::new().write(true).open(f.path("app/a")).unwrap();
    for n in 0..50_u8 {
        writer.write_all_at(&[n], u64::from(n % 10)).unwrap();
        let mut byte = [0];
        reader.read_exact_at(&mut byte, u64::from(n % 10)).unwrap();
        assert_eq!(byte, [n], "before close");
    }
    let mut past = [0; 4];
    assert_eq!(reader.read_at(&mut past, 10).unwrap(), 0, "the end is the end");
}

#[test]
fn reading_leaves_atime_and_times_have_nanoseconds() {
    let mut f = app();
    let a = f.path("app/a");
    let before = fs::metadata(&a).unwrap();
    fs::read(&a).unwrap();
    let after = fs::metadata(&a).unwrap();
    assert_eq!(before.accessed().unwrap(), after.accessed().unwrap());
    assert_eq!(before.ino(), after.ino());
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let times = fs::FileTimes::new()
        .set_modified(time)
        .set_accessed(SystemTime::UNIX_EPOCH);
    for path in ["app/a", "app"] {
        File::open(f.path(path)).unwrap().set_times(times).unwrap();
    }
    let seen = fs::metadata(&a).unwrap();
    assert_eq!(
        (seen.modified().unwrap(), seen.accessed().unwrap()),
        (time, SystemTime::UNIX_EPOCH)
    );
    assert!(seen.ctime() > 1_600_000_000, "set by nobody");
    f.remount();
    assert_eq!(fs::metadata(&a).unwrap().modified().unwrap(), time, "kept");
    let folder = fs::metadata(f.path("app")).unwrap().modified().unwrap();
    assert_ne!(folder, time, "but for a workspace's own folder");
    assert_ne!(
        fs::metadata(&a).unwrap().accessed().unwrap(),
        SystemTime::UNIX_EPOCH,
        "atime is not"
    );
    fs::write(&a, "new").unwrap();
    assert!(fs::metadata(&a).unwrap().modified().unwrap() > time);
}

#[test]
fn a_file_at_the_top_keeps_its_content_alone() {
    let mut f = Fixture::new();
    fs::write(f.path("top"), "content").unwrap();
    fs::set_permissions(f.path("top"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(f.path("top")).unwrap().mode() & 0o777, 0o600);
    f.remount();
    assert_eq!(fs::read_to_string(f.path("top")).unwrap(), "content");
    assert_eq!(fs::metadata(f.path("top")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(errno(symlink("top", f.path("link"))), libc::EPERM);
}

#[test]
fn rename_refuses_what_a_disk_refuses() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"a");
            put("app/full/x", b"x");
            put("app/other/y", b"y");
        },
    );
    let rename = |from: &str, to: &str| errno(fs::rename(f.path(from), f.path(to)));
    assert_eq!(rename("app/full", "app/other"), libc::ENOTEMPTY);
    assert_eq!(rename("app/full", "app/a"), libc::ENOTDIR);
    assert_eq!(rename("app/a", "app/full"), libc::EISDIR);
    assert_eq!(rename("app/full", "app/full/below"), libc::EINVAL);
    assert_eq!(rename("app/none", "app/a"), libc::ENOENT);
    let outside = f.root().parent().unwrap().join("outside");
    assert_eq!(errno(fs::rename(f.path("app/a"), outside)), libc::EXDEV);
    fs::rename(f.path("app/a"), f.path("app/a")).unwrap();
    fs::create_dir(f.path("app/empty")).unwrap();
    fs::rename(f.path("app/full"), f.path("app/empty")).unwrap();
    assert_eq!(f.keys(), ["app/a", "app/empty/x", "app/other/y"]);
}

#[test]
fn a_removed_file_lives_on_for_who_has_it_open_and_is_saved_nowhere() {
    let f = app();
    let mut file = open(&f.path("app/a"), 0).unwrap();
    fs::remove_file(f.path("app/a")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"+").unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123456789+");
    drop(file);
    assert_eq!(f.text("app/a"), None);
    assert!(!f.path("app/a").exists());
}

#[test]
fn a_removed_folder_is_empty_for_who_stands_in_it() {
    let f = app();
    fs::create_dir(f.path("app/dir")).unwrap();
    let said = f.sh("cd app/dir; rmdir ../dir; ls -a | wc -l; touch x 2>&1 || true");
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn a_folder_is_listed_whole_while_it_changes() {
    let f = Fixture::with(
        |_| {},
        |put| {
            for n in 0..1500 {
                put(&format!("app/{n:04}"), b"x");
            }
        },
    );
    let mut seen = Vec::new();
    for (n, entry) in fs::read_dir(f.path("app")).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if n == 10 {
            for n in 0..700 {
                fs::remove_file(f.path(&format!("app/{n:04}"))).unwrap();
            }
            fs::write(f.path("app/new"), "x").unwrap();
        }
        seen.push(name);
    }
    let stayed = |n: &u32| seen.contains(&format!("{n:04}"));
    assert_eq!(
        (700..1500).filter(stayed).count(),
        800,
        "none of those that stayed is missed"
    );
    let (before, mut sorted) = (seen.clone(), seen.clone());
    sorted.sort();
    sorted.dedup();
    assert_eq!(before, sorted, "none comes twice, and they come by name");
}

#[test]
fn links_hold_what_they_are_given_and_hard_links_are_refused() {
    let mut f = app();
    for target in [
        "a",
        "../../etc/passwd",
        "/abs/olute",
        "no/where",
        "üñ",
        &"x/".repeat(2000),
    ] {
        symlink(target, f.path("app/link")).unwrap();
        assert_eq!(fs::read_link(f.path("app/link")).unwrap(), Path::new(target));
        assert_eq!(
            fs::symlink_metadata(f.path("app/link")).unwrap().len(),
            target.len() as u64
        );
        f.remount();
        assert_eq!(
            fs::read_link(f.path("app/link")).unwrap(),
            Path::new(target),
            "after a restart"
        );
        fs::remove_file(f.path("app/link")).unwrap();
    }
    assert_eq!(
        errno(symlink(OsStr::from_bytes(b"\xff"), f.path("app/link"))),
        libc::EILSEQ
    );
    assert_eq!(errno(fs::hard_link(f.path("app/a"), f.path("app/b"))), libc::EPERM);
    assert_eq!(fs::metadata(f.path("app/a")).unwrap().nlink(), 1);
}

#[test]
fn bits_and_owners_are_kept_and_checked_for_every_user() {
    need("setpriv", "util-linux");
    let mut f = app();
    fs::set_permissions(f.root().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let as_user = |f: &Fixture, script: &str| {
        let script = script.replace('\'', "'\\''");
        let done = f.try_sh(&format!(
            "setpriv --reuid 1234 --regid 1234 --clear-groups sh -c '{script}'"
        ));
        done.status.success()
    };
    f.sh("mkdir app/theirs app/drop; chown 1234:1234 app/theirs; chmod 1777 app/drop; chmod 640 app/a; printf x > app/drop/ours");
    assert!(!as_user(&f, "cat app/a") && !as_user(&f, "touch app/b") && !as_user(&f, "chmod 777 app/a"));
    assert!(!as_user(&f, "rm -f app/drop/ours"), "the sticky bit");
    assert!(as_user(
        &f,
        "umask 027; printf mine > app/theirs/mine; mkdir app/theirs/sub"
    ));
    f.sh("chmod 4755 app/a; chgrp 1234 app/theirs/mine");
    let look = "stat -c '%n %U:%g %a' app/a app/theirs app/theirs/mine app/theirs/sub app/drop";
    let before = f.sh(look);
    assert!(
        before.contains("app/theirs/mine UNKNOWN:1234 640") && before.contains("app/a root:0 4755"),
        "{before}"
    );
    f.remount();
    assert_eq!(f.sh(look), before);
    assert!(as_user(&f, "cat app/theirs/mine"));
    let mounted = statvfs(f.root()).unwrap().flags();
    let flags = nix::sys::statvfs::FsFlags::ST_NOSUID | nix::sys::statvfs::FsFlags::ST_NODEV;
    assert!(mounted.contains(flags), "set-user-id means nothing here: {mounted:?}");
}

#[test]
fn space_is_given_as_without_end_and_only_plain_fallocate_works() {
    let f = app();
    let file = open(&f.path("app/a"), 0).unwrap();
    fallocate(&file, FallocateFlags::empty(), 5, 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 25);
    fallocate(&file, FallocateFlags::empty(), 0, 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 25, "never shorter");
    for mode in [
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
    ] {
        assert_eq!(fallocate(&file, mode, 0, 3).unwrap_err(), Errno::EOPNOTSUPP, "{mode:?}");
    }
    assert_eq!(lseek(&file, 0, Whence::SeekHole).unwrap(), 25, "a file has no holes");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    drop(file);
    assert_eq!(f.object("app/a").unwrap(), b"0123456789\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let room = statvfs(f.root()).unwrap();
    assert_eq!(
        (room.blocks(), room.blocks_free(), room.name_max()),
        (1 << 48, 1 << 48, 255)
    );
}

#[test]
fn copies_within_the_kernel_work() {
    let f = app();
    let from = File::open(f.path("app/a")).unwrap();
    let to = File::create(f.path("app/b")).unwrap();
    let (mut at, mut into) = (2, 0);
    assert_eq!(
        copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 5).unwrap(),
        5
    );
    assert_eq!(nix::sys::sendfile::sendfile(&to, &from, None, 3).unwrap(), 3);
    drop(to);
    assert_eq!(
        f.text("app/b").as_deref(),
        Some("01256"),
        "sendfile wrote over the beginning"
    );
    f.sh("cp --reflink=auto app/a app/c; cmp app/a app/c");
    assert!(!f.try_sh("cp --reflink=always app/a app/d").status.success());
}

#[test]
fn extended_attributes_and_acls_are_refused_and_cp_goes_on() {
    need("python3", "python3-minimal");
    let f = app();
    f.sh(r#"python3 - <<'E'
import errno, os
for call in (lambda: os.setxattr("app/a", "user.x", b"y"), lambda: os.getxattr("app/a", "user.x"), lambda: os.listxattr("app/a"), lambda: os.removexattr("app/a", "user.x")):
    try:
        assert call() == []
    except OSError as error:
        assert error.errno == errno.ENOTSUP, error
E
cp -a --preserve=all app/a app/b"#);
    assert_eq!(f.text("app/b").as_deref(), Some("0123456789"));
}

#[test]
fn record_locks_hold_between_processes() {
    need("python3", "python3-minimal");
    let f = app();
    f.sh(r#"python3 - <<'E'
import fcntl, os
file = open("app/a", "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 4, 0)
if os.fork() == 0:
    other = open("app/a", "r+b")
    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 4)
    try:
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 2)
    except OSError:
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
E"#);
}

#[test]
fn names_and_sizes_have_these_limits() {
    let f = app();
    let write = |path: &Path| fs::write(path, "x");
    let folder = f.path("app");
    assert_eq!(
        errno(write(&folder.join(OsStr::from_bytes(b"not\xfftext")))),
        libc::EILSEQ
    );
    assert_eq!(errno(write(&folder.join("n".repeat(256)))), libc::ENAMETOOLONG);
    let deep = vec!["d".repeat(200); 4].join("/");
    fs::create_dir_all(folder.join(&deep)).unwrap();
    // `app/`, four folders with slashes after them, and a name.
    let rest = 1024 - "app/".len() - deep.len() - 1;
    write(&folder.join(&deep).join("n".repeat(rest))).unwrap();
    let one_more = folder.join(&deep).join("n".repeat(rest + 1));
    assert_eq!(errno(write(&one_more)), libc::ENAMETOOLONG);
    assert_eq!(errno(write(&f.path(".berth"))), libc::EPERM);
    let file = open(&f.path("app/a"), 0).unwrap();
    assert_eq!(errno(file.write_at(b"x", 1 << 40)), libc::EFBIG);
    assert_eq!(errno(file.set_len((1 << 40) + 1)), libc::EFBIG);
    assert_eq!(file.metadata().unwrap().len(), 10);
}
