//! Writing, copying and reading one version of an object alone, and uploads in parts, through the real server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use berth_store::{Change, Precondition, Store, StoreError};
use bytes::Bytes;
use support::{BUCKET, fixture, next, noise, raw, store_config};

/// A store that took the same server for a foreign one, and so has tried what it can do.
async fn probing(f: &support::Fixture) -> Store {
    Store::connect(store_config(f.server.local_addr()), None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_finds_every_condition_honoured_and_leaves_nothing_behind() {
    let f = fixture().await;
    let abilities = probing(&f).await.abilities();
    assert_eq!(abilities, f.store.abilities());
    assert!(abilities.conditional_put && abilities.conditional_delete);
    assert!(abilities.conditional_copy && abilities.conditional_copy_source);
    assert_eq!(f.store.list("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_meets_the_preconditions_of_both_ends_or_says_which_was_not_met() {
    let f = fixture().await;
    let a = f.store.put("a", "a".into(), Precondition::Absent).await.unwrap();
    let b = f.store.put("b", "b".into(), Precondition::Absent).await.unwrap();
    let copy = |from: &'static str, etag: &str, to: &'static str, pre: Precondition| {
        let (store, etag) = (f.store.clone(), etag.to_owned());
        async move { store.copy_if(from, Some(&etag), to, pre).await }
    };
    let refused = |error: StoreError, at: &str| {
        assert!(
            matches!(&error, StoreError::Conflict { key, .. } if key == at),
            "{error}"
        );
    };
    refused(copy("a", &a.etag, "b", Precondition::Absent).await.unwrap_err(), "b");
    let other = Precondition::Matches(a.etag.clone());
    refused(copy("a", &a.etag, "b", other.clone()).await.unwrap_err(), "b");
    refused(copy("a", &a.etag, "c", other).await.unwrap_err(), "c");
    refused(copy("a", &b.etag, "c", Precondition::Absent).await.unwrap_err(), "a");
    assert!(
        copy("none", &b.etag, "c", Precondition::Absent)
            .await
            .unwrap_err()
            .is_no_such_key()
    );
    assert_eq!(f.store.get("b").await.unwrap().1, "b");
    copy("a", &a.etag, "b", Precondition::Matches(b.etag)).await.unwrap();
    // As after a lost answer: the copy is there already.
    copy("a", &a.etag, "b", Precondition::Absent).await.unwrap();
    assert_eq!(f.store.get("b").await.unwrap().1, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_of_the_expected_version_or_refused() {
    let f = fixture().await;
    let old = f.store.put("k", "old body".into(), Precondition::None).await.unwrap();
    assert_eq!(f.store.get_if("k", &old.etag).await.unwrap(), "old body");
    assert_eq!(f.store.get_range_if("k", &old.etag, 4..6).await.unwrap(), "bo");
    assert_eq!(f.store.get_range_if("k", &old.etag, 80..90).await.unwrap(), "");
    f.store.put("k", "new body".into(), Precondition::None).await.unwrap();
    assert!(f.store.get_if("k", &old.etag).await.unwrap_err().is_conflict());
    assert!(
        f.store
            .get_range_if("k", &old.etag, 4..6)
            .await
            .unwrap_err()
            .is_conflict()
    );
    f.store.delete("k").await.unwrap();
    assert!(f.store.get_if("k", &old.etag).await.unwrap_err().is_no_such_key());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_while_its_file_is_written_and_shows_only_when_it_is_completed() {
    let f = fixture().await;
    let mut feed = f.store.changes();
    let (first, second, last) = (noise(5 << 20, 1), noise(5 << 20, 2), noise(100, 3));
    let upload = f.store.begin("large", Some("host.7")).await.unwrap();
    let parts = [(2, noise(5 << 20, 9)), (1, first.clone()), (3, last.clone())];
    futures::future::try_join_all(parts.map(|(n, body)| upload.part(n, body.into())))
        .await
        .unwrap();
    // Written over meanwhile.
    upload.part(2, second.clone().into()).await.unwrap();
    assert!(f.store.head("large").await.unwrap().is_none());
    let theirs = f.store.put("large", "theirs".into(), Precondition::None).await.unwrap();
    assert!(upload.complete(Precondition::Absent).await.unwrap_err().is_conflict());
    let info = upload
        .complete(Precondition::Matches(theirs.etag.clone()))
        .await
        .unwrap();
    let body = [first, second, last].concat();
    assert_eq!(info.size, body.len() as u64);
    assert!(f.store.get_if("large", &info.etag).await.unwrap() == body);
    assert_eq!(
        f.store.head_with_token("large").await.unwrap().unwrap().1.as_deref(),
        Some("host.7")
    );
    assert_eq!(next(&mut feed).await, Change::Put(theirs));
    assert!(matches!(next(&mut feed).await, Change::Put(seen) if seen.etag == info.etag));

    let given_up = f.store.begin("other", None).await.unwrap();
    given_up.part(1, noise(100, 1).into()).await.unwrap();
    given_up.abort().await.unwrap();
    let forgotten = f.store.begin("other", None).await.unwrap();
    forgotten.part(1, noise(100, 1).into()).await.unwrap();
    drop(forgotten);
    let s3 = raw(f.server.local_addr());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !s3
        .list_multipart_uploads()
        .bucket(BUCKET)
        .send()
        .await
        .unwrap()
        .uploads()
        .is_empty()
    {
        assert!(
            std::time::Instant::now() < deadline,
            "an upload that was dropped is still there"
        );
    }
    assert!(f.store.head("other").await.unwrap().is_none());
}

#[test]
fn every_future_may_move_between_threads() {
    fn moves<T: Send>(_: T) {}
    fn all(store: &Store, upload: &berth_store::Multipart) {
        moves(store.put_as("k", Bytes::new(), Precondition::None, None));
        moves(store.put_file("k", std::path::Path::new("f"), Precondition::None, None, &|| true));
        moves(store.copy_if("a", None, "b", Precondition::None));
        moves(store.delete_if("k", "etag"));
        moves(store.get_range_if("k", "etag", 0..1));
        moves(store.begin("k", None));
        moves(upload.part(1, Bytes::new()));
        moves(upload.complete(Precondition::None));
        moves(upload.abort());
    }
    // That it compiles is the test.
    let _ = all;
}
