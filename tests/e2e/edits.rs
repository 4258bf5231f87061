//! Saving again: the new revision takes over, a broken one never does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, time::Duration};

use berth_harness::{Daemon, samples, wait, wait_for};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

#[test]
fn an_edit_shows_in_the_answer_and_no_request_fails_meanwhile() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "live", "first");
    assert_eq!(daemon.get("/live/").text, "first");
    samples::node(&daemon, "live", "second");
    wait("the edit to show", Duration::from_secs(20), || {
        let answer = daemon.get("/live/");
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(["first", "second"].contains(&answer.text.as_str()), "{}", answer.text);
        answer.text == "second"
    });
}

#[test]
fn a_broken_edit_leaves_the_old_one_answering_and_says_why() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "steady", "works");
    assert_eq!(daemon.get("/steady/").text, "works");
    daemon.save("steady/index.js", "this is no javascript at all (");
    let error = wait_for("the error to be shown", Duration::from_secs(30), || {
        let app = daemon.inspect("steady")?;
        app["error"]["detail"].as_str().map(str::to_owned)
    });
    assert!(!error.is_empty());
    let ps = daemon.berth(&["ps"]).stdout;
    let row = ps.lines().find(|line| line.starts_with("steady")).unwrap().to_owned();
    assert!(row.contains("ready"), "{row}");
    assert_eq!(daemon.get("/steady/").text, "works");
    let logs = daemon.berth(&["logs", "steady"]);
    assert!(
        format!("{}{}", logs.stdout, logs.stderr).contains("SyntaxError"),
        "{}{}",
        logs.stdout,
        logs.stderr
    );
    samples::node(&daemon, "steady", "mended");
    wait("the mended edit to show", Duration::from_secs(20), || {
        daemon.get("/steady/").text == "mended"
    });
}

#[test]
fn a_broken_workspace_json_keeps_the_last_good_revision_serving() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "good", "good");
    assert_eq!(daemon.get("/good/").text, "good");
    daemon.save(
        "good/workspace.json",
        "{\n  \"port\": 3000,\n  \"comand\": \"node index.js\"\n}\n",
    );
    let error = wait_for("the error to be shown", Duration::from_secs(10), || {
        daemon.inspect("good")?["error"]["detail"].as_str().map(str::to_owned)
    });
    assert!(error.contains("line 3") && error.contains("command"), "{error}");
    assert_eq!(daemon.get("/good/").text, "good");
}

#[test]
fn a_deleted_workspace_disappears_and_a_renamed_one_moves() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "old", "me");
    assert_eq!(daemon.get("/old/").text, "me");
    fs::rename(daemon.workspaces().join("old"), daemon.workspaces().join("new")).unwrap();
    assert_eq!(daemon.get("/new/").text, "me");
    wait("the old name to be gone", Duration::from_secs(10), || {
        daemon.http().get(&daemon.url("/old/")).status == 404
    });
    fs::remove_dir_all(daemon.workspaces().join("new")).unwrap();
    wait("the app to be gone", Duration::from_secs(10), || {
        daemon.http().get(&daemon.url("/new/")).status == 404
    });
    wait("its sandbox to be gone", Duration::from_secs(20), || {
        !daemon
            .leftovers()
            .0
            .iter()
            .any(|line| line.starts_with("cgroup ") || line.starts_with("sandbox "))
    });
    assert!(
        daemon.bucket_keys().iter().all(|key| key.starts_with(".berth/")),
        "{:?}",
        daemon.bucket_keys()
    );
}

#[test]
fn a_save_by_another_s3_client_is_noticed() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "shared", "from the mount");
    assert_eq!(daemon.get("/shared/").text, "from the mount");
    let new = daemon.disk().join("index.js");
    fs::write(
        &new,
        "require('http').createServer((q, s) => s.end('from elsewhere')).listen(process.env.PORT);",
    )
    .unwrap();
    daemon.rclone(&["copyto", new.to_str().unwrap(), "b:shared/index.js"]);
    wait("the save to be served", Duration::from_secs(20), || {
        daemon.get("/shared/").text == "from elsewhere"
    });
    let shown = fs::read_to_string(daemon.workspaces().join("shared/index.js")).unwrap();
    assert!(shown.contains("from elsewhere"), "{shown}");
}
