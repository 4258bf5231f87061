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

/// The keepers of this daemon's sandboxes: they hold its run folder's sockets.
fn keepers(daemon: &Daemon) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(daemon.run_dir().join("sandboxes"))?.flatten() {
        let socket = entry.path().join("keeper.sock");
        let listed = std::fs::read_to_string("/proc/net/unix")?;
        let inode = listed
            .lines()
            .find(|line| line.ends_with(&*socket.to_string_lossy()))
            .and_then(|line| line.split_whitespace().nth(6));
        let Some(inode) = inode else { continue };
        found.extend(holders(&format!("socket:[{inode}]"))?);
    }
    Ok(found)
}

fn holders(of: &str) -> anyhow::Result<Option<u32>> {
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        if open
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy() == of))
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}
