//! Whether S3 answers, what it can do, whether its clock and ours agree (a signature older than 15 minutes is refused by every
//! server), and what the daemon has not yet got there or does not show of it.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use nix::sys::statvfs::statvfs;

use super::{Check, DaemonState, StoreAnswer, StoreProblem};

/// S3 servers refuse requests from a clock that is further off.
const REFUSED: Duration = Duration::from_secs(15 * 60);
/// From here on, times of files seen on the mount begin to confuse tools such as make and rsync.
const CONFUSING: Duration = Duration::from_secs(60);
/// An answer slower than this makes the mount feel slow.
const SLOW: Duration = Duration::from_millis(500);
/// A save that is older has something in its way.
const OLD: Duration = Duration::from_secs(60);
/// Objects that are named.
const NAMED: usize = 5;
const MIB: u64 = 1 << 20;
/// Below this the journal may soon have no room for what is saved while S3 does not answer.
const LITTLE_SPACE: u64 = 512 * MIB;

pub(super) fn checks(ask: &dyn Fn() -> Result<StoreAnswer, StoreProblem>) -> Vec<Check> {
    match ask() {
        Err(problem) => vec![Check::fail("S3", problem.found, problem.mend)],
        Ok(answer) => vec![
            reachable(answer.took),
            clock(answer.server_time, answer.received),
            writes(&answer.ignored),
            listing(answer.etag_in_list),
            changes(&answer),
        ],
    }
}

/// What only the daemon knows.
pub(super) fn daemon_checks(daemon: &DaemonState) -> Vec<Check> {
    vec![saves(daemon), journal(daemon), objects(daemon)]
}

fn reachable(took: Duration) -> Check {
    let found = format!("answers in {} ms", took.as_millis());
    if took > SLOW {
        Check::warn("S3", found, "use a server or region that is nearer")
    } else {
        Check::ok("S3", found)
    }
}

fn clock(theirs: Option<SystemTime>, received: SystemTime) -> Check {
    let Some(theirs) = theirs else {
        return Check::warn(
            "clock",
            "S3 does not say what time it is",
            "compare `date -u` with a clock you trust",
        );
    };
    let ahead = received.duration_since(theirs);
    let off = ahead.clone().unwrap_or_else(|error| error.duration());
    let direction = if ahead.is_ok() { "ahead of" } else { "behind" };
    let found = format!("{} s {direction} that of S3", off.as_secs());
    let mend = "let the host keep time: timedatectl set-ntp true, or install chrony";
    if off >= REFUSED {
        Check::fail("clock", format!("{found}: requests are refused"), mend)
    } else if off >= CONFUSING {
        Check::warn("clock", found, mend)
    } else {
        Check::ok("clock", found)
    }
}

/// Whether the server itself sees to it that nobody's save is overwritten unseen; else how large the gap is.
fn writes(ignored: &[&'static str]) -> Check {
    let name = "S3 writes";
    if ignored.is_empty() {
        return Check::ok(
            name,
            "the server compares versions in PUT, DELETE and COPY: no save overwrites another unseen",
        );
    }
    let found = format!(
        "the server ignores conditions of {}: Berth looks (HEAD) just before it writes, and a save that another host or tool \
         makes between the two, a few milliseconds, is overwritten unseen",
        ignored.join(", ")
    );
    let mend = "where several write the same files, use a server with conditional writes: AWS, MinIO, Ceph, RustFS, or the \
                embedded one";
    Check::warn(name, found, mend)
}

fn listing(etags: bool) -> Check {
    if etags {
        return Check::ok("S3 listing", "says which version each object is");
    }
    Check::warn(
        "S3 listing",
        "has no ETags: each object that changed is asked about by a request of its own",
        "use another server for a bucket of many files",
    )
}

fn changes(answer: &StoreAnswer) -> Check {
    let name = "S3 changes";
    let listed = format!("by listing, at least every {} s", answer.poll_interval.as_secs_f32());
    match answer.events {
        _ if answer.fed => Check::ok(name, "the embedded server tells of them at once"),
        Some(true) => Check::ok(name, "the server's event stream tells of them at once"),
        Some(false) => Check::ok(name, format!("the server has no event stream: they are seen {listed}")),
        None => Check::warn(
            name,
            format!("the server does not say whether it has an event stream: they are seen {listed}"),
            "see the server's log",
        ),
    }
}

fn saves(daemon: &DaemonState) -> Check {
    let name = "saves";
    let mend = "see what keeps S3 from taking them: the check of S3, and the daemon's log";
    match (&daemon.waiting, daemon.oldest) {
        (None, _) => Check::ok(name, "all are in S3"),
        (Some(waiting), Some(oldest)) if oldest < OLD => Check::ok(name, waiting),
        (Some(waiting), _) => Check::warn(name, waiting, mend),
    }
}

fn journal(daemon: &DaemonState) -> Check {
    let name = "journal";
    if !daemon.journal_damage.is_empty() {
        let found = format!("damaged: {}", daemon.journal_damage.join("; "));
        let mend = "the rest was recovered; see the disk's own log (dmesg), and compare what was saved last";
        return Check::fail(name, found, mend);
    }
    let folder = &daemon.journal_dir;
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Ok(found) => room(daemon, found.blocks_available().saturating_mul(found.fragment_size())),
        Err(error) => Check::fail(
            name,
            format!("{}: {error}", folder.display()),
            "see that the path can be reached",
        ),
    }
}

fn room(daemon: &DaemonState, free: u64) -> Check {
    let (disk, max) = daemon.journal_size;
    let found = format!(
        "{} of {} MiB used, {} MiB free in {}",
        disk.div_ceil(MIB),
        max / MIB,
        free / MIB,
        daemon.journal_dir.display()
    );
    // What it may still grow by.
    if free < LITTLE_SPACE.min(max.saturating_sub(disk)) {
        let mend =
            "make room there, or put [paths] state on a larger disk: it holds what is saved while S3 does not answer";
        Check::warn("journal", found, mend)
    } else {
        Check::ok("journal", found)
    }
}

fn objects(daemon: &DaemonState) -> Check {
    let name = "objects";
    if daemon.unshown == 0 {
        return Check::ok(name, "every object of the bucket is shown on the mount, or excluded");
    }
    let mut named: Vec<_> = daemon.unshown_objects.iter().take(NAMED).cloned().collect();
    let more = daemon.unshown.saturating_sub(named.len() as u64);
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    let found = format!("{} not shown on the mount: {}", daemon.unshown, named.join("; "));
    Check::warn(
        name,
        found,
        "they stay in S3 as they are; rename them there by an S3 client to use them here",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Status;
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        let theirs = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let off = |ours: i64| clock(Some(theirs), SystemTime::UNIX_EPOCH + Duration::from_secs(ours as u64));
        assert_eq!(off(10_002).status, Status::Ok);
        assert_eq!(
            (off(10_061).status, off(10_061).found),
            (Status::Warn, "61 s ahead of that of S3".into())
        );
        assert_eq!(off(9_000).status, Status::Fail);
        assert!(off(9_000).found.starts_with("1000 s behind"));
        assert_eq!(clock(None, theirs).status, Status::Warn);
    }

    #[test]
    fn a_server_that_does_not_answer_is_a_failure_with_what_it_said() {
        let ask = || {
            Err(StoreProblem {
                found: "connection refused".into(),
                mend: "start it".into(),
            })
        };
        let checks = checks(&ask);
        assert_eq!((checks.len(), checks[0].found.as_str()), (1, "connection refused"));
        assert_eq!(reachable(Duration::from_secs(2)).status, Status::Warn);
    }

    #[test]
    fn a_server_without_compare_and_swap_is_told_with_the_gap_that_stays() {
        assert_eq!(writes(&[]).status, Status::Ok);
        let check = writes(&["PUT", "COPY"]);
        assert_eq!(check.status, Status::Warn);
        assert!(
            check.found.contains("PUT, COPY") && check.found.contains("overwritten unseen"),
            "{check:?}"
        );
    }

    #[test]
    fn what_is_not_in_s3_and_what_is_not_shown_is_told() {
        let mut daemon = DaemonState::default();
        assert_eq!(super::super::worst(&daemon_checks(&daemon)), Status::Ok);
        daemon.waiting = Some("3 saves".into());
        daemon.oldest = Some(Duration::from_secs(5));
        assert_eq!(saves(&daemon).status, Status::Ok, "on its way");
        daemon.oldest = Some(Duration::from_secs(500));
        assert_eq!(saves(&daemon).status, Status::Warn);
        daemon.unshown = 7;
        daemon.unshown_objects = (0..7).map(|n| format!("a//{n}")).collect();
        let found = objects(&daemon).found;
        assert!(found.contains("a//4; and 2 more") && !found.contains("a//5"), "{found}");
        daemon.journal_size = (MIB, 2048 * MIB);
        assert_eq!(room(&daemon, MIB).status, Status::Warn);
        daemon.journal_damage.push("record 7".into());
        assert_eq!(journal(&daemon).status, Status::Fail);
    }
}
