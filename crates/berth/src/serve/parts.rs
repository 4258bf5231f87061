//! The daemon's parts: how each is made from the configuration, and how all are taken down.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use berth_console::{DaemonStatus, S3Status};
use berth_edge::{Apps, Edge, EdgeConfig};
use berth_host::{Host, HostConfig, HostParts, InstallEnv, Source};
use berth_image::ImageStore;
use berth_mount::{LocalPaths, Mount, MountConfig};
use berth_sandbox::{Limits, Network, NetworkConfig, Spawner};
use berth_store::{EmbeddedConfig, EmbeddedServer, Hints, Store, StoreConfig};
use berth_sys::netns::SocketFactory;
use berth_workspace::{AppName, Excludes};
use nix::{
    mount::{MntFlags, MsFlags, mount as mount_file_system, umount2},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statfs::{TMPFS_MAGIC, statfs},
    },
};

use super::{daemon_status, note};
use crate::{
    config::{CA_BUNDLES, Config, IMAGES},
    failure::Failure,
};

/// What stands so far, to be taken down in the reverse order.
#[derive(Default)]
pub struct Parts {
    embedded: Option<EmbeddedServer>,
    hints: Option<Arc<Hints>>,
    mount: Option<Arc<Mount>>,
    images: Option<ImageStore>,
    network: Option<Arc<Network>>,
    host: Option<Host>,
    run_mount: Option<PathBuf>,
}

impl Parts {
    /// Takes down what stands. Saves that are not yet in S3 are uploaded by the unmount.
    pub async fn down(self) {
        if let Some(host) = self.host {
            host.shutdown().await;
        }
        if let Some(network) = self.network {
            network.stop().await;
        }
        if let Some(images) = self.images
            && let Err(error) = images.unmount_all()
        {
            note("images stay mounted", &error);
        }
        if let Some(mount) = self.mount {
            match Arc::try_unwrap(mount) {
                Ok(mount) => {
                    if let Err(error) = mount.shutdown().await {
                        note("the mount", &error);
                    }
                }
                Err(_) => tracing::warn!(
                    "the mount is still in use by a client of the admin socket; it is left to the kernel"
                ),
            }
        }
        if let Some(embedded) = self.embedded {
            embedded.shutdown().await;
        }
        if let Some(run) = self.run_mount
            && let Err(error) = umount2(&run, MntFlags::MNT_DETACH)
        {
            note("the run folder's tmpfs stays", &error);
        }
    }
}

/// As many open files as the hard limit allows: each connection is one.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        note("the limit of open files stays low", &error);
    }
}

/// The folders everything else lives in. The state holds keys: for root alone.
pub fn make_directories(config: &Config) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |path: &Path, mode| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|error| Failure::failed(format!("cannot make the folder {}: {error}", path.display())))
    };
    make(&config.paths.state, 0o711)?;
    make(&config.paths.logs, 0o750)?;
    // Sandboxes pass through it to their mounts as unprivileged users.
    make(&config.paths.run, 0o755)
}

/// Sees to it that the run folder is in memory: a sandbox's state files cost milliseconds each on a journalling disk (create
/// and delete of one took 0.16 ms on tmpfs and 6 ms on ext4). Where `/run` is a disk, a tmpfs of its own is mounted.
pub fn run_in_memory(config: &Config, parts: &mut Parts) -> Result<(), Failure> {
    let run = &config.paths.run;
    let failed = |error: nix::Error| Failure::failed(format!("cannot mount a tmpfs on {}: {error}", run.display()));
    if statfs(run).map_err(failed)?.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_file_system(Some("berth"), run, Some("tmpfs"), flags, Some("mode=755,size=64m")).map_err(failed)?;
    tracing::info!("{} is no tmpfs: one was mounted there", run.display());
    parts.run_mount = Some(run.clone());
    Ok(())
}

/// Says early that a port is taken, before apps are touched. The edge binds for good later and reports the same.
pub fn ports_are_free(addresses: &[SocketAddr]) -> Result<(), Failure> {
    for address in addresses {
        TcpListener::bind(address).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => Failure::failed(format!(
                "port {} is taken by another program; stop it, or set [edge] listen (BERTH_EDGE_LISTEN) to another address",
                address.port()
            )),
            _ => Failure::failed(format!("cannot listen on {address}: {error}; see [edge] listen")),
        })?;
    }
    Ok(())
}

/// The store, and the embedded server before it unless an external one is configured. Gives the endpoint too.
pub async fn storage(config: &Config, parts: &mut Parts) -> Result<(Store, String), Failure> {
    let s3 = &config.s3;
    let (endpoint, keys, feed) = match &s3.endpoint {
        Some(endpoint) => (endpoint.clone(), configured_keys(config).unwrap_or_default(), None),
        None => {
            let keys = match configured_keys(config) {
                Some(keys) => keys,
                None => {
                    let made = berth_store::load_or_create_credentials(config.credentials_file())
                        .map_err(|error| Failure::from_error(&error))?;
                    (made.access_key, made.secret_key)
                }
            };
            let server = EmbeddedServer::start(EmbeddedConfig {
                listen: s3.listen,
                data_dir: config.paths.state.join("s3"),
                access_key: keys.0.clone(),
                secret_key: keys.1.clone(),
                bucket: s3.bucket.clone(),
                cache: s3.cache.0,
            })
            .await
            .map_err(|error| Failure::from_error(&error))?;
            let endpoint = format!("http://{}", server.local_addr());
            let feed = server.feed();
            parts.embedded = Some(server);
            (endpoint, keys, Some(feed))
        }
    };
    let store = Store::connect(
        StoreConfig {
            endpoint: Some(endpoint.clone()),
            region: s3.region.clone(),
            bucket: s3.bucket.clone(),
            access_key: keys.0,
            secret_key: keys.1,
            session_token: s3.session_token.clone(),
            path_style: s3.path_style || s3.endpoint.is_none(),
            poll_interval: s3.poll_interval.0,
        },
        feed,
    )
    .await
    .map_err(|error| Failure::from_error(&error))?;
    tracing::info!(%endpoint, bucket = %s3.bucket, embedded = s3.endpoint.is_none(), "S3 answers");
    Ok((store, endpoint))
}

/// Tells other hosts what changes here, and hears them, where that is configured.
pub async fn hints(config: &Config, store: &Store, parts: &mut Parts) -> Result<(), Failure> {
    let s3 = &config.s3;
    if s3.hint_listen.is_none() && s3.hint_peers.is_empty() {
        return Ok(());
    }
    let hints = store
        .share_hints(s3.hint_listen, s3.hint_peers.clone())
        .await
        .map_err(|error| Failure::from_error(&error))?;
    parts.hints = Some(Arc::new(hints));
    Ok(())
}

fn configured_keys(config: &Config) -> Option<(String, String)> {
    Some((config.s3.access_key.clone()?, config.s3.secret_key.clone()?))
}

/// The mount, after a dead one of a killed daemon has been cleared away.
pub async fn mount(config: &Config, store: Store, parts: &mut Parts) -> Result<(), Failure> {
    let path = &config.mount.path;
    if berth_mount::clear_stale(path).map_err(|error| Failure::from_error(&error))? {
        tracing::info!("a dead mount of an earlier daemon on {} was cleared", path.display());
    }
    let mount = Mount::start(mount_config(config)?, store)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    parts.mount = Some(Arc::new(mount));
    Ok(())
}

fn mount_config(config: &Config) -> Result<MountConfig, Failure> {
    let wanted = &config.mount;
    let own = wanted.workspace.iter();
    Ok(MountConfig {
        mountpoint: wanted.path.clone(),
        source: Some(source_dir(config)),
        excludes: excludes(config)?,
        local_max: wanted.local_max.0,
        cache_mode: wanted.cache_mode,
        cache_max: wanted.cache_max.0,
        dir_ttl: wanted.dir_ttl.0,
        cache_dir: config.paths.state.join("cache"),
        journal_dir: journal_dir(config),
        journal_max: wanted.journal_max.0,
        sync: wanted.sync,
        sync_of: own.filter_map(|(name, own)| Some((name.clone(), own.sync?))).collect(),
        drain_timeout: wanted.drain_timeout.0,
        uid: 0,
        gid: 0,
        // This very binary, even when another was installed since.
        announcer: Some("/proc/self/exe".into()),
    })
}

/// Where sandboxes read the bucket.
fn source_dir(config: &Config) -> PathBuf {
    config.paths.run.join("source")
}

/// One journal for each bucket: what was saved for one must never go to another.
fn journal_dir(config: &Config) -> PathBuf {
    let server = match &config.s3.endpoint {
        Some(endpoint) => endpoint
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect(),
        None => "embedded".to_owned(),
    };
    config
        .paths
        .state
        .join("journal")
        .join(format!("{server}.{}", config.s3.bucket))
}

fn excludes(config: &Config) -> Result<Excludes, Failure> {
    Excludes::new(&config.mount.exclude).map_err(|error| Failure::usage(berth_workspace::chain(&error)))
}

/// The image store. Missing images are no reason not to serve: an app that needs one says so.
pub fn images(config: &Config, parts: &mut Parts) -> Result<ImageStore, Failure> {
    let store = ImageStore::open(config.images_dir(), config.paths.run.join("images"))
        .map_err(|error| Failure::from_error(&error))?;
    let present: Vec<String> = store
        .list()
        .map_err(|error| Failure::from_error(&error))?
        .into_iter()
        .map(|image| image.name)
        .collect();
    let missing: Vec<&str> = IMAGES
        .into_iter()
        .filter(|name| !present.iter().any(|p| p == name))
        .collect();
    if !missing.is_empty() {
        tracing::warn!(
            "no image {}: build with `berth image build {}`",
            missing.join(", "),
            missing.join(" ")
        );
    }
    parts.images = Some(store.clone());
    Ok(store)
}

/// Network and host.
pub async fn host(
    config: &Config,
    store: Store,
    images: ImageStore,
    spawner: Arc<Spawner>,
    parts: &mut Parts,
) -> Result<Host, Failure> {
    let mut wanted = NetworkConfig::new(config.instance.clone());
    wanted.enabled = config.network.egress;
    wanted.subnet = config
        .network
        .subnet
        .parse()
        .map_err(|error| Failure::usage(format!("[network] subnet: {error}")))?;
    wanted.allow = config
        .network
        .allow
        .iter()
        .map(|range| {
            range
                .parse()
                .map_err(|error| Failure::usage(format!("[network] allow {range:?}: {error}")))
        })
        .collect::<Result<_, _>>()?;
    let network = Arc::new(
        Network::start(wanted)
            .await
            .map_err(|error| Failure::from_error(&error))?,
    );
    parts.network = Some(Arc::clone(&network));
    let sockets =
        SocketFactory::start().map_err(|error| Failure::failed(format!("cannot start the socket thread: {error}")))?;
    let parts_of_host = HostParts {
        store,
        images: Arc::new(images),
        spawner,
        network,
        source: source(config, parts),
        sockets,
    };
    let host = Host::start(host_config(config)?, parts_of_host)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    parts.host = Some(host.clone());
    Ok(host)
}

/// The workspaces as sandboxes see them. A sandbox must not start before the kernel was told of the save that it starts for.
fn source(config: &Config, parts: &Parts) -> Source {
    let source = Source::at(source_dir(config));
    // Not longer than the mount: its end waits for nobody who holds it.
    let Some(mount) = parts.mount.as_ref().map(Arc::downgrade) else {
        return source;
    };
    source.once(move || {
        let mount = mount.upgrade();
        Box::pin(async move {
            if let Some(mount) = mount {
                mount.told().await;
            }
        })
    })
}

fn host_config(config: &Config) -> Result<HostConfig, Failure> {
    let ca_bundle = ca_bundle();
    let install_env = InstallEnv::new(std::env::vars(), &config.install.env, ca_bundle.is_some());
    Ok(HostConfig {
        instance: config.instance.clone(),
        run_dir: config.paths.run.clone(),
        log_dir: config.paths.logs.clone(),
        limits: Limits {
            memory: config.limits.memory.0,
            cpus: config.limits.cpus,
            pids: config.limits.pids,
            app_size: config.limits.app_size.0,
            tmp_size: config.limits.tmp_size.0,
        },
        excludes: excludes(config)?,
        idle_freeze: config.apps.idle_freeze.0,
        idle_reclaim: config.apps.idle_reclaim.0,
        idle_stop: config.apps.idle_stop.0,
        stop_grace: config.apps.stop_grace.0,
        start_timeout: config.apps.ready_timeout.0,
        install_timeout: config.apps.install_timeout.0,
        install_env,
        ca_bundle,
        ..HostConfig::default()
    })
}

/// The host's trusted certificates: what its own clients are told to use, else where its distribution keeps them.
fn ca_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named
        .into_iter()
        .chain(CA_BUNDLES.map(PathBuf::from))
        .find(|path| path.is_file())
}

/// The edge, on its own threads.
pub async fn edge(config: &Config, apps: Arc<dyn Apps>) -> Result<Edge, Failure> {
    let wanted = EdgeConfig {
        listen: config.edge.listen.clone(),
        domain: config.domain.clone(),
        start_timeout: config.edge.start_timeout.0,
        ..EdgeConfig::default()
    };
    tokio::task::spawn_blocking(move || Edge::start(wanted, apps))
        .await
        .map_err(|error| Failure::from_error(&error))?
        .map_err(|error| Failure::from_error(&error))
}

/// Describes the daemon whenever it is asked.
pub fn status_source(
    config: &Config,
    (store, endpoint): (Store, String),
    edge: &Edge,
    parts: &Parts,
) -> Arc<dyn Fn() -> DaemonStatus + Send + Sync> {
    let config = config.clone();
    let addresses: Vec<String> = edge.local_addrs().iter().map(ToString::to_string).collect();
    // Weak: a status call must not keep the mount alive when the daemon goes down.
    let mount = parts.mount.as_ref().map(Arc::downgrade);
    let hints = parts.hints.clone();
    let since = Instant::now();
    Arc::new(move || {
        let mut status = daemon_status(&config, endpoint.clone(), addresses.clone(), since);
        if let Some(mount) = mount.as_ref().and_then(std::sync::Weak::upgrade) {
            status.local = mount.local_usage();
            status.pending = mount.pending();
            status.unshown = mount.unshown();
            status.unannounced = mount.unannounced();
            status.journal = Some(mount.journal());
        }
        status.s3 = S3Status {
            trouble: store.trouble(),
            feed: Some(store.feed()),
            hints: hints.as_ref().map(|hints| hints.counts()),
        };
        status
    })
}

/// Tells what a workspace has on this host only, whenever it is asked.
pub fn local_source(parts: &Parts) -> Arc<dyn Fn(&AppName) -> LocalPaths + Send + Sync> {
    // Weak, as for the status.
    let mount = parts.mount.as_ref().map(Arc::downgrade);
    Arc::new(move |workspace| {
        let mount = mount.as_ref().and_then(std::sync::Weak::upgrade);
        mount
            .map(|mount| mount.local_paths(workspace.as_str()))
            .unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use berth_mount::{CacheMode, Sync};

    use super::*;
    use crate::config::{Size, Span, WorkspaceMount};

    #[test]
    fn every_knob_of_the_mount_reaches_the_mount() {
        let mut config = Config::default();
        let mount = &mut config.mount;
        mount.local_max = Size(1);
        mount.cache_max = Size(2);
        mount.journal_max = Size(3);
        mount.cache_mode = CacheMode::Writes;
        mount.dir_ttl = Span(Duration::from_secs(4));
        mount.drain_timeout = Span(Duration::from_secs(5));
        mount.sync = Sync::Remote;
        let own = [("lax", Some(Sync::Journal)), ("plain", None)];
        mount.workspace = own
            .map(|(name, sync)| (name.to_owned(), WorkspaceMount { sync }))
            .into();
        let given = mount_config(&config).unwrap();
        assert_eq!((given.local_max, given.cache_max, given.journal_max), (1, 2, 3));
        assert_eq!((given.cache_mode, given.sync), (CacheMode::Writes, Sync::Remote));
        assert_eq!((given.dir_ttl.as_secs(), given.drain_timeout.as_secs()), (4, 5));
        assert_eq!(given.sync_of, [("lax".to_owned(), Sync::Journal)].into());
    }
}
