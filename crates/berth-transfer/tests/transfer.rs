//! Folders to a real embedded server and back, without a daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use berth_store::{Access, EmbeddedConfig, EmbeddedServer, Precondition, Store, StoreConfig};
use berth_transfer::{Destination, Options, Report, Source, Tally, TransferError, Watch, export, import};
use berth_workspace::{AppName, Excludes, IndexEntry, WorkspaceIndex, index};
use tokio_util::sync::CancellationToken;

struct World {
    dir: tempfile::TempDir,
    store: Store,
    _server: EmbeddedServer,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = EmbeddedServer::start(EmbeddedConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().join("s3"),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            bucket: "workspaces".into(),
            cache: EmbeddedConfig::CACHE,
        })
        .await
        .unwrap();
        let config = StoreConfig {
            endpoint: Some(format!("http://{}", server.local_addr())),
            region: String::new(),
            bucket: "workspaces".into(),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            session_token: None,
            path_style: true,
            poll_interval: Duration::from_secs(15),
        };
        let store = Store::open(config, Access::Write).await.unwrap();
        fs::create_dir(dir.path().join("shop")).unwrap();
        Self {
            dir,
            store,
            _server: server,
        }
    }

    fn source(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("shop").join(path)
    }

    async fn import(&self, options: &Options) -> Report {
        let source = Source {
            name: AppName::parse("shop").unwrap(),
            folder: self.source(""),
            excludes: Excludes::default(),
        };
        let (tally, cancel) = (Tally::default(), CancellationToken::new());
        import(
            &self.store,
            &[source],
            options,
            Watch {
                tally: &tally,
                cancel: &cancel,
            },
        )
        .await
        .unwrap()
    }

    async fn export(&self, options: &Options) -> Report {
        self.try_export(&["shop"], options).await.unwrap()
    }

    async fn try_export(&self, names: &[&str], options: &Options) -> Result<Report, TransferError> {
        let names = Some(names.iter().map(|name| (*name).to_owned()).collect());
        let destination = Destination {
            names,
            dir: self.dir.path().join("out"),
            excludes: Excludes::new(&[]).unwrap(),
        };
        let (tally, cancel) = (Tally::default(), CancellationToken::new());
        export(
            &self.store,
            &destination,
            options,
            Watch {
                tally: &tally,
                cancel: &cancel,
            },
        )
        .await
    }

    fn out(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("out/shop").join(path)
    }

    async fn body(&self, key: &str) -> Vec<u8> {
        self.store.get(key).await.unwrap().1.to_vec()
    }

    async fn put(&self, key: &str, body: &'static str) {
        self.store.put(key, body.into(), Precondition::None).await.unwrap();
    }

    async fn index(&self) -> WorkspaceIndex {
        WorkspaceIndex::parse(&self.body(&index::key("shop")).await).unwrap()
    }
}

fn plain() -> Options {
    Options {
        jobs: 32,
        force: false,
        dry_run: false,
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    })
    .take(len)
    .collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_goes_into_the_bucket_and_comes_back_the_same() {
    let world = World::new().await;
    for folder in ["src/deep", "empty/below", "node_modules/x"] {
        fs::create_dir_all(world.source(folder)).unwrap();
    }
    fs::write(world.source("src/a.js"), "a").unwrap();
    fs::write(world.source("src/deep/ä b+c%.txt"), "odd").unwrap();
    fs::write(world.source("zero"), "").unwrap();
    fs::write(world.source("node_modules/x/i.js"), "not this").unwrap();
    let large = noise(40 << 20);
    fs::write(world.source("large"), &large).unwrap();
    symlink("src/a.js", world.source("link")).unwrap();
    symlink("/nowhere", world.source("src/dangling")).unwrap();
    fs::set_permissions(world.source("src/a.js"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(world.source("empty"), fs::Permissions::from_mode(0o700)).unwrap();
    let report = world.import(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!((report.workspaces[0].moved.files, report.workspaces[0].links), (4, 2));
    assert_eq!(report.workspaces[0].left_out.excluded["node_modules/**"].files, 1);
    assert_eq!(world.body("shop/large").await, large);
    assert_eq!(world.body("shop/src/deep/ä b+c%.txt").await, b"odd");
    let keys: Vec<_> = world
        .store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(
        keys,
        [
            ".berth/index/shop.json",
            "shop/large",
            "shop/src/a.js",
            "shop/src/deep/ä b+c%.txt",
            "shop/zero"
        ]
    );
    let report = world.export(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.verified(), 4);
    assert_eq!(fs::read(world.out("large")).unwrap(), large);
    assert_eq!(fs::read_link(world.out("src/dangling")).unwrap(), Path::new("/nowhere"));
    for path in [
        "src",
        "src/a.js",
        "src/deep",
        "src/deep/ä b+c%.txt",
        "empty",
        "empty/below",
        "zero",
        "link",
        "large",
    ] {
        let (theirs, ours) = (world.out(path), world.source(path));
        assert_eq!(mode(&theirs), mode(&ours), "{path}");
        let time = |path: &Path| fs::symlink_metadata(path).unwrap().modified().unwrap();
        assert_eq!(time(&theirs), time(&ours), "{path}");
    }
    let names = fs::read_dir(world.out(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect::<Vec<_>>();
    assert!(
        !names.iter().any(|name| name.to_string_lossy().starts_with(".berth")),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_the_same_is_left_alone_and_what_differs_is_named_and_nothing_overwritten() {
    let world = World::new().await;
    fs::write(world.source("a"), "one").unwrap();
    fs::write(world.source("b"), "two").unwrap();
    assert!(world.import(&plain()).await.is_complete());
    let again = world.import(&plain()).await;
    assert_eq!(
        (again.workspaces[0].moved.files, again.workspaces[0].same.files),
        (0, 2)
    );
    world.put("shop/a", "ONE").await;
    world.put("shop/b", "twice").await;
    fs::write(world.source("c"), "three").unwrap();
    let refused = world.import(&plain()).await;
    assert!(refused.is_refused() && !refused.is_complete());
    let named: Vec<_> = refused.workspaces[0]
        .refused
        .iter()
        .map(|difference| difference.path.as_str())
        .collect();
    assert_eq!(named, ["b", "a"]);
    assert_eq!(world.body("shop/a").await, b"ONE");
    assert!(
        world.store.head("shop/c").await.unwrap().is_none(),
        "nothing at all is sent"
    );
    let forced = world.import(&Options { force: true, ..plain() }).await;
    assert!(forced.is_complete(), "{forced}");
    assert_eq!(
        (world.body("shop/a").await, world.body("shop/b").await),
        (b"one".to_vec(), b"two".to_vec())
    );
    fs::create_dir_all(world.out("")).unwrap();
    fs::write(world.out("a"), "mine").unwrap();
    fs::write(world.out("d"), "mine").unwrap();
    let refused = world.export(&plain()).await;
    let named: Vec<_> = refused.workspaces[0]
        .refused
        .iter()
        .map(|difference| difference.path.as_str())
        .collect();
    assert_eq!(named, ["a", "d"]);
    assert!(!world.out("b").exists());
    let forced = world.export(&Options { force: true, ..plain() }).await;
    assert!(forced.is_complete(), "{forced}");
    assert_eq!(fs::read_to_string(world.out("a")).unwrap(), "one");
    assert_eq!(
        fs::read_to_string(world.out("d")).unwrap(),
        "mine",
        "what only the folder has is left alone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_others_wrote_is_merged_and_a_newer_one_is_not_touched() {
    let world = World::new().await;
    fs::write(world.source("a"), "one").unwrap();
    symlink("a", world.source("mine")).unwrap();
    let mut theirs = WorkspaceIndex::default();
    theirs.entries.insert("theirs".into(), IndexEntry::symlink("x"));
    let key = index::key("shop");
    world
        .store
        .put(&key, theirs.to_bytes().into(), Precondition::None)
        .await
        .unwrap();
    assert!(world.import(&plain()).await.is_complete());
    let merged = world.index().await;
    assert_eq!(merged.entries["theirs"], IndexEntry::symlink("x"));
    assert_eq!(merged.entries["mine"].target.as_deref(), Some("a"));
    world.put(&key, r#"{"version":99}"#).await;
    let source = Source {
        name: AppName::parse("shop").unwrap(),
        folder: world.source(""),
        excludes: Excludes::default(),
    };
    let (tally, cancel) = (Tally::default(), CancellationToken::new());
    let watch = Watch {
        tally: &tally,
        cancel: &cancel,
    };
    let error = import(&world.store, &[source], &plain(), watch).await.unwrap_err();
    assert!(matches!(error, TransferError::Index { .. }), "{error}");
    assert_eq!(world.body(&key).await, br#"{"version":99}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_without_files_is_a_workspace_too() {
    let world = World::new().await;
    fs::create_dir(world.source("only")).unwrap();
    symlink("only", world.source("link")).unwrap();
    assert!(world.import(&plain()).await.is_complete());
    assert!(world.store.head("shop/").await.unwrap().is_some());
    let report = world.export(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert!(world.out("only").is_dir());
    assert_eq!(fs::read_link(world.out("link")).unwrap(), Path::new("only"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_no_paths_and_unknown_names_are_told() {
    let world = World::new().await;
    for key in ["shop/ok", "shop/../../up", "shop//x", "shop/both", "shop/both/below"] {
        world.put(key, "x").await;
    }
    let report = world.export(&plain()).await;
    assert!(!report.is_complete());
    let told: Vec<_> = report.workspaces[0]
        .left_out
        .names
        .iter()
        .map(|failed| failed.path.as_str())
        .collect();
    assert_eq!(told, ["../../up", "/x", "both"]);
    assert_eq!(fs::read_to_string(world.out("ok")).unwrap(), "x");
    assert_eq!(fs::read_to_string(world.out("both/below")).unwrap(), "x");
    assert!(!world.dir.path().join("up").exists());
    for name in ["nothing", "..", ".berth", "a/b", ""] {
        let error = world.try_export(&["shop", name], &plain()).await.unwrap_err();
        assert!(
            matches!(error, TransferError::NoSuchWorkspace { .. }),
            "{name}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_other_tools_are_compared_by_their_content() {
    let world = World::new().await;
    let large = noise(21 << 20);
    fs::write(world.source("parts"), &large).unwrap();
    // Parts of a size that no tool uses: the ETag cannot be worked out.
    let upload = world.store.begin("shop/parts", None).await.unwrap();
    let cut = (5 << 20) + 12_345;
    for (number, part) in large.chunks(cut).enumerate() {
        upload
            .part(u16::try_from(number + 1).unwrap(), part.to_vec().into())
            .await
            .unwrap();
    }
    let stored = upload.complete(Precondition::Absent).await.unwrap();
    let report = world.import(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.workspaces[0].same.files, 1);
    assert_eq!(world.store.head("shop/parts").await.unwrap().unwrap().etag, stored.etag);
    let report = world.export(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(fs::read(world.out("parts")).unwrap(), large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_called_off_export_leaves_whole_files_and_no_others() {
    let world = World::new().await;
    for number in 0..300 {
        world.put(&format!("shop/{number}"), "whole").await;
    }
    let destination = Destination {
        names: None,
        dir: world.dir.path().join("out"),
        excludes: Excludes::new(&[]).unwrap(),
    };
    let (tally, cancel) = (Tally::default(), CancellationToken::new());
    let watch = Watch {
        tally: &tally,
        cancel: &cancel,
    };
    let options = Options { jobs: 2, ..plain() };
    let stop = async {
        while tally.progress().files_done < 20 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (report, ()) = tokio::join!(export(&world.store, &destination, &options, watch), stop);
    let report = report.unwrap();
    assert!(report.interrupted && !report.is_complete());
    let files: Vec<_> = fs::read_dir(world.out(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!((20..300).contains(&files.len()), "{}", files.len());
    assert!(files.iter().all(|path| fs::read(path).unwrap() == b"whole"));
    let report = world.export(&plain()).await;
    assert!(report.is_complete(), "{report}");
    assert_eq!(report.workspaces[0].same.files, files.len() as u64);
    assert_eq!(fs::read_dir(world.out("")).unwrap().count(), 300);
}
