#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::unwrap_used)]
//! Benchmarks through the real binary: `cargo run -p berth-benches [cold-start|proxy|memory]`, all without an argument.
//!
//! Each figure stands beside a peer measured in the same run, alternating with it, because the machine is noisy: read the ratios. A bare
//! `node` process (the one in the image) is the peer of a cold start, a connection straight to a server the peer of the proxy.

mod cold_start;
mod figures;
mod memory;
mod proxy;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let all = ["cold-start", "proxy", "memory"];
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("no benchmark {unknown}; there are {}", all.join(", "));
    }
    let berth = binary()?;
    for name in all
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|w| w == name))
    {
        println!(
            "\n== {name} (load {})",
            std::fs::read_to_string("/proc/loadavg")?.trim()
        );
        match name {
            "cold-start" => cold_start::run(&berth)?,
            "proxy" => proxy::run(&berth)?,
            _ => memory::run(&berth)?,
        }
    }
    Ok(())
}

/// The `berth` binary built beside this one.
fn binary() -> anyhow::Result<String> {
    let beside = std::env::current_exe()?.with_file_name("berth");
    if !beside.exists() {
        bail!("{} is missing: cargo build -p berth", beside.display());
    }
    beside
        .into_os_string()
        .into_string()
        .ok()
        .context("the path of the binary is no text")
}
