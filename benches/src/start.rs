//! From a request to its answer for an app that nobody has called for a while: frozen, beside one that runs.
//!
//! Both are the same program on the same daemon, asked in turns over connections that stay open, each after the same quiet, so
//! that the difference is the thaw.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_harness::{Daemon, Options, samples, wait};

use crate::{figures::Figures, proxy::Connection};

const ROUNDS: usize = 200;
/// Frozen after this long without a request.
const FREEZE: &str = "100ms";
/// Before each request, so that the processors' caches hold as little of one as of the other. Memory is handed back within it, too.
const QUIET: Duration = Duration::from_millis(150);

pub fn run(berth: &str) -> anyhow::Result<()> {
    compare(berth, "frozen app, request to answer", "never")?;
    // Right after it is frozen, so that each round has it. Without swap on the host nothing is handed over.
    compare(berth, "the same, its memory in swap", FREEZE)
}

/// A daemon of its own, a running app and one that is frozen before each request.
fn compare(berth: &str, what: &str, reclaim: &str) -> anyhow::Result<()> {
    let daemon = Daemon::with(
        berth,
        Options {
            lines: vec![(
                "apps",
                format!("idle_freeze = \"{FREEZE}\"\nidle_reclaim = \"{reclaim}\"\nidle_stop = \"never\""),
            )],
            ..Options::default()
        },
    );
    for app in ["frozen", "warm"] {
        samples::node(&daemon, app, "x");
    }
    daemon.save("warm/workspace.json", r#"{"idle_freeze": "never"}"#);
    // The first to run an image is charged with its pages in memory, and can have them taken.
    for app in ["frozen", "warm"] {
        anyhow::ensure!(daemon.get(&format!("/{app}/")).status == 200, "{}", daemon.log());
    }
    let freezer = Freezer::of(&daemon, "frozen")?;
    let mut warm = Connection::open(daemon.edge_port(), "/warm/")?;
    let mut frozen = Connection::open(daemon.edge_port(), "/frozen/")?;
    let (mut running, mut thawed, mut next) = (Figures::default(), Figures::default(), Figures::default());
    for round in 0..ROUNDS {
        wait("the app to be frozen", Duration::from_secs(20), || freezer.is_frozen());
        std::thread::sleep(QUIET);
        let a = warm.ask()?;
        std::thread::sleep(QUIET);
        anyhow::ensure!(freezer.is_frozen(), "the app ran before it was asked");
        let (b, c) = (frozen.ask()?, frozen.ask()?);
        anyhow::ensure!(!freezer.is_frozen(), "the app is frozen and answers");
        // The first rounds warm both up.
        if round >= ROUNDS / 10 {
            running.add(a);
            thawed.add(b);
            next.add(c);
        }
    }
    running.print("running app, request to answer", None);
    thawed.print(what, Some(&running));
    next.print("    its next request, at once", None);
    println!(
        "{:<34} {:.3} ms",
        "    added, median",
        thawed.median() - running.median()
    );
    Ok(())
}

/// The file by which the kernel tells whether the processes of a sandbox stand still.
struct Freezer(PathBuf);

impl Freezer {
    fn of(daemon: &Daemon, app: &str) -> anyhow::Result<Self> {
        let told = daemon.inspect(app).unwrap_or_default();
        let sandbox = told["sandbox"].as_str().unwrap_or_default().to_owned();
        let below = |hierarchy: &str| {
            Path::new("/sys/fs/cgroup")
                .join(hierarchy)
                .join(daemon.instance())
                .join(&sandbox)
        };
        let files = [below("freezer").join("freezer.state"), below("").join("cgroup.events")];
        let found = files.into_iter().find(|file| file.exists());
        found
            .map(Self)
            .ok_or_else(|| anyhow::anyhow!("the sandbox {sandbox:?} of {app} has no freezer"))
    }

    fn is_frozen(&self) -> bool {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().any(|line| line == "FROZEN" || line == "frozen 1")
    }
}
