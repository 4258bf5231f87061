//! What sandboxes read, of a real daemon: a mount of its own that needs no daemon for what was read before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs, io,
    path::PathBuf,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use berth_harness::{Daemon, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");
const LIMIT: Duration = Duration::from_secs(20);

fn source(daemon: &Daemon) -> PathBuf {
    daemon.run_dir().join("source")
}

/// Looks at and reads all of them again and again; how many bytes there were.
fn read_all(files: &[PathBuf], rounds: usize) -> io::Result<u64> {
    let mut bytes = 0;
    for file in files.iter().cycle().take(files.len() * rounds) {
        let size = fs::metadata(file)?.len();
        assert_eq!(fs::read(file)?.len() as u64, size);
        bytes += size;
    }
    Ok(bytes)
}

#[test]
fn a_warm_file_is_opened_and_read_while_the_daemon_stands_still() {
    let daemon = Daemon::start(BERTH);
    let files: Vec<PathBuf> = (0..20)
        .map(|n| {
            daemon.save(&format!("app/dir/{n}"), "x".repeat(n * 1000));
            source(&daemon).join(format!("app/dir/{n}"))
        })
        .collect();
    wait("the saves to be seen", LIMIT, || files.iter().all(|file| file.exists()));
    let once = read_all(&files, 1).unwrap();
    assert_eq!(once, 190_000);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let (done, result) = channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        let _ = done.send((read_all(&files, 100), begun.elapsed()));
    });
    let read = result.recv_timeout(LIMIT);
    kill(pid, Signal::SIGCONT).unwrap();
    let (read, taken) = read.expect("no request goes to the daemon");
    assert_eq!(read.unwrap(), once * 100);
    eprintln!("2,000 times stat, open, read and close took {taken:?}");
}

#[test]
fn a_killed_daemons_places_are_cleared_by_the_next_one() {
    let mut daemon = Daemon::start(BERTH);
    for round in 0..3 {
        let text = format!("round {round}");
        daemon.save("app/a", &text);
        let file = source(&daemon).join("app/a");
        wait("the save to be seen", LIMIT, || {
            fs::read_to_string(&file).is_ok_and(|read| read == text)
        });
        daemon.kill();
        let dead = fs::read_dir(source(&daemon)).unwrap_err();
        assert_eq!(dead.raw_os_error(), Some(nix::libc::ENOTCONN));
        daemon.launch();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    daemon.stop();
    assert!(daemon.leftovers().is_empty(), "{:?}", daemon.leftovers());
}
