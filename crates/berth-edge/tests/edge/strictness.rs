//! Requests that are no requests: nothing ambiguous reaches an app.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::double::{World, tcp_app};

/// An app that keeps all it is sent, and answers each read.
async fn recorder() -> (std::net::SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let record = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&record);
    let addr = tcp_app(move |mut stream| {
        let kept = Arc::clone(&kept);
        async move {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                kept.lock().extend_from_slice(&bytes[..read]);
                if kept.lock().ends_with(b"\r\n\r\n") {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await;
                }
            }
        }
    })
    .await;
    (addr, record)
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_lengths_are_refused() {
    let (app, record) = recorder().await;
    let world = World::new(&[("blog", app)]);
    for headers in [
        "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        "Host: a\r\nContent-Length: 5, 6\r\n",
        "Host: a\r\nContent-Length: +5\r\n",
        "Host: a\r\nContent-Length: 5x\r\n",
        "Host: a\r\nContent-Length: -1\r\n",
        "Host: a\r\nTransfer-Encoding: chunked, identity\r\n",
        "Host: a\r\nTransfer-Encoding: xchunked\r\n",
        "Host: a\r\nTransfer-Encoding : chunked\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: user@a\r\n",
        "Host: a\r\n folded: x\r\n",
        "Host: a\r\nx: a\0b\r\n",
        "Host: a\r\nConnection: host\r\n",
        "Host: a\r\nConnection: x-forwarded-for\r\n",
    ] {
        let answer = world
            .raw(format!("POST /blog/ HTTP/1.1\r\n{headers}\r\nhello").as_bytes())
            .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers:?}: {answer}");
        assert!(
            record.lock().is_empty(),
            "{headers:?} reached the app: {}",
            String::from_utf8_lossy(&record.lock())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_both_lengths_is_one_request_and_the_last() {
    let (app, record) = recorder().await;
    let world = World::new(&[("blog", app)]);
    // For a proxy that believed the length, the chunk would be over and the rest a second request.
    let answer = world
        .raw(
            b"POST /blog/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\nhello\r\n0\r\n\r\nGET /blog/smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    let seen = String::from_utf8_lossy(&record.lock()).to_ascii_lowercase();
    assert!(seen.starts_with("post / http/1.1"), "{seen}");
    assert!(!seen.contains("content-length"), "{seen}");
    assert!(!seen.contains("smuggled"), "{seen}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_400_or_nothing() {
    let (app, record) = recorder().await;
    let world = World::new(&[("blog", app)]);
    for request in [
        b"hello\r\n\r\n".as_slice(),
        b"GET /blog/ HTTP/9.9\r\n\r\n",
        b"CONNECT blog:80 HTTP/1.1\r\nHost: blog:80\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client on the wrong port \r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        let answer = world.raw(request).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{}: {answer}",
            String::from_utf8_lossy(request)
        );
    }
    assert!(record.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_paths_do_not_reach_an_app_by_its_prefix() {
    let (app, record) = recorder().await;
    let world = World::new(&[("blog", app)]);
    for path in [
        "/%62log/",
        "//blog/",
        "/../blog/",
        "/./blog/",
        "/Blog/",
        "/blog%2F",
        "/blog\\",
        "*",
        "/;blog/",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n");
        let answer = world.raw(request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"),
            "{path}: {answer}"
        );
    }
    assert!(record.lock().is_empty());
}
