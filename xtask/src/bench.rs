//! `bench`: measurements through the real binary. What is printed is for people; nothing fails because the machine was
//! slow.

use std::process::Command;

use anyhow::Result;

use crate::packages::{self, For};
use crate::step::{build_berth_optimized, run};
use crate::tools;

/// Installs what the benchmark needs, builds, and runs it; `words` are its name and options.
pub fn bench(words: &[&str]) -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run])?;
    if words.first() == Some(&"mount") && !words.contains(&"--help") {
        packages::install(&[For::Test, For::Bench])?;
        tools::install()?;
    }
    let berth = build_berth_optimized()?;
    run(Command::new(berth.with_file_name("berth-benches")).args(words))
}
