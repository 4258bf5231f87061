//! What an app can and cannot do: seen from inside a real sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::TcpListener, time::Duration};

use berth_harness::{Daemon, Options, samples, wait};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Runs a shell command in the app's sandbox; gives exit code and everything it printed.
fn inside(daemon: &Daemon, app: &str, script: &str) -> (i32, String) {
    let done = daemon.berth(&["exec", app, "--", "sh", "-c", script]);
    (done.code, format!("{}{}", done.stdout, done.stderr))
}

#[test]
fn a_sandbox_holds_no_power_and_sees_nothing_of_the_host() {
    let daemon = Daemon::start(BERTH);
    samples::node_program(
        &daemon,
        "caged",
        "require('http').createServer((q, s) => s.end(require('fs').readFileSync('/proc/self/status', 'utf8'))).listen(process.env.PORT);",
    );
    let status = daemon.get("/caged/").text;
    let (_, of_exec) = inside(&daemon, "caged", "cat /proc/self/status");
    let (_, of_init) = inside(&daemon, "caged", "cat /proc/1/status");
    for (whose, status) in [("the app", &status), ("exec", &of_exec), ("init", &of_init)] {
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{whose}: no {line:?} in\n{status}");
        }
    }
    for path in [
        "/x",
        "/usr/x",
        "/etc/x",
        "/workspace/x",
        "/workspace/index.js",
        "/proc/sys/kernel/hostname",
    ] {
        let (code, said) = inside(&daemon, "caged", &format!("echo x > {path}"));
        assert_ne!(code, 0, "{path} was written");
        assert!(!said.is_empty());
    }
    let (code, said) = inside(
        &daemon,
        "caged",
        "echo x > /app/x && echo x > /tmp/x && cat /app/x /tmp/x",
    );
    assert_eq!((code, said.as_str()), (0, "x\nx\n"));
    let (_, processes) = inside(&daemon, "caged", "ls /proc | grep -c '^[0-9]'");
    assert!(processes.trim().parse::<u32>().unwrap() < 12, "{processes}");
    let host_path = daemon.disk().display();
    for hidden in [
        format!("{host_path}"),
        "/var/lib/berth/s3-credentials".into(),
        "/run/berth/berth.sock".into(),
        "/root/.ssh".into(),
    ] {
        assert_ne!(
            inside(&daemon, "caged", &format!("ls {hidden}")).0,
            0,
            "{hidden} is seen"
        );
    }
    let (_, name) = inside(&daemon, "caged", "cat /proc/sys/kernel/hostname; id -u");
    assert_eq!(name, "caged\n1000\n");
}

#[test]
fn root_inside_is_nobody_on_the_host() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "mapped", "hello");
    assert_eq!(daemon.get("/mapped/").text, "hello");
    let (_, map) = inside(&daemon, "mapped", "cat /proc/self/uid_map");
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers[0], 0);
    assert!(numbers[1] >= 100_000, "uid 0 inside is {} outside", numbers[1]);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let (_, theirs) = inside(&daemon, "mapped", "readlink /proc/self/ns/net");
    assert_ne!(own.to_str().unwrap(), theirs.trim());
}

#[test]
fn other_apps_the_host_and_private_ranges_are_not_reached_but_registries_are() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "victim", "secret of the victim");
    samples::node(&daemon, "prober", "probing");
    assert_eq!(daemon.get("/victim/").status, 200);
    assert_eq!(daemon.get("/prober/").status, 200);
    let (_, victim) = inside(
        &daemon,
        "victim",
        "hostname -I 2>/dev/null || cat /proc/net/fib_trie | grep -B1 'host LOCAL' | grep -o '10[.0-9]*' | head -1",
    );
    let victim = victim
        .split_whitespace()
        .find(|word| word.starts_with("10."))
        .expect("the victim's address")
        .to_owned();
    let on_host = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = on_host.local_addr().unwrap().port();
    let (_, gateway) = inside(&daemon, "prober", "grep -m1 -o '[0-9.]*$' /etc/resolv.conf");
    let probe = |target: &str, port: u16| {
        let program = format!(
            "const s = require('net').connect({{host: '{target}', port: {port}, timeout: 1500}}); s.on('connect', () => {{ console.log('REACHED'); process.exit(0) }}); s.on('timeout', () => process.exit(3)); s.on('error', () => process.exit(4));"
        );
        let done = daemon.berth(&["exec", "prober", "--", "node", "-e", &program]);
        (done.code, done.stdout)
    };
    for (target, port) in [
        (victim.as_str(), 3000),
        ("127.0.0.1", port),
        (gateway.trim(), port),
        ("169.254.169.254", 80),
        ("192.168.0.1", 80),
        ("172.17.0.1", port),
        ("127.0.0.1", daemon.s3_port()),
        (gateway.trim(), daemon.s3_port()),
    ] {
        let (code, said) = probe(target, port);
        assert!(
            code == 3 || code == 4,
            "{target}:{port} was reached from a sandbox: {code} {said}"
        );
    }
    // The registry that npm on this machine is set to.
    let done = daemon.berth(&[
        "run",
        "prober",
        "--",
        "sh",
        "-c",
        "cd /tmp && npm view is-number@7.0.0 version",
    ]);
    assert_eq!((done.code, done.stdout.trim()), (0, "7.0.0"), "{}", done.stderr);
}

#[test]
fn a_memory_hog_is_killed_alone() {
    let limits = Options {
        config: "[limits]\nmemory = \"64M\"\napp_size = \"16M\"\ntmp_size = \"16M\"\n".into(),
        ..Options::default()
    };
    let daemon = Daemon::with(BERTH, limits);
    samples::node(&daemon, "calm", "calm");
    samples::node_program(
        &daemon,
        "hog",
        "const kept = [];\nrequire('http').createServer((q, s) => { if (q.url === '/eat') { for (;;) kept.push(Buffer.alloc(1 << 20, 1)); } s.end('hungry'); }).listen(process.env.PORT);",
    );
    assert_eq!(daemon.get("/calm/").text, "calm");
    assert_eq!(daemon.get("/hog/").text, "hungry");
    let eaten = daemon.http().get(&daemon.url("/hog/eat"));
    assert!([502, 503].contains(&eaten.status), "{} {}", eaten.status, eaten.text);
    let why = berth_harness::wait_for("the reason to be shown", Duration::from_secs(10), || {
        daemon.inspect("hog")?["error"]["kind"].as_str().map(str::to_owned)
    });
    assert_eq!(why, "out_of_memory");
    assert_eq!(daemon.get("/calm/").text, "calm");
    assert_eq!(daemon.berth(&["status"]).code, 0);
}

#[test]
fn a_fork_bomb_stays_within_its_limit_and_a_full_app_folder_is_the_apps_own_trouble() {
    let limits = Options {
        config: "[limits]\npids = 64\napp_size = \"16M\"\n".into(),
        ..Options::default()
    };
    let daemon = Daemon::with(BERTH, limits);
    samples::node(&daemon, "calm", "calm");
    samples::node(&daemon, "wild", "wild");
    assert_eq!(daemon.get("/wild/").text, "wild");
    let mut bomb = daemon
        .command(&[
            "exec",
            "wild",
            "--",
            "sh",
            "-c",
            "i=0; while [ $i -lt 500 ]; do sleep 20 & i=$((i+1)); done; wait",
        ])
        .spawn()
        .unwrap();
    wait("the bomb to reach the limit", Duration::from_secs(20), || {
        daemon
            .inspect("wild")
            .and_then(|app| app["pids"].as_u64())
            .is_some_and(|pids| pids >= 50)
    });
    let pids = daemon.inspect("wild").unwrap()["pids"].as_u64().unwrap();
    assert!(pids <= 64, "{pids} processes");
    assert_eq!(daemon.get("/calm/").text, "calm");
    let _ = bomb.kill();
    let _ = bomb.wait();
    assert_eq!(daemon.berth(&["restart", "wild"]).code, 0);
    let (code, said) = inside(&daemon, "wild", "dd if=/dev/zero of=/app/fill bs=1M count=64");
    assert_ne!(code, 0);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(daemon.get("/calm/").text, "calm");
    daemon.save("calm/more.txt", "the host's disk is not full");
}
