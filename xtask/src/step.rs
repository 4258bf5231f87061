//! Running the programs that do the work, and saying so.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Says one thing that is done, or was found done.
pub fn say(line: &str) {
    println!("xtask: {line}");
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us, in the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// Runs a command to its end with its output shown.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and returns its standard output; its other output is shown only if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !done.status.success() {
        bail!(
            "{} failed ({})\n{}",
            shown(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Fails unless we are root: mounts, namespaces and apt need it.
pub fn need_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root (mounts, namespaces, packages): run it as root");
    }
    Ok(())
}

/// Builds every binary of the workspace, with the features that the tests use, and returns the path of `berth`.
pub fn build_berth() -> Result<PathBuf> {
    say("building (the first time takes many minutes)");
    build_binaries("dev", "debug")
}

/// The same, as fast as what packages ship: for measuring.
pub fn build_berth_optimized() -> Result<PathBuf> {
    say("building with optimization (the first time takes many minutes)");
    build_binaries("measured", "measured")
}

fn build_binaries(profile: &str, folder: &str) -> Result<PathBuf> {
    run(cargo().args(["build", "--quiet", "--workspace", "--bins", "--profile", profile]))?;
    let here = env::current_exe().context("cannot find my own program file")?;
    let target = here.parent().and_then(Path::parent);
    let berth = target
        .context("my own program file is in no target folder")?
        .join(folder)
        .join("berth");
    if !berth.is_file() {
        bail!("{} was not built", berth.display());
    }
    Ok(berth)
}
