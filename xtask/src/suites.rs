//! `suites`: the suites, servers and programs of others, on the mount.

use anyhow::Result;

use crate::packages::{self, For};
use crate::step::{build_berth, cargo, run};
use crate::tools;
use crate::up::build_images;

/// How long they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As in every test run.
    Ci,
    /// A million operations a seed, and files of 5 GiB.
    Full,
}

/// The tests of the mount that run them.
const TESTS: [&str; 8] = [
    "suites", "servers", "tools", "programs", "editors", "names", "trees", "large",
];

/// Runs those tests alone, one after the other, with what they measured shown.
pub fn suites(size: Size) -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run, For::Test])?;
    tools::install()?;
    // Node.js and npm come from it.
    build_images(&build_berth()?, &["node"])?;
    let mut command = cargo();
    command.args(["test", "--package", "berth-mount"]);
    for test in TESTS {
        command.args(["--test", test]);
    }
    command.args(["--", "--nocapture", "--test-threads=1"]);
    if size == Size::Full {
        command.env("BERTH_SUITES", "full");
    }
    run(&mut command)
}
