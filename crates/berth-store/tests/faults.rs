//! Every way in which a network or a server fails, between a store and the real server: what was acknowledged is there, and
//! nothing is there in part; and who watches the bucket through it never takes an object for removed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_harness::fault_proxy::{Fault, FaultProxy, Rule};
use berth_store::{Change, Precondition, Store};
use bytes::Bytes;
use support::{Fixture, eventually, fixture, noise, store_config};

const FAULTS: [Fault; 7] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::CutBefore,
    Fault::CutDuring,
    Fault::CutAfter,
    Fault::Slow(Duration::from_millis(1)),
    Fault::Truncated,
];
const KEYS: u64 = 6;
const ROUNDS: u64 = 6;

/// The content of one save: its length and its bytes tell which one it was.
fn body(key: u64, round: u64) -> Bytes {
    Bytes::from(noise(
        1000 + usize::try_from(key * 3000 + round).unwrap(),
        key * 100 + round,
    ))
}

async fn through(f: &Fixture, seed: u64) -> (Arc<FaultProxy>, Store) {
    let proxy = Arc::new(FaultProxy::start(f.server.local_addr(), seed).unwrap());
    let store = Store::connect(store_config(proxy.address()), None).await.unwrap();
    (proxy, store)
}

/// Saves one key again and again, each time over what it knows to be there; the last round that was acknowledged, if any.
async fn save(store: Store, key: u64) -> Option<u64> {
    let name = format!("app/{key}");
    let mut last = None;
    let mut base = Precondition::Absent;
    for round in 0..ROUNDS {
        let token = format!("{key}.{round}");
        match store.put_as(&name, body(key, round), base.clone(), Some(&token)).await {
            Ok(info) => {
                base = Precondition::Matches(info.etag);
                last = Some(round);
            }
            Err(error) => {
                assert!(error.is_unavailable() || error.is_conflict(), "{error}");
                // An answer may have been lost: go on from what is there.
                base = match store.head(&name).await {
                    Ok(Some(info)) => Precondition::Matches(info.etag),
                    Ok(None) => Precondition::Absent,
                    Err(_) => base,
                };
            }
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn under_every_fault_no_acknowledged_save_is_missing_and_none_is_torn() {
    for (seed, fault) in (1..).zip(FAULTS) {
        let f = fixture().await;
        let (proxy, store) = through(&f, seed).await;
        proxy.set([Rule::sometimes(30, fault)]);
        let saves = (0..KEYS).map(|key| save(store.clone(), key));
        let acknowledged = futures::future::join_all(saves).await;
        proxy.heal();
        for (key, last) in (0..KEYS).zip(acknowledged) {
            let there = match f.store.get(&format!("app/{key}")).await {
                Ok((_, bytes)) => Some(bytes),
                Err(error) if error.is_no_such_key() => None,
                Err(error) => panic!("{error}"),
            };
            let round = there.map(|bytes| {
                let whole = (0..ROUNDS).find(|round| body(key, *round) == bytes);
                whole.unwrap_or_else(|| panic!("{fault:?}: app/{key} is none of the saves: {} bytes", bytes.len()))
            });
            assert!(
                round >= last,
                "{fault:?}: app/{key} is of round {round:?}, acknowledged was {last:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_every_fault_who_watches_sees_every_save_and_no_removal() {
    let f = fixture().await;
    for n in 0..30 {
        f.store
            .put(&format!("app/{n:02}"), "0".into(), Precondition::None)
            .await
            .unwrap();
    }
    for (seed, fault) in (1..).zip(FAULTS) {
        let (proxy, store) = through(&f, seed).await;
        let mut seen = store.changes();
        proxy.set([Rule::sometimes(40, fault)]);
        let mut wanted = BTreeMap::new();
        for n in 0..30 {
            let key = format!("app/{n:02}");
            let info = f
                .store
                .put(&key, format!("{fault:?} {n}").into(), Precondition::None)
                .await
                .unwrap();
            wanted.insert(key, info.etag);
        }
        let before = proxy.count("GET", "list-type");
        eventually(|| proxy.count("GET", "list-type") >= before + 5).await;
        proxy.heal();
        while !wanted.is_empty() {
            match support::next(&mut seen).await {
                Change::Put(info) => {
                    if wanted.get(&info.key) == Some(&info.etag) {
                        wanted.remove(&info.key);
                    }
                }
                Change::Deleted { key } => panic!("{fault:?}: {key} was taken for removed"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_told_apart_from_one_that_refuses_and_saves_go_on_after_it() {
    let f = fixture().await;
    let (proxy, store) = through(&f, 1).await;
    proxy.set([Rule::once("PUT", Fault::Hang)]);
    let hanging = tokio::spawn({
        let store = store.clone();
        async move { store.put("app/a", "1".into(), Precondition::Absent).await }
    });
    eventually(|| proxy.count("PUT", "app/a") == 1).await;
    assert!(!hanging.is_finished());
    // Its connection ends; the next try gets through.
    proxy.heal();
    hanging.await.unwrap().unwrap();
    assert_eq!(f.store.get("app/a").await.unwrap().1, "1");
}
