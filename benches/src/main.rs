#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::unwrap_used)]
//! Benchmarks through the real binary: `cargo xtask bench NAME`, with NAME one of cold-start, start, proxy, memory and
//! mount.
//!
//! Each figure stands beside a peer measured in the same run, alternating with it where that is possible, because the
//! machine is noisy: read the ratios. A bare `node` process (the one in the image) is the peer of a cold start, a
//! connection straight to a server the peer of the proxy, rclone and s3fs those of the mount.

mod cold_start;
mod figures;
mod memory;
mod mount;
mod proxy;
mod start;

use anyhow::{Context, bail};
use clap::Parser;

/// What to measure.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench")]
enum Bench {
    /// From a request for a sleeping app to its answer
    ColdStart,
    /// From a request for a frozen app to its answer
    Start,
    /// What the edge adds to a warm request
    Proxy,
    /// The daemon's and a keeper's memory
    Memory,
    /// The mount beside rclone, s3fs, tmpfs and ext4
    Mount(mount::Options),
}

fn main() -> anyhow::Result<()> {
    let bench = Bench::parse();
    let berth = binary()?;
    if !matches!(bench, Bench::Mount(_)) {
        println!("load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    }
    match bench {
        Bench::ColdStart => cold_start::run(&berth),
        Bench::Start => start::run(&berth),
        Bench::Proxy => proxy::run(&berth),
        Bench::Memory => memory::run(&berth),
        Bench::Mount(options) => mount::run(&berth, &options),
    }
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
