//! A bucket behind a proxy that can fail, a folder beside it, and what tells whether two trees are the same.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use berth_harness::{Output, fault_proxy::FaultProxy, wait};
use berth_store::{Access, EmbeddedConfig, EmbeddedServer, Precondition, Store, StoreConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub const BERTH: &str = env!("CARGO_BIN_EXE_berth");
/// Names that are excluded by default, as `find` and `diff` take them.
pub const EXCLUDED: [&str; 4] = ["node_modules", ".env*", "*.log", ".git"];

/// A server, the proxy before it, a folder `shop`, and a configuration that leads there.
pub struct World {
    pub dir: tempfile::TempDir,
    pub proxy: FaultProxy,
    pub store: Store,
    pub runtime: tokio::runtime::Runtime,
    _server: EmbeddedServer,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let config = EmbeddedConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().join("s3"),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            bucket: "workspaces".into(),
            cache: EmbeddedConfig::CACHE,
        };
        let server = runtime.block_on(EmbeddedServer::start(config)).unwrap();
        let store = StoreConfig {
            endpoint: Some(format!("http://{}", server.local_addr())),
            region: String::new(),
            bucket: "workspaces".into(),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            session_token: None,
            path_style: true,
            poll_interval: Duration::from_secs(15),
        };
        let store = runtime.block_on(Store::open(store, Access::Write)).unwrap();
        let proxy = FaultProxy::start(server.local_addr(), 7).unwrap();
        let world = Self {
            dir,
            proxy,
            store,
            runtime,
            _server: server,
        };
        world.configure("secret");
        fs::create_dir(world.path("shop")).unwrap();
        world
    }

    pub fn configure(&self, secret: &str) {
        let text = format!(
            "[s3]\nendpoint = \"{}\"\naccess_key = \"KEY\"\nsecret_key = \"{secret}\"\n",
            self.proxy.endpoint()
        );
        fs::write(self.path("berth.toml"), text).unwrap();
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path("shop").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Nothing of the environment but PATH: keys in it would win over the file.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BERTH);
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.arg("--config").arg(self.path("berth.toml")).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn berth(&self, arguments: &[&str]) -> Output {
        ended(self.command(arguments).spawn().unwrap())
    }

    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Output {
        let done = self.berth(arguments);
        assert_eq!(done.code, 0, "{arguments:?}\n{}{}", done.stdout, done.stderr);
        done
    }

    pub fn json(&self, arguments: &[&str]) -> (i32, serde_json::Value) {
        let done = self.berth(arguments);
        let value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", done.stdout, done.stderr));
        (done.code, value)
    }

    /// Size by key, of all but the index.
    pub fn objects(&self) -> BTreeMap<String, u64> {
        let listed = self.runtime.block_on(self.store.list("")).unwrap();
        let files = listed.into_iter().filter(|object| !object.key.starts_with(".berth/"));
        files.map(|object| (object.key, object.size)).collect()
    }

    pub fn put(&self, key: &str, body: &'static str) {
        self.runtime
            .block_on(self.store.put(key, body.into(), Precondition::None))
            .unwrap();
    }

    pub fn body(&self, key: &str) -> Vec<u8> {
        self.runtime.block_on(self.store.get(key)).unwrap().1.to_vec()
    }

    pub fn puts(&self) -> usize {
        self.proxy.count("PUT", "/workspaces/shop/") + self.proxy.count("PUT", "/index/")
    }

    /// A tree of a thousand small files, and everything a person may have beside them.
    pub fn tree(&self) {
        for number in 0..1000 {
            self.write(&format!("src/{}/{number}.js", number % 20), format!("file {number}"));
        }
        for odd in [
            "ä ö ü.txt",
            "a+b %41&=?#.txt",
            "日本/語.md",
            "new\nline",
            "'\"quotes\"'",
            "back\\slash",
            "trailing ",
        ] {
            self.write(&format!("odd/{odd}"), odd);
        }
        self.write(&format!("odd/{}", "n".repeat(255)), "long");
        self.write("empty-file", "");
        self.write("node_modules/left/pad.js", "excluded");
        self.write("src/deep/node_modules/x.js", "excluded");
        self.write(".env", "SECRET=1");
        self.write("debug.log", "excluded");
        self.write(".git/HEAD", "excluded");
        self.write("run.sh", "#!/bin/sh");
        let shop = self.path("shop");
        fs::set_permissions(shop.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(shop.join("empty-file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(shop.join("empty/deep")).unwrap();
        fs::set_permissions(shop.join("empty"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("run.sh", shop.join("link")).unwrap();
        symlink("../../nowhere", shop.join("odd/dangling")).unwrap();
        fs::hard_link(shop.join("run.sh"), shop.join("hard")).unwrap();
    }
}

pub fn ended(child: Child) -> Output {
    let done = child.wait_with_output().unwrap();
    let signal = || std::os::unix::process::ExitStatusExt::signal(&done.status).unwrap_or(0);
    Output {
        code: done.status.code().unwrap_or_else(|| 128 + signal()),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

pub fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Kind, bits, time and target of everything that is not excluded.
pub fn listing(folder: &Path) -> String {
    let names = EXCLUDED.map(|name| format!("-name '{name}'")).join(" -o ");
    let script = format!(r"find . -mindepth 1 \( {names} \) -prune -o -printf '%P %y %m %T@ %l\0' | sort -z");
    let done = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        done.status.success() && !done.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).replace('\0', "\n")
}

#[track_caller]
pub fn assert_same_trees(ours: &Path, theirs: &Path) {
    let excluded = EXCLUDED.iter().flat_map(|name| ["-x", name]);
    let done = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args(excluded)
        .arg(ours)
        .arg(theirs)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    let (ours, theirs) = (listing(ours), listing(theirs));
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

/// Begins, ends it by `signal` when `half` holds, and gives how it ended.
pub fn interrupted(world: &World, arguments: &[&str], signal: Signal, half: impl Fn() -> bool) -> Output {
    let child = world.command(arguments).spawn().unwrap();
    wait("half of the files to be moved", Duration::from_secs(60), half);
    send_signal(&child, signal);
    ended(child)
}

/// Files at their place.
pub fn listing_count(folder: &Path) -> usize {
    let mut count = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for child in fs::read_dir(folder).into_iter().flatten().flatten() {
            match child.file_type() {
                Ok(kind) if kind.is_dir() && child.file_name() != ".berth-export.partial" => open.push(child.path()),
                Ok(kind) => count += usize::from(kind.is_file()),
                Err(_) => {}
            }
        }
    }
    count
}
