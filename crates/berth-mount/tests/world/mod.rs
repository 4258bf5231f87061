//! One bucket on a real embedded server, and hosts that mount it, each through a network of its own that fails as told.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_harness::fault_proxy::FaultProxy;
use berth_mount::{Mount, MountConfig};
use berth_store::{EmbeddedConfig, EmbeddedServer, Precondition, Store, StoreConfig};
use berth_workspace::Excludes;
use tokio::runtime::Runtime;

/// The server, and a client that nothing goes wrong for.
pub struct World {
    runtime: Runtime,
    server: Option<EmbeddedServer>,
    pub store: Store,
    dir: tempfile::TempDir,
}

/// A host: its network, and its mount while it runs.
pub struct Host {
    pub proxy: FaultProxy,
    pub config: MountConfig,
    mount: Option<Mount>,
}

impl World {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests mount file systems: run them as root"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (server, store) = runtime.block_on(async {
            let server = EmbeddedServer::start(EmbeddedConfig {
                listen: "127.0.0.1:0".parse().unwrap(),
                data_dir: dir.path().join("s3"),
                access_key: "berthtest".into(),
                secret_key: "berthtestsecret".into(),
                bucket: "workspaces".into(),
                cache: EmbeddedConfig::CACHE,
            })
            .await
            .unwrap();
            let endpoint = format!("http://{}", server.local_addr());
            let store = Store::connect(store_config(endpoint), Some(server.feed()))
                .await
                .unwrap();
            (server, store)
        });
        Self {
            runtime,
            server: Some(server),
            store,
            dir,
        }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A host that runs. `seed`: of its network's accidents.
    pub fn host(&self, name: &str, seed: u64, configure: impl FnOnce(&mut MountConfig)) -> Host {
        let of = |part: &str| self.dir.path().join(format!("{name}-{part}"));
        let mut config = MountConfig {
            mountpoint: of("mnt"),
            source: None,
            excludes: Excludes::default(),
            local_max: 64 << 20,
            cache_max: 64 << 20,
            cache_mode: berth_mount::CacheMode::Full,
            dir_ttl: Duration::from_secs(60),
            cache_dir: of("cache"),
            journal_dir: of("journal"),
            journal_max: 256 << 20,
            sync: berth_mount::Sync::Journal,
            sync_of: BTreeMap::new(),
            drain_timeout: Duration::from_secs(20),
            uid: 0,
            gid: 0,
            announcer: Some(env!("CARGO_BIN_EXE_berth-announcer").into()),
        };
        configure(&mut config);
        let upstream = self.server.as_ref().unwrap().local_addr();
        let mut host = Host {
            proxy: FaultProxy::start(upstream, seed).unwrap(),
            config,
            mount: None,
        };
        self.start(&mut host);
        host
    }

    /// Starts the host's mount.
    pub fn start(&self, host: &mut Host) {
        let mount = self.block_on(async {
            let feed = self.server.as_ref().unwrap().feed();
            let store = Store::connect(store_config(host.proxy.endpoint()), Some(feed))
                .await
                .unwrap();
            let since = Instant::now();
            loop {
                match Mount::start(host.config.clone(), store.clone()).await {
                    // The last requests of the one that was killed hold it until they have failed.
                    Err(error @ berth_mount::MountError::Journal(_)) if since.elapsed() < Duration::from_secs(20) => {
                        assert!(format!("{error:?}").contains("InUse"), "{error:?}");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    started => return started.unwrap(),
                }
            }
        });
        host.mount = Some(mount);
    }

    /// Ends the host's mount as a process that dies does: nothing more is sent or written.
    pub fn kill(&self, host: &mut Host) {
        let _inside = self.runtime.enter();
        drop(host.mount.take());
        let _ = nix::mount::umount2(&host.config.mountpoint, nix::mount::MntFlags::MNT_DETACH);
    }

    /// Waits until S3 has all that the host acknowledged.
    pub fn settle(&self, host: &Host) {
        let mount = host.mount.as_ref().unwrap();
        let settled = self.block_on(async { tokio::time::timeout(Duration::from_secs(60), mount.settled()).await });
        assert!(settled.is_ok(), "S3 did not get everything: {:?}", mount.pending());
    }

    pub fn put(&self, key: &str, body: &str) {
        self.block_on(self.store.put(key, body.to_owned().into(), Precondition::None))
            .unwrap();
    }

    pub fn text(&self, key: &str) -> Option<String> {
        match self.block_on(self.store.get(key)) {
            Ok((_, bytes)) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Err(e) if e.is_no_such_key() => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// The keys of all files of the bucket, without markers and Berth's own.
    pub fn objects_named(&self) -> Vec<String> {
        let all = self.block_on(self.store.list("")).unwrap();
        let keys = all.into_iter().map(|info| info.key);
        keys.filter(|key| !key.starts_with(".berth/") && !key.ends_with('/'))
            .collect()
    }

    /// All files of the bucket with their contents.
    pub fn objects(&self) -> BTreeMap<String, String> {
        self.objects_named()
            .into_iter()
            .map(|key| {
                let text = self.text(&key).unwrap();
                (key, text)
            })
            .collect()
    }
}

impl Host {
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.config.mountpoint.join(path)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.proxy.heal();
        if let Some(mount) = self.mount.take() {
            // A thread of its own: the runtime's context is not here, and the mount needs none to be cut.
            drop(mount);
        }
        let _ = nix::mount::umount2(&self.config.mountpoint, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(5), server.shutdown()).await });
        }
    }
}

fn store_config(endpoint: String) -> StoreConfig {
    StoreConfig {
        endpoint: Some(endpoint),
        region: "us-east-1".into(),
        bucket: "workspaces".into(),
        access_key: "berthtest".into(),
        secret_key: "berthtestsecret".into(),
        session_token: None,
        path_style: true,
        poll_interval: Duration::from_millis(200),
    }
}

/// Waits until `what` holds; fails after twenty seconds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < Duration::from_secs(20), "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
