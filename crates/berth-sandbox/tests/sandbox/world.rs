//! What every case needs: a root file system, folders, a spawner, and an instance name of its own. Removed when the test ends.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_sandbox::{ExitInfo, Limits, Sandbox, SandboxEvent, SandboxId, SandboxSpec, Spawner, clean_leftovers, logs};
use berth_workspace::{AppName, Step, revision};
use tokio::sync::mpsc::Receiver;

pub struct World {
    pub spawner: Spawner,
    pub instance: String,
    pub run_dir: PathBuf,
    pub image: PathBuf,
    dir: tempfile::TempDir,
    shm: tempfile::TempDir,
    next: AtomicU32,
}

impl World {
    pub fn new(spawner: Spawner) -> Result<Self, String> {
        if fs::read_to_string("/proc/self/status").is_ok_and(|s| !s.contains("Uid:\t0")) {
            return Err("it must run as root".to_owned());
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .map(Path::new)
            .find(|p| p.exists());
        let busybox = busybox.ok_or("no busybox; apt-get install busybox-static")?;
        let make = |at: &str| {
            let dir = tempfile::Builder::new()
                .prefix("berth-sandbox-")
                .tempdir_in(at)
                .map_err(|e| e.to_string())?;
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
            Ok::<_, String>(dir)
        };
        // The run folder is on a tmpfs, as /run is on a host.
        let (dir, shm) = (make("/var/tmp")?, make("/dev/shm")?);
        let image = dir.path().join("image");
        build_image(&image, busybox).map_err(|e| format!("build the root file system: {e}"))?;
        let run_dir = shm.path().to_owned();
        let instance = format!("bt{}", std::process::id() % 1_000_000);
        Ok(Self {
            spawner,
            instance,
            run_dir,
            image,
            dir,
            shm,
            next: AtomicU32::new(0),
        })
    }

    /// A sandbox that runs `script` with the shell; a folder with `hello.txt` is its source.
    pub fn spec(&self, script: &str) -> SandboxSpec {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let source = self.dir.path().join(format!("source-{n}"));
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("hello.txt"), "hello\n").unwrap();
        fs::write(source.join("sub/run.sh"), "#!/bin/sh\necho ran\n").unwrap();
        fs::set_permissions(source.join("sub/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        SandboxSpec {
            id: SandboxId::parse(&format!("case-{n}")).unwrap(),
            app: AppName::parse("hello").unwrap(),
            revision: revision(&[]),
            instance: self.instance.clone(),
            image_root: self.image.clone(),
            source,
            run_dir: self.run_dir.clone(),
            log_dir: self.dir.path().join(format!("log-{n}")),
            limits: Limits {
                memory: 64 << 20,
                cpus: 2.0,
                pids: 64,
                app_size: 8 << 20,
                tmp_size: 8 << 20,
            },
            copy_source: true,
            copy_excludes: Vec::new(),
            install: Vec::new(),
            start: Some(step(script)),
            env: BTreeMap::from([("GREETING".to_owned(), "good day".to_owned())]),
            install_env: BTreeMap::new(),
            ca_bundle: None,
            slot: None,
            uid_base: 2_000_000 + n * 65_536,
            extra_ro_binds: Vec::new(),
        }
    }

    pub async fn start(&self, spec: SandboxSpec) -> (Sandbox, Receiver<SandboxEvent>) {
        Sandbox::create(&self.spawner, spec, None).await.unwrap()
    }

    /// Runs `script` to its end: how it ended, and what it wrote.
    pub async fn run(&self, script: &str) -> (ExitInfo, String) {
        self.run_spec(self.spec(script)).await
    }

    pub async fn run_spec(&self, spec: SandboxSpec) -> (ExitInfo, String) {
        let log_dir = spec.log_dir.clone();
        let (sandbox, _events) = self.start(spec).await;
        let exit = sandbox.ended().await;
        (exit, text(&log_dir))
    }

    /// Between two cases: whatever a failed one left.
    pub async fn clean(&self) {
        let _ = clean_leftovers(&self.run_dir, &self.instance).await;
    }

    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    pub fn shm(&self) -> &Path {
        self.shm.path()
    }
}

pub fn step(script: &str) -> Step {
    Step {
        argv: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        env: BTreeMap::new(),
        what: "sh".to_owned(),
    }
}

/// All that was logged by the app, one line each.
pub fn text(log_dir: &Path) -> String {
    let lines = logs::read_tail(log_dir, 10_000).unwrap();
    lines
        .iter()
        .filter(|l| l.stream != logs::LogStream::Berth)
        .map(|l| format!("{}\n", l.text))
        .collect()
}

/// Waits for `condition`, 10 s at most.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All events to the last.
pub async fn all(mut events: Receiver<SandboxEvent>) -> Vec<SandboxEvent> {
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        seen.push(event);
    }
    seen
}

fn build_image(image: &Path, busybox: &Path) -> std::io::Result<()> {
    for dir in [
        "bin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "app",
        "workspace",
        "run",
        "etc/ssl/certs",
        "root",
    ] {
        fs::create_dir_all(image.join(dir))?;
    }
    for file in [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "etc/ssl/certs/ca-certificates.crt",
    ] {
        fs::write(image.join(file), "")?;
    }
    fs::write(
        image.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/tmp/home:/bin/sh\n",
    )?;
    fs::copy(busybox, image.join("bin/busybox"))?;
    let list = Command::new(busybox).arg("--list").output()?;
    for name in String::from_utf8_lossy(&list.stdout).lines() {
        let _ = symlink("busybox", image.join("bin").join(name));
    }
    Ok(())
}
