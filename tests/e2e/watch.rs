//! Watchers of the mount (inotify, node's `fs.watch` and `node --watch`) hear what an S3 client changed, through a real daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod s3;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use berth_harness::{Daemon, Watcher, wait, wait_for};
use berth_store::{Precondition, Store};
use nix::{
    sys::{
        inotify::AddWatchFlags as In,
        signal::{Signal, kill, killpg},
    },
    unistd::Pid,
};
use s3::store_config;
use tokio::runtime::Runtime;

const BERTH: &str = env!("CARGO_BIN_EXE_berth");
/// What the documentation promises on the embedded server.
const PROMISED: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(20);

/// An S3 client that knows nothing of the mount.
struct Client {
    runtime: Runtime,
    store: Store,
}

impl Client {
    fn of(daemon: &Daemon) -> Self {
        let runtime = Runtime::new().unwrap();
        let store = runtime.block_on(Store::connect(store_config(daemon), None)).unwrap();
        Self { runtime, store }
    }

    fn put(&self, key: &str, body: &str) {
        let put = self.store.put(key, body.to_owned().into(), Precondition::None);
        self.runtime.block_on(put).unwrap();
    }

    fn delete(&self, key: &str) {
        self.runtime.block_on(self.store.delete(key)).unwrap();
    }

    /// Stores objects until it is told to stop or the server is gone.
    fn storm(&self, over: &AtomicBool) {
        let mut number = 0_u64;
        while !over.load(Ordering::Relaxed) {
            let key = format!("app/storm{}", number % 50);
            let put = self.store.put(&key, format!("{number}").into(), Precondition::None);
            let done = self
                .runtime
                .block_on(async { tokio::time::timeout(PROMISED, put).await });
            if !matches!(done, Ok(Ok(_))) {
                return;
            }
            number += 1;
        }
    }
}

/// The daemon's helper for announcements.
fn helper(daemon: &Daemon) -> Option<i32> {
    daemon.processes().into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "berth-announce")
    })
}

#[test]
fn watchers_hear_within_a_second_what_another_s3_client_did() {
    let daemon = Daemon::start(BERTH);
    daemon.save("app/a.txt", "by hand");
    daemon.save("app/watched.txt", "by hand");
    let (client, folder) = (Client::of(&daemon), daemon.workspaces().join("app"));
    wait("the saves to be in S3", LIMIT, || {
        ["app/a.txt", "app/watched.txt"]
            .iter()
            .all(|key| daemon.bucket_keys().contains(&(*key).to_owned()))
    });
    let mut watcher = Watcher::new();
    watcher.watch(&folder, "folder");
    watcher.watch(&folder.join("watched.txt"), "file");
    let mut slowest = Duration::ZERO;
    let mut hears = |what: &str, of: &str, mask: In, name: &str, act: &dyn Fn()| {
        let since = Instant::now();
        act();
        watcher.until(what, LIMIT, |event| event.of == of && event.is(mask, name));
        slowest = slowest.max(since.elapsed());
    };
    for round in 0..10 {
        let body = format!("round {round}");
        hears("a changed file", "folder", In::IN_MODIFY, "a.txt", &|| {
            client.put("app/a.txt", &body)
        });
        assert_eq!(fs::read_to_string(folder.join("a.txt")).unwrap(), body);
        hears("the watched file", "file", In::IN_MODIFY, "", &|| {
            client.put("app/watched.txt", &body)
        });
        assert_eq!(fs::read_to_string(folder.join("watched.txt")).unwrap(), body);
        hears("a new file", "folder", In::IN_CREATE, "new.txt", &|| {
            client.put("app/new.txt", &body)
        });
        assert_eq!(fs::read_to_string(folder.join("new.txt")).unwrap(), body);
        hears("a new folder", "folder", In::IN_CREATE | In::IN_ISDIR, "dir", &|| {
            client.put("app/dir/deep.txt", &body);
        });
        hears("a removed file", "folder", In::IN_DELETE, "new.txt", &|| {
            client.delete("app/new.txt")
        });
        assert!(!folder.join("new.txt").exists());
        hears(
            "a removed folder",
            "folder",
            In::IN_DELETE | In::IN_ISDIR,
            "dir",
            &|| {
                client.delete("app/dir/deep.txt");
            },
        );
    }
    eprintln!("the slowest of 60 events came {slowest:?} after the request began");
    assert!(slowest < PROMISED, "{slowest:?}");
    // The same by a client that shares no code with Berth.
    let source = daemon.disk().join("source.txt");
    fs::write(&source, "by rclone").unwrap();
    daemon.rclone(&["copyto", source.to_str().unwrap(), "b:app/a.txt"]);
    watcher.until("rclone's copy", LIMIT, |event| event.is(In::IN_CLOSE_WRITE, "a.txt"));
    assert_eq!(fs::read_to_string(folder.join("a.txt")).unwrap(), "by rclone");
}

#[test]
fn a_daemon_killed_while_it_announces_leaves_no_process_and_no_mount() {
    let mut daemon = Daemon::start(BERTH);
    daemon.save("app/a.txt", "x");
    let (client, folder) = (Client::of(&daemon), daemon.workspaces().join("app"));
    for _ in 0..3 {
        let helper = helper(&daemon).expect("the helper runs");
        let mut watcher = Watcher::new();
        watcher.watch(&folder, "folder");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let storms = [(); 4].map(|()| scope.spawn(|| client.storm(&over)));
            for _ in 0..50 {
                watcher.until("announcements", LIMIT, |event| event.mask.contains(In::IN_MODIFY));
            }
            daemon.kill();
            over.store(true, Ordering::Relaxed);
            storms.into_iter().for_each(|storm| storm.join().unwrap());
        });
        wait("the helper to go", LIMIT, || {
            !Path::new(&format!("/proc/{helper}")).exists()
        });
        wait("all processes to go", LIMIT, || daemon.processes().is_empty());
        daemon.launch();
        assert_eq!(fs::read_to_string(folder.join("a.txt")).unwrap(), "x");
    }
    daemon.stop();
    assert!(daemon.processes().is_empty(), "{:?}", daemon.processes());
    assert!(daemon.leftovers().is_empty(), "{:?}", daemon.leftovers());
}

#[test]
fn the_mount_goes_on_without_its_helper_and_gets_another() {
    let daemon = Daemon::start(BERTH);
    daemon.save("app/a.txt", "x");
    let (client, folder) = (Client::of(&daemon), daemon.workspaces().join("app"));
    let mut watcher = Watcher::new();
    watcher.watch(&folder, "folder");
    client.put("app/b.txt", "1");
    watcher.until("an announcement", LIMIT, |event| event.is(In::IN_CREATE, "b.txt"));
    let first = helper(&daemon).expect("the helper runs");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    daemon.save("app/mine.txt", "mine");
    client.put("app/c.txt", "theirs");
    wait("changes to show without it", LIMIT, || {
        fs::read_to_string(folder.join("c.txt")).is_ok_and(|text| text == "theirs")
    });
    let mut number = 0;
    wait("another helper to announce", LIMIT, || {
        number += 1;
        client.put("app/d.txt", &format!("{number}"));
        watcher.read().iter().any(|event| event.name == "d.txt")
    });
    let second = helper(&daemon).expect("another helper runs");
    assert_ne!(first, second);
    assert_eq!(fs::read_to_string(folder.join("mine.txt")).unwrap(), "mine");
    let log = daemon.log();
    assert_eq!(log.matches("another is started").count(), 1, "{log}");
}

#[allow(clippy::cast_possible_wrap)]
fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Node and what it starts, in a process group of their own, and the lines they print.
struct Node {
    child: Child,
    lines: Receiver<String>,
}

impl Node {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new("node")
            .args(arguments)
            .current_dir(folder)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("node is missing: apt-get install nodejs");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Waits for a line; how long it took.
    fn says(&self, wanted: &str) -> Duration {
        let since = Instant::now();
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(LIMIT.saturating_sub(since.elapsed())) {
                Ok(line) if line == wanted => return since.elapsed(),
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("node did not say {wanted:?}, but {seen:?}")
                }
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // With `--watch` the program is a child of its own.
        let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[test]
fn nodes_fs_watch_hears_of_changes_made_elsewhere() {
    const PROGRAM: &str = "
        const fs = require('fs');
        fs.watch('.', (event, name) => {
          let text = '-';
          try { text = fs.readFileSync(name, 'utf8') } catch {}
          console.log(`folder ${event} ${name} ${text}`);
        });
        fs.watch('a.txt', (event) => console.log(`file ${event} ${fs.readFileSync('a.txt', 'utf8')}`));
        console.log('watching');
    ";
    let daemon = Daemon::start(BERTH);
    let client = Client::of(&daemon);
    client.put("app/a.txt", "0");
    let folder = daemon.workspaces().join("app");
    wait("the file to show", LIMIT, || folder.join("a.txt").exists());
    let node = Node::start(&folder, &["-e", PROGRAM]);
    node.says("watching");
    client.put("app/a.txt", "1");
    node.says("file change 1");
    client.put("app/a.txt", "2");
    node.says("file change 2");
    client.put("app/new.txt", "n");
    node.says("folder rename new.txt n");
    client.put("app/new.txt", "m");
    node.says("folder change new.txt m");
    client.delete("app/new.txt");
    node.says("folder rename new.txt -");
}

#[test]
fn node_watch_restarts_a_program_that_was_changed_elsewhere() {
    let daemon = Daemon::start(BERTH);
    let client = Client::of(&daemon);
    let program = |version: u32| {
        format!("console.log('version {version} ' + require('./lib.js'));\nsetInterval(() => {{}}, 1000);\n")
    };
    client.put("tool/lib.js", "module.exports = 'lib 1';");
    client.put("tool/main.js", &program(1));
    let folder = daemon.workspaces().join("tool");
    wait("the program to show", LIMIT, || folder.join("main.js").exists());
    let node = Node::start(&folder, &["--watch", "main.js"]);
    node.says("version 1 lib 1");
    for version in 2..=4 {
        client.put("tool/main.js", &program(version));
        node.says(&format!("version {version} lib {}", version - 1));
        client.put("tool/lib.js", &format!("module.exports = 'lib {version}';"));
        node.says(&format!("version {version} lib {version}"));
    }
    // And what is saved here, to a file that was changed elsewhere before.
    daemon.save("tool/main.js", program(9));
    let took = node.says("version 9 lib 4");
    eprintln!("restarted {took:?} after a save here");
}

#[test]
fn the_helper_holds_nothing_of_the_daemon() {
    let daemon = Daemon::start(BERTH);
    daemon.save("app/a.txt", "x");
    let client = Client::of(&daemon);
    let mut watcher = Watcher::new();
    watcher.watch(&daemon.workspaces().join("app"), "folder");
    client.put("app/a.txt", "y");
    watcher.until("an announcement", LIMIT, |event| event.is(In::IN_MODIFY, "a.txt"));
    let helper = helper(&daemon).expect("the helper runs");
    let open = || -> Vec<String> {
        let fds = fs::read_dir(format!("/proc/{helper}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string()))
            .collect()
    };
    let open = wait_for("it to close the mount", LIMIT, || {
        let open = open();
        (open.len() == 3).then_some(open)
    });
    assert!(
        open.iter()
            .all(|path| !path.contains("fuse") && !path.contains("workspaces")),
        "{open:?}"
    );
    let threads = fs::read_dir(format!("/proc/{helper}/task")).unwrap().count();
    assert_eq!(threads, 1);
    assert_eq!(fs::read_link(format!("/proc/{helper}/cwd")).unwrap(), Path::new("/"));
}
