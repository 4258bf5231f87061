//! How editors save, what mappings keep, and names that make trouble.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::fs;

use fixture::{Fixture, need, wait_for};

#[test]
fn vim_saves_in_both_ways_of_keeping_a_backup() {
    need("vi", "vim-tiny");
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a.txt", b"one\n");
            put("app/b.txt", b"");
        },
    );
    for (way, from, to) in [("yes", "one", "two"), ("no", "two", "three")] {
        f.sh(&format!(
            "vi -es -u NONE -c 'set writebackup backupskip= backupcopy={way}' -c '%s/{from}/{to}/' -c 'wq' app/a.txt"
        ));
        let wanted = format!("{to}\n");
        wait_for("the save is in S3", || f.text("app/a.txt").as_ref() == Some(&wanted));
        assert_eq!(f.sh("cat app/a.txt"), wanted);
    }
    assert_eq!(f.keys(), ["app/a.txt", "app/b.txt"], "no swap or backup file in S3");
}

#[test]
fn a_file_saved_in_place_or_by_rename_is_whole() {
    need("python3", "python3-minimal");
    let f = Fixture::with(|_| {}, |put| put("app/a.js", b"a much longer old text"));
    // As VS Code and node save: cut to nothing and written anew; or written beside and moved over.
    f.sh(r#"python3 - <<'E'
import os
fd = os.open("app/a.js", os.O_WRONLY | os.O_CREAT | os.O_TRUNC); os.write(fd, b"short"); os.close(fd)
fd = os.open("app/b.js", os.O_WRONLY | os.O_CREAT | os.O_TRUNC); os.write(fd, b"new"); os.fsync(fd); os.close(fd)
fd = os.open("app/a.js.vsctmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL); os.write(fd, b"atomic"); os.fsync(fd); os.close(fd)
os.rename("app/a.js.vsctmp", "app/a.js")
E"#);
    wait_for("S3 has both", || {
        f.keys() == ["app/a.js", "app/b.js"] && f.text("app/a.js").as_deref() == Some("atomic")
    });
}

#[test]
fn a_mapping_keeps_the_bytes_it_was_made_of() {
    need("python3", "python3-minimal");
    let f = Fixture::with(|_| {}, |put| put("app/a", &[b'o'; 8192]));
    f.sh(r#"python3 - <<'E'
import mmap, os
with open("app/a", "rb") as file:
    seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with open("app/new", "wb") as new: new.write(b"n" * 8192)
    os.rename("app/new", "app/a")
    assert seen[:] == b"o" * 8192
    assert open("app/a", "rb").read() == b"n" * 8192
E"#);
}

#[test]
fn many_mappings_of_a_large_file_that_is_only_in_s3_read_the_same() {
    need("python3", "python3-minimal");
    let body: Vec<u8> = (0..24_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let sum = {
        use md5::{Digest as _, Md5};
        hex::encode(Md5::digest(&body))
    };
    let f = Fixture::with(|_| {}, |put| put("app/large", &body));
    // Each starts elsewhere, so that the parts are asked for in no order.
    let seen = f.sh(r#"
        for start in 0 1 2 3 4 5; do
            python3 - $start <<'E' &
import hashlib, mmap, os, sys
with open("app/large", "rb") as file:
    seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for at in range(int(sys.argv[1]) * 4096, len(seen), 1 << 20): seen[at]
    os.write(1, hashlib.md5(seen).hexdigest().encode() + b"\n")
E
        done
        wait
    "#);
    assert_eq!(seen.lines().collect::<Vec<_>>(), [sum.as_str(); 6]);
}

#[test]
fn a_mapping_shows_what_others_write_into_the_file() {
    need("python3", "python3-minimal");
    let f = Fixture::with(|_| {}, |put| put("app/a", &[b'o'; 8192]));
    f.sh(r#"python3 - <<'E'
import mmap, os, subprocess
with open("app/a", "rb") as file:
    seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert seen[:] == b"o" * 8192
    subprocess.run("printf NEW | dd of=app/a bs=1 seek=5000 conv=notrunc status=none; printf more >> app/a", shell=True, check=True)
    assert seen[4998:5005] == b"ooNEWoo", seen[4998:5005]
    assert os.fstat(file.fileno()).st_size == 8196
    assert mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[8190:] == b"oomore"
E"#);
    let stored = f.object("app/a").unwrap();
    assert_eq!(
        (&stored[4998..5005], &stored[8190..]),
        (&b"ooNEWoo"[..], &b"oomore"[..])
    );
}

#[test]
fn programs_run_from_the_mount() {
    let mut f = Fixture::new();
    f.sh("mkdir app && cp \"$(command -v sort)\" app/sorted && printf 'b\\na\\n' | app/sorted");
    f.remount();
    assert_eq!(f.sh("printf 'b\\na\\n' | app/sorted"), "a\nb\n");
    // Replaced while it runs, as every installer does.
    f.sh(r#"mkfifo app/pipe
        app/sorted app/pipe > "$OUT/sorted" &
        exec 9>app/pipe
        cp "$(command -v true)" app/new && mv app/new app/sorted && app/sorted
        printf 'd\nc\n' >&9 && exec 9>&- && wait"#);
    assert_eq!(fs::read_to_string(f.out("sorted")).unwrap(), "c\nd\n");
}

#[test]
fn rsync_by_checksum_finds_what_differs() {
    need("rsync", "rsync");
    let f = Fixture::new();
    f.sh(r#"
        mkdir "$OUT/src" && cd "$OUT/src" && for n in $(seq 1 50); do echo "file $n" > $n; done
    "#);
    f.sh(r#"rsync -rc "$OUT/src/" app/ && test -z "$(rsync -rci "$OUT/src/" app/)""#);
    f.sh(r#"echo 'File 7' > "$OUT/src/7"; test "$(rsync -rc --out-format=%n "$OUT/src/" app/)" = 7"#);
    assert_eq!(f.sh("cat app/7"), "File 7\n");
}

#[test]
fn names_of_all_kinds_come_back() {
    let mut f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let long = "n".repeat(255);
    let names = [
        long.as_str(),
        " leading and trailing ",
        "a+b",
        "100%",
        "%41",
        "a&b=c",
        "why?",
        "#1",
        "back\\slash",
        "tab\tnew\nline",
        "\u{fc}mlaut",
        "\u{65e5}\u{672c}",
        "\u{1f980}",
        "e\u{301}",
        "'quoted'",
        "\"double\"",
        "<a>",
        "a;b",
        "a:b",
        "~",
        "-rf",
        "\u{1}",
    ];
    for name in names {
        fs::write(f.path("app").join(name), name).unwrap();
    }
    f.remount();
    for name in names {
        let text = fs::read_to_string(f.path("app").join(name));
        assert_eq!(text.ok().as_deref(), Some(name), "{name:?}");
        assert_eq!(f.text(&format!("app/{name}")).as_deref(), Some(name), "{name:?} in S3");
    }
    assert_eq!(fs::read_dir(f.path("app")).unwrap().count(), names.len());
}
