//! `suites`: the suites, servers and programs of others, on the mount.

use anyhow::Result;

use crate::packages::{self, For};
use crate::step::{cargo, run};
use crate::tools;

/// How long they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As in every test run.
    Ci,
    /// A million operations a seed, and files of 5 GiB.
    Full,
}

/// The tests of the mount that run them.
const TESTS: [&str; 4] = ["suites", "servers", "tools", "programs"];

/// Runs those tests alone, one after the other, with what they measured shown.
pub fn suites(size: Size) -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run, For::Test])?;
    tools::install()?;
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
