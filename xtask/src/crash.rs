//! `crash`: the crash harness in a long run, 1,000 rounds a night.

use anyhow::Result;

use crate::step::{build_berth, need_root, run};

/// Builds and runs the harness; `rest` goes to it.
pub fn crash(rest: &[&str]) -> Result<()> {
    need_root("the crash harness")?;
    let berth = build_berth()?;
    let mut harness = std::process::Command::new(berth.with_file_name("berth-crash"));
    run(harness.arg("--berth").arg(&berth).args(rest))
}
