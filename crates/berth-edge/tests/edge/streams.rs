//! Bodies as they flow: events at once, all kinds of ends, old and new protocols.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::double::{World, body, client, hello, http_app, read_header, tcp_app, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_before_the_stream_ends() {
    let seen = watch::Sender::new(false);
    let next = seen.clone();
    let app = tcp_app(move |mut stream| {
        let mut seen = next.subscribe();
        async move {
            read_header(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head).await.expect("send");
            stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.expect("send");
            // The second event only comes when the client has seen the first one.
            seen.wait_for(|seen| *seen).await.expect("the test runs");
            stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.expect("send");
        }
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let mut answer = client().get(world.url("/blog/events")).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.chunk().await.expect("not cut").expect("an event"), "data: 1\n\n");
    seen.send_replace(true);
    assert_eq!(answer.chunk().await.expect("not cut").expect("an event"), "data: 2\n\n");
    assert_eq!(answer.chunk().await.expect("not cut"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_answer_while_it_still_reads() {
    let app = tcp_app(|mut stream| async move {
        read_header(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .expect("send");
        // Each byte of the body comes back before the next one is sent.
        for _ in 0..3 {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).await.expect("a byte");
            stream
                .write_all(&[b"1\r\n".as_slice(), &byte, b"\r\n"].concat())
                .await
                .expect("send");
        }
        stream.write_all(b"0\r\n\r\n").await.expect("send");
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    let head = b"POST /blog/ HTTP/1.1\r\nHost: berth.test\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head).await.expect("send");
    assert!(read_header(&mut stream).await.starts_with("HTTP/1.1 200"));
    for byte in [b'a', b'b', b'c'] {
        stream.write_all(&[byte]).await.expect("send");
        let mut chunk = [0; 6];
        stream.read_exact(&mut chunk).await.expect("an echo");
        assert_eq!(chunk, [b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
}

/// An app that sends these bytes to each request and closes.
async fn says(bytes: &'static [u8]) -> std::net::SocketAddr {
    tcp_app(move |mut stream| async move {
        read_header(&mut stream).await;
        stream.write_all(bytes).await.expect("send");
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_dies_in_the_middle_of_a_body_is_seen_as_cut() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
    ] {
        let world = World::new(&[("blog", says(answer).await)]);
        let received = client().get(world.url("/blog/")).send().await.expect("an answer");
        assert_eq!(received.status(), 200);
        received
            .bytes()
            .await
            .expect_err("an incomplete body must not look complete");
        until("the claim is given back", || world.app("blog").leases() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_with_the_connection_is_whole() {
    let world = World::new(&[("blog", says(b"HTTP/1.0 200 OK\r\n\r\nall of it").await)]);
    let answer = client().get(world.url("/blog/")).send().await.expect("an answer");
    assert_eq!(answer.text().await.expect("a whole body"), "all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_answers_are_passed_on() {
    let app = says(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let world = World::new(&[("blog", app)]);
    let answer = world
        .raw(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n")
        .await;
    let (early, rest) = answer.split_once("\r\n\r\n").expect("two headers");
    assert!(early.starts_with("HTTP/1.1 103"), "{answer}");
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("ok"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_ask_before_it_sends_its_body() {
    let app = http_app(|request| async move {
        let bytes = request.into_body().collect().await.expect("a body").to_bytes();
        Response::new(body(bytes))
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    let head = b"POST /blog/ HTTP/1.1\r\nHost: berth.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head).await.expect("send");
    assert!(read_header(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"body").await.expect("send");
    assert!(read_header(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_heads_are_the_apps_business() {
    let app = http_app(|request| async move {
        let range = request
            .headers()
            .get("range")
            .map(|value| value.to_str().expect("text").to_owned());
        let mut answer = Response::builder().header("accept-ranges", "bytes");
        if request.method() == "HEAD" {
            return answer
                .header("content-length", "1234")
                .body(body(""))
                .expect("an answer");
        }
        assert_eq!(range.as_deref(), Some("bytes=2-4"));
        answer = answer.status(206).header("content-range", "bytes 2-4/10");
        answer.body(body("cde")).expect("an answer")
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let part = client()
        .get(world.url("/blog/file"))
        .header("range", "bytes=2-4")
        .send()
        .await
        .expect("an answer");
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 2-4/10");
    assert_eq!(part.text().await.expect("a body"), "cde");
    let request = b"HEAD /blog/file HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n";
    let head = world.raw(request).await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200") && head.contains("content-length: 1234"),
        "{head}"
    );
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_http_1_0_get_what_they_understand() {
    let chunked = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let world = World::new(&[("blog", chunked), ("short", hello("short").await)]);
    // Shorter than HTTP/2's preface, and without a Host.
    let answer = world.raw(b"GET /blog/ HTTP/1.0\r\n\r\n").await;
    let (head, text) = answer.split_once("\r\n\r\n").expect("a header");
    assert!(head.contains("200"), "{answer}");
    assert!(!head.to_ascii_lowercase().contains("chunked"), "{answer}");
    assert_eq!(text, "hello");
    let answer = world.raw(b"GET /short/ HTTP/1.0\r\nHost: berth.test\r\n\r\n").await;
    assert!(answer.ends_with("short"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_or_closed_as_the_client_says() {
    let world = World::new(&[("blog", hello("hello").await)]);
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    for _ in 0..3 {
        stream
            .write_all(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\n\r\n")
            .await
            .expect("send");
        assert!(read_header(&mut stream).await.starts_with("HTTP/1.1 200"));
        let mut text = [0; 5];
        stream.read_exact(&mut text).await.expect("a body");
        assert_eq!(&text, b"hello");
    }
    // An own answer does not end the connection either.
    stream
        .write_all(b"GET /nosuch HTTP/1.1\r\nHost: berth.test\r\nAccept: x\r\n\r\n")
        .await
        .expect("send");
    let head = read_header(&mut stream).await;
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(|value| value.parse().expect("a number"))
        })
        .expect("a length");
    stream.read_exact(&mut vec![0; length]).await.expect("a body");
    stream
        .write_all(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n")
        .await
        .expect("send");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("an end");
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("hello"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_without_tls_is_understood() {
    let app = http_app(|request| async move {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let path = request.uri().to_string();
        let bytes = request.into_body().collect().await.expect("a body").to_bytes();
        Response::new(body(format!("{host} {path} {}", bytes.len())))
    })
    .await;
    let world = World::closed(&[("blog", app)], |_| {});
    let stream = TcpStream::connect(world.addr).await.expect("connect");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let request = |path: &str, bytes: usize| {
        Request::post(format!("http://berth.test{path}"))
            .body(Full::new(Bytes::from(vec![0_u8; bytes])))
            .expect("a request")
    };
    let answers = [
        sender.send_request(request("/blog/x", 100_000)),
        sender.send_request(request("/blog/y", 0)),
    ];
    until("both are held", || world.app("blog").waiting() == 2).await;
    world.app("blog").open();
    let mut texts = Vec::new();
    for answer in answers {
        let answer = answer.await.expect("an answer");
        texts.push(
            String::from_utf8(answer.into_body().collect().await.expect("a body").to_bytes().to_vec()).expect("text"),
        );
    }
    assert_eq!(texts, ["berth.test /x 100000", "berth.test /y 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_http_2_that_is_reset_while_held_is_let_go() {
    let world = World::closed(&[("blog", hello("late").await)], |_| {});
    let stream = TcpStream::connect(world.addr).await.expect("connect");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("http://berth.test/blog/")
        .body(Full::new(Bytes::new()))
        .expect("a request");
    let answer = tokio::spawn(sender.send_request(request));
    until("it is held", || world.app("blog").waiting() == 1).await;
    answer.abort();
    until("it is let go", || world.app("blog").waiting() == 0).await;
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_the_app_down() {
    // Far more than all buffers on the way hold together.
    const SIZE: usize = 64 << 20;
    let sent = watch::Sender::new(0_usize);
    let counted = sent.clone();
    let app = tcp_app(move |mut stream| {
        let sent = counted.clone();
        async move {
            read_header(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("send");
            let chunk = vec![b'x'; 1 << 16];
            for _ in 0..SIZE / chunk.len() {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
                sent.send_modify(|sent| *sent += chunk.len());
            }
        }
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    stream
        .write_all(b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\n\r\n")
        .await
        .expect("send");
    read_header(&mut stream).await;
    // Until the app gets no further: nothing new for a while.
    let mut last = usize::MAX;
    while last != *sent.borrow() {
        last = *sent.borrow();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(
        last < SIZE / 2,
        "{last} bytes were taken from the app though the client reads none"
    );
}
