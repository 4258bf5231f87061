//! The command line against a running daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
    time::Duration,
};

use berth_harness::{Daemon, samples, wait};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

#[test]
fn ps_inspect_stop_and_restart_tell_and_do_what_they_say() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "shown", "here");
    assert_eq!(daemon.get("/shown/").text, "here");
    let ps = daemon.berth(&["ps"]);
    let row = ps
        .stdout
        .lines()
        .find(|line| line.starts_with("shown"))
        .expect("a row")
        .to_owned();
    assert!(row.contains("node") && row.contains("ready"), "{row}");
    let json: serde_json::Value = serde_json::from_str(&daemon.berth(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(json["apps"][0]["name"], "shown");
    assert!(daemon.berth(&["inspect", "shown"]).stdout.contains("Last cold start"));
    assert_eq!(daemon.berth(&["stop", "shown"]).code, 0);
    assert_eq!(daemon.state("shown"), "cold");
    assert_eq!(daemon.berth(&["start", "shown"]).code, 0);
    assert_eq!(daemon.state("shown"), "ready");
    let before = daemon.inspect("shown").unwrap()["generation"].clone();
    assert_eq!(daemon.berth(&["restart", "shown"]).code, 0);
    assert_eq!(daemon.get("/shown/").text, "here");
    assert_ne!(daemon.inspect("shown").unwrap()["generation"], before);
    assert!(daemon.berth(&["stats"]).stdout.contains("MiB"));
    assert!(daemon.berth(&["events", "shown"]).stdout.contains("shown"));
}

#[test]
fn exec_keeps_streams_apart_and_gives_the_commands_exit_code() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "open", "here");
    let cold = daemon.berth(&["exec", "open", "--", "ls"]);
    assert_ne!(cold.code, 0, "an app that does not run has no sandbox to enter");
    assert_eq!(daemon.get("/open/").text, "here");
    let done = daemon.berth(&[
        "exec",
        "-e",
        "WORD=hi",
        "open",
        "--",
        "sh",
        "-c",
        "echo $WORD; echo oops >&2; pwd; exit 42",
    ]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (42, "hi\n/app\n", "oops\n")
    );
    assert_eq!(daemon.berth(&["exec", "open", "--", "no-such-program"]).code, 127);
    let mut cat = daemon
        .command(&["exec", "-i", "open", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let body = vec![b'x'; 300_000];
    let mut input = cat.stdin.take().unwrap();
    let sent = body.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let done = cat.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(done.status.success());
    assert_eq!(done.stdout, body);
}

#[test]
fn exec_with_a_terminal_is_a_terminal() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "term", "here");
    assert_eq!(daemon.get("/term/").text, "here");
    let inner = format!(
        "{BERTH} --config {} exec -it term -- sh -c 'test -t 0 && test -t 1 && stty size && tty'",
        daemon.config().display()
    );
    // `script` of bsdutils gives the command line a terminal of its own.
    let done = std::process::Command::new("script")
        .args(["-qec", &format!("stty rows 33 cols 99; {inner}"), "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("script is missing: apt-get install bsdutils");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.contains("33 99") && said.contains("/dev/pts/"), "{said}");
}

#[test]
fn logs_show_the_install_and_the_app_and_follow_what_comes() {
    let daemon = Daemon::start(BERTH);
    samples::node_program(
        &daemon,
        "chatty",
        "console.log('out line'); console.error('err line'); let n = 0;\nrequire('http').createServer((q, s) => { console.log('request ' + ++n); s.end('ok'); }).listen(process.env.PORT);",
    );
    assert_eq!(daemon.get("/chatty/").text, "ok");
    wait("the lines to be logged", Duration::from_secs(5), || {
        let logs = daemon.berth(&["logs", "chatty"]);
        logs.stdout.contains("out line") && logs.stderr.contains("err line") && logs.stdout.contains("request 1")
    });
    let mut follow = daemon
        .command(&["logs", "-f", "-n", "1", "chatty"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("request 1"));
    assert_eq!(daemon.get("/chatty/").text, "ok");
    assert_eq!(lines.next().unwrap().unwrap(), "request 2");
    follow.kill().unwrap();
    follow.wait().unwrap();
    let stamped = daemon.berth(&["logs", "-t", "-n", "1", "chatty"]).stdout;
    assert!(stamped.starts_with("20"), "{stamped}");
}

#[test]
fn run_tries_a_workspace_by_hand_and_leaves_nothing() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "tried", "here");
    wait("the app to be noticed", Duration::from_secs(10), || {
        daemon.inspect("tried").is_some_and(|app| app["kind"].is_string())
    });
    let done = daemon.berth(&[
        "run",
        "tried",
        "--",
        "sh",
        "-c",
        "ls /app /workspace && node -p 6*7; exit 5",
    ]);
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(
        done.stdout.contains("index.js") && done.stdout.contains("42"),
        "{}",
        done.stdout
    );
    assert_eq!(daemon.state("tried"), "cold");
    wait("the sandbox to be gone", Duration::from_secs(20), || {
        !daemon
            .leftovers()
            .0
            .iter()
            .any(|line| line.starts_with("sandbox ") || line.starts_with("cgroup "))
    });
}

#[test]
fn doctor_looks_at_everything_and_images_are_listed_and_verified() {
    let daemon = Daemon::start(BERTH);
    let doctor = daemon.berth(&["doctor"]);
    for word in ["kernel", "fuse", "cgroup", "S3", "image"] {
        assert!(
            doctor.stdout.to_lowercase().contains(&word.to_lowercase()),
            "{word} is missing in:\n{}",
            doctor.stdout
        );
    }
    let checks: serde_json::Value = serde_json::from_str(&daemon.berth(&["doctor", "--json"]).stdout).unwrap();
    assert!(checks.as_array().unwrap().len() >= 10, "{checks}");
    let images = daemon.berth(&["image", "ls"]).stdout;
    for image in ["node", "python", "go", "nginx"] {
        assert!(images.lines().any(|line| line.starts_with(image)), "{images}");
    }
    assert_eq!(daemon.berth(&["image", "verify", "nginx"]).code, 0);
    assert_eq!(daemon.berth(&["image", "verify", "nothing"]).code, 3);
}
