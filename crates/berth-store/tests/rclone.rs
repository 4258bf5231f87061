//! An independent client: rclone against the embedded server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Command;

use support::{ACCESS, BUCKET, SECRET, fixture, noise};

fn rclone(endpoint: &str, args: &[&str]) -> String {
    let output = Command::new("rclone")
        .args(["--config", "/dev/null", "--retries", "1"])
        .args(args)
        .env("RCLONE_CONFIG_B_TYPE", "s3")
        .env("RCLONE_CONFIG_B_PROVIDER", "Other")
        .env("RCLONE_CONFIG_B_ENDPOINT", endpoint)
        .env("RCLONE_CONFIG_B_ACCESS_KEY_ID", ACCESS)
        .env("RCLONE_CONFIG_B_SECRET_ACCESS_KEY", SECRET)
        .env("RCLONE_CONFIG_B_FORCE_PATH_STYLE", "true")
        // Not the host's own settings.
        .env_remove("AWS_CA_BUNDLE")
        .env_remove("AWS_PROFILE")
        .output()
        .expect("rclone is needed for this test: apt-get install rclone");
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "rclone {args:?}: {err}");
    out
}

fn tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("shop/src")).unwrap();
    std::fs::write(dir.join("shop/package.json"), "{}").unwrap();
    std::fs::write(dir.join("shop/src/a + b.js"), noise(3000, 1)).unwrap();
    std::fs::write(dir.join("shop/empty"), "").unwrap();
    // Above rclone's limit for one PUT that the test sets: goes up in parts.
    std::fs::write(dir.join("shop/video"), noise(12 << 20, 2)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rclone_copies_there_and_back_and_finds_no_difference() {
    let f = fixture().await;
    let endpoint = format!("http://{}", f.server.local_addr());
    let (up, down) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(up.path());
    let bucket = format!("b:{BUCKET}");
    let seen = tokio::task::spawn_blocking(move || {
        let (up, down) = (up.path().to_str().unwrap(), down.path().to_str().unwrap());
        rclone(
            &endpoint,
            &["copy", "--s3-upload-cutoff", "6M", "--s3-chunk-size", "5M", up, &bucket],
        );
        rclone(&endpoint, &["check", "--download", up, &bucket]);
        rclone(&endpoint, &["copy", &bucket, down]);
        rclone(&endpoint, &["check", down, &bucket]);
        let top = rclone(&endpoint, &["lsf", &bucket]);
        let inside = rclone(&endpoint, &["lsf", "-R", "--files-only", &format!("{bucket}/shop")]);
        rclone(
            &endpoint,
            &[
                "moveto",
                &format!("{bucket}/shop/empty"),
                &format!("{bucket}/shop/moved"),
            ],
        );
        rclone(&endpoint, &["touch", &format!("{bucket}/shop/package.json")]);
        rclone(&endpoint, &["delete", &format!("{bucket}/shop/src")]);
        (
            top,
            inside,
            rclone(&endpoint, &["lsf", "-R", "--files-only", &format!("{bucket}/shop")]),
        )
    });
    let (top, inside, after) = seen.await.unwrap();
    assert_eq!(top, "shop/\n");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&inside), ["empty", "package.json", "src/a + b.js", "video"]);
    assert_eq!(sorted(&after), ["moved", "package.json", "video"]);
    assert!(f.store.get("shop/video").await.unwrap().1 == noise(12 << 20, 2));
}
