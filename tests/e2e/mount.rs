//! The tools people edit with, on the mount of a real daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path, process::Command};

use berth_harness::{Daemon, Options, Terminal};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Runs a shell script in the folder; it must end well.
#[track_caller]
fn sh(folder: &Path, script: &str) -> String {
    let done = Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{script}\n{out}{err}");
    out.into_owned()
}

#[test]
fn editors_and_copying_tools_work_and_s3_holds_what_they_saved() {
    let daemon = Daemon::start(BERTH);
    let work = daemon.workspaces().join("work");
    fs::create_dir(&work).unwrap();
    for tool in ["vi", "nano", "sed", "cp", "tar", "rsync", "git"] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output()
            .unwrap()
            .status
            .success();
        assert!(
            found,
            "{tool} is missing: apt-get install vim-tiny nano sed coreutils tar rsync git"
        );
    }
    sh(
        &work,
        "echo one > a.txt; echo two >> a.txt; sed -i s/one/ONE/ a.txt; chmod +x a.txt; ln -s a.txt link",
    );
    assert_eq!(sh(&work, "cat link"), "ONE\ntwo\n");
    sh(&work, "vi -es -u NONE -c '%s/ONE/by vi/' -c wq a.txt");
    assert_eq!(sh(&work, "head -1 a.txt"), "by vi\n");
    let mut nano = Terminal::open(&work, daemon.disk(), "nano --ignorercfiles new.txt");
    nano.shows("New File");
    nano.types("typed");
    nano.shows("typed");
    nano.types("\x18");
    nano.shows("Save modified buffer");
    nano.types("y");
    nano.shows("File Name to Write");
    nano.types("\r");
    nano.ends();
    assert_eq!(sh(&work, "cat new.txt"), "typed\n");
    let source = daemon.disk().join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    for number in 0..50 {
        fs::write(source.join(format!("deep/er/{number}.txt")), format!("file {number}")).unwrap();
    }
    let source = source.display();
    sh(&work, &format!("cp -a {source} copied; diff -r {source} copied"));
    sh(
        &work,
        &format!("tar -C {source} -cf - . | (mkdir unpacked && tar -C unpacked -xf -); diff -r {source} unpacked"),
    );
    sh(&work, &format!("rsync -a {source}/ synced/; diff -r {source} synced"));
    let again = sh(&work, &format!("rsync -ai {source}/ synced/"));
    assert_eq!(again, "", "times are kept, so a second rsync has nothing to do");
    let keys = daemon.bucket_keys();
    for key in [
        "work/a.txt",
        "work/copied/deep/er/7.txt",
        "work/unpacked/deep/er/49.txt",
        "work/synced/deep/er/0.txt",
    ] {
        assert!(keys.contains(&key.to_owned()), "{key} is missing in {keys:?}");
    }
    assert_eq!(daemon.rclone(&["cat", "b:work/a.txt"]), "by vi\ntwo\n");
}

#[test]
fn git_works_in_a_workspace_and_excluded_paths_stay_on_this_host() {
    let daemon = Daemon::start(BERTH);
    let work = daemon.workspaces().join("repo");
    fs::create_dir(&work).unwrap();
    let git = "git -c user.name=t -c user.email=t@example.com";
    sh(
        &work,
        &format!(
            "{git} init -q -b main; echo 1 > file; {git} add .; {git} commit -qm first; {git} checkout -qb other; echo 2 > file; {git} commit -qam second; {git} checkout -q main"
        ),
    );
    assert_eq!(sh(&work, "cat file"), "1\n");
    sh(
        &work,
        &format!(
            "{git} checkout -q other; test \"$(cat file)\" = 2; {git} fsck; {git} status --porcelain | wc -l | grep -qx 0"
        ),
    );
    sh(
        &work,
        "mkdir -p node_modules/x dist; echo s > node_modules/x/i.js; echo k > .env; echo l > run.log; echo d > dist/out.js; cat node_modules/x/i.js .env run.log dist/out.js",
    );
    let keys = daemon.bucket_keys();
    let stored: Vec<_> = keys.iter().filter(|key| !key.starts_with(".berth/")).collect();
    assert_eq!(stored, ["repo/file"]);
    let status: serde_json::Value = serde_json::from_str(&daemon.berth(&["status", "--json"]).stdout).unwrap();
    assert!(status["local"]["files"].as_u64().unwrap() > 10, "{status}");
}

#[test]
fn inspect_tells_what_of_a_workspace_is_on_this_host_only_and_why() {
    let daemon = Daemon::start(BERTH);
    daemon.save("site/index.html", "hello");
    daemon.save("site/before.bin", "stored before the rule");
    daemon.save("site/workspace.json", r#"{"exclude": ["*.bin", "out/**"]}"#);
    daemon.save("site/a.bin", "12345");
    daemon.save("site/out/deep/x", "1234567890");
    daemon.save("site/node_modules/x/i.js", "123");
    let stored = ["site/before.bin", "site/index.html", "site/workspace.json"];
    berth_harness::wait("S3 to have these alone", std::time::Duration::from_secs(10), || {
        let keys = daemon.bucket_keys();
        keys.iter().filter(|key| !key.starts_with(".berth/")).eq(&stored)
    });
    berth_harness::wait("the app to be known", std::time::Duration::from_secs(10), || {
        daemon.inspect("site").is_some()
    });
    let local = daemon.inspect("site").unwrap()["local"].clone();
    assert_eq!(
        local,
        serde_json::json!({
            "files": 3, "bytes": 18, "paths": 3, "stored_before": 1,
            "largest": [
                {"path": "out/", "files": 1, "bytes": 10, "from": "workspace", "pattern": "out/**"},
                {"path": "a.bin", "files": 1, "bytes": 5, "from": "workspace", "pattern": "*.bin"},
                {"path": "node_modules/", "files": 1, "bytes": 3, "from": "host", "pattern": "node_modules/**"},
            ],
            "rules": [
                {"files": 1, "bytes": 10, "from": "workspace", "pattern": "out/**"},
                {"files": 1, "bytes": 5, "from": "workspace", "pattern": "*.bin"},
                {"files": 1, "bytes": 3, "from": "host", "pattern": "node_modules/**"},
            ],
        })
    );
    let told = daemon.berth(&["inspect", "site"]).stdout;
    for line in [
        "Only local       3 files, 18 B (never in S3)",
        "out/: 1 file, 10 B, by out/** of workspace.json",
        "node_modules/: 1 file, 3 B, by node_modules/** of [mount] exclude",
        "stored before",
    ] {
        assert!(told.contains(line), "{line} is not in\n{told}");
    }
}

#[test]
fn a_mapped_file_a_sparse_one_and_a_large_one_read_as_written() {
    let daemon = Daemon::start(BERTH);
    let work = daemon.workspaces().join("big");
    fs::create_dir(&work).unwrap();
    sh(
        &work,
        "head -c 41943040 /dev/urandom > large; md5sum < large > large.md5; md5sum < large | diff - large.md5",
    );
    sh(
        &work,
        "truncate -s 100000 sparse; printf x | dd of=sparse bs=1 seek=50000 conv=notrunc status=none; test $(stat -c %s sparse) = 100000",
    );
    sh(
        &work,
        "python3 -c \"import mmap; f=open('large','rb'); m=mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); import hashlib; print(hashlib.md5(m).hexdigest(), ' -')\" | diff - large.md5",
    );
    let by_s3 = daemon.rclone(&["md5sum", "b:big/sparse"]);
    let local = sh(&work, "md5sum sparse");
    assert_eq!(by_s3.split_whitespace().next(), local.split_whitespace().next());
}

#[test]
fn what_is_set_for_the_mount_reaches_the_mount() {
    let lines = ["journal_max = \"64M\"", "[mount.workspace.careful]\nsync = \"remote\""];
    let mut daemon = Daemon::with(
        BERTH,
        Options {
            lines: lines.map(|line| ("mount", line.to_owned())).into(),
            ..Options::default()
        },
    );
    let status: serde_json::Value = serde_json::from_str(&daemon.berth(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["journal"]["max"], 64 << 20, "{status}");
    daemon.save("careful/a.txt", "x");
    daemon.stop();
}
