//! WebSocket, server-sent events and large bodies through the whole of Berth.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use berth_harness::{Daemon, Options, samples};
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// A server that answers plainly, and echoes what comes by a WebSocket.
const SERVER: &str = r#"
const http = require('http'), crypto = require('crypto');
const server = http.createServer((q, s) => s.end('plain'));
"#;

#[test]
fn a_websocket_wakes_a_cold_app_and_keeps_it_awake() {
    let daemon = Daemon::with(
        BERTH,
        Options {
            lines: vec![("apps", "idle_stop = \"1s\"".into())],
            ..Options::default()
        },
    );
    samples::node_program(&daemon, "echo", &format!("{SERVER}{}", samples::ECHO_AND_LISTEN));
    berth_harness::wait("the app to be noticed", Duration::from_secs(10), || {
        daemon.inspect("echo").is_some_and(|app| app["kind"].is_string())
    });
    let url = format!("ws://127.0.0.1:{}/echo/chat", daemon.edge_port());
    daemon.http().block_on(async {
        let (mut socket, _) = tokio_tungstenite::connect_async(url)
            .await
            .expect("a WebSocket as the very first request");
        let end = Instant::now() + Duration::from_secs(4);
        let mut count = 0;
        // Longer than the app may idle: an open WebSocket is no idling.
        while Instant::now() < end {
            socket.send(Message::text(format!("m{count}"))).await.unwrap();
            let echo = tokio::time::timeout(Duration::from_secs(5), socket.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            assert_eq!(echo.to_text().unwrap(), format!("m{count}"));
            count += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    assert_eq!(daemon.inspect("echo").unwrap()["starts"], 1);
}

#[test]
fn events_arrive_one_by_one() {
    let daemon = Daemon::start(BERTH);
    samples::node_program(
        &daemon,
        "events",
        "require('http').createServer((q, s) => { s.writeHead(200, {'content-type': 'text/event-stream'}); s.write('data: one\\n\\n'); q.on('close', () => {}); if (q.url === '/go') {} setTimeout(() => s.end('data: two\\n\\n'), 1500); }).listen(process.env.PORT);",
    );
    assert_eq!(daemon.get("/events/").status, 200);
    let url = daemon.url("/events/");
    let client = daemon.http().client().clone();
    daemon.http().block_on(async {
        let mut response = client.get(url).send().await.unwrap();
        let begun = Instant::now();
        let first = response.chunk().await.unwrap().unwrap();
        assert_eq!(&first[..], b"data: one\n\n");
        assert!(
            begun.elapsed() < Duration::from_millis(1200),
            "the first event was held back {:?}",
            begun.elapsed()
        );
        assert_eq!(&response.chunk().await.unwrap().unwrap()[..], b"data: two\n\n");
    });
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_megabytes_stream_both_ways_without_growing_the_daemon() {
    const SIZE: usize = 100 << 20;
    let daemon = Daemon::start(BERTH);
    samples::node_program(
        &daemon,
        "bulk",
        "require('http').createServer((q, s) => { if (q.method === 'POST') { let n = 0; q.on('data', d => n += d.length); q.on('end', () => s.end(String(n))); return; } let left = 100; const block = Buffer.alloc(1 << 20, 7); const more = () => { while (left > 0) { left--; if (!s.write(block)) return s.once('drain', more); } s.end(); }; more(); }).listen(process.env.PORT);",
    );
    assert_eq!(daemon.get("/bulk/").status, 200);
    let before = resident(daemon.pid());
    let client = daemon.http().client().clone();
    let url = daemon.url("/bulk/");
    let (down, up) = daemon.http().block_on(async {
        let mut response = client.get(&url).send().await.unwrap();
        let mut down = 0;
        while let Some(chunk) = response.chunk().await.unwrap() {
            down += chunk.len();
        }
        let blocks = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![1_u8; 1 << 20])));
        let up = client
            .post(&url)
            .body(reqwest::Body::wrap_stream(blocks))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        (down, up)
    });
    assert_eq!((down, up), (SIZE, SIZE.to_string()));
    let grown = resident(daemon.pid()).saturating_sub(before);
    assert!(grown <= 16 << 20, "the daemon grew by {} KiB", grown >> 10);
}
