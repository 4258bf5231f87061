//! `bench`: measurements through the real binary. What is printed is for people; nothing fails because the machine
//! was slow.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::packages::{self, For};
use crate::step::{build_berth, cargo, run, say};

/// Where tools are kept unless `BERTH_TEST_TOOLS` names another place.
const PLACE: &str = "/var/tmp/berth-cache/tools";
/// The server that all mounts are measured on.
const GARAGE: &str = "2.5.0";

/// Installs what the benchmark needs, builds, and runs it; `words` are its name and options.
pub fn bench(words: &[&str]) -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run])?;
    if words.first() == Some(&"mount") && !words.contains(&"--help") {
        packages::install(&[For::Test, For::Bench])?;
        garage()?;
    }
    let berth = build_berth()?;
    run(Command::new(berth.with_file_name("berth-benches")).args(words))
}

/// Installs the server if it is missing; it is built for looking at the mounts, not for being fast itself.
fn garage() -> Result<()> {
    let place = std::env::var_os("BERTH_TEST_TOOLS").map_or_else(|| PLACE.into(), PathBuf::from);
    if place.join("bin/garage").is_file() {
        return Ok(());
    }
    say(&format!(
        "installing garage {GARAGE}: the S3 server of the benchmark (some minutes)"
    ));
    let mut command = cargo();
    command
        .args([
            "install",
            "garage",
            "--version",
            GARAGE,
            "--locked",
            "--quiet",
            "--jobs",
            "2",
        ])
        .args(["--no-default-features", "--features", "bundled-libs,lmdb"])
        .arg("--root")
        .arg(&place)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    run(&mut command)
}
