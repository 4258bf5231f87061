//! What every case needs: an S3 server, a host with an instance name of its own, and a client.
//!
//! The folder that sandboxes see as the mount is a plain one: files are written to it and put into the bucket, as the mount
//! does. Each case has workspaces of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_host::{AcquireError, AppSnapshot, Host, HostConfig, HostParts, Lease, Source};
use berth_image::ImageStore;
use berth_sandbox::{Limits, Network, NetworkConfig, Spawner};
use berth_store::{EmbeddedConfig, EmbeddedServer, Precondition, Store, StoreConfig};
use berth_sys::netns::SocketFactory;
use berth_workspace::AppName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const IMAGES: &str = "/var/lib/berth/images";

pub struct World {
    pub host: Host,
    pub store: Store,
    pub instance: String,
    disk: TempDir,
    shm: TempDir,
    server: EmbeddedServer,
    network: Arc<Network>,
    images: Arc<ImageStore>,
}

impl World {
    pub async fn new(spawner: Spawner) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it must run as root".to_owned());
        }
        for image in ["node", "python", "nginx"] {
            if !Path::new(IMAGES).join(format!("{image}.erofs")).exists() {
                return Err(format!("there is no image {image}; run `berth image build {image}`"));
            }
        }
        let make = |at: &str| {
            let dir = tempfile::Builder::new()
                .prefix("berth-host-")
                .tempdir_in(at)
                .map_err(|e| e.to_string())?;
            std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).map_err(|e| e.to_string())?;
            Ok::<_, String>(dir)
        };
        // The run folder is on a tmpfs, as /run is on a host.
        let (disk, shm) = (make("/var/tmp")?, make("/dev/shm")?);
        let mountpoint = disk.path().join("workspaces");
        std::fs::create_dir_all(&mountpoint).map_err(|e| e.to_string())?;
        let (server, store) = storage(disk.path()).await?;
        let instance = format!("h{}", std::process::id() % 1_000_000);
        let mut network = NetworkConfig::new(instance.clone());
        // The cases need no way out, and two of them may run on one machine.
        network.enabled = false;
        let network = Arc::new(Network::start(network).await.map_err(|e| e.to_string())?);
        let images = ImageStore::open(IMAGES.into(), shm.path().join("images")).map_err(|e| e.to_string())?;
        let images = Arc::new(images);
        let config = HostConfig {
            instance: instance.clone(),
            run_dir: shm.path().to_owned(),
            log_dir: disk.path().join("logs"),
            limits: Limits {
                memory: 256 << 20,
                cpus: 2.0,
                pids: 256,
                app_size: 64 << 20,
                tmp_size: 64 << 20,
            },
            stop_grace: Duration::from_secs(2),
            start_timeout: Duration::from_secs(4),
            drain_limit: Duration::from_secs(10),
            ..HostConfig::default()
        };
        let parts = HostParts {
            store: store.clone(),
            images: Arc::clone(&images),
            spawner: Arc::new(spawner),
            network: Arc::clone(&network),
            source: Source::at(mountpoint),
            sockets: SocketFactory::start().map_err(|e| e.to_string())?,
        };
        let host = Host::start(config, parts).await.map_err(|e| e.to_string())?;
        Ok(Self {
            host,
            store,
            instance,
            disk,
            shm,
            server,
            network,
            images,
        })
    }

    pub async fn down(self: Arc<Self>) {
        self.host.shutdown().await;
        let Ok(world) = Arc::try_unwrap(self) else { return };
        world.network.stop().await;
        if let Err(error) = world.images.unmount_all() {
            eprintln!("images stay mounted: {error}");
        }
        world.server.shutdown().await;
    }

    /// Saves files of a workspace, as the mount does, and waits until the host knows the last state.
    pub async fn save(&self, app: &AppName, files: &[(&str, &str)]) {
        let before = self.host.app(app).and_then(|app| app.revision);
        self.save_unseen(app.as_str(), files).await;
        eventually("the save is noticed", || {
            self.host.app(app).is_some_and(|app| app.revision != before)
        })
        .await;
    }

    pub async fn save_unseen(&self, workspace: &str, files: &[(&str, &str)]) {
        for (path, content) in files {
            let file = self.disk.path().join("workspaces").join(workspace).join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
            let body = content.as_bytes().to_vec().into();
            self.store
                .put(&format!("{workspace}/{path}"), body, Precondition::None)
                .await
                .unwrap();
        }
    }

    pub async fn delete(&self, workspace: &str) {
        let _ = std::fs::remove_dir_all(self.disk.path().join("workspaces").join(workspace));
        for object in self.store.list(&format!("{workspace}/")).await.unwrap() {
            self.store.delete(&object.key).await.unwrap();
        }
    }

    pub fn snapshot(&self, app: &AppName) -> AppSnapshot {
        self.host.app(app).unwrap_or_else(|| panic!("no app {app}"))
    }

    /// One GET, through a lease, as the edge does it.
    pub async fn get(&self, app: &AppName, path: &str) -> Result<(u16, String), AcquireError> {
        let lease = self.host.acquire(app).await?;
        Ok(get(&lease, path)
            .await
            .unwrap_or_else(|error| panic!("{app}{path}: {error}")))
    }

    /// Folders of sandboxes that exist now.
    pub fn sandboxes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.shm.path().join("sandboxes"))
            .into_iter()
            .flatten();
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Those of one app.
    pub fn sandboxes_of(&self, app: &AppName) -> Vec<String> {
        let prefix = format!("{app}-");
        self.sandboxes()
            .into_iter()
            .filter(|id| id.starts_with(&prefix))
            .collect()
    }

    /// Cgroups of one app, in any hierarchy.
    pub fn cgroups_of(&self, app: &AppName) -> Vec<String> {
        let mut found = Vec::new();
        for hierarchy in ["", "memory", "unified", "pids", "cpu", "freezer"] {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join(&self.instance);
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(&format!("{app}-")) {
                    found.push(format!("{hierarchy}/{name}"));
                }
            }
        }
        found
    }
}

async fn storage(disk: &Path) -> Result<(EmbeddedServer, Store), String> {
    let server = EmbeddedServer::start(EmbeddedConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: disk.join("s3"),
        access_key: "test".to_owned(),
        secret_key: "test-secret-key".to_owned(),
        bucket: "workspaces".to_owned(),
        cache: EmbeddedConfig::CACHE,
    })
    .await
    .map_err(|e| e.to_string())?;
    let config = StoreConfig {
        endpoint: Some(format!("http://{}", server.local_addr())),
        region: "us-east-1".to_owned(),
        bucket: "workspaces".to_owned(),
        access_key: "test".to_owned(),
        secret_key: "test-secret-key".to_owned(),
        session_token: None,
        path_style: true,
        poll_interval: Duration::from_secs(15),
    };
    let store = Store::connect(config, Some(server.feed()))
        .await
        .map_err(|e| e.to_string())?;
    Ok((server, store))
}

/// Connects to the upstream of a lease.
pub async fn connect(lease: &Lease) -> std::io::Result<TcpStream> {
    let socket = lease.upstream.socket().await?;
    TcpSocket::from_std_stream(socket.into())
        .connect(lease.upstream.addr)
        .await
}

/// Status and body of one GET.
pub async fn get(lease: &Lease, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = connect(lease).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

pub fn app(name: &str) -> AppName {
    AppName::parse(name).unwrap()
}

/// A node app without dependencies that answers everything with `text`; `$PORT`, all addresses.
pub fn hello(text: &str) -> Vec<(&'static str, String)> {
    let server =
        format!("require('http').createServer((q, s) => s.end('{text}')).listen(process.env.PORT, process.env.HOST);");
    node(&server)
}

/// A node app without dependencies.
pub fn node(script: &str) -> Vec<(&'static str, String)> {
    let package = r#"{"name": "hello", "version": "1.0.0", "scripts": {"start": "node index.js"}}"#;
    vec![("package.json", package.to_owned()), ("index.js", script.to_owned())]
}

pub fn refs<'a>(files: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    files.iter().map(|(path, content)| (*path, content.as_str())).collect()
}

/// `workspace.json` of pairs of a key and a raw JSON value.
pub fn workspace_json(of: &[(&str, &str)]) -> String {
    let pairs: BTreeMap<_, _> = of.iter().copied().collect();
    let lines: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", lines.join(", "))
}

/// Waits for `condition`, 20 s at most.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
