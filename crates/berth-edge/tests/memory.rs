//! Large bodies flow through the edge without staying in it. Alone in its process, because it measures the process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)]
#[path = "edge/double.rs"]
mod double;

use std::time::Duration;

use double::{World, read_header, tcp_app};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SIZE: usize = 100 << 20;
const CHUNK: usize = 1 << 16;

/// An app that sends SIZE bytes to `GET` and counts the body of `POST`.
async fn large() -> std::net::SocketAddr {
    tcp_app(|mut stream| async move {
        let mut bytes = vec![b'x'; CHUNK];
        if read_header(&mut stream).await.starts_with("GET") {
            stream
                .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes())
                .await
                .expect("send");
            for _ in 0..SIZE / CHUNK {
                stream.write_all(&bytes).await.expect("send");
            }
            return;
        }
        let mut total = 0;
        while total < SIZE {
            total += stream.read(&mut bytes).await.expect("more");
        }
        let text = total.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.expect("send");
    })
    .await
}

async fn down(world: &World) -> usize {
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    stream
        .write_all(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\n\r\n")
        .await
        .expect("send");
    read_header(&mut stream).await;
    let (mut bytes, mut total) = (vec![0; CHUNK], 0);
    while total < SIZE {
        total += stream.read(&mut bytes).await.expect("more");
    }
    total
}

async fn up(world: &World) -> String {
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    let head =
        format!("POST /blog/ HTTP/1.1\r\nHost: berth.test\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("send");
    let bytes = vec![b'x'; CHUNK];
    for _ in 0..SIZE / CHUNK {
        stream.write_all(&bytes).await.expect("send");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// Bytes of memory this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: u64 = statm.split(' ').nth(1).expect("a column").parse().expect("a number");
    pages * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_flow_both_ways_in_constant_memory() {
    let world = World::new(&[("blog", large().await)]);
    // Once without measuring: threads, pools and buffers are made.
    assert_eq!(down(&world).await, SIZE);
    let before = resident();
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(async move {
        let mut most = 0;
        while stopped.try_recv().is_err() {
            most = most.max(resident());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        most
    });
    assert_eq!(down(&world).await, SIZE);
    let answer = up(&world).await;
    assert!(answer.ends_with(&SIZE.to_string()), "{answer}");
    stop.send(()).expect("the watcher waits");
    let grown = watching.await.expect("a task").saturating_sub(before);
    println!("grown by {} KiB at most", grown >> 10);
    assert!(grown < 16 << 20, "{} MiB", grown >> 20);
}
