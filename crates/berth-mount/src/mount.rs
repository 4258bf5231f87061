//! The mounted bucket: all its parts started in their order, and ended.
//!
//! It has two places: the mountpoint, for everybody, and read-only [`MountConfig::source`], for sandboxes
//! ([`crate::source`]). Each is a session of its own with the kernel (`session.rs`) over the same [`Core`].

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use berth_store::Store;
use nix::mount::MsFlags;

use crate::{
    JournalUsage, LocalPaths, LocalUsage, MountConfig, MountError, Pending, Unshown, announce,
    answer::BerthFs,
    cache::Contents,
    core::Core,
    index::IndexWriter,
    journal::Journal,
    kernel::{self, KernelNotices},
    session::{Attached, Place, unmount},
    source::{self, SourceFs},
};

/// Threads that take the kernel's requests. None waits for S3, so a few are plenty.
const THREADS: usize = 4;
/// The same of the read-only session, which is asked little.
const SOURCE_THREADS: usize = 2;
/// How long [`Mount::told`] waits for the kernel, which waits in turn for reads of what changed.
const TOLD: Duration = Duration::from_secs(5);

/// The mounted bucket. Dropping it without [`Mount::shutdown`] unmounts too, but does not wait for uploads.
#[derive(Debug)]
pub struct Mount {
    core: Arc<Core>,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    main: Attached,
    source: Option<Attached>,
    /// They tell the kernel what it must forget.
    notices: Vec<JoinHandle<()>>,
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
        let main = Place::prepare(&cfg.mountpoint)?;
        let source = cfg.source.as_deref().map(Place::prepare).transpose()?;
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
        let started = tokio::task::spawn_blocking(move || serve(&served, (main, source), receiver));
        let mut live = started.await.unwrap_or_else(|panic| {
            Err(MountError::Session {
                path: core.cfg.mountpoint.clone(),
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
        tracing::info!(mountpoint = %live.main.mountpoint.display(), bucket = core.store.bucket(), "mounted");
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
        let places: Vec<_> = live.attached().map(|attached| attached.mountpoint.clone()).collect();
        // Each of them, whatever becomes of the other.
        let all = move || {
            let done: Vec<_> = places.iter().map(|place| unmount(place)).collect();
            done.into_iter().collect::<Result<(), _>>()
        };
        let unmounted = tokio::task::spawn_blocking(all).await.unwrap_or_else(|panic| {
            Err(MountError::Unmount {
                path: self.core.cfg.mountpoint.clone(),
                source: io::Error::other(panic.to_string()),
            })
        });
        let rest = limit.saturating_sub(since.elapsed()).max(Duration::from_millis(500));
        let unsent = self.core.drain(rest).await;
        let pending = self.pending();
        self.core.ended.store(true, Ordering::Relaxed);
        self.core.stop_notices();
        self.core.prefetch.end().await;
        let contents = self.core.contents.clone();
        let ended = tokio::task::spawn_blocking(move || {
            live.end();
            contents.end();
        });
        if let Err(panic) = ended.await {
            tracing::warn!(%panic, "a thread of the mount did not end well");
        }
        self.core.intents.journal.close();
        unmounted?;
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

    /// Returns when who reads at [`MountConfig::source`] sees everything that was saved, or heard of, before the call.
    pub async fn told(&self) {
        let Some(heard) = self.core.tree.lock().known.ask() else {
            return;
        };
        // It fails when the mount ends: then there is no kernel that could remember anything.
        if tokio::time::timeout(TOLD, heard).await.is_err() {
            tracing::warn!(
                after = ?TOLD,
                "the kernel is still busy with reads of files that changed; sandboxes may see some of them as they were"
            );
        }
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
        self.core.stop_notices();
        if let Some(live) = self.live.take() {
            live.attached().for_each(Attached::drop_now);
            for task in &live.tasks {
                task.abort();
            }
        }
    }
}

impl Core {
    /// Ends the threads that tell the kernel.
    fn stop_notices(&self) {
        self.kernel.stop();
        self.tree.lock().known.stop();
    }
}

impl Live {
    /// What is mounted: first what nobody can write to.
    fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.source.iter().chain([&self.main])
    }

    /// Waits for the threads.
    fn end(self) {
        for task in &self.tasks {
            task.abort();
        }
        for attached in self.source.into_iter().chain([self.main]) {
            attached.end();
        }
        // They were told to stop; one may be inside a notice that the end of the connection has released.
        for thread in self.notices {
            if thread.join().is_err() {
                tracing::warn!("a thread for notices panicked");
            }
        }
        if self.announcer.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread for announcements panicked");
        }
    }
}

/// The part that blocks: mount, shake hands with the kernel, start the threads.
fn serve(
    core: &Arc<Core>,
    (main, source): (Place, Option<Place>),
    notices: kernel::Receiver,
) -> Result<Live, MountError> {
    let (main, notifier) = main.attach(BerthFs::new(core.clone()), (MsFlags::empty(), THREADS))?;
    let started = || -> Result<_, MountError> {
        let failed = |source| MountError::Session {
            path: core.cfg.mountpoint.clone(),
            source,
        };
        let mut threads = vec![kernel::spawn(notices, notifier, core.announcer.clone()).map_err(failed)?];
        let announcer = match main.minor() {
            Some(minor) => announce::runner::spawn(core, nix::sys::stat::makedev(0, minor)).map_err(failed)?,
            None => None,
        };
        let source = match source {
            Some(place) => Some(serve_source(core, place, &mut threads)?),
            None => None,
        };
        Ok((threads, source, announcer))
    };
    match started() {
        Ok((notices, source, announcer)) => Ok(Live {
            main,
            source,
            notices,
            announcer,
            tasks: Vec::new(),
        }),
        Err(error) => {
            core.announcer.stop();
            core.stop_notices();
            main.drop_now();
            Err(error)
        }
    }
}

fn serve_source(core: &Arc<Core>, place: Place, threads: &mut Vec<JoinHandle<()>>) -> Result<Attached, MountError> {
    // Before the first request: from then on every change is told.
    let receiver = core.tree.lock().known.begin();
    let (attached, notifier) = place.attach(SourceFs::new(core.clone()), (MsFlags::MS_RDONLY, SOURCE_THREADS))?;
    match source::notices::spawn(receiver, notifier) {
        Ok(thread) => threads.push(thread),
        Err(source) => {
            attached.drop_now();
            return Err(MountError::Session {
                path: attached.mountpoint.clone(),
                source,
            });
        }
    }
    Ok(attached)
}
