//! Random operations on the bucket through the real server, compared with a map after each.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;

use berth_store::{Change, EmbeddedServer, Precondition, Store, StoreError};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{noise, server_config, store_config};

#[derive(Debug, Clone)]
enum Op {
    Put(String, usize, u64),
    PutAbsent(String, usize, u64),
    PutIfUnchanged(String, usize, u64),
    PutIfStale(String),
    Delete(String),
    Copy(String, String),
    Get(String),
    Range(String, u64, u64),
    List(String),
    Restart,
}

fn key() -> impl Strategy<Value = String> {
    // Few keys, so that they meet; with the characters that break careless servers.
    prop::sample::select(vec![
        "a",
        "a/",
        "a/b",
        "a/b/c",
        "b",
        "a b+c",
        "ü/ß",
        "%41",
        "x&<y>\"z'",
        "a?b#c",
        "a//b",
        "+",
        "tab\tnew\nline",
        ".hidden",
        "a/../b",
    ])
    .prop_map(str::to_owned)
}

fn size() -> impl Strategy<Value = usize> {
    // Around the limit between rows and files.
    prop_oneof![4 => 0_usize..200, 1 => 65_530_usize..65_545, 1 => Just(300_000)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (key(), size(), any::<u64>()).prop_map(|(k, n, s)| Op::Put(k, n, s)),
        2 => (key(), size(), any::<u64>()).prop_map(|(k, n, s)| Op::PutAbsent(k, n, s)),
        2 => (key(), size(), any::<u64>()).prop_map(|(k, n, s)| Op::PutIfUnchanged(k, n, s)),
        1 => key().prop_map(Op::PutIfStale),
        3 => key().prop_map(Op::Delete),
        3 => (key(), key()).prop_map(|(a, b)| Op::Copy(a, b)),
        3 => key().prop_map(Op::Get),
        2 => (key(), 0_u64..400, 0_u64..70_000).prop_map(|(k, a, n)| Op::Range(k, a, n)),
        2 => prop_oneof![Just(String::new()), key()].prop_map(Op::List),
        1 => Just(Op::Restart),
    ]
}

struct World {
    dir: tempfile::TempDir,
    server: Option<EmbeddedServer>,
    store: Store,
    model: BTreeMap<String, (Vec<u8>, String)>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = EmbeddedServer::start(server_config(dir.path())).await.unwrap();
        let store = Store::connect(store_config(server.local_addr()), Some(server.feed()))
            .await
            .unwrap();
        Self {
            dir,
            server: Some(server),
            store,
            model: BTreeMap::new(),
        }
    }

    async fn put(&mut self, key: &str, body: Vec<u8>, pre: Precondition) {
        let holds = match &pre {
            Precondition::None => true,
            Precondition::Absent => !self.model.contains_key(key),
            Precondition::Matches(etag) => self.model.get(key).is_some_and(|(_, e)| e == etag),
        };
        let same = self.model.get(key).is_some_and(|(b, _)| *b == body);
        let mut feed = self.store.changes();
        let answer = self.store.put(key, Bytes::from(body.clone()), pre).await;
        if holds {
            let info = answer.unwrap();
            assert_eq!(info.size, body.len() as u64);
            assert_eq!(
                feed.try_recv().unwrap().key(),
                key,
                "the change is fed before the answer"
            );
            self.model.insert(key.to_owned(), (body, info.etag));
        } else if !same {
            let error = answer.unwrap_err();
            assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
            assert!(feed.try_recv().is_err(), "a refused write is no change");
        }
    }

    async fn run(&mut self, op: Op) {
        match op {
            Op::Put(key, len, seed) => self.put(&key, noise(len, seed), Precondition::None).await,
            Op::PutAbsent(key, len, seed) => self.put(&key, noise(len, seed), Precondition::Absent).await,
            Op::PutIfUnchanged(key, len, seed) => {
                let etag = self.model.get(&key).map_or_else(|| "0".repeat(32), |(_, e)| e.clone());
                self.put(&key, noise(len, seed), Precondition::Matches(etag)).await;
            }
            Op::PutIfStale(key) => {
                self.put(&key, noise(77, 1), Precondition::Matches("f".repeat(32)))
                    .await
            }
            Op::Delete(key) => {
                let mut feed = self.store.changes();
                self.store.delete(&key).await.unwrap();
                match self.model.remove(&key) {
                    Some(_) => assert_eq!(feed.try_recv().unwrap(), Change::Deleted { key }),
                    None => assert!(feed.try_recv().is_err()),
                }
            }
            Op::Copy(from, to) => match (self.store.copy(&from, None, &to).await, self.model.get(&from).cloned()) {
                (Ok(info), Some((body, etag))) => {
                    assert_eq!((info.size, &info.etag), (body.len() as u64, &etag));
                    self.model.insert(to, (body, etag));
                }
                (Err(StoreError::NoSuchKey { key, .. }), None) => assert_eq!(key, from),
                (answer, wanted) => panic!("copy {from} to {to}: {answer:?}, there is one: {}", wanted.is_some()),
            },
            Op::Get(key) => self.check(&key).await,
            Op::Range(key, start, len) => match (
                self.store.get_range(&key, start..start + len).await,
                self.model.get(&key),
            ) {
                (Ok(got), Some((body, _))) => {
                    let end = usize::try_from(start + len).unwrap().min(body.len());
                    assert_eq!(got, body.get(usize::try_from(start).unwrap()..end).unwrap_or_default());
                }
                (Ok(got), None) => assert!(len == 0 && got.is_empty()),
                (Err(StoreError::NoSuchKey { .. }), None) => {}
                (Err(error), _) => panic!("range of {key}: {error}"),
            },
            Op::List(prefix) => self.check_list(&prefix).await,
            Op::Restart => self.restart().await,
        }
    }

    async fn check(&self, key: &str) {
        match (self.store.get(key).await, self.model.get(key)) {
            (Ok((info, got)), Some((body, etag))) => {
                assert!(got == body, "{key} has other bytes");
                assert_eq!(&info.etag, etag);
                assert_eq!(self.store.head(key).await.unwrap(), Some(info));
            }
            (Err(StoreError::NoSuchKey { .. }), None) => assert_eq!(self.store.head(key).await.unwrap(), None),
            (answer, wanted) => panic!("get {key}: {answer:?}, there is one: {}", wanted.is_some()),
        }
    }

    async fn check_list(&self, prefix: &str) {
        let listed = self.store.list(prefix).await.unwrap();
        let listed: Vec<_> = listed.into_iter().map(|o| (o.key, o.size, o.etag)).collect();
        let wanted = self.model.iter().filter(|(k, _)| k.starts_with(prefix));
        let wanted: Vec<_> = wanted
            .map(|(k, (b, e))| (k.clone(), b.len() as u64, e.clone()))
            .collect();
        assert_eq!(listed, wanted);
    }

    async fn restart(&mut self) {
        self.server.take().unwrap().shutdown().await;
        let server = EmbeddedServer::start(server_config(self.dir.path())).await.unwrap();
        self.store = Store::connect(store_config(server.local_addr()), Some(server.feed()))
            .await
            .unwrap();
        self.server = Some(server);
    }

    /// Every object, and nothing else on the disk.
    async fn check_all(&mut self) {
        self.restart().await;
        self.check_list("").await;
        for key in self.model.keys() {
            self.check(key).await;
        }
        let files = std::fs::read_dir(self.dir.path().join("blobs")).unwrap().count();
        assert_eq!(
            files,
            self.model.values().filter(|(b, _)| b.len() > 64 * 1024).count(),
            "no file without an object"
        );
    }
}

#[test]
fn the_bucket_does_what_a_map_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(op(), 1..60), |ops| {
            runtime.block_on(async {
                let mut world = World::new().await;
                for op in ops {
                    world.run(op).await;
                }
                world.check_all().await;
                world.server.take().unwrap().shutdown().await;
            });
            Ok(())
        })
        .unwrap();
}
