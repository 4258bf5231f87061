//! The monitor against a bucket held in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use berth_workspace::{FileMode, IndexEntry, Kind, WorkspaceIndex};
use parking_lot::Mutex;

use super::*;

/// A bucket of which everything is known.
pub(crate) struct Memory {
    objects: Mutex<BTreeMap<String, (ObjectInfo, Bytes)>>,
    feed: broadcast::Sender<Change>,
    gets: AtomicUsize,
}

impl Memory {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let feed = broadcast::Sender::new(capacity);
        Arc::new(Self {
            objects: Mutex::default(),
            feed,
            gets: AtomicUsize::new(0),
        })
    }

    pub(crate) fn put(&self, key: &str, body: &str) {
        let info = ObjectInfo {
            key: key.to_owned(),
            size: body.len() as u64,
            etag: format!("etag of {body}"),
            modified: SystemTime::UNIX_EPOCH,
        };
        self.objects
            .lock()
            .insert(key.to_owned(), (info.clone(), Bytes::copy_from_slice(body.as_bytes())));
        let _ = self.feed.send(Change::Put(info));
    }

    pub(crate) fn delete(&self, key: &str) {
        self.objects.lock().remove(key);
        let _ = self.feed.send(Change::Deleted { key: key.to_owned() });
    }
}

impl Bucket for Memory {
    fn each_page<'a>(&'a self, take: TakePage<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        let listed: Vec<_> = self.objects.lock().values().map(|(info, _)| info.clone()).collect();
        // Two pages, where there are enough.
        let (first, second) = listed.split_at(listed.len() / 2);
        take(first.to_vec());
        take(second.to_vec());
        Box::pin(async { Ok(()) })
    }

    fn get(&self, key: &str) -> BoxFuture<'static, Result<(ObjectInfo, Bytes), StoreError>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let found = self.objects.lock().get(key).cloned();
        let missing = StoreError::NoSuchKey {
            bucket: "memory".to_owned(),
            key: key.to_owned(),
        };
        Box::pin(async move { found.ok_or(missing) })
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.feed.subscribe()
    }
}

type Events = mpsc::UnboundedReceiver<MonitorEvent>;

/// A monitor that has worked through the first listing; what it announced.
async fn watching(bucket: &Arc<Memory>) -> (Events, Vec<MonitorEvent>) {
    let mut events = Monitor::watch(Arc::clone(bucket) as Arc<dyn Bucket>, Excludes::default());
    let mut first = Vec::new();
    loop {
        match next(&mut events).await {
            MonitorEvent::Listed => return (events, first),
            event => first.push(event),
        }
    }
}

async fn next(events: &mut Events) -> MonitorEvent {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("an event comes")
        .unwrap()
}

fn changed(event: MonitorEvent) -> (String, RevisionId, Arc<Vec<SourceFile>>, Result<Plan, PlanError>) {
    match event {
        MonitorEvent::WorkspaceChanged {
            name,
            revision,
            files,
            plan,
        } => (name.to_string(), revision, files, *plan),
        other => panic!("{other:?}"),
    }
}

/// Nothing more is announced: a workspace made now is the next that is heard of, although all that was done before it would
/// have been due earlier.
async fn quiet(bucket: &Memory, events: &mut Events) {
    bucket.put("sentinel/index.html", &format!("{:?}", Instant::now()));
    assert_eq!(changed(next(events).await).0, "sentinel");
}

#[tokio::test]
async fn workspaces_of_the_first_listing_come_in_order_of_their_names() {
    let bucket = Memory::new(100);
    bucket.put("zoo/index.html", "z");
    bucket.put("app/index.html", "a");
    bucket.put(".berth/other", "-");
    bucket.put("file-at-the-top", "-");
    bucket.put("Not_A_Name/index.html", "n");
    let (mut events, first) = watching(&bucket).await;
    let mut names = Vec::new();
    for event in first {
        match event {
            MonitorEvent::InvalidName { name, reason } => {
                assert!(!reason.is_empty());
                names.push(format!("invalid {name}"));
            }
            event => names.push(changed(event).0),
        }
    }
    names.sort_by_key(|name| name.starts_with("invalid"));
    assert_eq!(names, ["app", "zoo", "invalid Not_A_Name"]);
    bucket.delete("Not_A_Name/index.html");
    assert!(matches!(next(&mut events).await, MonitorEvent::InvalidGone { name } if name == "Not_A_Name"));
}

#[tokio::test]
async fn a_burst_of_writes_is_one_revision_and_a_long_one_does_not_wait_for_its_end() {
    let bucket = Memory::new(10_000);
    bucket.put("app/index.html", "0");
    let (mut events, _) = watching(&bucket).await;
    for n in 0..10 {
        bucket.put(&format!("app/{n}.txt"), "x");
        tokio::task::yield_now().await;
    }
    let (_, _, files, _) = changed(next(&mut events).await);
    assert_eq!(files.len(), 11, "the burst is seen as a whole");
    quiet(&bucket, &mut events).await;

    let begun = Instant::now();
    let writer = tokio::spawn({
        let bucket = Arc::clone(&bucket);
        async move {
            for n in 0..100 {
                bucket.put("app/index.html", &n.to_string());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    assert_eq!(changed(next(&mut events).await).0, "app");
    let waited = begun.elapsed();
    assert!(waited >= QUIET && waited <= LONGEST * 3, "{waited:?}");
    writer.abort();
}

#[tokio::test]
async fn what_never_belongs_in_the_bucket_is_no_revision_and_no_read_is_repeated() {
    let bucket = Memory::new(100);
    bucket.put("app/package.json", r#"{"scripts": {"start": "node index.js"}}"#);
    bucket.put("app/index.js", "1");
    let (mut events, first) = watching(&bucket).await;
    let (_, before, _, plan) = changed(first.into_iter().next().unwrap());
    assert_eq!(plan.unwrap().kind, Kind::Node);
    bucket.put("app/node_modules/express/index.js", "x");
    bucket.put("app/.index.js.swp", "x");
    quiet(&bucket, &mut events).await;
    let reads = bucket.gets.load(Ordering::Relaxed);
    bucket.put("app/index.js", "2");
    let (_, after, ..) = changed(next(&mut events).await);
    assert_ne!(before, after);
    assert_eq!(
        bucket.gets.load(Ordering::Relaxed),
        reads,
        "a manifest that did not change is not read again"
    );
    bucket.put("app/index.js", "1");
    assert_eq!(changed(next(&mut events).await).1, before, "undone is what it was");
}

#[tokio::test]
async fn execute_bits_and_symlinks_come_from_the_index() {
    let bucket = Memory::new(100);
    bucket.put("app/index.html", "1");
    bucket.put("app/run.sh", "#!");
    let (mut events, first) = watching(&bucket).await;
    let before = changed(first.into_iter().next().unwrap()).1;
    let entries = BTreeMap::from([
        (
            "run.sh".to_owned(),
            IndexEntry {
                mode: Some(0o755),
                ..IndexEntry::file()
            },
        ),
        ("link".to_owned(), IndexEntry::symlink("run.sh")),
    ]);
    let index = WorkspaceIndex {
        version: index::VERSION,
        entries,
    };
    bucket.put(&index::key("app"), std::str::from_utf8(&index.to_bytes()).unwrap());
    let (_, after, files, _) = changed(next(&mut events).await);
    assert_ne!(before, after);
    let mode = |path: &str| files.iter().find(|file| file.path == path).unwrap().mode;
    assert_eq!(
        (mode("run.sh"), mode("link"), mode("index.html")),
        (FileMode::Executable, FileMode::Symlink, FileMode::Regular)
    );
}

#[tokio::test]
async fn a_deleted_workspace_is_announced_and_a_renamed_one_is_gone_and_new() {
    let bucket = Memory::new(100);
    bucket.put("old/index.html", "1");
    let (mut events, _) = watching(&bucket).await;
    bucket.put("new/index.html", "1");
    bucket.delete("old/index.html");
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(match next(&mut events).await {
            MonitorEvent::WorkspaceGone { name } => format!("gone {name}"),
            event => format!("new {}", changed(event).0),
        });
    }
    seen.sort();
    assert_eq!(seen, ["gone old", "new new"]);
    quiet(&bucket, &mut events).await;
}

#[tokio::test]
async fn changes_that_came_too_fast_are_found_by_a_new_listing() {
    // The feed holds two changes; ten come while nobody looks.
    let bucket = Memory::new(2);
    bucket.put("gone/index.html", "1");
    let (mut events, _) = watching(&bucket).await;
    bucket.delete("gone/index.html");
    for n in 0..10 {
        bucket.put(&format!("app{n}/index.html"), "1");
    }
    let (mut new, mut gone) = (BTreeSet::new(), 0);
    for _ in 0..11 {
        match next(&mut events).await {
            MonitorEvent::WorkspaceGone { .. } => gone += 1,
            event => {
                new.insert(changed(event).0);
            }
        }
    }
    assert_eq!((new.len(), gone), (10, 1));
}

#[tokio::test]
async fn a_mistake_in_one_workspace_is_its_own_affair() {
    let bucket = Memory::new(100);
    bucket.put("bad/workspace.json", "{\n  \"port\": \"three\"\n}");
    bucket.put("bad/index.html", "1");
    bucket.put("empty/", "");
    bucket.put("good/index.html", "1");
    let (_events, first) = watching(&bucket).await;
    let plans: BTreeMap<_, _> = first
        .into_iter()
        .map(changed)
        .map(|(name, _, _, plan)| (name, plan))
        .collect();
    assert!(plans["bad"].as_ref().unwrap_err().to_string().contains("line 2"));
    assert!(matches!(plans["empty"], Err(PlanError::NotAnApp)));
    assert_eq!(plans["good"].as_ref().unwrap().kind, Kind::Static);
}

#[tokio::test]
async fn files_that_manifests_name_are_read_however_many_they_are() {
    let bucket = Memory::new(100);
    // A Go program whose port is in the last of its files, and requirements that include others.
    bucket.put("gopher/go.mod", "module gopher\n\ngo 1.22\n");
    for n in 0..20 {
        bucket.put(&format!("gopher/part{n}.go"), "package main\n");
    }
    bucket.put("gopher/zz.go", "package main\n\nfunc main() {}\n");
    bucket.put("snake/requirements.txt", "-r base.txt\n");
    bucket.put("snake/base.txt", "-r more.txt\n");
    bucket.put("snake/more.txt", "flask\n");
    bucket.put("snake/app.py", "from flask import Flask\napp = Flask(__name__)\n");
    let (_events, first) = watching(&bucket).await;
    let plans: BTreeMap<_, _> = first
        .into_iter()
        .map(changed)
        .map(|(name, _, _, plan)| (name, plan))
        .collect();
    assert_eq!(plans["gopher"].as_ref().unwrap().kind, Kind::Go);
    assert_eq!(plans["snake"].as_ref().unwrap().kind, Kind::Python);
}
