//! Memory beside the apps: the daemon with four of them, and one keeper.

use berth_harness::{Daemon, samples};

pub fn run(berth: &str) -> anyhow::Result<()> {
    let daemon = Daemon::start(berth);
    for app in ["one", "two", "three", "four"] {
        samples::node(&daemon, app, app);
        anyhow::ensure!(daemon.get(&format!("/{app}/")).status == 200, "{}", daemon.log());
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    println!(
        "daemon with 4 apps   RSS {:.1} MiB",
        field(&status, "VmRSS")? as f64 / 1024.0
    );
    for pid in keepers(&daemon)? {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let private = field(&smaps, "Private_Dirty")? + field(&smaps, "Private_Clean")?;
        println!(
            "keeper {pid:<8} private {:.2} MiB  PSS {:.2} MiB",
            private as f64 / 1024.0,
            field(&smaps, "Pss")? as f64 / 1024.0
        );
    }
    Ok(())
}

/// A `Name:   123 kB` line's number.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}:")));
    let number = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|word| word.parse().ok());
    number.ok_or_else(|| anyhow::anyhow!("no {name}"))
}

/// The keepers of this daemon's sandboxes: forks of it by another name, so they carry its command line.
fn keepers(daemon: &Daemon) -> anyhow::Result<Vec<u32>> {
    let own = daemon.config().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if name.trim() == "berth-keeper" && String::from_utf8_lossy(&line).contains(&own) {
            found.extend(process.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()));
        }
    }
    anyhow::ensure!(!found.is_empty(), "no keeper was found");
    Ok(found)
}
