//! The Quick Start: two files saved on the mount, one request, and no dependency anywhere but in the sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use berth_harness::{Daemon, samples};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

#[test]
fn the_quick_start_works_word_for_word_and_dependencies_exist_in_the_sandbox_only() {
    let daemon = Daemon::start(BERTH);
    samples::quick_start(&daemon, "myapp");
    let answer = daemon.get("/myapp/");
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "Hello from S3!"),
        "{}",
        daemon.berth(&["logs", "myapp"]).stdout
    );

    let inside = daemon.berth(&["exec", "myapp", "--", "cat", "/app/node_modules/express/package.json"]);
    assert_eq!(inside.code, 0, "express is installed in the sandbox: {}", inside.stderr);

    let keys = daemon.bucket_keys();
    assert!(keys.contains(&"myapp/package.json".to_owned()), "{keys:?}");
    let foreign: Vec<_> = keys
        .iter()
        .filter(|key| key.contains("express") || key.contains("node_modules"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    // Folders of other test programs' caches (`~/.npm`, the images' own npm) are files of packages, not installed dependencies.
    let found = Command::new("find")
        .args(["/", "-xdev", "-type", "d", "-path", "*/node_modules/express"])
        .output()
        .unwrap();
    let own = daemon.disk().to_str().unwrap();
    let on_disk: Vec<_> = std::str::from_utf8(&found.stdout)
        .unwrap()
        .lines()
        .filter(|path| path.starts_with(own) || path.contains("berth"))
        .map(str::to_owned)
        .collect();
    assert!(on_disk.is_empty(), "{on_disk:?}");
}

#[test]
fn the_same_bucket_is_open_to_every_s3_client() {
    let daemon = Daemon::start(BERTH);
    samples::site(&daemon, "site", "<p>one</p>");
    assert!(daemon.bucket_keys().contains(&"site/index.html".to_owned()));
    let env = daemon.berth(&["s3", "env"]);
    assert!(env.stdout.contains("export AWS_ACCESS_KEY_ID='"), "{}", env.stdout);
    let keys = daemon.disk().join("state/s3-credentials");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(keys).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
