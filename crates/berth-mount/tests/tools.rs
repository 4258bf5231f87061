//! The programs people really use, on a real mount.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{fs, os::unix::fs::MetadataExt};

use fixture::{Fixture, need};

/// A small source tree outside the mount, with all that tools must carry over.
fn source_tree(f: &Fixture) {
    f.sh(r#"
        mkdir -p "$OUT/tree/src/deep" "$OUT/tree/empty" && cd "$OUT/tree"
        for n in $(seq 1 40); do echo "file $n" > src/$n.js; done
        echo '#!/bin/sh' > run.sh && chmod 755 run.sh
        head -c 300000 /dev/urandom > src/deep/blob && : > nothing
        ln -s src/1.js link && chmod 600 src/2.js
        touch -d '2020-02-02 02:02:02.123456789' src/3.js && touch -d '2021-01-01' src/deep empty && touch -h -d '2021-01-02' link
    "#);
}

/// All that a copy should keep. Times of folders above what was changed are left out.
const LOOK: &str = "find . -mindepth 1 \\( -type d -printf '%P %y %m\\n' \\) -o \\( -printf '%P %y %m %l %s %T@\\n' \\) | sort; find . -type f | sort | xargs md5sum";

fn same_as_source(f: &mut Fixture, folder: &str) {
    let look = |f: &Fixture, dir: &str| f.sh(&format!("cd {dir} && {LOOK}"));
    let source = look(f, "\"$OUT/tree\"");
    assert_eq!(differing(&source, &look(f, folder)), Vec::<String>::new());
    f.remount();
    assert_eq!(
        differing(&source, &look(f, folder)),
        Vec::<String>::new(),
        "after a restart"
    );
}

/// Lines of one listing that the other lacks.
fn differing(source: &str, copy: &str) -> Vec<String> {
    let lacks = |a: &str, b: &str, sign: char| -> Vec<String> {
        a.lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {line}"))
            .collect()
    };
    [lacks(source, copy, '-'), lacks(copy, source, '+')].concat()
}

#[test]
fn cp_archive_copies_everything() {
    let mut f = Fixture::new();
    source_tree(&f);
    f.sh(r#"cp -a "$OUT/tree" app"#);
    same_as_source(&mut f, "app");
}

#[test]
fn tar_extracts_everything() {
    need("tar", "tar");
    let mut f = Fixture::new();
    source_tree(&f);
    f.sh(r#"mkdir app && tar -C "$OUT/tree" --format=posix -cf - . | tar -C app -xpf -"#);
    same_as_source(&mut f, "app");
}

#[test]
fn rsync_archive_copies_and_then_finds_nothing_to_do() {
    need("rsync", "rsync");
    let mut f = Fixture::new();
    source_tree(&f);
    f.sh(r#"rsync -a "$OUT/tree/" app/"#);
    let again = f.sh(r#"rsync -ai "$OUT/tree/" app/"#);
    assert_eq!(again, "", "a second run has nothing to do");
    f.sh(r#"echo more >> "$OUT/tree/src/1.js"; rsync -a --inplace "$OUT/tree/" app/; rsync -a --delete --exclude=src/9.js "$OUT/tree/" app/"#);
    assert_eq!(f.text("app/src/1.js").as_deref(), Some("file 1\nmore\n"));
    same_as_source(&mut f, "app");
}

#[test]
fn sed_in_place_is_one_put() {
    need("sed", "sed");
    let f = Fixture::with(|_| {}, |put| put("app/a.txt", b"old text\n"));
    let mut feed = f.store.changes();
    f.sh("sed -i s/old/new/ app/a.txt");
    assert_eq!(f.text("app/a.txt").as_deref(), Some("new text\n"));
    assert_eq!(f.keys(), ["app/a.txt"]);
    let mut seen = Vec::new();
    while let Ok(change) = feed.try_recv() {
        seen.push(change.key().to_owned());
    }
    assert_eq!(seen, ["app/a.txt"]);
}

#[test]
fn vi_saves() {
    need("vi", "vim-tiny");
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a.txt", b"one\ntwo\n");
            put("app/b.txt", b"");
        },
    );
    f.sh("vi -es -u NONE -c '%s/one/ONE/' -c 'wq' app/a.txt");
    assert_eq!(f.text("app/a.txt").as_deref(), Some("ONE\ntwo\n"));
    f.sh("vi -es -u NONE -c 'set backup writebackup backupskip= backupcopy=no' -c '%s/ONE/three/' -c 'wq' app/a.txt");
    assert_eq!(f.text("app/a.txt").as_deref(), Some("three\ntwo\n"));
    f.sh("vi -es -u NONE -c 'normal ihello' -c 'wq' app/new.txt");
    assert_eq!(f.text("app/new.txt").as_deref(), Some("hello\n"));
    assert_eq!(
        f.keys(),
        ["app/a.txt", "app/b.txt", "app/new.txt"],
        "no swap or backup file in S3"
    );
}

#[test]
fn git_works_and_stays_local() {
    need("git", "git");
    let f = Fixture::new();
    f.sh(r#"
        mkdir app && cd app && git init -q -b main . && git config user.email a@b.c && git config user.name n
        for n in $(seq 1 30); do echo "line $n" > f$n; done; mkdir sub && echo x > sub/x && chmod 755 sub/x
        git add . && git commit -qm one
        git checkout -qb other && echo changed > f1 && rm f2 && git mv f3 sub/f3 && git add -A && git commit -qm two
        git checkout -q main && test -z "$(git status --porcelain)" && git fsck --strict
    "#);
    assert_eq!(f.text("app/f1").as_deref(), Some("line 1\n"));
    assert_eq!(f.text("app/f3").as_deref(), Some("line 3\n"));
    f.sh("cd app && git checkout -q other && git gc -q && git status --porcelain");
    assert_eq!(f.text("app/f1").as_deref(), Some("changed\n"));
    assert_eq!(f.text("app/f2"), None);
    assert!(f.keys().iter().all(|key| !key.contains(".git/")), "{:?}", f.keys());
    assert!(f.mount().local_usage().bytes > 0);
}

#[test]
fn mmap_reads_and_writes_reach_s3() {
    need("python3", "python3-minimal");
    let f = Fixture::with(|_| {}, |put| put("app/a", &[b'.'; 10_000]));
    f.sh(r#"python3 - <<'E'
import mmap
with open("app/a", "r+b") as file:
    shared = mmap.mmap(file.fileno(), 0)
    private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
    shared[5000:5006] = b"shared"
    private[100:107] = b"private"
    assert open("app/a", "rb").read()[5000:5006] == b"shared"
    shared.flush()
    shared[0:5] = b"start"
    shared.close()
E"#);
    fixture::wait_for("what the mapping wrote is in S3", || {
        f.object("app/a").unwrap().starts_with(b"start")
    });
    let bytes = f.object("app/a").unwrap();
    assert_eq!(&bytes[5000..5006], b"shared");
    assert_eq!(&bytes[100..107], b".......");
}

#[test]
fn locks_are_kept_by_the_kernel() {
    need("flock", "util-linux");
    let f = Fixture::with(|_| {}, |put| put("app/a", b"x"));
    f.sh("exec 9<>app/a; flock 9; ! flock -n app/a true");
    f.sh("flock -n app/a true");
}

#[test]
fn programs_of_other_users_may_read() {
    need("setpriv", "util-linux");
    let f = Fixture::with(|_| {}, |put| put("app/a", b"x"));
    // The test's own folder is private; the mount below it is not.
    let parent = f.root().parent().unwrap();
    fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let out = f.sh("setpriv --reuid 1000 --regid 1000 --clear-groups cat app/a");
    assert_eq!(out, "x");
    assert!(
        !f.try_sh("setpriv --reuid 1000 --regid 1000 --clear-groups touch app/b")
            .status
            .success()
    );
}

#[test]
fn find_and_rm_do_not_miss_anything() {
    let f = Fixture::with(
        |_| {},
        |put| {
            for n in 0..400 {
                put(&format!("app/d{}/f{n}", n % 7), b"x");
            }
        },
    );
    assert_eq!(f.sh("find app -type f | wc -l").trim(), "400");
    assert_eq!(fs::metadata(f.path("app")).unwrap().nlink(), 9);
    f.sh("rm -r app");
    assert_eq!(f.keys(), Vec::<String>::new());
}
