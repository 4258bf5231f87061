//! The disk as it really is: full at times, and not larger than need be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_store::{EmbeddedServer, Precondition, Store};
use bytes::Bytes;
use futures::StreamExt as _;
use support::{fixture, noise, server_config, store_config};

/// A file system of a few MiB; unmounted when dropped.
struct SmallDisk {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl SmallDisk {
    fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(mounted.success(), "this test mounts a small disk: run it as root");
        Self { _dir: dir, path }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

async fn serve(dir: &Path) -> (EmbeddedServer, Store) {
    let server = EmbeddedServer::start(server_config(dir)).await.unwrap();
    let store = Store::connect(store_config(server.local_addr()), Some(server.feed()))
        .await
        .unwrap();
    (server, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_keeps_everything_and_lets_go_by_deleting() {
    let disk = SmallDisk::new(24);
    let (server, store) = serve(&disk.path).await;
    let mut kept = Vec::new();
    let refused = loop {
        let (key, len) = (
            format!("k{:04}", kept.len()),
            if kept.len() % 2 == 0 { 50_000 } else { 100_000 },
        );
        match store
            .put(&key, Bytes::from(noise(len, kept.len() as u64)), Precondition::None)
            .await
        {
            Ok(_) => kept.push((key, len)),
            Err(e) => break e,
        }
        assert!(kept.len() < 1000, "24 MiB never became full");
    };
    assert!(refused.is_unavailable(), "{refused}");
    assert!(refused.to_string().contains("InsufficientStorage"), "{refused}");
    for len in [1_000_000, 8_000_000] {
        let large = store.put("large", Bytes::from(noise(len, 1)), Precondition::None).await;
        assert!(len < 8_000_000 || large.is_err());
    }
    store.delete("large").await.unwrap();
    let listed: Vec<String> = store.list("").await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(
        listed,
        kept.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>(),
        "what was acknowledged, and no more"
    );
    for (n, (key, len)) in kept.iter().enumerate() {
        assert!(
            store.get(key).await.unwrap().1 == noise(*len, n as u64),
            "{key} has other bytes"
        );
    }
    let blobs = std::fs::read_dir(disk.path.join("blobs")).unwrap().count();
    assert_eq!(
        blobs,
        kept.iter().filter(|(_, len)| *len == 100_000).count(),
        "nothing half-made stays"
    );

    // Not one byte left for the deletions either.
    let mut rest = std::fs::File::create(disk.path.join("somebody-elses")).unwrap();
    while rest.write_all(&[1; 4096]).is_ok() {}
    for (key, _) in &kept {
        store.delete(key).await.unwrap();
    }
    let again = store
        .put("again", Bytes::from(noise(100_000, 7)), Precondition::None)
        .await
        .unwrap();
    assert_eq!(again.size, 100_000);
    server.shutdown().await;
    let (server, store) = serve(&disk.path).await;
    assert_eq!(store.list("").await.unwrap(), [again]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_deleted_objects_becomes_small_at_the_next_start() {
    let f = fixture().await;
    let each = |n: u64| {
        let store = f.store.clone();
        async move {
            store
                .put(&format!("k{n}"), Bytes::from(noise(60_000, n)), Precondition::None)
                .await
                .unwrap()
        }
    };
    assert_eq!(
        futures::stream::iter((0..1000).map(each))
            .buffer_unordered(64)
            .count()
            .await,
        1000
    );
    // The database gives some of it back by itself while objects are deleted; how much depends on the order of commits.
    let file = f.dir.path().join("berth.redb");
    let before = std::fs::metadata(&file).unwrap().len();
    assert!(before > 50 << 20, "{before}");
    let delete = |n: u64| {
        let store = f.store.clone();
        async move { store.delete(&format!("k{n}")).await.unwrap() }
    };
    assert_eq!(
        futures::stream::iter((1..1000).map(delete))
            .buffer_unordered(64)
            .count()
            .await,
        999
    );
    f.server.shutdown().await;
    let (server, store) = serve(f.dir.path()).await;
    let after = std::fs::metadata(&file).unwrap().len();
    assert!(after < 8 << 20, "{before} bytes became {after}");
    assert!(store.get("k0").await.unwrap().1 == noise(60_000, 0));
    server.shutdown().await;
}
