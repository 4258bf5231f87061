//! A daemon that is killed: the next one clears up, and every saved file is there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, io, io::Write, os::fd::IntoRawFd, path::Path, time::Duration};

use berth_harness::{Daemon, samples, wait};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

#[test]
fn after_kill_9_everything_saved_is_there_and_nothing_stale_stays() {
    let mut daemon = Daemon::start(BERTH);
    samples::node(&daemon, "phoenix", "risen");
    assert_eq!(daemon.get("/phoenix/").text, "risen");
    for number in 0..100 {
        daemon.save(&format!("files/f{number}.txt"), format!("content {number}"));
    }
    daemon.kill();
    let stale = daemon.leftovers();
    assert!(!stale.is_empty(), "a killed daemon cannot have cleaned up");
    daemon.launch();
    for number in 0..100 {
        let read = fs::read_to_string(daemon.workspaces().join(format!("files/f{number}.txt"))).unwrap();
        assert_eq!(read, format!("content {number}"));
    }
    assert_eq!(daemon.get("/phoenix/").text, "risen");
    let sandboxes = |daemon: &Daemon| {
        daemon
            .leftovers()
            .0
            .iter()
            .filter(|line| line.starts_with("sandbox "))
            .count()
    };
    wait("only the new sandbox to be there", Duration::from_secs(20), || {
        sandboxes(&daemon) == 1
    });
    daemon.stop();
    let left = daemon.leftovers();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_daemon_killed_while_files_are_being_saved_loses_none_that_was_closed() {
    let mut daemon = Daemon::start(BERTH);
    fs::create_dir(daemon.workspaces().join("busy")).unwrap();
    let folder = daemon.workspaces().join("busy");
    let writer = std::thread::spawn(move || {
        let mut saved = 0_u32;
        // Ends with the first save that fails, which is when the daemon has gone.
        while save(&folder.join(format!("{saved}.txt")), &format!("save {saved}")).is_ok() {
            saved += 1;
        }
        saved
    });
    wait("some files to be saved", Duration::from_secs(20), || {
        daemon.workspaces().join("busy/50.txt").exists()
    });
    daemon.kill();
    let saved = writer.join().unwrap();
    assert!(saved >= 50, "{saved}");
    daemon.launch();
    let lost: Vec<u32> = (0..saved)
        .filter(|n| {
            fs::read_to_string(daemon.workspaces().join(format!("busy/{n}.txt"))).ok() != Some(format!("save {n}"))
        })
        .collect();
    assert!(lost.is_empty(), "lost {lost:?} of {saved}");
}

/// Writes a file and says what `close` said, which `fs::write` drops: a save is acknowledged there and nowhere before.
fn save(path: &Path, content: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content.as_bytes())?;
    Ok(nix::unistd::close(file.into_raw_fd())?)
}
