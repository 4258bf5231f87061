//! The server as a process of its own: killed at any time it loses nothing that it acknowledged, and large objects pass
//! through it in little memory. This program is the test, and with `serve DIR` that server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_store::{EmbeddedServer, Precondition, Store};
use bytes::Bytes;
use futures::StreamExt as _;
use support::{noise, server_config, store_config};
use tokio::sync::Mutex;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if args.get(1).is_some_and(|a| a == "serve") {
        return runtime.block_on(serve(Path::new(&args[2])));
    }
    runtime.block_on(async {
        nothing_acknowledged_is_lost_by_kill_9().await;
        a_large_object_passes_in_little_memory().await;
        small_requests_are_fast().await;
        many_small_objects_pass_quickly().await;
    });
    println!("test result: ok");
}

async fn serve(dir: &Path) {
    let server = EmbeddedServer::start(server_config(dir)).await.unwrap();
    println!("{}", server.local_addr());
    std::io::stdout().flush().unwrap();
    // The parent's end: it closes our standard input when it dies, however it dies.
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count())
        .await
        .unwrap();
}

/// A server process; killed with SIGKILL when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            address: line.trim().parse().expect("the server did not start"),
            child,
        }
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was acknowledged for a key: the seed and length of its bytes, and what was sent but not answered.
#[derive(Default, Clone)]
struct Expected {
    acknowledged: Option<(u64, usize)>,
    in_doubt: Option<(u64, usize)>,
}

async fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let ledger: Arc<Mutex<BTreeMap<String, Expected>>> = Arc::default();
    let mut total = 0;
    for round in 0..4_u64 {
        let process = Process::start(dir.path());
        let store = Store::connect(store_config(process.address), None).await.unwrap();
        check(&store, &ledger).await;
        let writers: Vec<_> = (0..16_u64)
            .map(|writer| tokio::spawn(write_until_it_dies(store.clone(), Arc::clone(&ledger), round, writer)))
            .collect();
        // Let it get going, then kill it in the middle of it.
        let wanted = 150 + 40 * round as usize;
        while acknowledged(&ledger, round).await < wanted {
            assert!(
                !writers.iter().all(tokio::task::JoinHandle::is_finished),
                "all writers ended before the kill"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        for writer in writers {
            total += writer.await.unwrap();
        }
    }
    let process = Process::start(dir.path());
    let store = Store::connect(store_config(process.address), None).await.unwrap();
    let lost = check(&store, &ledger).await;
    println!("kill -9 x 4 under load: {total} acknowledged, {lost} lost");
    assert!(total > 600);
    let blobs = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    let large = ledger
        .lock()
        .await
        .values()
        .filter(|e| e.acknowledged.is_some_and(|(_, n)| n > 64 * 1024))
        .count();
    assert!(blobs <= large + 64, "{blobs} blobs for {large} large objects");
}

async fn acknowledged(ledger: &Mutex<BTreeMap<String, Expected>>, round: u64) -> usize {
    let prefix = format!("r{round}/");
    ledger
        .lock()
        .await
        .iter()
        .filter(|(k, e)| k.starts_with(&prefix) && e.acknowledged.is_some())
        .count()
}

/// Writes new keys and overwrites one, small and large, until the server is gone. Returns how many were acknowledged.
async fn write_until_it_dies(
    store: Store,
    ledger: Arc<Mutex<BTreeMap<String, Expected>>>,
    round: u64,
    writer: u64,
) -> usize {
    let mut done = 0;
    for n in 0..100_000_u64 {
        let key = match n % 4 {
            0 => format!("shared/{writer}"),
            _ => format!("r{round}/{writer}/{n}"),
        };
        let what = (round << 40 | writer << 32 | n, if n % 7 == 0 { 150_000 } else { 3_000 });
        ledger.lock().await.entry(key.clone()).or_default().in_doubt = Some(what);
        if store
            .put(&key, Bytes::from(noise(what.1, what.0)), Precondition::None)
            .await
            .is_err()
        {
            break;
        }
        *ledger.lock().await.get_mut(&key).unwrap() = Expected {
            acknowledged: Some(what),
            in_doubt: None,
        };
        done += 1;
    }
    done
}

/// Every acknowledged object must be there with its bytes; one that was in doubt may have either.
async fn check(store: &Store, ledger: &Mutex<BTreeMap<String, Expected>>) -> usize {
    let mut lost = 0;
    for (key, expected) in ledger.lock().await.iter_mut() {
        let got = match store.get(key).await {
            Ok((_, body)) => Some(body),
            Err(e) if e.is_no_such_key() => None,
            Err(e) => panic!("{e}"),
        };
        let is = |what: Option<(u64, usize)>| match (&got, what) {
            (Some(body), Some((seed, len))) => *body == noise(len, seed),
            (None, None) => true,
            _ => false,
        };
        if expected.in_doubt.is_some() && is(expected.in_doubt) {
            *expected = Expected {
                acknowledged: expected.in_doubt,
                in_doubt: None,
            };
        } else if !is(expected.acknowledged) {
            lost += 1;
            eprintln!("lost: {key}");
        }
        expected.in_doubt = None;
    }
    assert_eq!(lost, 0);
    lost
}

async fn a_large_object_passes_in_little_memory() {
    const SIZE: usize = 100 << 20;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(&dir.path().join("data"));
    let store = Store::connect(store_config(process.address), None).await.unwrap();
    let path = dir.path().join("large");
    let body = noise(SIZE, 5);
    std::fs::write(&path, &body).unwrap();
    let before = process.memory("VmRSS");
    let started = Instant::now();
    let in_parts = store
        .put_file("parts", &path, Precondition::Absent, None, &|| true)
        .await
        .unwrap();
    println!("100 MiB up in parts: {:?}", started.elapsed());
    assert!(in_parts.etag.ends_with("-13"), "{}", in_parts.etag);
    let started = Instant::now();
    store
        .put("whole", Bytes::from(body.clone()), Precondition::None)
        .await
        .unwrap();
    println!("100 MiB up in one PUT: {:?}", started.elapsed());
    for key in ["parts", "whole"] {
        let started = Instant::now();
        let got = store.get(key).await.unwrap().1;
        println!("100 MiB down ({key}): {:?}", started.elapsed());
        assert!(got == body, "{key} has other bytes");
    }
    let grown = process.memory("VmHWM").saturating_sub(before);
    println!("the server's memory grew by {} MiB at most", grown >> 20);
    assert!(grown < 40 << 20, "the server held {} MiB", grown >> 20);
}

async fn small_requests_are_fast() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let store = Store::connect(store_config(process.address), None).await.unwrap();
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for n in 0..300_u64 {
        let (key, body) = (format!("app/{n}"), Bytes::from(noise(4096, n)));
        let started = Instant::now();
        store.put(&key, body, Precondition::None).await.unwrap();
        puts.push(started.elapsed());
        let started = Instant::now();
        assert_eq!(store.get(&key).await.unwrap().1.len(), 4096);
        gets.push(started.elapsed());
    }
    puts.sort();
    gets.sort();
    println!(
        "PUT 4 KiB p50 {:?} p99 {:?}; GET p50 {:?} p99 {:?}",
        puts[150], puts[297], gets[150], gets[297]
    );
    // A stall between head and body (no TCP_NODELAY) would be 40 ms in each.
    assert!(gets[150] < Duration::from_millis(30) && puts[150] < Duration::from_millis(100));
}

/// What a copy into the mount and a cold read of it ask of client and server, on the same cores.
async fn many_small_objects_pass_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let store = Store::connect(store_config(process.address), None).await.unwrap();
    for (count, size) in [(1000, 4096), (640, 30_000)] {
        let bodies: Vec<Bytes> = (0..count).map(|n| Bytes::from(noise(size, n))).collect();
        let (cpu, started) = (cpu_seconds(&process), Instant::now());
        let puts = bodies.into_iter().enumerate().map(|(n, body)| {
            let (store, key) = (store.clone(), format!("{size}/{n}"));
            async move { store.put(&key, body, Precondition::Absent).await.unwrap() }
        });
        let done = futures::stream::iter(puts).buffer_unordered(32).count().await;
        report(
            &format!("{done} PUTs of {size} B, 32 at once"),
            done,
            started,
            cpu,
            &process,
        );
    }
    let (cpu, started) = (cpu_seconds(&process), Instant::now());
    let gets = (0..5000).map(|n| {
        let (store, key) = (store.clone(), format!("4096/{}", n % 1000));
        async move { assert_eq!(store.get(&key).await.unwrap().1.len(), 4096) }
    });
    let done = futures::stream::iter(gets).buffer_unordered(32).count().await;
    report(
        &format!("{done} GETs of 4096 B, 32 at once"),
        done,
        started,
        cpu,
        &process,
    );
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "the requests stand in each other's way"
    );
}

fn report(what: &str, done: usize, started: Instant, before: (f64, f64), process: &Process) {
    let (took, after) = (started.elapsed(), cpu_seconds(process));
    let each = |seconds: f64| seconds * 1e6 / done as f64;
    println!(
        "{what}: {took:?}; CPU a request: client {:.0} µs, server {:.0} µs",
        each(after.0 - before.0),
        each(after.1 - before.1)
    );
}

/// CPU time of this process and of the server so far.
fn cpu_seconds(process: &Process) -> (f64, f64) {
    let of = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // In ticks of 10 ms: user and system.
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    };
    (of("self"), of(&process.child.id().to_string()))
}
