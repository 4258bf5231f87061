//! The process that makes harmless system calls on the mount, so that the kernel raises its own events.
//!
//! It has one thread, a socket to the daemon as its standard input, and no other descriptor but, for moments, some on the mount. It
//! ends when the socket does. Each order is checked against what is really there (device, inode numbers) before anything is
//! called; no symbolic link is followed and no other file system entered.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_sys::{handle, packet, process};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, futimens, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use super::order::{Act, Kind, Order, Report, Touch};

/// How long the mount stays open after an order: an open descriptor would keep it from being unmounted.
const LINGER_MS: u16 = 20;
/// How often a removal is tried while others look at the name.
const TRIES: usize = 8;
/// The number of every file system's root that this file system serves.
const ROOT: u64 = 1;

/// Runs the helper for the mount at `mountpoint`; orders come by standard input. Call it first thing in a process of its own.
#[must_use]
pub fn run(mountpoint: PathBuf) -> ExitCode {
    process::set_name(c"berth-announce");
    // Whatever was inherited: above all no descriptor of a FUSE device.
    if process::close_all_but(&[]).is_err() || std::env::set_current_dir("/").is_err() {
        return ExitCode::FAILURE;
    }
    // It goes when the daemon goes, and not before: a terminal's Ctrl-C and systemd's SIGTERM are for the daemon.
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        ignored.add(signal);
    }
    let _ = ignored.thread_block();
    let mut mount = MountPoint {
        path: mountpoint,
        root: None,
    };
    let orders = io::stdin();
    match mount.serve(orders.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct MountPoint {
    path: PathBuf,
    root: Option<OwnedFd>,
}

impl MountPoint {
    fn serve(&mut self, orders: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let wait = match self.root {
                Some(_) => PollTimeout::from(LINGER_MS),
                None => PollTimeout::NONE,
            };
            match poll(&mut [PollFd::new(orders, PollFlags::POLLIN)], wait) {
                Ok(0) => self.root = None,
                Ok(_) => {
                    let Some((bytes, _)) = packet::receive(orders)? else {
                        return Ok(());
                    };
                    let report = self.perform(&serde_json::from_slice(&bytes)?);
                    packet::send(orders, &serde_json::to_vec(&report)?, &[])?;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn perform(&mut self, order: &Order) -> Report {
        let mut report = Report::default();
        let mut note = |what: &str, done: Result<(), Errno>| {
            if let Err(errno) = done {
                report.errors.push((what.to_owned(), errno as i32));
            }
        };
        let root = match self.root(order.device) {
            Ok(root) => root,
            Err(errno) => {
                note("mount", Err(errno));
                return report;
            }
        };
        if order.act != Act::Nothing {
            note("name", at_name(root, order));
        }
        if let Some(touch) = &order.touch {
            for former in &order.former {
                note("former", at_number(root, *former, touch));
            }
        }
        for gone in &order.gone {
            let touch = Touch {
                ino: *gone,
                mtime: (0, 0),
                attributes: true,
                close: false,
            };
            note("gone", at_number(root, *gone, &touch));
        }
        report
    }

    /// The root of the mount, which must be the one that is meant: what is below it otherwise is not ours to change.
    fn root(&mut self, device: u64) -> Result<BorrowedFd<'_>, Errno> {
        let root = match self.root.take() {
            Some(root) => root,
            None => open(
                &self.path,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?,
        };
        let stat = fstat(&root)?;
        if stat.st_dev != device || stat.st_ino != ROOT {
            return Err(Errno::EXDEV);
        }
        let root: &OwnedFd = self.root.insert(root);
        Ok(root.as_fd())
    }
}

/// Does what the order says to a name.
fn at_name(root: BorrowedFd<'_>, order: &Order) -> Result<(), Errno> {
    let (folder, number) = &order.folder;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    let path = if folder.is_empty() { "." } else { folder };
    let parent = openat2(root, path, how)?;
    if fstat(&parent)?.st_ino != *number {
        return Err(Errno::ESTALE);
    }
    let name = order.name.as_str();
    match order.act {
        Act::Nothing => return Ok(()),
        Act::Remove(kind) => {
            let flag = match kind {
                Kind::Dir => UnlinkatFlags::RemoveDir,
                Kind::File | Kind::Symlink => UnlinkatFlags::NoRemoveDir,
            };
            return remove(&parent, name, flag);
        }
        Act::Make(kind) => {
            let made = match kind {
                Kind::File => mknodat(&parent, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0),
                Kind::Dir => mkdirat(&parent, name, Mode::from_bits_truncate(0o755)),
                Kind::Symlink => symlinkat("announced", &parent, name),
            };
            match made {
                // Somebody has looked it up since: to them it is not new.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Act::Touch => {}
    }
    let Some(touch) = &order.touch else { return Ok(()) };
    let file = openat(
        &parent,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let stat = fstat(&file)?;
    if stat.st_ino != touch.ino || stat.st_dev != order.device {
        return Err(Errno::ESTALE);
    }
    touch_file(&file, &stat, touch)
}

/// Removes a name that is gone. Where somebody has looked since, the kernel remembers that there is nothing and does not ask;
/// for a name that is to be made it always asks.
fn remove(parent: &OwnedFd, name: &str, flag: UnlinkatFlags) -> Result<(), Errno> {
    for _ in 0..TRIES {
        match unlinkat(parent, name, flag) {
            Err(Errno::ENOENT) => {}
            done => return done,
        }
        match mknodat(parent, name, SFlag::S_IFREG, Mode::empty(), 0) {
            Err(Errno::EEXIST) => {}
            refused => return refused,
        }
    }
    Err(Errno::ENOENT)
}

/// Touches an inode that has no name, if the kernel still has it.
fn at_number(root: BorrowedFd<'_>, number: u64, touch: &Touch) -> Result<(), Errno> {
    let file = match handle::open_by_number(root, number, libc::O_PATH) {
        Ok(file) => file,
        // Nobody watches it any more.
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => return Ok(()),
        Err(error) => return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    };
    let stat = fstat(&file)?;
    touch_file(&file, &stat, touch)
}

/// Sets the time that is there already: with the modification time alone the kernel tells watchers of a new content, with both
/// of new attributes.
fn touch_file(file: &OwnedFd, stat: &FileStat, touch: &Touch) -> Result<(), Errno> {
    let mtime = TimeSpec::new(touch.mtime.0, touch.mtime.1);
    let atime = if touch.attributes { mtime } else { TimeSpec::UTIME_OMIT };
    // The way to an inode that is held by an O_PATH descriptor, and to no other.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let plain = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    if touch.close && plain {
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        if let Ok(writer) = open(Path::new(&path), flags, Mode::empty()) {
            return futimens(&writer, &atime, &mtime);
        }
    }
    utimensat(AT_FDCWD, path.as_str(), &atime, &mtime, UtimensatFlags::FollowSymlink)
}
