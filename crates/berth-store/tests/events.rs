//! Servers that tell of changes, servers that do not, and servers whose listing comes late or breaks off.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use berth_store::{Change, Feed, Precondition, Store};
use support::talking::{Server, event};
use support::{eventually, next, store_config};

/// A store that lists so rarely that only events can tell.
async fn listener(server: &Server) -> Store {
    let mut config = store_config(server.address());
    config.poll_interval = Duration::from_secs(3600);
    let store = Store::connect(config, None).await.unwrap();
    server.listening().await;
    eventually(|| store.feed() == Feed::Events).await;
    store
}

fn put(change: &Change) -> (&str, &str) {
    match change {
        Change::Put(info) => (&info.key, &info.etag),
        Change::Deleted { key } => (key, "gone"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_seen_as_soon_as_the_server_tells_of_it() {
    let server = Server::start().await;
    let store = listener(&server).await;
    let mut seen = store.changes();
    let since = Instant::now();
    server.put("app/a b", "1");
    server.tell(&event("ObjectCreated:Put", "app/a+b", "1"));
    assert_eq!(put(&next(&mut seen).await), ("app/a b", "1"));
    eprintln!("a change was seen {:?} after the server told of it", since.elapsed());
    server.remove("app/a b");
    server.tell(&event("ObjectRemoved:Delete", "app/a+b", ""));
    assert_eq!(put(&next(&mut seen).await), ("app/a b", "gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_believed_but_looked_at() {
    let server = Server::start().await;
    let store = listener(&server).await;
    let mut seen = store.changes();
    // It says what was so once: the object has changed again meanwhile, and the other never was.
    server.put("a", "2");
    server.tell(&event("ObjectCreated:Put", "a", "1"));
    server.tell(&event("ObjectCreated:Put", "never", "1"));
    server.put("last", "1");
    server.tell(&event("ObjectCreated:Put", "last", "1"));
    let mut all = [next(&mut seen).await, next(&mut seen).await];
    all.sort_by(|x, y| x.key().cmp(y.key()));
    assert_eq!(put(&all[0]), ("a", "2"));
    assert_eq!(put(&all[1]), ("last", "1"));
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_stream_was_broken_is_found_by_a_list() {
    let server = Server::start().await;
    let store = listener(&server).await;
    let mut seen = store.changes();
    for round in ["1", "2", "3"] {
        server.put("app/missed", round);
        server.cut();
        assert_eq!(put(&next(&mut seen).await), ("app/missed", round));
    }
    server.listening().await;
    server.put("app/b", "1");
    server.tell(&event("ObjectCreated:Put", "app/b", "1"));
    assert_eq!(put(&next(&mut seen).await), ("app/b", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn own_writes_are_published_once_whatever_the_stream_says() {
    let server = Server::start().await;
    let store = listener(&server).await;
    let mut seen = store.changes();
    let mut own = Vec::new();
    for n in 0..20 {
        let key = format!("app/{n}");
        let info = store
            .put(&key, format!("{n}").into(), Precondition::None)
            .await
            .unwrap();
        server.tell(&event("ObjectCreated:Put", &key, &info.etag));
        own.push((key, info.etag));
    }
    server.put("last", "1");
    server.tell(&event("ObjectCreated:Put", "last", "1"));
    for (key, etag) in &own {
        assert_eq!(put(&next(&mut seen).await), (key.as_str(), etag.as_str()));
    }
    assert_eq!(put(&next(&mut seen).await), ("last", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_nobody_understands_leads_to_a_list() {
    let server = Server::start().await;
    let store = listener(&server).await;
    let mut seen = store.changes();
    server.put("app/a", "1");
    server.tell("{\"Records\": 7}");
    assert_eq!(put(&next(&mut seen).await), ("app/a", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_events_is_listed() {
    for status in [400, 403, 404, 405, 501, 200] {
        let server = Server::start().await;
        server.events_answer(status);
        let store = Store::connect(store_config(server.address()), None).await.unwrap();
        let mut seen = store.changes();
        server.put("app/a", "1");
        assert_eq!(put(&next(&mut seen).await), ("app/a", "1"), "{status}");
        assert_eq!(store.feed(), Feed::List);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_breaks_off_removes_nothing() {
    let server = Server::start().await;
    server.events_answer(501);
    for n in 0..50 {
        server.put(&format!("app/{n:02}"), "1");
    }
    let store = Store::connect(store_config(server.address()), None).await.unwrap();
    let mut seen = store.changes();
    for broken in ["second page", "endless", "no token", "cut", "few"] {
        server.break_lists(broken);
        server.lists_seen(5).await;
    }
    server.break_lists("");
    server.put("last", "1");
    assert_eq!(put(&next(&mut seen).await), ("last", "1"));
    assert!(seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_comes_late_hides_no_own_write() {
    let server = Server::start().await;
    server.events_answer(501);
    let store = Store::connect(store_config(server.address()), None).await.unwrap();
    let mut seen = store.changes();
    server.freeze_lists();
    let info = store.put("app/own", "1".into(), Precondition::None).await.unwrap();
    assert_eq!(put(&next(&mut seen).await), ("app/own", info.etag.as_str()));
    server.lists_seen(5).await;
    server.thaw_lists();
    server.put("last", "1");
    assert_eq!(put(&next(&mut seen).await), ("last", "1"));
}
