//! Hosts that tell each other what they have changed, and what else arrives at a port that anybody can send to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use berth_store::{Change, Feed, Hints, Precondition, Store};
use support::{Fixture, eventually, fixture, next, store_config};
use tokio::net::UdpSocket;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A host that lists so rarely that only hints can tell, and hears them.
async fn listener(f: &Fixture) -> (Store, Hints) {
    let mut config = store_config(f.server.local_addr());
    config.poll_interval = Duration::from_secs(3600);
    let store = Store::connect(config.clone(), None).await.unwrap();
    assert_eq!(store.feed(), Feed::List);
    let hints = store.share_hints(Some(ANY), Vec::new()).await.unwrap();
    (store, hints)
}

fn peer(hints: &Hints) -> Vec<String> {
    vec![hints.local_addr().unwrap().to_string()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_on_one_host_is_seen_on_the_other_without_a_list() {
    let f = fixture().await;
    let (theirs, hearing) = listener(&f).await;
    let mut seen = theirs.changes();
    let mut config = store_config(f.server.local_addr());
    config.poll_interval = Duration::from_secs(3600);
    let ours = Store::connect(config, None).await.unwrap();
    let telling = ours.share_hints(None, peer(&hearing)).await.unwrap();
    let since = Instant::now();
    let info = ours.put("app/a", "1".into(), Precondition::None).await.unwrap();
    let Change::Put(there) = next(&mut seen).await else {
        panic!("a removal")
    };
    eprintln!("a save was seen on the other host after {:?}", since.elapsed());
    assert_eq!((there.key, there.etag), (info.key, info.etag));
    ours.delete("app/a").await.unwrap();
    assert_eq!(next(&mut seen).await, Change::Deleted { key: "app/a".into() });
    // Many at once.
    let puts = (0..500).map(|n| {
        let (ours, key) = (ours.clone(), format!("many/{n}"));
        async move { ours.put(&key, "1".into(), Precondition::None).await.unwrap() }
    });
    futures::future::join_all(puts).await;
    for _ in 0..500 {
        assert!(matches!(next(&mut seen).await, Change::Put(_)));
    }
    eventually(|| telling.counts().sent == hearing.counts().heard).await;
    assert!(telling.counts().sent >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_runs_the_embedded_server_tells_what_anybody_does_to_it() {
    let f = fixture().await;
    let (theirs, hearing) = listener(&f).await;
    let mut seen = theirs.changes();
    let _telling = f.store.share_hints(None, peer(&hearing)).await.unwrap();
    let client = support::raw(f.server.local_addr());
    let put = client.put_object().bucket(support::BUCKET).key("app/a");
    put.body(bytes::Bytes::from_static(b"x").into()).send().await.unwrap();
    assert_eq!(next(&mut seen).await.key(), "app/a");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_repeated_and_foreign_datagrams_are_counted_and_never_answered() {
    let f = fixture().await;
    let (_theirs, hearing) = listener(&f).await;
    let to = hearing.local_addr().unwrap();
    // What a true one looks like on its way.
    let between = UdpSocket::bind(ANY).await.unwrap();
    let _telling = f
        .store
        .share_hints(None, vec![between.local_addr().unwrap().to_string()])
        .await
        .unwrap();
    f.store.put("app/a", "1".into(), Precondition::None).await.unwrap();
    let mut buffer = [0; 2000];
    let length = between.recv(&mut buffer).await.unwrap();
    let datagram = &buffer[..length];
    let mut forged = datagram.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for bytes in [datagram, datagram, &forged, b"GET / HTTP/1.1\r\n\r\n", &[0; 2000]] {
        between.send_to(bytes, to).await.unwrap();
    }
    eventually(|| {
        let counts = hearing.counts();
        (counts.heard, counts.repeated, counts.forged, counts.foreign) == (1, 1, 1, 2)
    })
    .await;
    let error = between.try_recv(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nobody answers");
}
