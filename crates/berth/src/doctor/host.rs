//! What the host's owner can change without another kernel: rights, ports, folders, names, certificates.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::{Check, Port, Subject};
use crate::config::CA_BUNDLES;

/// Capabilities the daemon uses, by their number in capability(7): root has them all, root in a container mostly not.
const CAPABILITIES: [(u8, &str); 9] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
];
const MIB: u64 = 1 << 20;
/// Below this, logs and the embedded S3 server stop soon.
const LITTLE_SPACE: u64 = 2048 * MIB;
/// Below this, they have stopped.
const NO_SPACE: u64 = 128 * MIB;
/// Two descriptors for each connection through the edge, and some for each sandbox.
const DESCRIPTORS: u64 = 16_384;

pub(super) fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = vec![
        capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
        descriptors(),
    ];
    checks.extend(subject.ports.iter().map(|port| self::port(port, subject.running)));
    let mut folders = vec![&subject.state_dir];
    if subject.log_dir != subject.state_dir {
        folders.push(&subject.log_dir);
    }
    checks.extend(folders.into_iter().map(|folder| space(folder)));
    checks.push(run_dir(&subject.run_dir));
    checks.push(mountpoint(&subject.mountpoint, subject.running));
    checks.push(certificates(subject.ca_bundle.as_deref()));
    checks.extend(subject.names.iter().map(|name| resolves(name, (subject.resolve)(name))));
    checks
}

fn capabilities(status: &str) -> Check {
    let name = "capabilities";
    let held = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let Some(held) = held else {
        return Check::warn(name, "cannot be read from /proc/self/status", "mount /proc");
    };
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| held >> bit & 1 == 0)
        .map(|&(_, name)| name)
        .collect();
    if missing.is_empty() {
        Check::ok(name, "all that are needed")
    } else {
        Check::fail(
            name,
            format!("without {}", missing.join(", ")),
            "run as root; in a container, --privileged",
        )
    }
}

fn descriptors() -> Check {
    let name = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS => Check::warn(
            name,
            format!("at most {hard}"),
            "LimitNOFILE=1048576 in the service's unit, or ulimit -n before starting by hand",
        ),
        Ok((_, hard)) => Check::ok(name, format!("up to {hard}")),
        Err(error) => Check::warn(name, error.to_string(), "see getrlimit(2)"),
    }
}

/// A port is well when it can be bound, or when the daemon that answers has it.
fn port(port: &Port, running: bool) -> Check {
    let name = format!("port {} ({})", port.address, port.purpose);
    match TcpListener::bind(port.address) {
        Ok(_) if running && port.address.port() != 0 => Check::warn(
            name,
            "free, although the daemon runs: it listens elsewhere",
            "berth config show says what it was started with; restart it after a change",
        ),
        Ok(_) => Check::ok(name, "free"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = holder(port.address);
            if running && holder.as_ref().is_none_or(|(_, program)| program.starts_with("berth")) {
                return Check::ok(name, "ours");
            }
            let (found, mend) = match holder {
                Some((pid, program)) => (
                    format!("taken by {program} (process {pid})"),
                    format!("stop {program}, or configure another port"),
                ),
                None => (
                    "taken".to_owned(),
                    format!("find out by whom: ss -ltnp 'sport = :{}'", port.address.port()),
                ),
            };
            Check::fail(name, found, mend)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Check::fail(
            name,
            "the host does not have this address",
            "configure one of those that `ip address` shows",
        ),
        Err(error) => Check::fail(name, error.to_string(), "run as root, or configure a port above 1023"),
    }
}

/// Who listens on the port of `address`: process id and program.
fn holder(address: SocketAddr) -> Option<(u32, String)> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, address.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.into_iter().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let holds = files.any(|file| {
            fs::read_link(file.path()).is_ok_and(|target| sockets.iter().any(|socket| target == Path::new(socket)))
        });
        let program = || {
            fs::read_to_string(process.path().join("comm"))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        holds.then(|| (pid, program()))
    })
}

/// Inodes of the sockets that listen on `port`, out of a `/proc/net/tcp` (see proc_pid_net(5); state 0A is LISTEN).
fn listening(table: &str, port: u16) -> Vec<u64> {
    let rows = table
        .lines()
        .skip(1)
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter_map(|row| {
        let (_, at) = row.get(1)?.rsplit_once(':')?;
        let listens = *row.get(3)? == "0A" && u16::from_str_radix(at, 16).ok()? == port;
        if listens { row.get(9)?.parse().ok() } else { None }
    })
    .collect()
}

fn space(folder: &Path) -> Check {
    let name = format!("space for {}", folder.display());
    // A folder that is not made yet will be on the file system of what is there of its path.
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Ok(found) => enough(name, found.blocks_available().saturating_mul(found.fragment_size())),
        Err(error) => Check::fail(name, error.to_string(), "see that the path can be reached"),
    }
}

fn enough(name: String, free: u64) -> Check {
    let found = format!("{} MiB free", free / MIB);
    let mend = "make room, or put the folder on a larger disk";
    if free < NO_SPACE {
        Check::fail(name, found, mend)
    } else if free < LITTLE_SPACE {
        Check::warn(name, found, mend)
    } else {
        Check::ok(name, found)
    }
}

/// Starting and ending a sandbox writes state that a journalling file system takes milliseconds for.
fn run_dir(folder: &Path) -> Check {
    let name = "run folder";
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statfs(there) {
        Ok(found) if found.filesystem_type() == TMPFS_MAGIC => {
            Check::ok(name, format!("{} is in memory", folder.display()))
        }
        Ok(_) => Check::warn(
            name,
            format!("{} is on a disk: starts take some 10 ms longer", folder.display()),
            "put it on a tmpfs such as /run",
        ),
        Err(error) => Check::fail(
            name,
            format!("{}: {error}", folder.display()),
            "see that the path can be reached",
        ),
    }
}

fn mountpoint(folder: &Path, running: bool) -> Check {
    let name = "mountpoint";
    let shown = folder.display();
    match fs::metadata(folder) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTCONN) => Check::fail(
            name,
            format!("{shown} is a mount whose daemon is gone"),
            format!("umount -l {shown}; a starting daemon does that by itself"),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(name, format!("{shown} is made when the daemon starts"))
        }
        Err(error) => Check::fail(name, format!("{shown}: {error}"), "see that the path can be reached"),
        Ok(found) if !found.is_dir() => Check::fail(
            name,
            format!("{shown} is no folder"),
            "move it away, or configure another",
        ),
        Ok(_) => {
            let kind = mounted_as(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), folder);
            let has_files = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
            folder_state(&shown.to_string(), kind.as_deref(), running, has_files)
        }
    }
}

fn folder_state(shown: &str, kind: Option<&str>, running: bool, has_files: impl Fn() -> bool) -> Check {
    let name = "mountpoint";
    match (kind, running) {
        (Some(kind), true) if kind.starts_with("fuse") => Check::ok(name, format!("{shown} is mounted")),
        (Some(kind), _) if kind.starts_with("fuse") => Check::fail(
            name,
            format!("{shown} is mounted ({kind}), but not by a daemon that answers"),
            format!("end who mounted it (rclone?), then umount {shown}"),
        ),
        (_, true) => Check::fail(
            name,
            format!("{shown} is not mounted although the daemon runs"),
            "see the daemon's log, then restart it",
        ),
        (_, false) if has_files() => Check::warn(
            name,
            format!("{shown} has files of its own, which the mount would hide"),
            format!("berth import {shown}/*, then move them away"),
        ),
        _ => Check::ok(name, format!("{shown} is free")),
    }
}

/// The type of the file system mounted last at exactly `folder`, out of a mountinfo.
fn mounted_as(mountinfo: &str, folder: &Path) -> Option<String> {
    let mut kind = None;
    for line in mountinfo.lines() {
        let Some((before, behind)) = line.split_once(" - ") else {
            continue;
        };
        let at = before.split(' ').nth(4).unwrap_or_default();
        if unescaped(at) == folder {
            kind = behind.split(' ').next().map(str::to_owned);
        }
    }
    kind
}

/// Spaces and the like are octal in a mountinfo: `\040`.
fn unescaped(path: &str) -> PathBuf {
    let mut parts = path.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text.into()
}

fn certificates(configured: Option<&Path>) -> Check {
    let name = "CA certificates";
    let mend = "install the package ca-certificates";
    let candidates: Vec<PathBuf> = match configured {
        Some(path) => vec![path.to_owned()],
        None => CA_BUNDLES.iter().map(PathBuf::from).collect(),
    };
    let Some(path) = candidates.iter().find(|path| path.exists()) else {
        return Check::fail(name, "none found: apps could not fetch their dependencies", mend);
    };
    let count = fs::read_to_string(path)
        .unwrap_or_default()
        .matches("-----BEGIN CERTIFICATE-----")
        .count();
    if count == 0 {
        Check::fail(name, format!("{} has none in it", path.display()), mend)
    } else {
        Check::ok(name, format!("{count} in {}", path.display()))
    }
}

fn resolves(host: &str, found: Result<Vec<IpAddr>, String>) -> Check {
    let name = format!("name {host}");
    match found {
        Ok(addresses) if addresses.is_empty() => {
            Check::fail(name, "has no address", "make a DNS record for it, or correct the name")
        }
        Ok(addresses) => {
            let mut shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            shown.dedup();
            Check::ok(name, shown.join(", "))
        }
        Err(error) => Check::fail(
            name,
            error,
            "see /etc/resolv.conf; make a DNS record for it, or correct the name",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Status;
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").status, Status::Ok);
        let docker = capabilities("CapEff:\t00000000a80425fb\n");
        assert!(
            docker.found.contains("NET_ADMIN") && docker.found.contains("SYS_ADMIN"),
            "{docker:?}"
        );
        assert!(!docker.found.contains("CHOWN"));
        assert_eq!(capabilities("").status, Status::Warn);
    }

    #[test]
    fn a_taken_port_names_the_process_unless_it_is_ours_to_expect() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let subject = Port {
            purpose: "http".into(),
            address: taken.local_addr().unwrap(),
        };
        let check = port(&subject, false);
        assert_eq!(check.status, Status::Fail);
        assert!(
            check.found.contains(&format!("(process {})", std::process::id())),
            "{check:?}"
        );
        assert_eq!(
            port(
                &Port {
                    purpose: "x".into(),
                    address: "192.0.2.77:1".parse().unwrap()
                },
                false
            )
            .status,
            Status::Fail
        );
        assert_eq!(
            port(
                &Port {
                    purpose: "x".into(),
                    address: "127.0.0.1:0".parse().unwrap()
                },
                false
            )
            .status,
            Status::Ok
        );
    }

    #[test]
    fn listening_sockets_are_read_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n\
             1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0\n\
             2: broken\n";
        assert_eq!(listening(table, 8080), [4242]);
        assert!(listening(table, 80).is_empty());
    }

    #[test]
    fn space_is_judged_by_what_is_left() {
        assert_eq!(enough("s".into(), 50 * 1024 * MIB).status, Status::Ok);
        assert_eq!(enough("s".into(), 1024 * MIB).status, Status::Warn);
        assert_eq!(enough("s".into(), MIB).status, Status::Fail);
    }

    #[test]
    fn the_last_mount_at_a_folder_counts_and_its_name_may_have_spaces() {
        let info = "50 24 8:1 / /workspaces rw - ext4 /dev/vda rw\n51 24 0:99 / /workspaces rw - fuse.rclone remote rw\n\
                    52 24 0:98 / /my\\040work rw - fuse berth rw\n";
        assert_eq!(
            mounted_as(info, Path::new("/workspaces")).as_deref(),
            Some("fuse.rclone")
        );
        assert_eq!(mounted_as(info, Path::new("/my work")).as_deref(), Some("fuse"));
        assert_eq!(mounted_as(info, Path::new("/work")), None);
    }

    #[test]
    fn each_state_of_the_mountpoint_is_told_apart() {
        let state = |kind, running, files| folder_state("/w", kind, running, || files).status;
        assert_eq!(state(Some("fuse"), true, true), Status::Ok);
        assert_eq!(state(Some("fuse.rclone"), false, true), Status::Fail);
        assert_eq!(state(None, true, false), Status::Fail);
        assert_eq!(state(None, false, true), Status::Warn);
        assert_eq!(state(Some("ext4"), false, false), Status::Ok);
    }

    #[test]
    fn a_bundle_without_certificates_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        fs::write(&path, "nothing").unwrap();
        assert_eq!(certificates(Some(&path)).status, Status::Fail);
        fs::write(&path, "-----BEGIN CERTIFICATE-----\n").unwrap();
        assert_eq!(certificates(Some(&path)).status, Status::Ok);
        assert_eq!(certificates(Some(&folder.path().join("none"))).status, Status::Fail);
    }

    #[test]
    fn a_name_without_an_address_is_a_failure() {
        assert_eq!(resolves("x", Ok(vec![])).status, Status::Fail);
        assert_eq!(resolves("x", Err("no such name".into())).status, Status::Fail);
        assert_eq!(resolves("x", Ok(vec![IpAddr::from([1, 2, 3, 4])])).found, "1.2.3.4");
    }
}
