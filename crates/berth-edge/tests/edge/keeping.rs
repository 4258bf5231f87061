//! Connections to apps: kept open, closed under our hands, refused, moved.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::double::{World, client, hello, read_header, tcp_app};

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_an_app_are_kept_until_its_sandbox_changes() {
    let world = World::new(&[("blog", hello("one").await)]);
    let client = client();
    let get = || async {
        client
            .get(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("a body")
    };
    for _ in 0..5 {
        assert_eq!(get().await, "one");
    }
    assert_eq!(world.app("blog").sockets(), 1);
    world.app("blog").move_to(hello("two").await);
    assert_eq!(get().await, "two");
    assert_eq!(world.app("blog").sockets(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_generations_at_one_address_share_no_connection() {
    let app = hello("same address").await;
    let world = World::new(&[("blog", app)]);
    let client = client();
    for generation in 1..=3 {
        client
            .get(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("a body");
        client
            .get(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .text()
            .await
            .expect("a body");
        assert_eq!(world.app("blog").sockets(), generation);
        world.app("blog").move_to(app);
    }
}

/// An app that answers one request a connection, promises to keep it open, and closes it.
async fn liar(requests: Arc<AtomicUsize>) -> SocketAddr {
    tcp_app(move |mut stream| {
        let requests = Arc::clone(&requests);
        async move {
            if read_header(&mut stream).await.is_empty() {
                return;
            }
            requests.fetch_add(1, Ordering::SeqCst);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok")
                .await;
            // Long enough for the next request to be on its way here at times.
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_closes_kept_connections_causes_no_502() {
    let requests = Arc::new(AtomicUsize::new(0));
    let world = World::new(&[("blog", liar(Arc::clone(&requests)).await)]);
    let client = client();
    for round in 0..300 {
        let request = if round % 3 == 0 {
            client.post(world.url("/blog/")).body("x")
        } else {
            client.get(world.url("/blog/"))
        };
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "round {round}");
        answer.text().await.expect("a body");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 300, "no request was made twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_just_restarting_is_waited_for() {
    // A port that is refused for the moment.
    let holder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = holder.local_addr().expect("an address");
    drop(holder);
    let world = World::new(&[("blog", addr)]);
    let request = tokio::spawn(client().post(world.url("/blog/")).body("once").send());
    crate::double::until("it was refused twice", || world.app("blog").sockets() >= 2).await;
    let back = TcpListener::bind(addr).await.expect("the same port");
    let (mut stream, _) = back.accept().await.expect("the edge");
    let header = read_header(&mut stream).await;
    assert!(header.starts_with("POST / "), "{header}");
    let mut sent = [0; 4];
    stream.read_exact(&mut sent).await.expect("a body");
    assert_eq!(&sent, b"once");
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback")
        .await
        .expect("send");
    assert_eq!(
        request
            .await
            .expect("a task")
            .expect("an answer")
            .text()
            .await
            .expect("a body"),
        "back"
    );
    assert!(world.edge.counters().snapshot().connect_retries >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_listen_is_502_within_the_second() {
    let holder = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = holder.local_addr().expect("an address");
    drop(holder);
    let world = World::with(&[("blog", addr)], |config| {
        config.connect_retry = Duration::from_millis(300)
    });
    let begun = Instant::now();
    let answer = client()
        .get(world.url("/blog/"))
        .header("accept", "text/html")
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 502);
    assert!(begun.elapsed() >= Duration::from_millis(250) && begun.elapsed() < Duration::from_secs(3));
    let html = answer.text().await.expect("a page");
    assert!(
        !html.contains(&addr.port().to_string()),
        "strangers learn no port: {html}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_breaks_off_before_its_answer_is_502() {
    let app = tcp_app(|mut stream| async move {
        read_header(&mut stream).await;
    })
    .await;
    let world = World::new(&[("blog", app)]);
    assert_eq!(
        client()
            .post(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .status(),
        502
    );
    assert_eq!(
        client()
            .get(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .status(),
        502
    );
    crate::double::until("claims are given back", || world.app("blog").leases() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_stays_silent_is_504() {
    let app = tcp_app(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let world = World::with(&[("blog", app)], |config| {
        config.app_silence = Duration::from_millis(200)
    });
    assert_eq!(
        client()
            .get(world.url("/blog/"))
            .send()
            .await
            .expect("an answer")
            .status(),
        504
    );
}
