//! A network that loses answers, between a store and the real server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_store::{Precondition, Store};
use bytes::Bytes;
use support::{fixture, noise, store_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Forwards to `server`; while `to_lose` is above zero, each answer is awaited and then thrown away with its connection.
async fn losing_proxy(server: SocketAddr, to_lose: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let upstream = TcpStream::connect(server).await.unwrap();
            tokio::spawn(forward(client, upstream, Arc::clone(&to_lose)));
        }
    });
    address
}

async fn forward(mut client: TcpStream, mut server: TcpStream, to_lose: Arc<AtomicUsize>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            n = client.read(&mut up) => match n {
                Ok(n) if n > 0 => server.write_all(&up[..n]).await.unwrap(),
                _ => return,
            },
            n = server.read(&mut down) => match n {
                Ok(n) if n > 0 => {
                    let lose = |left: usize| left.checked_sub(1);
                    if to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok() {
                        return;
                    }
                    if client.write_all(&down[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_conditional_put_is_no_conflict() {
    let f = fixture().await;
    let to_lose = Arc::new(AtomicUsize::new(0));
    let proxy = losing_proxy(f.server.local_addr(), Arc::clone(&to_lose)).await;
    let store = Store::connect(store_config(proxy), Some(f.server.feed()))
        .await
        .unwrap();
    let mut feed = store.changes();

    to_lose.store(1, Ordering::SeqCst);
    let made = store
        .put("k", Bytes::from(noise(5000, 1)), Precondition::Absent)
        .await
        .unwrap();
    assert_eq!(to_lose.load(Ordering::SeqCst), 0, "an answer was lost");
    to_lose.store(1, Ordering::SeqCst);
    let body = Bytes::from(noise(5000, 2));
    let replaced = store
        .put("k", body.clone(), Precondition::Matches(made.etag.clone()))
        .await
        .unwrap();
    assert_eq!(to_lose.load(Ordering::SeqCst), 0, "an answer was lost");
    assert_eq!(store.get("k").await.unwrap().1, body);
    for etag in [made.etag, replaced.etag] {
        let berth_store::Change::Put(info) = feed.try_recv().unwrap() else {
            panic!("a deletion")
        };
        assert_eq!(info.etag, etag);
    }
    assert!(feed.try_recv().is_err(), "each write took place once");

    // Somebody else's write is a conflict, lost answer or not.
    f.store
        .put("k", Bytes::from_static(b"theirs"), Precondition::None)
        .await
        .unwrap();
    to_lose.store(1, Ordering::SeqCst);
    let late = store
        .put("k", Bytes::from_static(b"mine"), Precondition::Matches("0".repeat(32)))
        .await
        .unwrap_err();
    assert!(late.is_conflict(), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_survives_lost_answers() {
    let f = fixture().await;
    let to_lose = Arc::new(AtomicUsize::new(0));
    let proxy = losing_proxy(f.server.local_addr(), Arc::clone(&to_lose)).await;
    let store = Store::connect(store_config(proxy), Some(f.server.feed()))
        .await
        .unwrap();
    let path = f.dir.path().join("large");
    let body = noise(20 << 20, 3);
    std::fs::write(&path, &body).unwrap();
    to_lose.store(2, Ordering::SeqCst);
    store
        .put_file("large", &path, Precondition::Absent, None, &|| true)
        .await
        .unwrap();
    assert_eq!(to_lose.load(Ordering::SeqCst), 0, "answers were lost");
    assert!(f.store.get("large").await.unwrap().1 == body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_loses_every_answer_is_unavailable() {
    let f = fixture().await;
    let to_lose = Arc::new(AtomicUsize::new(0));
    let proxy = losing_proxy(f.server.local_addr(), Arc::clone(&to_lose)).await;
    let store = Store::connect(store_config(proxy), Some(f.server.feed()))
        .await
        .unwrap();
    to_lose.store(1000, Ordering::SeqCst);
    let lost = store
        .put("k", Bytes::from_static(b"1"), Precondition::None)
        .await
        .unwrap_err();
    assert!(lost.is_unavailable(), "{lost}");
    let lost = store.list("").await.unwrap_err();
    assert!(lost.is_unavailable(), "{lost}");
    to_lose.store(0, Ordering::SeqCst);
    assert_eq!(store.get("k").await.unwrap().1, "1");
}
