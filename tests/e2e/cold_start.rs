//! The first request: it is held, it starts the app once, it arrives whole; and after idling nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use berth_harness::{Daemon, Options, samples, wait};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

fn idle_after(time: &str) -> Options {
    Options {
        lines: vec![("apps", format!("idle_stop = \"{time}\"\nstop_grace = \"2s\""))],
        ..Options::default()
    }
}

/// Waits until the daemon knows the app, without starting it.
fn known(daemon: &Daemon, app: &str) {
    wait(&format!("{app} to be noticed"), Duration::from_secs(10), || {
        daemon.inspect(app).is_some_and(|app| app["kind"].is_string())
    });
}

#[test]
fn a_hundred_first_requests_start_the_app_once_and_all_are_answered() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "crowd", "one of many");
    known(&daemon, "crowd");
    let url = daemon.url("/crowd/");
    let requests = (0..100).map(|_| daemon.http().client().get(&url)).collect();
    let answers = daemon.http().many(requests).unwrap();
    assert_eq!(answers.len(), 100);
    for answer in answers {
        assert_eq!((answer.status, answer.text.as_str()), (200, "one of many"));
    }
    assert_eq!(daemon.inspect("crowd").unwrap()["starts"], 1);
}

#[test]
fn a_post_of_a_megabyte_as_the_first_request_arrives_whole() {
    let daemon = Daemon::start(BERTH);
    samples::node_program(
        &daemon,
        "post",
        "const c = require('crypto');\nrequire('http').createServer((q, s) => { const h = c.createHash('md5'); let n = 0; q.on('data', d => { n += d.length; h.update(d); }); q.on('end', () => s.end(n + ' ' + h.digest('hex'))); }).listen(process.env.PORT);",
    );
    known(&daemon, "post");
    let body: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let expected = format!("1048576 {}", md5sum(&body));
    let answer = daemon
        .http()
        .send(daemon.http().client().post(daemon.url("/post/")).body(body))
        .unwrap();
    assert_eq!((answer.status, answer.text), (200, expected));
}

/// The digest by coreutils.
fn md5sum(bytes: &[u8]) -> String {
    let mut tool = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("md5sum of coreutils");
    tool.stdin.take().unwrap().write_all(bytes).unwrap();
    let done = tool.wait_with_output().unwrap();
    String::from_utf8(done.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn an_idle_app_leaves_nothing_behind_and_the_next_request_starts_it_again() {
    let daemon = Daemon::with(BERTH, idle_after("1s"));
    samples::node(&daemon, "sleepy", "awake");
    assert_eq!(daemon.get("/sleepy/").text, "awake");
    let busy = daemon.leftovers();
    assert!(busy.0.iter().any(|line| line.starts_with("cgroup ")), "{busy:?}");
    daemon.wait_state("sleepy", "cold", Duration::from_secs(20));
    let sandbox_traces = |daemon: &Daemon| {
        let all = daemon.leftovers().0.into_iter();
        let of_sandboxes = |line: &String| {
            ["cgroup ", "sandbox ", "link "]
                .iter()
                .any(|kind| line.starts_with(kind))
                || line.contains("/sandboxes/")
        };
        all.filter(of_sandboxes).collect::<Vec<_>>()
    };
    wait("the sandbox's traces to go", Duration::from_secs(10), || {
        sandbox_traces(&daemon).is_empty()
    });
    // The daemon, its spawner and its announcer; keepers carry the same command line.
    wait("its keeper to go", Duration::from_secs(10), || {
        daemon.processes().len() == 3
    });
    assert_eq!(daemon.get("/sleepy/").text, "awake");
    assert_eq!(daemon.inspect("sleepy").unwrap()["starts"], 2);
}

#[test]
fn a_stopped_daemon_leaves_nothing_on_the_machine() {
    let mut daemon = Daemon::start(BERTH);
    samples::node(&daemon, "brief", "hello");
    assert_eq!(daemon.get("/brief/").text, "hello");
    daemon.stop();
    let left = daemon.leftovers();
    assert!(left.is_empty(), "{left:?}");
}

/// What a daemon holds that must not grow: descriptors, threads, mounts of the machine, network namespaces' links.
fn held(daemon: &Daemon) -> Vec<(&'static str, usize)> {
    let count = |path: String| std::fs::read_dir(path).unwrap().count();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let own = format!("{}_", daemon.instance());
    let links = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    vec![
        ("descriptors", count(format!("/proc/{}/fd", daemon.pid()))),
        ("threads", count(format!("/proc/{}/task", daemon.pid()))),
        (
            "mounts",
            mounts
                .lines()
                .filter(|line| line.contains(&*daemon.run_dir().to_string_lossy()))
                .count(),
        ),
        (
            "links",
            links
                .filter(|link| link.file_name().to_string_lossy().starts_with(&own))
                .count(),
        ),
        ("traces", daemon.leftovers().0.len()),
    ]
}

/// Resident memory in KiB.
fn resident(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap()
        .to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn two_hundred_cycles_leak_nothing() {
    const CYCLES: usize = 200;
    let daemon = Daemon::start(BERTH);
    // The quickest app there is, so that the cycles are about the sandbox.
    daemon.save("cycle/server.py", "import http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n        self.send_response(200); self.end_headers(); self.wfile.write(b'again')\n    def log_message(self, *a): pass\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n");
    daemon.save(
        "cycle/workspace.json",
        r#"{"type": "python", "command": "exec python3 server.py", "install": false}"#,
    );
    known(&daemon, "cycle");
    let cycle = || {
        assert_eq!(daemon.get("/cycle/").text, "again");
        assert_eq!(daemon.berth(&["stop", "cycle"]).code, 0);
    };
    // Caches and pools fill during the first ones.
    for _ in 0..CYCLES / 10 {
        cycle();
    }
    wait("the first cycles to be over", Duration::from_secs(10), || {
        daemon.state("cycle") == "cold"
    });
    let (before, memory) = (held(&daemon), resident(&daemon));
    for _ in 0..CYCLES {
        cycle();
    }
    assert_eq!(daemon.inspect("cycle").unwrap()["starts"], CYCLES + CYCLES / 10);
    let mut after = held(&daemon);
    // Idle descriptors and threads come and go by a few; a leak would be hundreds.
    wait(
        &format!("what is held to be as before ({before:?}), it is {after:?}"),
        Duration::from_secs(60),
        || {
            after = held(&daemon);
            before.iter().zip(&after).all(|((_, b), (_, a))| *a <= b + 8)
        },
    );
    let grown = resident(&daemon).saturating_sub(memory);
    assert!(grown < 16 << 10, "the daemon grew by {grown} KiB in {CYCLES} cycles");
}
