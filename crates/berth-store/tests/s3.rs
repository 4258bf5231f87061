//! What S3 clients rely on, through the real server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, MetadataDirective, ObjectIdentifier};
use berth_store::{Change, EmbeddedError, EmbeddedServer, Precondition, Store, StoreError};
use bytes::Bytes;
use support::{BUCKET, fixture, next, noise, raw, server_config, store_config};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_meets_its_precondition_or_is_refused() {
    let f = fixture().await;
    let first = f
        .store
        .put("k", Bytes::from_static(b"1"), Precondition::Absent)
        .await
        .unwrap();
    assert_eq!(first.etag, "c4ca4238a0b923820dcc509a6f75849b");
    let taken = f
        .store
        .put("k", Bytes::from_static(b"2"), Precondition::Absent)
        .await
        .unwrap_err();
    assert!(
        taken.is_conflict() && taken.to_string().contains("s3://workspaces/k"),
        "{taken}"
    );
    let second = f
        .store
        .put("k", Bytes::from_static(b"2"), Precondition::Matches(first.etag.clone()))
        .await
        .unwrap();
    let stale = f
        .store
        .put("k", Bytes::from_static(b"3"), Precondition::Matches(first.etag))
        .await
        .unwrap_err();
    assert!(stale.is_conflict(), "{stale}");
    let gone = f
        .store
        .put("none", Bytes::from_static(b"3"), Precondition::Matches(second.etag))
        .await
        .unwrap_err();
    assert!(gone.is_conflict(), "{gone}");
    assert_eq!(f.store.get("k").await.unwrap().1, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_make_one_object_at_once_one_wins() {
    let f = fixture().await;
    let tries = (0..40_u64).map(|i| {
        let store = f.store.clone();
        tokio::spawn(async move { store.put("one", Bytes::from(noise(100, i)), Precondition::Absent).await })
    });
    let answers = futures::future::join_all(tries).await;
    let won: Vec<_> = answers.into_iter().map(Result::unwrap).filter_map(Result::ok).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(f.store.head("one").await.unwrap().unwrap().etag, won[0].etag);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_meets_its_own_earlier_try_is_no_conflict() {
    let f = fixture().await;
    f.store
        .put("k", Bytes::from_static(b"mine"), Precondition::Absent)
        .await
        .unwrap();
    // As after a lost answer: the same bytes again, under a precondition that no longer holds.
    let again = f
        .store
        .put("k", Bytes::from_static(b"mine"), Precondition::Absent)
        .await
        .unwrap();
    assert_eq!(again.size, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_carries_its_token_and_what_others_changed_is_neither_copied_nor_removed() {
    let f = fixture().await;
    let put = f
        .store
        .put_as("a", "one".into(), Precondition::Absent, Some("host.1"))
        .await
        .unwrap();
    let (info, token) = f.store.head_with_token("a").await.unwrap().unwrap();
    assert_eq!(
        (info.etag.as_str(), token.as_deref()),
        (put.etag.as_str(), Some("host.1"))
    );
    let theirs = f.store.put("a", "two".into(), Precondition::None).await.unwrap();
    assert_eq!(f.store.head_with_token("a").await.unwrap().unwrap().1, None);
    assert!(f.store.delete_if("a", &put.etag).await.unwrap_err().is_conflict());
    assert!(f.store.copy("a", Some(&put.etag), "b").await.unwrap_err().is_conflict());
    assert!(f.store.head("b").await.unwrap().is_none());
    f.store.copy("a", Some(&theirs.etag), "b").await.unwrap();
    f.store.delete_if("a", &theirs.etag).await.unwrap();
    f.store.delete_if("a", &theirs.etag).await.unwrap();
    assert!(f.store.head("a").await.unwrap().is_none());
    f.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_while_it_goes_up_stores_nothing() {
    let f = fixture().await;
    let dir = tempfile::tempdir().unwrap();
    for size in [1 << 20, 20 << 20] {
        let path = dir.path().join("draft");
        std::fs::write(&path, vec![1; size]).unwrap();
        let error = f
            .store
            .put_file("draft", &path, Precondition::Absent, None, &|| false)
            .await
            .unwrap_err();
        assert!(matches!(error, berth_store::StoreError::FileChanged { .. }), "{error}");
        assert!(f.store.head("draft").await.unwrap().is_none());
    }
    f.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_deletes_honour_conditions() {
    let f = fixture().await;
    let info = f
        .store
        .put("k", Bytes::from_static(b"body"), Precondition::None)
        .await
        .unwrap();
    let s3 = raw(f.server.local_addr());
    let get = || s3.get_object().bucket(BUCKET).key("k");
    let status = |e: &aws_sdk_s3::error::SdkError<aws_sdk_s3::operation::get_object::GetObjectError>| {
        e.raw_response().unwrap().status().as_u16()
    };
    assert_eq!(status(&get().if_none_match(&info.etag).send().await.unwrap_err()), 304);
    assert_eq!(status(&get().if_match("other").send().await.unwrap_err()), 412);
    let future = aws_sdk_s3::primitives::DateTime::from_secs(4_000_000_000);
    assert_eq!(status(&get().if_modified_since(future).send().await.unwrap_err()), 304);
    assert_eq!(status(&get().range("bytes=9-").send().await.unwrap_err()), 416);
    let part = get().range("bytes=-3").send().await.unwrap();
    assert_eq!(part.content_range(), Some("bytes 1-3/4"));
    assert_eq!(part.body.collect().await.unwrap().into_bytes(), "ody");

    let refused = s3
        .delete_object()
        .bucket(BUCKET)
        .key("k")
        .if_match("other")
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("PreconditionFailed"));
    s3.delete_object()
        .bucket(BUCKET)
        .key("k")
        .if_match(&info.etag)
        .send()
        .await
        .unwrap();
    assert!(f.store.get("k").await.unwrap_err().is_no_such_key());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_a_small_body_keeps_no_more_than_it() {
    let f = fixture().await;
    let small = Bytes::from_static(b"small");
    f.store.put("k", small, Precondition::None).await.unwrap();
    let body = f.store.get("k").await.unwrap().1;
    let own = body.try_into_mut().expect("it is no part of something larger");
    assert!(own.capacity() < 64, "{} bytes", own.capacity());
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_kept_and_a_copy_keeps_or_replaces_it() {
    let f = fixture().await;
    let s3 = raw(f.server.local_addr());
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .content_type("text/x-test")
        .cache_control("no-cache");
    put.metadata("mtime", "12.5")
        .body(ByteStream::from_static(b"x"))
        .send()
        .await
        .unwrap();
    s3.copy_object()
        .bucket(BUCKET)
        .key("b")
        .copy_source(format!("{BUCKET}/a"))
        .send()
        .await
        .unwrap();
    let head = s3.head_object().bucket(BUCKET).key("b").send().await.unwrap();
    assert_eq!(
        (head.content_type(), head.cache_control()),
        (Some("text/x-test"), Some("no-cache"))
    );
    assert_eq!(head.metadata().unwrap()["mtime"], "12.5");

    let touch = s3
        .copy_object()
        .bucket(BUCKET)
        .key("a")
        .copy_source(format!("{BUCKET}/a"));
    touch
        .metadata_directive(MetadataDirective::Replace)
        .metadata("mtime", "13")
        .send()
        .await
        .unwrap();
    let head = s3.head_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!(head.metadata().unwrap()["mtime"], "13");
    assert_eq!(head.cache_control(), None);
    assert_eq!(f.store.get("a").await.unwrap().1, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_becomes_one_object() {
    let f = fixture().await;
    let s3 = raw(f.server.local_addr());
    let start = || {
        s3.create_multipart_upload()
            .bucket(BUCKET)
            .key("big")
            .metadata("m", "1")
    };
    let id = start().send().await.unwrap().upload_id.unwrap();
    let bodies = [noise(5 << 20, 1), noise(5 << 20, 2), noise(1000, 3)];
    let mut parts = Vec::new();
    for (n, body) in (1..).zip(&bodies) {
        let part = s3.upload_part().bucket(BUCKET).key("big").upload_id(&id).part_number(n);
        let etag = part.body(body.clone().into()).send().await.unwrap().e_tag;
        parts.push(CompletedPart::builder().part_number(n).set_e_tag(etag).build());
    }
    let listed = s3
        .list_parts()
        .bucket(BUCKET)
        .key("big")
        .upload_id(&id)
        .max_parts(2)
        .send()
        .await
        .unwrap();
    assert_eq!((listed.parts().len(), listed.is_truncated()), (2, Some(true)));
    assert_eq!(
        s3.list_multipart_uploads()
            .bucket(BUCKET)
            .send()
            .await
            .unwrap()
            .uploads()
            .len(),
        1
    );

    let complete = |parts: Vec<CompletedPart>| {
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        s3.complete_multipart_upload()
            .bucket(BUCKET)
            .key("big")
            .upload_id(&id)
            .multipart_upload(all)
            .send()
    };
    let swapped = vec![parts[1].clone(), parts[0].clone()];
    assert_eq!(complete(swapped).await.unwrap_err().code(), Some("InvalidPartOrder"));
    let small = vec![
        parts[2].clone(),
        CompletedPart::builder().part_number(4).e_tag("x").build(),
    ];
    assert_eq!(complete(small).await.unwrap_err().code(), Some("InvalidPart"));
    let done = complete(parts).await.unwrap();
    assert!(done.e_tag().unwrap().ends_with("-3\""), "{:?}", done.e_tag());

    let whole = bodies.concat();
    assert!(f.store.get("big").await.unwrap().1 == whole);
    // A range over the seam of two parts.
    let seam = (5 << 20) - 10;
    let got = f.store.get_range("big", seam as u64..seam as u64 + 20).await.unwrap();
    assert_eq!(got, whole[seam..seam + 20]);
    f.store.copy("big", None, "copy").await.unwrap();
    f.store.delete("big").await.unwrap();
    assert!(
        f.store.get("copy").await.unwrap().1 == whole,
        "a copy does not need its source"
    );

    let id = start().send().await.unwrap().upload_id.unwrap();
    let part = s3.upload_part().bucket(BUCKET).key("big").upload_id(&id).part_number(1);
    part.body(noise(100, 9).into()).send().await.unwrap();
    s3.abort_multipart_upload()
        .bucket(BUCKET)
        .key("big")
        .upload_id(&id)
        .send()
        .await
        .unwrap();
    assert!(
        s3.list_multipart_uploads()
            .bucket(BUCKET)
            .send()
            .await
            .unwrap()
            .uploads()
            .is_empty()
    );
    f.store.delete("copy").await.unwrap();
    f.server.shutdown().await;
    let blobs = std::fs::read_dir(f.dir.path().join("blobs")).unwrap().count();
    assert_eq!(blobs, 0, "aborted and deleted bodies are gone from the disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_objects_are_listed_in_order_and_deleted_at_once() {
    let f = fixture().await;
    let puts = (0..5000_u32).map(|i| {
        let store = f.store.clone();
        async move {
            store
                .put(&format!("app/{i:05}"), Bytes::from(i.to_string()), Precondition::None)
                .await
                .unwrap()
        }
    });
    use futures::StreamExt as _;
    let made: Vec<_> = futures::stream::iter(puts).buffer_unordered(64).collect().await;
    assert_eq!(made.len(), 5000);
    let started = std::time::Instant::now();
    let listed = f.store.list("app/").await.unwrap();
    println!("LIST of 5000: {:?}", started.elapsed());
    assert_eq!(listed.len(), 5000);
    assert!(listed.is_sorted_by(|a, b| a.key < b.key));

    let s3 = raw(f.server.local_addr());
    let folder = s3.list_objects_v2().bucket(BUCKET).delimiter("/").send().await.unwrap();
    assert_eq!(folder.common_prefixes()[0].prefix(), Some("app/"));
    assert!(folder.contents().is_empty());
    let v1 = s3
        .list_objects()
        .bucket(BUCKET)
        .prefix("app/")
        .marker("app/04990")
        .send()
        .await
        .unwrap();
    assert_eq!(v1.contents().len(), 9);
    let all = listed
        .iter()
        .take(1000)
        .map(|o| ObjectIdentifier::builder().key(&o.key).build().unwrap())
        .collect();
    let batch = Delete::builder().set_objects(Some(all)).build().unwrap();
    let deleted = s3.delete_objects().bucket(BUCKET).delete(batch).send().await.unwrap();
    assert_eq!((deleted.deleted().len(), deleted.errors().len()), (1000, 0));
    assert_eq!(f.store.list("").await.unwrap().len(), 4000);

    // Folders side by side are the same list.
    for key in ["a b/ü", "app/", "app", "app2/x/y", "top", "zz/1"] {
        f.store.put(key, Bytes::new(), Precondition::None).await.unwrap();
    }
    let mut all = Vec::new();
    f.store.each_page(|mut page| all.append(&mut page)).await.unwrap();
    all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(all, f.store.list("").await.unwrap());
    assert_eq!(all.len(), 4006);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_what_was_announced_is_refused() {
    let f = fixture().await;
    let s3 = raw(f.server.local_addr());
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("k")
        .content_md5("1B2M2Y8AsgTpgAmY7PhCfg==");
    let refused = put
        .body(ByteStream::from_static(b"not empty"))
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("BadDigest"));
    let put = s3.put_object().bucket(BUCKET).key("k").checksum_crc32("AAAAAA==");
    let refused = put.body(ByteStream::from(noise(200_000, 1))).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("BadDigest"));
    assert_eq!(f.store.head("k").await.unwrap(), None);
    assert_eq!(
        std::fs::read_dir(f.dir.path().join("blobs")).unwrap().count(),
        0,
        "its file is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_told_from_a_server_that_is_not_there() {
    let f = fixture().await;
    let address = f.server.local_addr();
    let mut cfg = store_config(address);
    cfg.secret_key = "wrong".to_owned();
    match Store::connect(cfg, None).await.unwrap_err() {
        StoreError::WrongKey { code, .. } => assert_eq!(code, "SignatureDoesNotMatch"),
        other => panic!("{other}"),
    }
    let mut cfg = store_config(address);
    cfg.access_key = "NOBODY".to_owned();
    match Store::connect(cfg, None).await.unwrap_err() {
        StoreError::WrongKey { code, .. } => assert_eq!(code, "InvalidAccessKeyId"),
        other => panic!("{other}"),
    }
    f.server.shutdown().await;
    let down = f.store.put("k", Bytes::new(), Precondition::None).await.unwrap_err();
    assert!(
        down.is_unavailable() && down.to_string().contains(&address.to_string()),
        "{down}"
    );
    let unreachable = Store::connect(store_config(address), None).await.unwrap_err();
    assert!(matches!(unreachable, StoreError::Unreachable { .. }), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_taken_folder_are_named() {
    let f = fixture().await;
    let mut cfg = server_config(f.dir.path());
    cfg.listen = f.server.local_addr();
    let taken = EmbeddedServer::start(cfg).await.err().unwrap();
    assert!(
        taken.to_string().contains(&f.server.local_addr().to_string()),
        "{taken}"
    );
    let locked = EmbeddedServer::start(server_config(f.dir.path())).await.err().unwrap();
    assert!(matches!(locked, EmbeddedError::InUse { .. }), "{locked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_made() {
    let f = fixture().await;
    let mut cfg = store_config(f.server.local_addr());
    cfg.bucket = "another-bucket".to_owned();
    let other = Store::connect(cfg, None).await.unwrap();
    assert!(other.has_conditional_writes());
    assert!(other.list("").await.unwrap().is_empty(), "the probe leaves nothing");
    let buckets = raw(f.server.local_addr()).list_buckets().send().await.unwrap();
    assert_eq!(
        buckets.buckets().iter().filter_map(|b| b.name()).collect::<Vec<_>>(),
        ["another-bucket", BUCKET]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_sees_what_others_do_and_tells_own_writes_once() {
    let f = fixture().await;
    f.store
        .put("there", Bytes::from_static(b"1"), Precondition::None)
        .await
        .unwrap();
    let polling = Store::connect(store_config(f.server.local_addr()), None).await.unwrap();
    let mut changes = polling.changes();
    let own = polling
        .put("own", Bytes::from_static(b"o"), Precondition::None)
        .await
        .unwrap();
    assert_eq!(
        changes.try_recv().unwrap(),
        Change::Put(own),
        "an own write is told before its answer"
    );
    f.store
        .put("theirs", Bytes::from_static(b"t"), Precondition::None)
        .await
        .unwrap();
    let Change::Put(info) = next(&mut changes).await else {
        panic!("a deletion")
    };
    assert_eq!((info.key.as_str(), info.size), ("theirs", 1));
    f.store.delete("there").await.unwrap();
    assert_eq!(
        next(&mut changes).await,
        Change::Deleted {
            key: "there".to_owned()
        }
    );
    // Several polls later nothing has been told twice.
    f.store
        .put("last", Bytes::from_static(b"l"), Precondition::None)
        .await
        .unwrap();
    assert_eq!(next(&mut changes).await.key(), "last");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), changes.recv())
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_leaves_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let f = fixture().await;
    let s3 = raw(f.server.local_addr());
    let presign = aws_sdk_s3::presigning::PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
    let put = s3
        .put_object()
        .bucket(BUCKET)
        .key("cut")
        .presigned(presign)
        .await
        .unwrap();
    let path = put.uri().splitn(4, '/').nth(3).unwrap().to_owned();
    let mut socket = tokio::net::TcpStream::connect(f.server.local_addr()).await.unwrap();
    let head = format!(
        "PUT /{path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 10000000\r\n\r\n",
        f.server.local_addr()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&noise(1 << 20, 1)).await.unwrap();
    let blobs = || std::fs::read_dir(f.dir.path().join("blobs")).unwrap().count();
    wait(|| blobs() == 1).await;
    drop(socket);
    wait(|| blobs() == 0).await;
    assert_eq!(f.store.head("cut").await.unwrap(), None);
}

async fn wait(condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited)
        .await
        .expect("the condition never came true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_body_with_its_checksum_behind_it_is_taken() {
    let f = fixture().await;
    let file = f.dir.path().join("upload");
    let body = noise(3_000_000, 4);
    std::fs::write(&file, &body).unwrap();
    // aws-chunked, with a trailing CRC: what current AWS clients send by default.
    let put = raw(f.server.local_addr()).put_object().bucket(BUCKET).key("k");
    put.body(ByteStream::from_path(&file).await.unwrap())
        .send()
        .await
        .unwrap();
    assert!(f.store.get("k").await.unwrap().1 == body);
}
