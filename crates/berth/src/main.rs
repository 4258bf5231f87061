#![forbid(unsafe_code)]
//! `berth`: the daemon and the command line that talks to it, in one binary.
//!
//! `berth serve` is everything: the embedded S3, the mount, the monitor, the sandboxes and the edge. All other commands ask a running
//! daemon over its socket, or work on files of the host. Container-making processes are forked here, first thing, while the process has
//! one thread; the configuration is read whole before any port is bound.

mod apps;
mod cli;
mod client;
mod commands;
mod config;
mod doctor;
mod failure;
mod serve;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    failure::Failure,
};

fn main() -> ExitCode {
    if let Some(ended) = berth_mount::announcer_asked_for() {
        return ended;
    }
    let cli = Cli::parse();
    let config = match config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return Failure::usage(berth_workspace::chain(&error)).report(),
    };
    let done = match cli.command {
        Command::Serve => serve::run(config),
        other => commands::run(other, config, cli.socket),
    };
    match done {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
