//! Putting the file system in its place and taking it away.
//!
//! The device is opened and mounted here rather than by the FUSE library, so that this process alone decides when to
//! unmount (the library would unmount twice, and the second time perhaps somebody else's), and so that the descriptor can
//! later be handed to a new process.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use berth_store::Store;
use fuser::{BackgroundSession, Config, Session, SessionACL};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, umount2},
};

use crate::{
    JournalUsage, LocalPaths, LocalUsage, MountConfig, MountError, Pending, Unshown, announce,
    answer::BerthFs,
    cache::Contents,
    core::Core,
    index::IndexWriter,
    journal::Journal,
    kernel::{self, KernelNotices},
};

const DEVICE: &str = "/dev/fuse";
/// Threads that take the kernel's requests. None waits for S3, so a few are plenty.
const THREADS: usize = 4;
/// How long a busy mount is asked politely.
const BUSY: Duration = Duration::from_millis(500);
/// How long the threads may take to see that the mount is gone, before the connection is cut.
const LINGER: Duration = Duration::from_secs(3);

/// The mounted bucket. Dropping it without [`Mount::shutdown`] unmounts too, but does not wait for uploads.
#[derive(Debug)]
pub struct Mount {
    core: Arc<Core>,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    mountpoint: PathBuf,
    connection: Option<PathBuf>,
    session: BackgroundSession,
    notices: JoinHandle<()>,
    announcer: Option<JoinHandle<()>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Mount {
    /// Reads the bucket's names and mounts it. Runs its requests on the calling runtime, which must have threads of its own
    /// (not the current-thread kind): programs that use the mount wait for it.
    ///
    /// # Errors
    /// One variant for each step; nothing stays mounted after an error.
    pub async fn start(cfg: MountConfig, store: Store) -> Result<Mount, MountError> {
        let mountpoint = prepare(&cfg.mountpoint)?;
        let device = open_device()?;
        let folder = |source| MountError::CacheDir {
            path: cfg.cache_dir.clone(),
            source,
        };
        let contents = Contents::open(&cfg.cache_dir, cfg.cache_mode, cfg.cache_max).map_err(folder)?;
        // Listen before listing: what changes between the two is seen twice rather than never.
        let feed = store.changes();
        let (notices, receiver) = KernelNotices::channel();
        let (journal, left) = Journal::open(&cfg.journal_dir, cfg.journal_max)?;
        let core = Core::new(cfg, store, contents, journal, notices);
        let cache = Arc::downgrade(&core);
        core.intents.journal.when_full(Box::new(move |bytes| {
            if let Some(core) = cache.upgrade() {
                core.contents.give_way(bytes);
            }
        }));
        core.give_up_leftovers();
        let restored = core.intents.recover(left);
        let indexed = core.load().await.map_err(MountError::List)?;
        let said = core.lay_over(restored);
        core.load_indexes(indexed).await.map_err(MountError::List)?;
        core.say_over(said);
        core.load_rules().await;

        let served = core.clone();
        let started = tokio::task::spawn_blocking(move || serve(served, &mountpoint, device, receiver));
        let mut live = started.await.unwrap_or_else(|panic| {
            Err(MountError::Session {
                source: io::Error::other(panic.to_string()),
            })
        })?;
        live.tasks = vec![
            tokio::spawn(core.clone().tend()),
            tokio::spawn(core.clone().settle_files()),
            tokio::spawn(core.clone().sync()),
            tokio::spawn(core.clone().settle_doubts()),
            tokio::spawn(core.clone().follow_rules()),
            tokio::spawn(IndexWriter::tend(core.clone())),
            tokio::spawn(core.clone().follow(feed)),
        ];
        core.prefetch.all(&core);
        tracing::info!(mountpoint = %live.mountpoint.display(), bucket = core.store.bucket(), "mounted");
        Ok(Mount { live: Some(live), core })
    }

    /// Waits until S3 has everything, at most for [`MountConfig::drain_timeout`], unmounts, ends the threads. What S3 has not
    /// taken then stays in the journal, for the next start.
    ///
    /// # Errors
    /// [`MountError::Unsaved`] when even the journal could not take everything; the mount is gone all the same.
    pub async fn shutdown(mut self) -> Result<Pending, MountError> {
        let since = Instant::now();
        let limit = self.core.cfg.drain_timeout;
        // Twice: the first while programs can still write, the second for what they wrote until the mount was gone.
        self.core.drain(limit).await;
        let Some(live) = self.live.take() else {
            return Ok(Pending::default());
        };
        self.core.announcer.stop();
        let mountpoint = live.mountpoint.clone();
        let blocking = tokio::task::spawn_blocking(move || unmount(&mountpoint));
        let unmounted = blocking
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())));
        let rest = limit.saturating_sub(since.elapsed()).max(Duration::from_millis(500));
        let unsent = self.core.drain(rest).await;
        let pending = self.pending();
        self.core.ended.store(true, Ordering::Relaxed);
        self.core.kernel.stop();
        self.core.prefetch.end().await;
        let mountpoint = live.mountpoint.clone();
        let contents = self.core.contents.clone();
        let ended = tokio::task::spawn_blocking(move || {
            live.end();
            contents.end();
        });
        if let Err(panic) = ended.await {
            tracing::warn!(%panic, "a thread of the mount did not end well");
        }
        self.core.intents.journal.close();
        unmounted.map_err(|source| MountError::Unmount {
            path: mountpoint,
            source,
        })?;
        if unsent.in_journal > 0 {
            tracing::warn!(
                changes = pending.count,
                bytes = pending.bytes,
                "not yet in S3; kept in the journal for the next start"
            );
        }
        if unsent.unsaved > 0 {
            return Err(MountError::Unsaved { files: unsent.unsaved });
        }
        Ok(pending)
    }

    /// How much the journal holds.
    #[must_use]
    pub fn journal(&self) -> JournalUsage {
        let journal = &self.core.intents.journal;
        let usage = journal.usage();
        JournalUsage {
            dir: self.core.cfg.journal_dir.clone(),
            disk: usage.disk,
            live: usage.live_bytes,
            max: usage.max,
            damaged: journal.damage().iter().map(ToString::to_string).collect(),
        }
    }

    /// Returns when S3 has all that was acknowledged before the call. Dropped half-way, nothing is lost.
    pub async fn settled(&self) {
        self.core.intents.wait_settled().await;
    }

    /// What local-only files hold.
    #[must_use]
    pub fn local_usage(&self) -> LocalUsage {
        self.core.budget.usage()
    }

    /// The local-only paths of one workspace, and by which rules they are that. Looks at all its names.
    #[must_use]
    pub fn local_paths(&self, workspace: &str) -> LocalPaths {
        self.core.local_paths(workspace)
    }

    /// What the bucket holds and the mount does not show.
    #[must_use]
    pub fn unshown(&self) -> Unshown {
        self.core.unshown.report()
    }

    /// How many changes made elsewhere were not announced to inotify watchers, because there were too many at once or no helper.
    #[must_use]
    pub fn unannounced(&self) -> u64 {
        self.core.announcer.dropped()
    }

    /// What is written and not yet in S3.
    #[must_use]
    pub fn pending(&self) -> Pending {
        let mut pending = self.core.intents.pending();
        self.core.unsaved.count(&mut pending);
        pending
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.core.ended.store(true, Ordering::Relaxed);
        self.core.announcer.stop();
        self.core.kernel.stop();
        if let Some(live) = self.live.take() {
            // Not a plain unmount: that could wait for requests whose tasks will never run again.
            let _ = umount2(&live.mountpoint, MntFlags::MNT_DETACH);
            live.cut();
            for task in &live.tasks {
                task.abort();
            }
        }
    }
}

impl Live {
    /// Waits for the threads; whoever still has files open loses them after [`LINGER`].
    fn end(self) {
        for task in &self.tasks {
            task.abort();
        }
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
        // The notices' thread was told to stop; it may be inside a notice that the end of the connection has released.
        if self.notices.join().is_err() {
            tracing::warn!("the thread for notices panicked");
        }
        if self.announcer.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread for announcements panicked");
        }
    }

    /// Ends the kernel's connection: every request is answered with an error.
    fn cut(&self) {
        if let Some(connection) = &self.connection {
            let _ = std::fs::write(connection.join("abort"), "1");
        }
    }
}

/// The part that blocks: mount, shake hands with the kernel, start the threads.
fn serve(core: Arc<Core>, mountpoint: &Path, device: OwnedFd, notices: kernel::Receiver) -> Result<Live, MountError> {
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    nix::mount::mount(
        Some("berth"),
        mountpoint,
        Some("fuse.berth"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| MountError::Mount {
        path: mountpoint.to_owned(),
        source: errno.into(),
    })?;
    let started = || {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = Session::from_fd(BerthFs::new(core.clone()), device, SessionACL::All, config)?;
        let notifier = session.notifier();
        let session = session.spawn()?;
        let notices = kernel::spawn(notices, notifier, core.announcer.clone())?;
        let minor = mounted_at(mountpoint).map(|mounted| mounted.minor);
        let device = minor.as_ref().and_then(|minor| minor.parse().ok());
        let announcer = match device {
            Some(minor) => announce::runner::spawn(&core, nix::sys::stat::makedev(0, minor))?,
            None => None,
        };
        Ok(Live {
            mountpoint: mountpoint.to_owned(),
            connection: minor.map(|minor| Path::new("/sys/fs/fuse/connections").join(minor)),
            session,
            notices,
            announcer,
            tasks: Vec::new(),
        })
    };
    started().map_err(|source: io::Error| {
        let _ = umount2(mountpoint, MntFlags::MNT_DETACH);
        MountError::Session { source }
    })
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

/// Makes the mountpoint ready; its absolute path.
fn prepare(mountpoint: &Path) -> Result<PathBuf, MountError> {
    clear_stale(mountpoint)?;
    let failed = |source| MountError::Mountpoint {
        path: mountpoint.to_owned(),
        source,
    };
    std::fs::create_dir_all(mountpoint).map_err(failed)?;
    let path = mountpoint.canonicalize().map_err(failed)?;
    match mounted_at(&path) {
        Some(mounted) => Err(MountError::AlreadyMounted {
            path,
            what: mounted.source,
        }),
        None => Ok(path),
    }
}

fn unmount(mountpoint: &Path) -> io::Result<()> {
    let since = Instant::now();
    loop {
        match umount2(mountpoint, MntFlags::empty()) {
            // EINVAL: somebody else has unmounted it already.
            Ok(()) | Err(Errno::EINVAL) => return Ok(()),
            Err(Errno::EBUSY) if since.elapsed() < BUSY => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return umount2(mountpoint, MntFlags::MNT_DETACH).map_err(io::Error::from),
        }
    }
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
    /// The minor number of its device; by it the kernel names the connection of a FUSE mount too.
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
