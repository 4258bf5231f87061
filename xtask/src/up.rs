//! `up`, `down` and `image`: a running Berth on this host.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::examples;
use crate::packages::{self, For};
use crate::step::{build_berth, output, repository, run, say};

/// Where the daemon that `up` starts writes what it does.
const LOG: &str = "/var/log/berth/daemon.log";
/// Where `up` makes the command line known.
const COMMAND: &str = "/usr/local/bin/berth";
/// How long the daemon may take until it answers, or until it has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often conditions are looked at.
const PAUSE: Duration = Duration::from_millis(50);
/// Lines of the log shown when the daemon does not come up.
const TAIL: usize = 12;

/// What `berth status --json` says that matters here.
#[derive(Debug, Deserialize)]
struct Status {
    pid: i32,
    edge: Vec<String>,
    mount: PathBuf,
}

/// From nothing to running apps.
pub fn up() -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run])?;
    let berth = build_berth()?;
    link(&berth);
    build_images(&berth, &["all"])?;
    let status = match status(&berth) {
        Some(status) => {
            say(&format!("the daemon is running already (pid {})", status.pid));
            status
        }
        None => start(&berth)?,
    };
    let edge = edge(&status)?;
    let names = examples::put(&status.mount)?;
    examples::visit(edge, &names)?;
    say(&format!(
        "save source under {}; `berth ps` lists the apps",
        status.mount.display()
    ));
    Ok(())
}

/// Makes `berth` a command of this host. One that somebody installed is left alone.
fn link(berth: &Path) {
    let place = Path::new(COMMAND);
    let ours = fs::symlink_metadata(place).is_ok_and(|found| found.is_symlink());
    if place.exists() && !ours {
        say(&format!(
            "{COMMAND} is left as it is; the one built here is {}",
            berth.display()
        ));
        return;
    }
    let _ = fs::remove_file(place);
    if let Err(error) = std::os::unix::fs::symlink(berth, place) {
        say(&format!("no link at {COMMAND} ({error}); call {}", berth.display()));
    }
}

/// Stops the daemon; the apps end with it.
pub fn down() -> Result<()> {
    let berth = build_berth()?;
    let Some(Status { pid, .. }) = status(&berth) else {
        say("no daemon is running");
        return Ok(());
    };
    say(&format!("stopping the daemon (pid {pid})"));
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGTERM).with_context(|| format!("cannot stop process {pid}"))?;
    let deadline = Instant::now() + PATIENCE;
    while kill(pid, None) != Err(Errno::ESRCH) {
        if Instant::now() > deadline {
            bail!(
                "the daemon has not ended after {} s; {LOG} says what it waits for",
                PATIENCE.as_secs()
            );
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// `cargo xtask image`.
pub fn images(names: &[&str]) -> Result<()> {
    packages::install(&[For::Build, For::Run])?;
    build_images(&build_berth()?, names)
}

/// Builds images; `all` means every recipe.
pub fn build_images(berth: &Path, names: &[&str]) -> Result<()> {
    let mut command = Command::new(berth);
    command
        .args(["image", "build", "--recipes"])
        .arg(repository().join("images"));
    match names {
        ["all"] => command.arg("--all"),
        names => command.args(names),
    };
    say("building images that are not up to date");
    run(&mut command)
}

fn status(berth: &Path) -> Option<Status> {
    let text = output(Command::new(berth).args(["status", "--json"])).ok()?;
    serde_json::from_str(&text).ok()
}

/// Starts the daemon in a session of its own and waits until it answers.
fn start(berth: &Path) -> Result<Status> {
    let log = Path::new(LOG);
    let folder = log.parent().unwrap_or(log);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {LOG}"))?;
    let start_of_log = file.metadata()?.len();
    say(&format!("starting `berth serve`, log in {LOG}"));
    let mut child = Command::new("setsid")
        .arg(berth)
        .arg("serve")
        .current_dir(repository())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("cannot start the daemon")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = status(berth) {
            return Ok(status);
        }
        if let Some(ended) = ended(&mut child)? {
            bail!("the daemon ended ({ended}):\n{}", tail(log, start_of_log));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            bail!(
                "the daemon does not answer after {} s:\n{}",
                PATIENCE.as_secs(),
                tail(log, start_of_log)
            );
        }
        thread::sleep(PAUSE);
    }
}

fn ended(child: &mut Child) -> Result<Option<String>> {
    Ok(child.try_wait()?.map(|status| status.to_string()))
}

/// The last lines of the log, of those that this start wrote.
fn tail(log: &Path, from: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let new = bytes.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
    let text = String::from_utf8_lossy(new).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(TAIL));
    shown.map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Where requests go: the daemon's first address, on loopback if it listens everywhere.
fn edge(status: &Status) -> Result<SocketAddr> {
    let first = status.edge.first().context("the daemon listens nowhere")?;
    let mut address: SocketAddr = first
        .parse()
        .with_context(|| format!("the daemon listens at {first}"))?;
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    Ok(address)
}
