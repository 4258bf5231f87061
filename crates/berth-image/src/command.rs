//! The programs of the host that take part in a build, and running one so that its failure can be understood.
//!
//! Output is kept, not shown: a build says what it does in its own words, and when a program fails the last lines
//! that it printed are part of the error.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{ImageError, Result};

/// Lines of a failed program's output that its error shows.
const TAIL: usize = 15;

/// The host's bundle of certificate authorities: clients that bring their own are pointed to it, so that a host with
/// a private authority works.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The programs that a build runs, with Debian's packages that have them.
const TOOLS: [(&str, &str); 6] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.erofs", "erofs-utils"),
    ("python3", "python3"),
    ("unshare", "util-linux"),
    ("chroot", "coreutils"),
    ("tar", "tar"),
];

/// Checks that the host has every program that builds run.
pub(crate) fn check_tools() -> Result<()> {
    for (program, package) in TOOLS {
        if on_path(program).is_none() {
            return Err(ImageError::MissingTool { program, package });
        }
    }
    Ok(())
}

/// Checks that the host's Python has pip; apart from the others because only wheels need it.
pub(crate) fn check_pip() -> Result<()> {
    let mut pip = Command::new("python3");
    match pip
        .args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
    {
        Ok(status) if status.success() => Ok(()),
        _ => Err(ImageError::MissingTool {
            program: "pip",
            package: "python3-pip",
        }),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command for `program`, found on PATH or among the system's programs (which PATH of a plain user lacks).
pub(crate) fn host(program: &str) -> Command {
    let mut command = Command::new(on_path(program).unwrap_or_else(|| program.into()));
    for variable in ["NODE_EXTRA_CA_CERTS", "PIP_CERT"] {
        if env::var_os(variable).is_none() && Path::new(HOST_AUTHORITIES).is_file() {
            command.env(variable, HOST_AUTHORITIES);
        }
    }
    command
}

/// A command that runs `argv` with `root` as its root, in mount, pid and network namespaces of its own: whatever is
/// mounted for it, or left running by it, is gone when it ends, also when this process is killed.
pub(crate) fn inside(root: &Path, argv: &[String]) -> Command {
    const SCRIPT: &str = r#"set -e
        mount -t proc proc "$0/proc"
        mount -t tmpfs tmpfs "$0/tmp"
        mount --rbind /dev "$0/dev"
        exec chroot "$0" "$@""#;
    let mut command = host("unshare");
    command.args([
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "--kill-child",
        "--",
        "sh",
        "-c",
        SCRIPT,
    ]);
    command.arg(root).args(argv).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/tmp").env("LANG", "C.UTF-8").env("TMPDIR", "/tmp");
    command
}

/// Runs a command of the build of image `name` to its end and returns what it printed on its standard output.
pub(crate) fn run(name: &str, what: &str, command: &mut Command) -> Result<String> {
    let failed = |status: String, tail: Vec<String>| ImageError::Step {
        name: name.to_owned(),
        what: what.to_owned(),
        status,
        tail,
    };
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(format!("{}: {e}", command.get_program().to_string_lossy()), Vec::new()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = stdout.lines().chain(stderr.lines()).map(str::to_owned).collect();
    let tail = lines.iter().skip(lines.len().saturating_sub(TAIL)).cloned().collect();
    Err(failed(output.status.to_string(), tail))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_failed_step_shows_the_last_lines_and_the_status() {
        let error = run(
            "node",
            "counting",
            Command::new("sh").args(["-c", "seq 1 100; echo bad >&2; exit 3"]),
        );
        let text = error.unwrap_err().to_string();
        assert!(text.contains("image node: counting failed (exit status: 3)"), "{text}");
        assert!(
            text.contains("\n    bad") && text.contains("\n    100") && !text.contains("\n    50\n"),
            "{text}"
        );
    }
}
