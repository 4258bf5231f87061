//! What answers at an endpoint and is no server to work with: each is named, with what to do about it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;

use berth_store::{Store, StoreError};
use support::store_config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A server that gives every request this answer, and hangs up.
async fn answering(status: &'static str, kind: &'static str, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                if client.read_buf(&mut head).await.unwrap() == 0 {
                    break;
                }
            }
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\
                 date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    address
}

async fn refusal(status: &'static str, kind: &'static str, body: &'static str) -> StoreError {
    let address = answering(status, kind, body).await;
    Store::connect(store_config(address), None).await.unwrap_err()
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_with_both_times() {
    let body = "<?xml version=\"1.0\"?><Error><Code>RequestTimeTooSkewed</Code><Message>no</Message></Error>";
    let error = refusal("403 Forbidden", "application/xml", body).await;
    let StoreError::ClockSkew { ours, theirs, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(theirs, "Sun, 06 Nov 1994 08:49:37 GMT");
    assert!(
        ours.ends_with(" GMT") && error.to_string().contains("timedatectl"),
        "{error}"
    );
    assert!(error.is_unavailable(), "it works again when the clock is right");
}

#[tokio::test]
async fn a_web_page_is_no_s3_server() {
    for status in ["200 OK", "404 Not Found", "403 Forbidden"] {
        let page = "<!doctype html><html><body>Welcome<br></body></html>";
        let error = refusal(status, "text/html; charset=utf-8", page).await;
        assert!(matches!(error, StoreError::NotS3 { .. }), "{status}: {error}");
    }
    let error = refusal("404 Not Found", "application/json", "{\"detail\":\"Not Found\"}").await;
    assert!(matches!(error, StoreError::NotS3 { status: 404, .. }), "{error}");
    // A proxy before a server that is down.
    let error = refusal("502 Bad Gateway", "text/html", "<html>bad gateway</html>").await;
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_key_that_may_not_even_list_is_told_so() {
    let body = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>";
    let error = refusal("403 Forbidden", "application/xml", body).await;
    assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
}

#[tokio::test]
async fn a_bucket_that_is_missing_and_cannot_be_made_is_named() {
    let body = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>none</Message></Error>";
    let error = refusal("404 Not Found", "application/xml", body).await;
    let said = error.to_string();
    assert!(
        matches!(error, StoreError::NoSuchBucket { .. }) && said.contains("bucket workspaces"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_examined_without_leaving_anything_there() {
    let f = support::fixture().await;
    let found = Store::examine(&store_config(f.server.local_addr())).await.unwrap();
    assert_eq!(found.abilities, f.store.abilities());
    assert!(found.etag_in_list);
    assert_eq!(found.events, Some(false));
    let theirs = found.server_time.expect("it says what time it is");
    let off = found.at.duration_since(theirs).unwrap_or_else(|e| e.duration());
    assert!(off < std::time::Duration::from_secs(5), "{off:?}");
    assert!(f.store.list("").await.unwrap().is_empty());

    let mut config = store_config(f.server.local_addr());
    config.bucket = "missing".to_owned();
    let missing = Store::examine(&config).await.unwrap_err();
    assert!(matches!(missing, StoreError::NoSuchBucket { .. }), "{missing}");
    config = store_config(f.server.local_addr());
    config.secret_key = "wrong".to_owned();
    let wrong = Store::examine(&config).await.unwrap_err();
    assert!(matches!(wrong, StoreError::WrongKey { .. }), "{wrong}");

    let talking = support::talking::Server::start().await;
    let found = Store::examine(&store_config(talking.address())).await.unwrap();
    assert_eq!(found.events, Some(true));
    assert!(!found.abilities.conditional_put);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_saves_from_s3_is_said_while_it_does() {
    let talking = support::talking::Server::start().await;
    let store = Store::connect(store_config(talking.address()), None).await.unwrap();
    store
        .put("app/a", "1".into(), berth_store::Precondition::None)
        .await
        .unwrap();
    assert_eq!(store.trouble(), None);
    talking.down(true);
    let lost = store.put("app/a", "2".into(), berth_store::Precondition::None).await;
    assert!(lost.unwrap_err().is_unavailable());
    assert_eq!(store.trouble().as_deref(), Some("S3 cannot take them now"));
    talking.down(false);
    store
        .put("app/a", "2".into(), berth_store::Precondition::None)
        .await
        .unwrap();
    assert_eq!(store.trouble(), None);
}
