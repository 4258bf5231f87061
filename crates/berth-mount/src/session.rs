//! One FUSE mount and the threads that serve it: put in its place, and taken away.
//!
//! The device is opened and mounted here rather than by the FUSE library, so that this process alone decides when to
//! unmount (the library would unmount twice, and the second time perhaps somebody else's), and so that the descriptor can
//! later be handed to a new process.

use std::{
    fs::OpenOptions,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fuser::{BackgroundSession, Config, Filesystem, Notifier, Session, SessionACL};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, umount2},
};

use crate::MountError;

const DEVICE: &str = "/dev/fuse";
/// How long a busy mount is asked politely.
const BUSY: Duration = Duration::from_millis(500);
/// How long the threads may take to see that the mount is gone, before the connection is cut.
const LINGER: Duration = Duration::from_secs(3);

/// A mountpoint that is ready, and the device that will be mounted there.
#[derive(Debug)]
pub(crate) struct Place {
    mountpoint: PathBuf,
    device: OwnedFd,
}

/// A file system in its place.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) mountpoint: PathBuf,
    /// The minor number of its device; by it the kernel names the connection too.
    minor: Option<String>,
    session: BackgroundSession,
}

impl Place {
    /// Makes the mountpoint ready, after a dead mount has been cleared away.
    ///
    /// # Errors
    /// Each names the mountpoint.
    pub(crate) fn prepare(mountpoint: &Path) -> Result<Self, MountError> {
        clear_stale(mountpoint)?;
        let failed = |source| MountError::Mountpoint {
            path: mountpoint.to_owned(),
            source,
        };
        std::fs::create_dir_all(mountpoint).map_err(failed)?;
        let mountpoint = mountpoint.canonicalize().map_err(failed)?;
        match mounted_at(&mountpoint) {
            Some(mounted) => Err(MountError::AlreadyMounted {
                path: mountpoint,
                what: mounted.source,
            }),
            None => Ok(Self {
                mountpoint,
                device: open_device()?,
            }),
        }
    }

    /// Mounts, shakes hands with the kernel, starts the threads. Blocks. Nothing stays mounted after an error.
    ///
    /// # Errors
    /// Each names the mountpoint.
    pub(crate) fn attach(
        self,
        fs: impl Filesystem,
        (flags, threads): (MsFlags, usize),
    ) -> Result<(Attached, Notifier), MountError> {
        let Self { mountpoint, device } = self;
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
            device.as_raw_fd(),
            nix::unistd::getuid(),
            nix::unistd::getgid()
        );
        nix::mount::mount(
            Some("berth"),
            &mountpoint,
            Some("fuse.berth"),
            flags | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME,
            Some(options.as_str()),
        )
        .map_err(|errno| MountError::Mount {
            path: mountpoint.clone(),
            source: errno.into(),
        })?;
        let started = || {
            let mut config = Config::default();
            config.acl = SessionACL::All;
            config.n_threads = Some(threads);
            let session = Session::from_fd(fs, device, SessionACL::All, config)?;
            let notifier = session.notifier();
            Ok((session.spawn()?, notifier))
        };
        match started() {
            Ok((session, notifier)) => {
                let minor = mounted_at(&mountpoint).map(|mounted| mounted.minor);
                let attached = Attached {
                    mountpoint,
                    minor,
                    session,
                };
                Ok((attached, notifier))
            }
            Err(source) => {
                let _ = umount2(&mountpoint, MntFlags::MNT_DETACH);
                Err(MountError::Session {
                    path: mountpoint,
                    source,
                })
            }
        }
    }
}

impl Attached {
    /// The minor number of the mount's device.
    pub(crate) fn minor(&self) -> Option<u64> {
        self.minor.as_ref()?.parse().ok()
    }

    /// Waits for the threads, once it is unmounted; whoever still has files open loses them after [`LINGER`].
    pub(crate) fn end(self) {
        let since = Instant::now();
        while !self.session.guard.is_finished() && since.elapsed() < LINGER {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.session.guard.is_finished() {
            tracing::warn!(mountpoint = %self.mountpoint.display(), "programs still have files of the mount open; cutting them off");
            self.cut();
        }
        if let Err(error) = self.session.join() {
            tracing::warn!(%error, "the FUSE session ended with an error");
        }
    }

    /// Unmounts at once. Not a plain unmount: that could wait for requests whose tasks will never run again.
    pub(crate) fn drop_now(&self) {
        let _ = umount2(&self.mountpoint, MntFlags::MNT_DETACH);
        self.cut();
    }

    /// Ends the kernel's connection: every request is answered with an error.
    fn cut(&self) {
        if let Some(minor) = &self.minor {
            let connection = Path::new("/sys/fs/fuse/connections").join(minor);
            let _ = std::fs::write(connection.join("abort"), "1");
        }
    }
}

fn open_device() -> Result<OwnedFd, MountError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE);
    opened
        .map(OwnedFd::from)
        .map_err(|source| MountError::NoFuse { source })
}

/// Unmounts; a mount that stays in use is taken out of sight.
///
/// # Errors
/// [`MountError::Unmount`] with what umount(2) says.
pub(crate) fn unmount(mountpoint: &Path) -> Result<(), MountError> {
    let since = Instant::now();
    loop {
        match umount2(mountpoint, MntFlags::empty()) {
            // EINVAL: somebody else has unmounted it already.
            Ok(()) | Err(Errno::EINVAL) => return Ok(()),
            Err(Errno::EBUSY) if since.elapsed() < BUSY => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => break,
        }
    }
    umount2(mountpoint, MntFlags::MNT_DETACH).map_err(|errno| MountError::Unmount {
        path: mountpoint.to_owned(),
        source: errno.into(),
    })
}

/// Lazily unmounts a dead mount (`ENOTCONN`) that a killed daemon left behind; `true` if there was one.
///
/// # Errors
/// When the dead mount cannot be unmounted.
pub fn clear_stale(mountpoint: &Path) -> Result<bool, MountError> {
    let mut cleared = false;
    // Several daemons may have died one after the other.
    // statfs always asks the daemon; a stat is answered from what the kernel remembers of it.
    while let Err(errno) = nix::sys::statfs::statfs(mountpoint) {
        match errno {
            Errno::ENOTCONN | Errno::ECONNABORTED => {
                umount2(mountpoint, MntFlags::MNT_DETACH).map_err(|errno| MountError::Unmount {
                    path: mountpoint.to_owned(),
                    source: errno.into(),
                })?;
                tracing::info!(mountpoint = %mountpoint.display(), "removed a dead mount");
                cleared = true;
            }
            _ => break,
        }
    }
    Ok(cleared)
}

struct Mounted {
    source: String,
    /// The minor number of its device.
    minor: String,
}

/// What is mounted exactly at `path`, the topmost.
fn mounted_at(path: &Path) -> Option<Mounted> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = path.to_str()?;
    table.lines().rev().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (device, target) = (fields.get(2)?, fields.get(4)?);
        let source = fields.iter().skip_while(|field| **field != "-").nth(1)?;
        let minor = device.split_once(':')?.1.to_owned();
        (unescape(target) == wanted).then(|| Mounted {
            source: (*source).to_owned(),
            minor,
        })
    })
}

/// Mount tables write blanks and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_names_are_read_as_they_are() {
        assert_eq!(unescape(r"/a\040b/\134c"), r"/a b/\c");
        assert_eq!(unescape(r"/plain\04"), r"/plain\04");
    }
}
