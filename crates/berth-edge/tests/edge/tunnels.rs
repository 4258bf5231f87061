//! WebSocket: tunnels that come first, at once, in silence, and that end.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};

use crate::double::{World, hello, read_header, tcp_app, until};

const UPGRADE: &str = "GET /ws/chat HTTP/1.1\r\nHost: berth.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A WebSocket that says everything back.
async fn echo() -> std::net::SocketAddr {
    tcp_app(|stream| async move {
        let mut socket = accept_async(stream).await.expect("a WebSocket");
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.expect("send");
            }
        }
    })
    .await
}

async fn connect(world: &World, path: &str) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(world.addr).await.expect("connect");
    let (socket, _) = client_async(format!("ws://berth.test{path}"), stream)
        .await
        .expect("a tunnel");
    socket
}

/// The 101 is there before the edge has even sent the request, let alone the end of its empty body.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_switches_at_once_keeps_its_tunnel() {
    let app = tcp_app(|mut stream| async move {
        stream.write_all(SWITCH).await.expect("send");
        read_header(&mut stream).await;
        let mut bytes = [0; 4];
        while stream.read_exact(&mut bytes).await.is_ok() {
            stream.write_all(&bytes).await.expect("send");
        }
    })
    .await;
    let world = World::new(&[("ws", app)]);
    for round in 0..100 {
        let mut client = TcpStream::connect(world.addr).await.expect("connect");
        client.write_all(UPGRADE.as_bytes()).await.expect("send");
        let header = read_header(&mut client).await;
        assert!(header.starts_with("HTTP/1.1 101"), "round {round}: {header}");
        for message in [b"ping", b"pong"] {
            client.write_all(message).await.expect("send");
            let mut back = [0; 4];
            client
                .read_exact(&mut back)
                .await
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(&back, message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_can_be_the_first_request() {
    let world = World::closed(&[("ws", echo().await)], |_| {});
    let opening = async {
        until("the request is held", || world.app("ws").waiting() == 1).await;
        world.app("ws").open();
    };
    let (mut socket, ()) = tokio::join!(connect(&world, "/ws/chat"), opening);
    socket.send(Message::text("first")).await.expect("send");
    assert_eq!(
        socket.next().await.expect("a message").expect("well"),
        Message::text("first")
    );
}

/// Clients of WebSocket follow no redirect, so `/NAME` itself is a tunnel's address too.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_needs_no_slash_after_the_name() {
    let world = World::new(&[("ws", echo().await)]);
    let mut socket = connect(&world, "/ws").await;
    socket.send(Message::text("hello")).await.expect("send");
    assert_eq!(
        socket.next().await.expect("a message").expect("well"),
        Message::text("hello")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_go_both_ways() {
    let world = World::new(&[("ws", echo().await)]);
    let mut socket = connect(&world, "/ws/").await;
    let message = Message::binary(vec![7_u8; 3 << 20]);
    socket.send(message.clone()).await.expect("send");
    assert_eq!(socket.next().await.expect("a message").expect("well"), message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tunnel_stays_and_keeps_its_claim_until_it_closes() {
    let world = World::with(&[("ws", echo().await)], |config| {
        config.client_silence = Duration::from_millis(100);
        config.app_silence = Duration::from_millis(100);
    });
    let mut socket = connect(&world, "/ws/").await;
    // Silence itself is what is tested.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(world.app("ws").leases(), 1);
    socket.send(Message::text("still here")).await.expect("send");
    assert_eq!(
        socket.next().await.expect("a message").expect("well"),
        Message::text("still here")
    );
    socket.close(None).await.expect("close");
    drop(socket);
    until("the claim is given back", || world.app("ws").leases() == 0).await;
    assert_eq!(world.edge.counters().snapshot().tunnels, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_whose_client_vanishes_gives_its_claim_back() {
    let world = World::new(&[("ws", echo().await)]);
    let socket = connect(&world, "/ws/").await;
    until("the claim", || world.app("ws").leases() == 1).await;
    drop(socket);
    until("the claim is given back", || world.app("ws").leases() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_ends_when_the_app_ends_it() {
    let app = tcp_app(|mut stream| async move {
        read_header(&mut stream).await;
        stream.write_all(SWITCH).await.expect("send");
        stream.write_all(b"bye").await.expect("send");
    })
    .await;
    let world = World::new(&[("ws", app)]);
    let answer = world.raw(UPGRADE.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.ends_with("bye"),
        "{answer}"
    );
    until("the claim is given back", || world.app("ws").leases() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_refuse_to_switch() {
    let world = World::new(&[("ws", hello("no tunnel here").await)]);
    let mut client = TcpStream::connect(world.addr).await.expect("connect");
    client.write_all(UPGRADE.as_bytes()).await.expect("send");
    let header = read_header(&mut client).await;
    assert!(header.starts_with("HTTP/1.1 200"), "{header}");
    let mut text = [0; 14];
    client.read_exact(&mut text).await.expect("a body");
    assert_eq!(&text, b"no tunnel here");
}
