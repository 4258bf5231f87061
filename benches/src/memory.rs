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

/// The keepers of this daemon's sandboxes: of its processes, those with a keeper's name.
fn keepers(daemon: &Daemon) -> anyhow::Result<Vec<i32>> {
    let is_keeper = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "berth-keeper")
    };
    let found: Vec<i32> = daemon.processes().into_iter().filter(is_keeper).collect();
    anyhow::ensure!(!found.is_empty(), "no keeper was found");
    Ok(found)
}
