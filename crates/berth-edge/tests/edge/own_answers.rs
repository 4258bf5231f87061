//! Answers that are Berth's own, and starting and stopping.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_edge::{Edge, EdgeConfig, EdgeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::double::{World, client, hello, read_header, tcp_app, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_an_error_that_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("an address");
    let world = World::new(&[]);
    let free = world.addr;
    drop(world);
    struct None;
    #[async_trait::async_trait]
    impl berth_edge::Apps for None {
        fn route(&self, _: &str, _: &str) -> Option<berth_edge::Route> {
            Option::None
        }
        async fn acquire(
            &self,
            _: &berth_workspace::AppName,
        ) -> Result<Box<dyn berth_edge::Lease>, berth_edge::Refusal> {
            Err(berth_edge::Refusal::NoSuchApp)
        }
    }
    let config = EdgeConfig {
        listen: vec![free, addr],
        ..EdgeConfig::default()
    };
    let error = Edge::start(config, Arc::new(None)).expect_err("the port is taken");
    assert!(matches!(error, EdgeError::PortTaken { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("port {} is taken by another program", addr.port())),
        "{text}"
    );
    assert!(text.contains("[edge] listen"), "{text}");
    TcpListener::bind(free).expect("the other port was given back");
    let error = Edge::start(
        EdgeConfig {
            listen: vec![],
            ..EdgeConfig::default()
        },
        Arc::new(None),
    );
    assert!(matches!(error.expect_err("no address"), EdgeError::NoAddress));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_on_the_domain_and_left_to_apps_on_their_own_hosts() {
    let world = World::closed(&[("blog", hello("the app's own").await)], |_| {});
    let answer = client()
        .get(world.url("/.berth/healthz"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    assert_eq!(answer.text().await.expect("a body"), "ok\n");
    assert_eq!(
        client()
            .get(world.url("/.berth/other"))
            .send()
            .await
            .expect("an answer")
            .status(),
        404
    );
    assert_eq!(world.app("blog").waiting(), 0, "health wakes nobody");
    world.app("blog").open();
    let answer = client()
        .get(world.url("/.berth/healthz"))
        .header("host", "blog.berth.test")
        .send();
    assert_eq!(
        answer.await.expect("an answer").text().await.expect("a body"),
        "the app's own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_addresses_are_404_in_the_form_the_client_reads() {
    let world = World::new(&[("blog", hello("x").await)]);
    let answer = client()
        .get(world.url("/nosuch/x"))
        .header("accept", "text/html")
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    for header in [
        "x-content-type-options",
        "content-security-policy",
        "x-request-id",
        "cache-control",
    ] {
        assert!(answer.headers().contains_key(header), "{header}");
    }
    let html = answer.text().await.expect("a page");
    assert!(html.contains("“nosuch”"), "{html}");

    let answer = client().get(world.url("/nosuch/x")).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: serde_json::Value = answer.json().await.expect("a problem");
    assert!(problem["detail"].as_str().expect("a text").contains("“nosuch”"));

    let root = client()
        .get(world.url("/"))
        .header("accept", "text/html")
        .send()
        .await
        .expect("an answer");
    assert_eq!(root.status(), 404);
    assert!(
        root.text().await.expect("a page").contains("“www”"),
        "the root says how to begin"
    );

    let head = world
        .raw(b"HEAD /nosuch HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(head.starts_with("HTTP/1.1 404") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_slash_is_sent_to_the_one_with_it() {
    let world = World::closed(&[("blog", hello("x").await)], |_| {});
    for (path, to) in [("/blog", "/blog/"), ("/blog?a=/b", "/blog/?a=/b")] {
        let answer = client().post(world.url(path)).send().await.expect("an answer");
        assert_eq!(answer.status(), 308);
        assert_eq!(answer.headers()["location"], to);
        assert_eq!(answer.headers()["cache-control"], "no-store");
    }
    assert_eq!(world.app("blog").waiting(), 0, "a redirect wakes nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_have_their_own_answers() {
    let world = World::with(&[("blog", hello("x").await)], |config| config.max_body = Some(1000));
    let long = client()
        .get(world.url(&format!("/blog/{}", "x".repeat(17 * 1024))))
        .send()
        .await
        .expect("an answer");
    assert_eq!(long.status(), 414);
    let large = client()
        .get(world.url("/blog/"))
        .header("x-large", "x".repeat(65 * 1024))
        .send()
        .await
        .expect("an answer");
    assert_eq!(large.status(), 431);
    let announced = client()
        .post(world.url("/blog/"))
        .body(vec![0_u8; 1001])
        .send()
        .await
        .expect("an answer");
    assert_eq!(announced.status(), 413);
    let fits = client()
        .post(world.url("/blog/"))
        .body(vec![0_u8; 1000])
        .send()
        .await
        .expect("an answer");
    assert_eq!(fits.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_grows_over_the_limit_is_413() {
    let app = tcp_app(|mut stream| async move {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
    })
    .await;
    let world = World::with(&[("blog", app)], |config| config.max_body = Some(1000));
    let mut request = b"POST /blog/ HTTP/1.1\r\nHost: berth.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    request.extend(format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000)).as_bytes());
    let answer = world.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_drips_is_cut() {
    let world = World::with(&[], |config| config.header_timeout = Duration::from_millis(200));
    let mut stream = TcpStream::connect(world.addr).await.expect("connect");
    let begun = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("send");
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if stream.write_all(b"x: y\r\n").await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dripping)
        .await
        .expect("the edge hangs up");
    // Long before the number of headers becomes too large.
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_lets_requests_end_and_refuses_new_ones() {
    let app = tcp_app(|mut stream| async move {
        read_header(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
            .await
            .expect("send");
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"done").await.expect("send");
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let addr = world.addr;
    // An idle connection must not hold anything up.
    let mut idle = TcpStream::connect(addr).await.expect("connect");
    let mut running = client().get(world.url("/blog/")).send().await.expect("an answer");
    let World { edge, .. } = world;
    let counters = edge.counters();
    let begun = Instant::now();
    let down = tokio::task::spawn_blocking(move || edge.shutdown(Duration::from_secs(20)));
    let mut whole = Vec::new();
    while let Some(chunk) = running.chunk().await.expect("not cut") {
        whole.extend_from_slice(&chunk);
    }
    assert_eq!(whole, b"halfdone");
    down.await.expect("shut down");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "nobody waited for the idle connection"
    );
    assert_eq!(counters.snapshot().open_connections, 0);
    assert_eq!(idle.read(&mut [0; 1]).await.expect("closed"), 0);
    TcpStream::connect(addr).await.expect_err("nobody listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_cuts_what_does_not_end_in_time() {
    let app = tcp_app(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let request = tokio::spawn(client().get(world.url("/blog/")).send());
    until("it runs", || world.app("blog").leases() == 1).await;
    let World { edge, .. } = world;
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || edge.shutdown(Duration::from_millis(100)))
        .await
        .expect("shut down");
    assert!(begun.elapsed() < Duration::from_secs(5));
    request.await.expect("a task").expect_err("cut");
}
