//! The first request starts the app and is answered by it.

use std::time::{Duration, Instant};

use berth_edge::Refusal;
use http_body_util::BodyExt;
use hyper::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::double::{World, body, client, hello, http_app, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_requests_wait_together_and_are_all_answered() {
    let world = World::closed(&[("blog", hello("here").await)], |_| {});
    let client = client();
    let requests: Vec<_> = (0..100)
        .map(|_| tokio::spawn(client.get(world.url("/blog/")).send()))
        .collect();
    until("all are held", || world.app("blog").waiting() == 100).await;
    until("all are counted", || world.edge.counters().snapshot().held_now == 100).await;
    // A wait of less than 1 ms does not count as holding, and the last one has only just begun.
    let held = Instant::now();
    until("the last is held long enough to count", || {
        held.elapsed() >= Duration::from_millis(1)
    })
    .await;
    world.app("blog").open();
    for request in requests {
        let answer = request.await.expect("a task").expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text().await.expect("a body"), "here");
    }
    until("all claims are given back", || world.app("blog").leases() == 0).await;
    assert_eq!(world.edge.counters().snapshot().held, 100);
}

/// An app that says how many bytes it was sent, and their sum.
async fn counter() -> std::net::SocketAddr {
    http_app(|request| async move {
        let bytes = request.into_body().collect().await.expect("a whole body").to_bytes();
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        Response::new(body(format!("{} {sum}", bytes.len())))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_post_as_the_first_request_arrives_whole() {
    let world = World::closed(&[("blog", counter().await)], |_| {});
    let bytes: Vec<u8> = (0..1 << 20).map(|index: u32| index.to_le_bytes()[0]).collect();
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let request = tokio::spawn(client().post(world.url("/blog/form")).body(bytes).send());
    until("it is held", || world.app("blog").waiting() == 1).await;
    world.app("blog").open();
    let answer = request.await.expect("a task").expect("an answer");
    assert_eq!(answer.text().await.expect("a body"), format!("{} {sum}", 1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_held_takes_its_claim_back() {
    let world = World::closed(&[("blog", hello("late").await)], |_| {});
    let requests: [&[u8]; 2] = [
        b"GET /blog/ HTTP/1.1\r\nHost: berth.test\r\n\r\n",
        // With a body, begun but unread.
        b"POST /blog/ HTTP/1.1\r\nHost: berth.test\r\nContent-Length: 1000\r\n\r\nbegun",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(world.addr).await.expect("connect");
        stream.write_all(request).await.expect("send");
        until("it is held", || world.app("blog").waiting() == 1).await;
        // More of the body changes nothing.
        stream
            .write_all(if request[0] == b'P' { b"more" } else { b"" })
            .await
            .expect("send");
        assert_eq!(world.app("blog").waiting(), 1);
        drop(stream);
        until("it is let go", || world.app("blog").waiting() == 0).await;
    }
    until("it is counted", || world.edge.counters().snapshot().clients_left == 2).await;
    assert_eq!(world.app("blog").leases(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_request_outlasts_its_time_only_as_504() {
    let world = World::closed(&[("blog", hello("never").await)], |config| {
        config.start_timeout = Duration::from_millis(100);
    });
    let answer = client().get(world.url("/blog/")).send().await.expect("an answer");
    assert_eq!(answer.status(), 504);
    assert!(answer.headers().contains_key("retry-after"));
    let problem: serde_json::Value = answer.json().await.expect("a problem");
    assert_eq!(problem["app"], "blog");
    assert_eq!(world.app("blog").waiting(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_with_when_to_come_back() {
    let world = World::new(&[("blog", hello("never").await)]);
    let after = Some(Duration::from_secs(7));
    for (refusal, status, retry) in [
        (Refusal::NoSuchApp, 404, None),
        (
            Refusal::Failed {
                public: "npm ci: exit 1".to_owned(),
                retry_after: after,
            },
            503,
            Some("7"),
        ),
        (
            Refusal::Failed {
                public: "bad workspace.json".to_owned(),
                retry_after: None,
            },
            503,
            None,
        ),
        (Refusal::TooMany { retry_after: None }, 503, Some("1")),
        (
            Refusal::StartTimeout {
                waited: Duration::from_secs(1),
            },
            504,
            Some("10"),
        ),
        (Refusal::ShuttingDown, 503, Some("5")),
    ] {
        world.app("blog").refuse(refusal.clone());
        let answer = client().get(world.url("/blog/")).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{refusal:?}");
        let told = answer
            .headers()
            .get("retry-after")
            .map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(told.as_deref(), retry, "{refusal:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: serde_json::Value = answer.json().await.expect("a problem");
        assert_eq!(problem["status"], status);
        if let Refusal::Failed { public, .. } = refusal {
            assert_eq!(problem["detail"], public);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_browser_sees_progress_and_then_the_app() {
    let world = World::closed(&[("blog", hello("here").await)], |config| {
        config.progress_after = Some(Duration::from_millis(50));
    });
    let page = || {
        client()
            .get(world.url("/blog/"))
            .header("accept", "text/html,*/*;q=0.8")
            .header("upgrade-insecure-requests", "1")
            .send()
    };
    let answer = page().await.expect("an answer");
    assert_eq!(answer.status(), 503);
    let html = answer.text().await.expect("a page");
    assert!(
        html.contains("Starting") && html.contains("http-equiv=\"refresh\""),
        "{html}"
    );
    until(
        "the app is waited for while the browser is between two requests",
        || world.app("blog").waiting() == 1,
    )
    .await;
    assert_eq!(page().await.expect("an answer").status(), 503);
    until("one waiter stays behind, however often it is asked", || {
        world.app("blog").waiting() == 1
    })
    .await;
    // A program just waits.
    let program = tokio::spawn(client().get(world.url("/blog/")).header("accept", "*/*").send());
    until("the program is held", || world.app("blog").waiting() == 2).await;
    world.app("blog").open();
    assert_eq!(program.await.expect("a task").expect("an answer").status(), 200);
    // On a busy machine even this may take long enough for another progress page.
    let mut last = page().await.expect("an answer");
    while last.status() == 503 {
        last = page().await.expect("an answer");
    }
    assert_eq!(last.text().await.expect("a body"), "here");
    until("no claim stays", || world.app("blog").leases() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_an_answer_gives_its_claim_back() {
    let app = crate::double::tcp_app(|mut stream| async move {
        crate::double::read_header(&mut stream).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
            .await;
        // Then nothing, until the edge hangs up.
        let _ = stream.read_u8().await;
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let mut answer = client().get(world.url("/blog/")).send().await.expect("an answer");
    assert!(answer.chunk().await.expect("a chunk").is_some());
    assert_eq!(world.app("blog").leases(), 1);
    drop(answer);
    until("the claim is given back", || world.app("blog").leases() == 0).await;
}
