#![forbid(unsafe_code)]
//! `cargo xtask crash`: the crash harness in a long run. It is its own writer process.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use berth_harness::crash::{self, Campaign, Mode, Setup};

const USAGE: &str = "\
berth-crash --berth PATH [--rounds N] [--seed S] [--mode kill|twice|outage|full-disk|POINT] [--keep-journals]";

struct Wanted {
    berth: String,
    rounds: u64,
    seed: u64,
    mode: Option<Mode>,
    keep: bool,
}

fn main() -> ExitCode {
    if crash::run_if_ordered() {
        return ExitCode::SUCCESS;
    }
    match wanted().and_then(|wanted| run(&wanted)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn wanted() -> Result<Wanted> {
    let mut wanted = Wanted {
        berth: String::new(),
        rounds: 100,
        seed: std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
        mode: None,
        keep: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
        match word.as_str() {
            "--berth" => wanted.berth = value()?,
            "--rounds" => wanted.rounds = value()?.parse().context("--rounds")?,
            "--seed" => wanted.seed = value()?.parse().context("--seed")?,
            "--mode" => wanted.mode = Some(mode(&value()?)?),
            "--keep-journals" => wanted.keep = true,
            _ => bail!("what is {word}?\n{USAGE}"),
        }
    }
    if wanted.berth.is_empty() {
        bail!("{USAGE}");
    }
    Ok(wanted)
}

fn mode(name: &str) -> Result<Mode> {
    let point = |names: &[&'static str]| names.iter().copied().find(|point| *point == name);
    Ok(match name {
        "kill" => Mode::Kill,
        "twice" => Mode::Twice,
        "outage" => Mode::Outage,
        "full-disk" => Mode::FullDisk,
        _ => point(&crash::POINTS)
            .map(Mode::Point)
            .or_else(|| point(&crash::REPLAY_POINTS).map(Mode::Replay))
            .with_context(|| format!("no mode and no point is called {name}\n{USAGE}"))?,
    })
}

/// `true`: nothing was lost.
fn run(wanted: &Wanted) -> Result<bool> {
    let seed = wanted.seed;
    println!("crash: {} rounds, seed {seed}", wanted.rounds);
    let mut campaign = Campaign::new(Setup {
        berth: wanted.berth.clone(),
        writer: vec![std::env::current_exe()?.into()],
        seed,
        evidence: PathBuf::from("/var/tmp/berth-crash"),
        keep_state: wanted.keep,
    });
    let began = Instant::now();
    for number in 1..=wanted.rounds {
        let mode = wanted.mode.clone().unwrap_or_else(|| crash::mix(number));
        let outcome = campaign.round(&mode)?;
        if !outcome.findings.is_empty() {
            println!("round {number} ({mode:?}):");
            for finding in outcome.findings.iter().take(12) {
                println!("  {finding}");
            }
            println!("  evidence: {}", campaign.evidence().display());
            println!("  again: cargo xtask crash --rounds {number} --seed {seed}");
        }
        if number % 10 == 0 || number == wanted.rounds {
            let so_far = &campaign.summary;
            let minutes = began.elapsed().as_secs_f64() / 60.0;
            println!(
                "crash: {number}/{} rounds, {:.0}/min, {} acknowledged, {} lost or wrong; refused: {} no space, {} else",
                wanted.rounds,
                number as f64 / minutes,
                so_far.acknowledged,
                so_far.findings,
                so_far.no_space,
                so_far.failed,
            );
        }
    }
    let summary = &campaign.summary;
    println!("points reached: {}", words(summary.reached.iter()));
    for (point, rounds) in &summary.not_reached {
        println!("not reached: {point} in {rounds} rounds");
    }
    println!("failed rounds: {}", words(summary.failed_rounds.iter()));
    println!(
        "acknowledged saves lost: {} of {}",
        summary.findings, summary.acknowledged
    );
    Ok(summary.findings == 0)
}

fn words<T: ToString>(all: impl Iterator<Item = T>) -> String {
    let all: Vec<String> = all.map(|one| one.to_string()).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}
