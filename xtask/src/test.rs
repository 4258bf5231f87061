//! `test`: everything that has an assertion, with one summary at the end.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::packages::{self, For};
use crate::step::{build_berth, cargo, say, shown};
use crate::tools;
use crate::up::build_images;

/// What cargo's closing lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Reads one line of a test program's output.
    fn hear(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.ignored += count(counts, " ignored");
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(test.to_owned());
        }
    }
}

/// The number before `word`: `12` in `ok. 12 passed; 0 failed`.
fn count(text: &str, word: &str) -> usize {
    let before = text.split(word).next().filter(|before| before.len() < text.len());
    let number = before.and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next());
    number.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Installs what tests need, builds images, runs `cargo test --workspace` (`rest` goes to it) and sums up.
pub fn test(rest: &[&str]) -> Result<()> {
    packages::check_host()?;
    packages::install(&[For::Build, For::Run, For::Test])?;
    tools::install()?;
    let berth = build_berth()?;
    build_images(&berth, &["all"])?;
    let began = Instant::now();
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", shown(&command)))?;
    let mut tally = Tally::default();
    let stdout = child.stdout.take().context("cargo's output is not to be had")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        tally.hear(&line);
        println!("{line}");
    }
    let status = child.wait()?;
    say(&format!("tests took {:.0} s", began.elapsed().as_secs_f64()));
    for name in &tally.failures {
        println!("failed: {name}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.ignored
    );
    if !status.success() {
        bail!("{} failed ({status})", shown(&command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_adds_up_cargos_closing_lines() {
        let mut tally = Tally::default();
        for line in [
            "running 2 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.30s",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.hear(line);
        }
        let failures = vec!["a::c".to_owned()];
        assert_eq!(
            tally,
            Tally {
                passed: 17,
                failed: 1,
                ignored: 3,
                failures
            }
        );
    }
}
