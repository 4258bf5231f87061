//! One daemon of a test's own.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{Bucket, Http, Leftovers, wait, wait_for};

/// How long a daemon may take until it answers.
const UP: Duration = Duration::from_secs(60);
/// … and until it has gone.
const DOWN: Duration = Duration::from_secs(60);

/// What a test wants to be different.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More configuration: whole TOML sections other than `paths`, `s3`, `mount`, `edge`.
    pub config: String,
    /// Lines for the sections the harness writes itself, as `("edge", "start_timeout = \"5s\"")`.
    pub lines: Vec<(&'static str, String)>,
    /// Variables for the daemon.
    pub env: Vec<(String, String)>,
}

/// What a `berth` command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; 128 + n after signal n.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// A running daemon; stopped and cleared away when dropped.
pub struct Daemon {
    berth: PathBuf,
    /// On a disk, as `/var/lib` is.
    disk: TempDir,
    /// On a tmpfs, as `/run` is.
    run: TempDir,
    instance: String,
    edge_port: u16,
    s3_port: u16,
    child: Option<Child>,
    env: Vec<(String, String)>,
    http: Http,
}

/// Tells daemons of one test program apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

#[allow(clippy::expect_used, clippy::unwrap_used, clippy::missing_panics_doc)]
impl Daemon {
    /// Starts `berth` (the path of the real binary) and waits until it answers.
    #[must_use]
    pub fn start(berth: &str) -> Self {
        Self::with(berth, Options::default())
    }

    /// The same with a test's own wishes.
    #[must_use]
    pub fn with(berth: &str, options: Options) -> Self {
        let mut daemon = Self::prepared(berth, options);
        daemon.launch();
        daemon
    }

    /// Folders and configuration without a running process; [`Self::launch`] starts it.
    #[must_use]
    pub fn prepared(berth: &str, options: Options) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the end-to-end tests make mounts and namespaces: run them as root"
        );
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = std::process::id().wrapping_mul(16).wrapping_add(number);
        let instance = format!("t{:x}", unique & 0x0fff_ffff);
        let disk = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")
            .expect("a folder in /var/tmp");
        let run = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/dev/shm")
            .expect("a folder in /dev/shm");
        // Sandboxes pass through it as unprivileged users.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(run.path(), open).expect("a mode");
        let [edge_port, s3_port] = free_ports();
        let daemon = Self {
            berth: berth.into(),
            disk,
            run,
            instance,
            edge_port,
            s3_port,
            child: None,
            env: options.env.clone(),
            http: Http::new(),
        };
        daemon.write_config(&options, 20 + unique % 180);
        daemon
    }

    fn write_config(&self, options: &Options, net: u32) {
        let disk = self.disk.path().display();
        let extra = |section: &str| -> String {
            options
                .lines
                .iter()
                .filter(|(of, _)| *of == section)
                .map(|(_, line)| format!("{line}\n"))
                .collect()
        };
        let text = format!(
            "instance = \"{instance}\"\n{top}\n\
             [paths]\nstate = \"{disk}/state\"\nrun = \"{run}\"\nlogs = \"{disk}/logs\"\nimages = \"{images}\"\n{paths}\n\
             [s3]\nlisten = \"127.0.0.1:{s3}\"\n{s3_lines}\n\
             [mount]\npath = \"{disk}/workspaces\"\n{mount}\n\
             [edge]\nlisten = [\"127.0.0.1:{edge}\"]\n{edge_lines}\n\
             [network]\nsubnet = \"10.{net}.0.0/16\"\n{network}\n\
             [apps]\n{apps}\n\
             {config}\n",
            instance = self.instance,
            run = self.run.path().display(),
            images = crate::images().display(),
            s3 = self.s3_port,
            edge = self.edge_port,
            top = extra(""),
            paths = extra("paths"),
            s3_lines = extra("s3"),
            mount = extra("mount"),
            edge_lines = extra("edge"),
            network = extra("network"),
            apps = extra("apps"),
            config = options.config,
        );
        fs::write(self.config(), text).expect("the configuration is written");
    }

    /// Starts the process (again) and waits until apps can be asked for.
    pub fn launch(&mut self) {
        if let Err(why) = self.try_launch() {
            panic!("{why}:\n{}", self.log());
        }
    }

    /// The same for daemons that may die at their start.
    ///
    /// # Errors
    /// When the process has ended, with its status; there is none to stop then.
    pub fn try_launch(&mut self) -> Result<(), String> {
        self.spawn();
        let ended = wait_for("the daemon to answer", UP, || {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return Some(Err(status));
            }
            (self.berth(&["status", "--json"]).code == 0).then_some(Ok(()))
        });
        ended.map_err(|status| {
            self.child = None;
            format!("the daemon ended with {status} at its start")
        })
    }

    /// Whether the process is there no more.
    pub fn has_ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| child.try_wait().expect("its state").is_some())
    }

    /// Starts the process and waits for nothing: for daemons that are meant to fail.
    pub fn spawn(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the daemon's log");
        let mut command = Command::new(&self.berth);
        command
            .arg("--config")
            .arg(self.config())
            .arg("serve")
            .envs(self.env.clone());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().expect("the daemon's binary runs"));
    }

    /// Waits for the process to end by itself; gives its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        let child = self.child.as_mut().expect("a process");
        let status = wait_for("the daemon to end", DOWN, || child.try_wait().unwrap());
        self.child = None;
        status.code()
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(pid(&child), Signal::SIGTERM).expect("SIGTERM");
        wait("the daemon to stop", DOWN, || child.try_wait().unwrap().is_some());
    }

    /// SIGKILL: the daemon gets no chance to clean up. One that has ended by itself is no error.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a process");
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// A variable for the next launch.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.unset_env(name);
        self.env.push((name.into(), value.into()));
    }

    /// Takes a variable away, for the next launch.
    pub fn unset_env(&mut self, name: &str) {
        self.env.retain(|(other, _)| other != name);
    }

    /// Runs a `berth` command against this daemon.
    #[must_use]
    pub fn berth(&self, arguments: &[&str]) -> Output {
        let done = self
            .command(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the berth binary runs");
        let code = done
            .status
            .code()
            .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&done.status).unwrap_or(0));
        Output {
            code,
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// The same, not yet started: for tests that talk with it.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.berth);
        command.arg("--config").arg(self.config()).args(arguments);
        command
    }

    /// `berth inspect NAME --json`; `None` while there is no such app.
    #[must_use]
    pub fn inspect(&self, app: &str) -> Option<serde_json::Value> {
        let done = self.berth(&["inspect", app, "--json"]);
        (done.code == 0).then(|| serde_json::from_str(&done.stdout).expect("JSON"))
    }

    /// The app's state as `berth ps` shows it.
    #[must_use]
    pub fn state(&self, app: &str) -> String {
        self.inspect(app).map_or_else(
            || "none".into(),
            |value| value["state"].as_str().unwrap_or("?").to_owned(),
        )
    }

    /// Waits until the app is in this state.
    pub fn wait_state(&self, app: &str, state: &str, limit: Duration) {
        wait(
            &format!("{app} to be {state}, it is {}", self.state(app)),
            limit,
            || self.state(app) == state,
        );
    }

    /// Writes a file of a workspace through the mount, as an editor would.
    pub fn save(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.workspaces().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap_or_else(|e| panic!("mkdir for {}: {e}", path.display()));
        fs::write(&path, content).unwrap_or_else(|e| panic!("save {}: {e}", path.display()));
    }

    /// GET through the edge, waiting while the app is not known yet (a workspace is noticed within a second of its save).
    #[must_use]
    pub fn get(&self, path: &str) -> crate::Answer {
        let url = self.url(path);
        wait_for(&format!("{url} to be known"), Duration::from_secs(10), || {
            let answer = self.http.get(&url);
            (answer.status != 404).then_some(answer)
        })
    }

    /// The URL of a path at the edge.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.edge_port)
    }

    /// The client for requests of all shapes.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Where the bucket is mounted.
    #[must_use]
    pub fn workspaces(&self) -> PathBuf {
        self.disk.path().join("workspaces")
    }

    /// The folder that survives the daemon.
    #[must_use]
    pub fn disk(&self) -> &Path {
        self.disk.path()
    }

    /// The folder that dies with the host.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.run.path()
    }

    /// The instance's name.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The edge's port.
    #[must_use]
    pub fn edge_port(&self) -> u16 {
        self.edge_port
    }

    /// The embedded S3's port.
    #[must_use]
    pub fn s3_port(&self) -> u16 {
        self.s3_port
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.disk.path().join("berth.toml")
    }

    /// The file the daemon writes what it does to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.disk.path().join("daemon.log")
    }

    /// What the daemon wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `NAME=VALUE` pairs of `berth s3 env`, for independent S3 clients.
    #[must_use]
    pub fn s3_env(&self) -> std::collections::BTreeMap<String, String> {
        serde_json::from_str(&self.berth(&["s3", "env", "--json"]).stdout).expect("the S3 environment")
    }

    /// Runs rclone with the bucket as `b:`.
    ///
    /// # Panics
    /// When it is missing or fails.
    pub fn rclone(&self, arguments: &[&str]) -> String {
        let env = self.s3_env();
        let bucket = Bucket {
            endpoint: env["AWS_ENDPOINT_URL"].clone(),
            access_key: env["AWS_ACCESS_KEY_ID"].clone(),
            secret_key: env["AWS_SECRET_ACCESS_KEY"].clone(),
            name: env["S3_BUCKET"].clone(),
        };
        String::from_utf8_lossy(&bucket.rclone(arguments)).into_owned()
    }

    /// Waits until S3 has all that was saved.
    ///
    /// # Panics
    /// When it has not within half a minute.
    pub fn settle(&self) {
        wait("S3 to have all that was saved", Duration::from_secs(30), || {
            let told = self.berth(&["ps", "--json"]).stdout;
            let ps: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
            ps["pending"]["count"] == 0
        });
    }

    /// All keys of the bucket, listed by rclone when S3 has all that was saved.
    #[must_use]
    pub fn bucket_keys(&self) -> Vec<String> {
        self.settle();
        self.rclone(&["lsf", "-R", "--files-only", "b:"])
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The process ids of the daemon, its spawner, its keepers and its announcer: most are forks of the first and carry its
    /// command line, and with it this test's configuration file; the last has the mountpoint in its own.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let own = self.config().to_string_lossy().into_owned();
        let announcer = format!("berth-announcer\0{}\0", self.workspaces().display());
        let ours = |line: Vec<u8>| {
            let line = String::from_utf8_lossy(&line);
            line.contains(&own) || line == announcer
        };
        let listed = fs::read_dir("/proc").into_iter().flatten().flatten();
        listed
            .filter(|process| fs::read(process.path().join("cmdline")).is_ok_and(&ours))
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// What of this instance is on the machine now.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.instance, self.run.path(), &self.workspaces())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(pid(&child), Signal::SIGTERM);
            let end = std::time::Instant::now() + DOWN;
            while std::time::Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}\n------------------------", self.log());
        }
        self.clear_away();
    }
}

impl Daemon {
    /// A test that failed half-way, or that killed its daemon, leaves nothing on the machine either.
    fn clear_away(&self) {
        let left = self.leftovers();
        if left.is_empty() {
            return;
        }
        for process in self.processes() {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        for line in &left.0 {
            if let Some(mount) = line.strip_prefix("mount ") {
                let _ = Command::new("umount").args(["-l", mount]).status();
            } else if let Some(table) = line.strip_prefix("table ") {
                let _ = Command::new("nft")
                    .args(["delete", "table"])
                    .args(table.split(' '))
                    .status();
            } else if let Some(cgroup) = line.strip_prefix("cgroup ") {
                remove_cgroup(Path::new(cgroup));
            }
        }
    }
}

/// A cgroup can be removed when the last of its processes has been reaped, and its parent after it.
fn remove_cgroup(path: &Path) {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while fs::remove_dir(path).is_err() && path.exists() && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
}

#[allow(clippy::cast_possible_wrap)]
fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Ports nobody listens on at this moment.
#[allow(clippy::expect_used)]
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let held: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("its address").port())
}
