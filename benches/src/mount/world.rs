//! The world a run takes place in, and the promise that nothing of it stays behind.
//!
//! The process a person starts is only a guard. It runs itself again inside namespaces of its own for processes,
//! mounts and network: whatever the benchmark starts or mounts ends with them, also after a crash or Ctrl-C, and the
//! guard then removes the folders. Ctrl-C is first passed on, so that the run ends tidily and still prints what it
//! has; after a while it is cut off.
//!
//! The loopback inside acknowledges at once (`quickack`): Garage writes an answer's header and body apart, and a
//! small GET on a kept connection would otherwise wait 44 ms for the delayed acknowledgement, whoever asks.

use std::{
    env, fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// Names the guard's folder to the run inside.
const WORLD: &str = "BENCH_WORLD";
/// Two runs at once would measure each other.
const LOCK: &str = "/var/tmp/berth-bench.lock";
/// How long an interrupted run may take to end by itself.
const TIDY: Duration = Duration::from_secs(45);

/// For all inside alike: among busy neighbours each wait for the disk or the server would else end with one for a
/// processor.
const PRIORITY: &str = "-19";

static STOPPED: AtomicBool = AtomicBool::new(false);
static END: OnceLock<Instant> = OnceLock::new();

/// The folder of the run inside; none when this process is the guard.
pub fn inside() -> Option<PathBuf> {
    env::var_os(WORLD).map(PathBuf::from)
}

/// The guard: runs this program again inside, waits for it and clears away.
pub fn guard() -> Result<()> {
    let file = fs::File::create(LOCK).with_context(|| format!("cannot open {LOCK}"))?;
    let Ok(_held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        bail!("a mount benchmark runs already (it holds {LOCK})");
    };
    let folder = tempfile::Builder::new().prefix("berth-bench-").tempdir_in("/var/tmp")?;
    let status = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run_inside(folder.path()))?;
    for left in fs::read_to_string(folder.path().join("folders"))
        .unwrap_or_default()
        .lines()
    {
        let _ = fs::remove_dir_all(left);
    }
    remove_cgroups();
    anyhow::ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

async fn run_inside(folder: &Path) -> Result<ExitStatus> {
    let mut command = tokio::process::Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "nice",
            "-n",
            PRIORITY,
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
        ])
        .args(["--kill-child", "--mount-proc"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(WORLD, folder)
        .stdin(Stdio::null())
        .process_group(0);
    let mut child = command.spawn().context("cannot run setpriv and unshare (util-linux)")?;
    let group = Pid::from_raw(i32::try_from(child.id().unwrap_or_default())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        status = child.wait() => return Ok(status?),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("stopping; a second Ctrl-C cuts it off");
    killpg(group, Signal::SIGTERM)?;
    let second = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(TIDY) => {}
        }
    };
    tokio::select! {
        status = child.wait() => return Ok(status?),
        () = second => {}
    }
    killpg(group, Signal::SIGKILL)?;
    Ok(child.wait().await?)
}

/// Inside: the loopback comes up, signals are heard, and `limit` begins to run.
pub fn enter(limit: Duration) -> Result<()> {
    for words in [
        "link set lo up",
        "route change local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 quickack 1",
        "route change local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.1 quickack 1",
    ] {
        let done = Command::new("ip")
            .args(words.split(' '))
            .status()
            .context("cannot run ip (iproute2)")?;
        anyhow::ensure!(done.success(), "ip {words} failed");
    }
    let _ = END.set(Instant::now() + limit);
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            if let Ok(mut terminate) = signal(SignalKind::terminate()) {
                terminate.recv().await;
                STOPPED.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

/// Fails when the run was interrupted or its time is over: asked between samples.
pub fn go_on() -> Result<()> {
    if STOPPED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    if END.get().is_some_and(|end| Instant::now() > *end) {
        bail!("no time left");
    }
    Ok(())
}

/// Has the guard remove `path` should we not come to it.
pub fn remember(path: &Path) -> Result<()> {
    let Some(folder) = inside() else { return Ok(()) };
    let mut list = fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("folders"))?;
    writeln!(list, "{}", path.display())?;
    Ok(())
}

/// The cgroups of the daemons inside: their instances are named after process 1 (`t10`, `t11`, ...), which no process
/// outside is.
fn remove_cgroups() {
    let roots = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for root in roots.chain([PathBuf::from("/sys/fs/cgroup")]) {
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix("t1").is_some_and(|rest| rest.len() == 1) {
                let below = fs::read_dir(entry.path()).into_iter().flatten().flatten();
                below.for_each(|cgroup| drop(fs::remove_dir(cgroup.path())));
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// A child that ends with us and hears no Ctrl-C.
pub fn detached(command: &mut Command) -> &mut Command {
    command.process_group(0)
}
