//! `lint`: formatting, clippy, and the rules of the house that neither knows.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::promises;
use crate::step::{cargo, output, repository, run, say};

/// A file longer than this wants to be two; told, not refused.
const LONG: usize = 600;

/// Registries are reached through their clients' own settings: a host name in the tree would bind users to it. In
/// parts, so that this file does not break its own rule.
const REGISTRIES: [&[&str]; 7] = [
    &["pypi", "org"],
    &["pythonhosted", "org"],
    &["npmjs", "org"],
    &["yarnpkg", "com"],
    &["static", "crates", "io"],
    &["proxy", "golang", "org"],
    &["deb", "debian", "org"],
];

/// Runs all checks and tells every finding before it fails.
pub fn lint() -> Result<()> {
    let mut findings = Vec::new();
    say("cargo fmt --check");
    findings.extend(
        run(cargo().args(["fmt", "--all", "--check"]))
            .err()
            .map(|e| e.to_string()),
    );
    say("the rules of the house");
    let files = tracked()?;
    for file in &files {
        check(file, &mut findings);
    }
    for document in promises::DOCUMENTS {
        match fs::read_to_string(repository().join(document)) {
            Ok(text) => findings.extend(promises::broken(document, &text, repository())),
            Err(error) => findings.push(format!("{document}: {error}")),
        }
    }
    say("cargo clippy -D warnings");
    let mut clippy = cargo();
    clippy.args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    findings.extend(run(&mut clippy).err().map(|e| e.to_string()));
    if findings.is_empty() {
        say(&format!("{} files, nothing to complain of", files.len()));
        return Ok(());
    }
    for finding in &findings {
        eprintln!("lint: {finding}");
    }
    bail!("{} findings", findings.len())
}

/// The files that git knows, relative to the repository.
fn tracked() -> Result<Vec<String>> {
    let listed = output(Command::new("git").arg("-C").arg(repository()).args(["ls-files", "-z"]))?;
    Ok(listed
        .split('\0')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect())
}

fn check(file: &str, findings: &mut Vec<String>) {
    // A binary file, or one deleted but not yet committed, has no lines to look at.
    let Ok(text) = fs::read_to_string(repository().join(file)) else {
        return;
    };
    if file != "Cargo.lock" {
        findings.extend(registries(file, &text));
    }
    if Path::new(file).extension().is_some_and(|ext| ext == "rs") {
        let lines = text.lines().count();
        if lines > LONG {
            say(&format!("{file} has {lines} lines: split it by topic (over {LONG})"));
        }
        if !file.starts_with("crates/berth-sys/") {
            findings.extend(unsafe_lines(file, &text));
        }
    }
}

fn registries(file: &str, text: &str) -> Vec<String> {
    let hosts: Vec<String> = REGISTRIES.iter().map(|parts| parts.join(".")).collect();
    let bad = |line: &str| hosts.iter().any(|host| line.contains(host.as_str()));
    let numbered = text.lines().enumerate().filter(|(_, line)| bad(line));
    numbered
        .map(|(at, _)| format!("{file}:{}: names a package registry's host", at + 1))
        .collect()
}

/// `unsafe` code belongs in berth-sys. Words in comments and in the lint's own name do not count.
fn unsafe_lines(file: &str, text: &str) -> Vec<String> {
    const OPENINGS: [&str; 4] = [" {", " fn", " impl", " extern"];
    let word = ["un", "safe"].concat();
    let bad = |line: &str| {
        let code = line.split("//").next().unwrap_or(line);
        OPENINGS
            .iter()
            .any(|opening| code.contains(&format!("{word}{opening}")))
    };
    let numbered = text.lines().enumerate().filter(|(_, line)| bad(line));
    numbered
        .map(|(at, _)| format!("{file}:{}: {word} code outside berth-sys", at + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_host_is_found_with_its_line() {
        let text = format!("fine\nhttps://registry.{}/x\n", REGISTRIES[2].join("."));
        assert_eq!(registries("a.md", &text), ["a.md:2: names a package registry's host"]);
        assert!(registries("a.md", "docs.rs, crates.io").is_empty());
    }

    #[test]
    fn code_counts_and_words_do_not() {
        let word = ["un", "safe"].concat();
        assert_eq!(unsafe_lines("a.rs", &format!("let x = {word} {{ 1 }};")).len(), 1);
        assert!(unsafe_lines("a.rs", &format!("#![forbid({word}_code)]\n// {word} {{\n")).is_empty());
    }
}
