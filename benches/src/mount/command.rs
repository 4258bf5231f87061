//! Programs run with a limit, and what is asked of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The program `name` among those that `cargo xtask` installs for itself.
pub fn tool(name: &str) -> Result<PathBuf> {
    let place = std::env::var_os("BERTH_TEST_TOOLS").map_or_else(|| "/var/tmp/berth-cache/tools".into(), PathBuf::from);
    let path = place.join("bin").join(name);
    anyhow::ensure!(
        path.exists(),
        "{} is missing: run `cargo xtask bench mount`",
        path.display()
    );
    Ok(path)
}

/// Kills a process when it is not dropped in time: what waits for that process (or hangs in its mount) then fails.
pub struct Watch(#[allow(dead_code)] mpsc::Sender<()>);

impl Watch {
    pub fn over(pid: u32, limit: Duration) -> Self {
        let (alive, end) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Ok(pid) = i32::try_from(pid)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        });
        Self(alive)
    }
}

/// Runs the command; its output if it succeeds within the limit.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let watch = Watch::over(child.id(), limit);
    let done = child.wait_with_output()?;
    drop(watch);
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let first: String = said.lines().last().unwrap_or_default().chars().take(120).collect();
        bail!("{} ({first})", done.status);
    }
    Ok(done)
}

/// Runs a shell's line in `folder`; seconds and what it printed.
pub fn timed(line: &str, folder: &Path, limit: Duration) -> Result<(f64, String)> {
    super::world::go_on()?;
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder);
    let begun = Instant::now();
    let done = output(&mut command, limit)?;
    Ok((
        begun.elapsed().as_secs_f64(),
        String::from_utf8_lossy(&done.stdout).into_owned(),
    ))
}

/// Has the kernel forget clean pages (1), names and inodes (2), or both (3).
pub fn drop_caches(what: u8) -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).context("cannot drop the kernel's caches")
}

/// Resident memory of a process, in MiB.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Whether something is mounted there, without asking the mount itself.
pub fn is_mounted(path: &Path) -> bool {
    let wanted = path.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(1) == Some(&*wanted))
}

/// Asks again and again until the answer is yes; whether it was.
pub fn until(limit: Duration, pause: Duration, mut question: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    while !question() {
        if since.elapsed() > limit || super::world::go_on().is_err() {
            return false;
        }
        std::thread::sleep(pause);
    }
    true
}
