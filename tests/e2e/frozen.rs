//! Apps that nobody calls: frozen, their memory handed back, stopped; and whatever comes in between finds them as they were.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use berth_harness::{Daemon, Options, samples, wait};
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// For everything that is only a matter of a loaded machine.
const SOON: Duration = Duration::from_secs(30);

/// Tells when it was born and how often it was asked: a process that was started anew, or lost its memory, shows.
const COUNTER: &str = "const born = Date.now() + '-' + process.hrtime.bigint(); let asked = 0;
process.on('SIGTERM', () => { console.log('bye'); process.exit(0); });
require('http').createServer((q, s) => s.end(`${born} ${++asked}`)).listen(process.env.PORT);";

/// `/wait` and `/stream` are answered to the end, an upload or a WebSocket is echoed, when they like; silent until then.
const PATIENT: &str = r#"
const http = require('http'), crypto = require('crypto');
let go = [];
const server = http.createServer((q, s) => {
  if (q.url === '/go') { go.forEach(end => end()); return s.end('gone'); }
  if (q.url === '/wait') return go.push(() => s.end('waited'));
  if (q.url === '/stream') { s.write('begun '); return go.push(() => s.end('ended')); }
  let n = 0; q.on('data', d => n += d.length); q.on('end', () => s.end('took ' + n));
});
"#;

fn ladder(freeze: &str, reclaim: &str, stop: &str) -> Daemon {
    let lines = format!("idle_freeze = \"{freeze}\"\nidle_reclaim = \"{reclaim}\"\nidle_stop = \"{stop}\"");
    Daemon::with(
        BERTH,
        Options {
            lines: vec![("apps", lines)],
            ..Options::default()
        },
    )
}

/// What the kernel says of the app's sandbox, whatever the layout of its cgroups.
fn is_frozen(daemon: &Daemon, app: &str) -> bool {
    let sandbox = daemon.inspect(app).unwrap()["sandbox"].as_str().unwrap().to_owned();
    let below = |hierarchy: &str| {
        PathBuf::from("/sys/fs/cgroup")
            .join(hierarchy)
            .join(daemon.instance())
            .join(&sandbox)
    };
    let v1 = std::fs::read_to_string(below("freezer").join("freezer.state"));
    let v2 = std::fs::read_to_string(below("").join("cgroup.events"));
    match (v1, v2) {
        (Ok(state), _) => state.trim() == "FROZEN",
        (_, Ok(events)) => events.lines().any(|line| line == "frozen 1"),
        _ => panic!("the sandbox {sandbox} has no freezer"),
    }
}

fn wait_frozen(daemon: &Daemon, app: &str) {
    daemon.wait_state(app, "frozen", SOON);
    wait(&format!("the processes of {app} to stand still"), SOON, || {
        is_frozen(daemon, app)
    });
}

/// Kinds of the app's events so far, oldest first.
fn kinds(daemon: &Daemon, app: &str) -> Vec<String> {
    let told = daemon.berth(&["events", app, "--json"]).stdout;
    let events = told
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

fn count(daemon: &Daemon, app: &str, kind: &str) -> usize {
    kinds(daemon, app).iter().filter(|other| *other == kind).count()
}

#[test]
fn an_idle_app_is_frozen_and_the_next_request_finds_it_as_it_was() {
    let daemon = ladder("1s", "never", "never");
    samples::node_program(&daemon, "nap", COUNTER);
    let first = daemon.get("/nap/").text;
    let born = first.strip_suffix(" 1").unwrap_or_else(|| panic!("{first}"));
    for round in 2..5 {
        wait_frozen(&daemon, "nap");
        let shown = daemon.berth(&["ps"]).stdout;
        assert!(
            shown
                .lines()
                .any(|line| line.starts_with("nap") && line.contains("frozen")),
            "{shown}"
        );
        assert_eq!(daemon.get("/nap/").text, format!("{born} {round}"));
        daemon.wait_state("nap", "ready", SOON);
        assert!(!is_frozen(&daemon, "nap"));
    }
    assert_eq!(daemon.inspect("nap").unwrap()["starts"], 1);
    assert_eq!(
        (count(&daemon, "nap", "frozen"), count(&daemon, "nap", "thawed")),
        (3, 3)
    );
    // All at once: one of them thaws it.
    wait_frozen(&daemon, "nap");
    let url = daemon.url("/nap/");
    let requests = (0..50).map(|_| daemon.http().client().get(&url)).collect();
    let answers = daemon.http().many(requests).unwrap();
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 200 && answer.text.starts_with(born))
    );
    assert_eq!(count(&daemon, "nap", "thawed"), 4);
}

#[test]
fn requests_that_come_just_when_it_is_frozen_are_all_answered() {
    let daemon = ladder("20ms", "20ms", "never");
    samples::node_program(&daemon, "edge", COUNTER);
    let born = daemon.get("/edge/").text.split_once(' ').unwrap().0.to_owned();
    // Pauses around the time at which it is frozen, 20 ms after its last use.
    for round in 0..300_u64 {
        let answer = daemon.http().get(&daemon.url("/edge/"));
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text);
        assert!(
            answer.text.starts_with(&born),
            "round {round}: {} is not {born}",
            answer.text
        );
        std::thread::sleep(Duration::from_micros(15_000 + round * 7919 % 15_000));
    }
    assert_eq!(daemon.inspect("edge").unwrap()["starts"], 1);
    assert!(
        count(&daemon, "edge", "thawed") >= 30,
        "it was hardly ever frozen: {:?}",
        kinds(&daemon, "edge").len()
    );
}

/// One request by hand, so that it can be left half sent or half answered.
fn open(daemon: &Daemon, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.edge_port())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn read_to_end(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn an_open_request_stream_upload_or_websocket_keeps_it_awake() {
    let daemon = ladder("1s", "never", "never");
    samples::node_program(&daemon, "clock", COUNTER);
    let apps = ["wait", "stream", "upload", "socket"];
    for app in apps {
        samples::node_program(&daemon, app, &format!("{PATIENT}{}", samples::ECHO_AND_LISTEN));
        assert_eq!(daemon.get(&format!("/{app}/go")).text, "gone");
    }
    let waits = open(
        &daemon,
        "GET /wait/wait HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    );
    let streams = open(
        &daemon,
        "GET /stream/stream HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    );
    let mut uploads = open(
        &daemon,
        "POST /upload/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 10\r\n\r\nhello",
    );
    let url = format!("ws://127.0.0.1:{}/socket/chat", daemon.edge_port());
    let mut socket = daemon.http().block_on(tokio_tungstenite::connect_async(url)).unwrap().0;
    wait("all four to be under way", SOON, || {
        apps.iter().all(|app| daemon.inspect(app).unwrap()["in_flight"] == 1)
    });
    let before = apps.map(|app| count(&daemon, app, "frozen"));
    // An app that is used from now on and then left alone is frozen in the meantime, twice.
    for _ in 0..2 {
        assert_eq!(daemon.get("/clock/").status, 200);
        wait_frozen(&daemon, "clock");
    }
    for (app, before) in apps.iter().zip(before) {
        assert_eq!(daemon.state(app), "ready", "{app}");
        assert!(!is_frozen(&daemon, app), "{app}");
        assert_eq!(count(&daemon, app, "frozen"), before, "{app}");
    }
    uploads.write_all(b"world").unwrap();
    assert!(read_to_end(uploads).ends_with("took 10"));
    daemon.http().block_on(async {
        socket.send(Message::text("still there?")).await.unwrap();
        let echo = tokio::time::timeout(SOON, socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(echo.to_text().unwrap(), "still there?");
        socket.close(None).await.unwrap();
    });
    for (app, stream, end) in [("wait", waits, "waited"), ("stream", streams, "ended")] {
        assert_eq!(daemon.get(&format!("/{app}/go")).text, "gone");
        let answer = read_to_end(stream);
        assert!(answer.contains(end), "{app}: {answer}");
    }
    drop(socket);
    for app in apps {
        wait_frozen(&daemon, app);
    }
}

#[test]
fn work_of_its_own_keeps_an_app_from_freezing_but_not_from_being_stopped() {
    let daemon = ladder("1s", "never", "never");
    samples::node_program(&daemon, "clock", COUNTER);
    assert_eq!(daemon.get("/clock/").status, 200);
    let with_timer = |name: &str, work: &str, idle_stop: &str| {
        let program = format!(
            "setInterval(() => {{ {work} }}, 100); require('http').createServer((q, s) => s.end('on')).listen(process.env.PORT);"
        );
        daemon.save(
            &format!("{name}/workspace.json"),
            format!(r#"{{"idle_stop": "{idle_stop}"}}"#),
        );
        samples::node_program(&daemon, name, &program);
        wait("all its files to be known", SOON, || {
            daemon.inspect(name).is_some_and(|app| app["kind"] == "node")
        });
        assert_eq!(daemon.get(&format!("/{name}/")).text, "on");
    };
    with_timer(
        "burns",
        "const t = process.hrtime.bigint(); while (process.hrtime.bigint() - t < 30000000n);",
        "20s",
    );
    with_timer("ticks", "globalThis.ticks = (globalThis.ticks ?? 0) + 1;", "never");
    wait_frozen(&daemon, "ticks");
    assert_eq!(daemon.get("/clock/").status, 200);
    wait_frozen(&daemon, "clock");
    assert_eq!(daemon.state("burns"), "ready");
    assert!(!is_frozen(&daemon, "burns"));
    daemon.wait_state("burns", "cold", SOON);
    let kinds = kinds(&daemon, "burns");
    assert!(
        kinds.contains(&"stopped".to_owned()) && !kinds.contains(&"frozen".to_owned()),
        "{kinds:?}"
    );
}

#[test]
fn a_frozen_app_is_stopped_in_the_end_and_leaves_nothing() {
    let daemon = ladder("1s", "2s", "8s");
    samples::node_program(&daemon, "tired", COUNTER);
    assert_eq!(daemon.get("/tired/").status, 200);
    wait_frozen(&daemon, "tired");
    daemon.wait_state("tired", "cold", SOON);
    wait("its cgroups to go", SOON, || {
        !daemon.leftovers().0.iter().any(|line| line.starts_with("cgroup "))
    });
    let kinds = kinds(&daemon, "tired");
    assert_eq!(&kinds[kinds.len() - 2..], ["frozen", "stopped"]);
    assert_eq!(daemon.get("/tired/").status, 200);
    assert_eq!(daemon.inspect("tired").unwrap()["starts"], 2);
}

#[test]
fn exec_logs_stop_restart_a_save_and_deletion_work_on_a_frozen_app() {
    let daemon = ladder("1s", "never", "never");
    let app = "hand";
    // `exec`: a shell between the sandbox's init and the app would end first, and take the app along before it has said a word.
    let package = r#"{"name": "hand", "version": "1.0.0", "scripts": {"start": "exec node index.js"}}"#;
    daemon.save("hand/index.js", COUNTER);
    daemon.save("hand/package.json", package);
    let born = |text: String| text.split_once(' ').unwrap().0.to_owned();
    let first = born(daemon.get("/hand/").text);
    wait_frozen(&daemon, app);

    let exec = daemon.berth(&["exec", app, "--", "sh", "-c", "echo inside; exit 3"]);
    assert_eq!((exec.stdout.as_str(), exec.code), ("inside\n", 3), "{}", exec.stderr);
    wait_frozen(&daemon, app);
    let logs = daemon.berth(&["logs", app]);
    assert!(
        logs.code == 0 && logs.stdout.contains("frozen until the next request"),
        "{}",
        logs.stdout
    );
    assert_eq!(daemon.state(app), "frozen", "reading its log does not wake it");
    assert_eq!(born(daemon.get("/hand/").text), first);

    wait_frozen(&daemon, app);
    assert_eq!(daemon.berth(&["stop", app]).code, 0);
    assert_eq!(daemon.state(app), "cold");
    let logs = daemon.berth(&["logs", app]).stdout;
    assert!(logs.contains("bye"), "it was not asked to end: {logs}");

    let second = born(daemon.get("/hand/").text);
    wait_frozen(&daemon, app);
    assert_eq!(daemon.berth(&["restart", app]).code, 0);
    let third = born(daemon.get("/hand/").text);
    assert!(first != second && second != third);

    wait_frozen(&daemon, app);
    daemon.save("hand/index.js", COUNTER.replace("${born}", "${born}-edited"));
    wait("the edit to be live", SOON, || {
        daemon.get("/hand/").text.contains("-edited")
    });

    wait_frozen(&daemon, app);
    std::fs::remove_dir_all(daemon.workspaces().join(app)).unwrap();
    wait("the app to be gone", SOON, || daemon.inspect(app).is_none());
    wait("its cgroups to go", SOON, || {
        !daemon.leftovers().0.iter().any(|line| line.starts_with("cgroup "))
    });
}

#[test]
fn a_daemon_or_a_keeper_that_is_killed_while_an_app_is_frozen_leaves_nothing() {
    let mut daemon = ladder("1s", "never", "never");
    samples::node_program(&daemon, "lost", COUNTER);
    assert_eq!(daemon.get("/lost/").status, 200);
    wait_frozen(&daemon, "lost");
    let sandbox = daemon.inspect("lost").unwrap()["sandbox"].as_str().unwrap().to_owned();
    daemon.kill();
    assert!(daemon.leftovers().0.iter().any(|line| line.ends_with(&sandbox)));
    daemon.launch();
    wait("the frozen sandbox to be gone", SOON, || {
        !daemon.leftovers().0.iter().any(|line| line.ends_with(&sandbox))
    });
    assert_eq!(daemon.get("/lost/").status, 200);
    wait_frozen(&daemon, "lost");
    // The daemon, its spawner and its announcer are there before any keeper.
    let sandbox = daemon.inspect("lost").unwrap()["sandbox"].as_str().unwrap().to_owned();
    let keepers: Vec<i32> = daemon
        .processes()
        .into_iter()
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.contains("keeper")))
        .collect();
    assert_eq!(keepers.len(), 1, "{keepers:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(keepers[0]),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    wait("what the keeper left to be gone", SOON, || {
        !daemon.leftovers().0.iter().any(|line| line.ends_with(&sandbox))
    });
    assert_eq!(daemon.get("/lost/").status, 200);
    wait_frozen(&daemon, "lost");
    daemon.stop();
    let left = daemon.leftovers();
    assert!(left.is_empty(), "{left:?}");
}
