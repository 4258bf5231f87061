//! The monitor: which workspaces the bucket holds, which revision each is at, and what it asks for.
//!
//! It knows the bucket from one LIST and the store's stream of changes, never from the mount (which shows what this host has
//! saved, a moment before or after the bucket has it). Keys are grouped by their first segment. A change marks its workspace;
//! when it has been quiet for [`QUIET`], or [`LONGEST`] after the first change, the workspace is looked at: its index object is
//! read if that changed, its revision computed, its manifests fetched (those that changed) and its plan made. So a save
//! that ends an editor's burst of writes is announced about 150 ms later, and `git checkout` of a large tree at least every 0.7 s.
//!
//! A look runs in a task of its own, one at a time per workspace, so that a slow or broken one never holds up the others.
//! When the stream of changes was too fast for us (the receiver lagged), the bucket is listed again and compared.

mod folder;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use berth_store::{Change, KeyMap, ObjectInfo, Store, StoreError};
use berth_workspace::{AppName, Excludes, Plan, PlanError, RevisionId, SourceFile, index};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use folder::{Folder, Look, Looked};

/// A workspace is looked at when nothing in it has changed for this long …
const QUIET: Duration = Duration::from_millis(150);
/// … or this long after its first change that was not looked at.
const LONGEST: Duration = Duration::from_millis(700);
/// Before a look or a listing that the store refused is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Looks at once while the first listing is worked through.
const FIRST_LOOKS: usize = 16;

/// What the monitor announces.
#[derive(Debug)]
pub enum MonitorEvent {
    /// A workspace is new or has changed.
    WorkspaceChanged {
        /// Its name.
        name: AppName,
        /// Its newest revision.
        revision: RevisionId,
        /// The files of that revision.
        files: Arc<Vec<SourceFile>>,
        /// How it is run, or why it cannot be.
        plan: Box<Result<Plan, PlanError>>,
    },
    /// A workspace was deleted (or renamed: the new name is announced as well).
    WorkspaceGone {
        /// Its name.
        name: AppName,
    },
    /// A folder whose name no app can have appeared.
    InvalidName {
        /// The folder.
        name: String,
        /// What is wrong and how to mend it.
        reason: String,
    },
    /// Such a folder was deleted.
    InvalidGone {
        /// The folder.
        name: String,
    },
    /// Every workspace of the first listing has been announced.
    Listed,
}

/// Takes one page of a listing.
pub(crate) type TakePage<'a> = &'a mut (dyn FnMut(Vec<ObjectInfo>) + Send);

/// The part of the store that the monitor reads.
pub(crate) trait Bucket: Send + Sync + 'static {
    fn each_page<'a>(&'a self, take: TakePage<'a>) -> BoxFuture<'a, Result<(), StoreError>>;
    fn get(&self, key: &str) -> BoxFuture<'static, Result<(ObjectInfo, Bytes), StoreError>>;
    fn changes(&self) -> broadcast::Receiver<Change>;
}

impl Bucket for Store {
    fn each_page<'a>(&'a self, take: TakePage<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(Store::each_page(self, take))
    }

    fn get(&self, key: &str) -> BoxFuture<'static, Result<(ObjectInfo, Bytes), StoreError>> {
        let (store, key) = (self.clone(), key.to_owned());
        Box::pin(async move { Store::get(&store, &key).await })
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        Store::changes(self)
    }
}

/// Watches a bucket.
pub struct Monitor {
    bucket: Arc<dyn Bucket>,
    excludes: Excludes,
    folders: BTreeMap<String, Folder>,
    announced_invalid: BTreeSet<String>,
    looks: JoinSet<Looked>,
    events: mpsc::UnboundedSender<MonitorEvent>,
}

impl Monitor {
    /// Begins to watch `store`. The monitor runs until the receiver is dropped.
    pub fn start(store: Store, excludes: Excludes) -> mpsc::UnboundedReceiver<MonitorEvent> {
        Self::watch(Arc::new(store), excludes)
    }

    pub(crate) fn watch(bucket: Arc<dyn Bucket>, excludes: Excludes) -> mpsc::UnboundedReceiver<MonitorEvent> {
        let (events, receiver) = mpsc::unbounded_channel();
        let monitor = Self {
            bucket,
            excludes,
            folders: BTreeMap::new(),
            announced_invalid: BTreeSet::new(),
            looks: JoinSet::new(),
            events,
        };
        tokio::spawn(monitor.run());
        receiver
    }

    async fn run(mut self) {
        // Subscribed before the listing: a change in between is seen twice rather than never.
        let mut changes = self.bucket.changes();
        self.relist().await;
        self.first_looks().await;
        self.announce(MonitorEvent::Listed);
        let mut feed_ended = false;
        loop {
            let due = self.folders.values().filter_map(Folder::due).min();
            let look_due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.events.closed() => return,
                change = changes.recv(), if !feed_ended => match change {
                    Ok(change) => self.note(change),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::info!(missed, "too many changes at once: listing the bucket again");
                        changes = changes.resubscribe();
                        self.relist().await;
                    }
                    // The store goes only when the daemon does.
                    Err(broadcast::error::RecvError::Closed) => feed_ended = true,
                },
                Some(looked) = self.looks.join_next(), if !self.looks.is_empty() => {
                    if let Ok(looked) = looked {
                        self.looked(looked);
                    }
                }
                () = look_due => self.look_at_due(),
            }
        }
    }

    /// Lists the bucket until it works, and takes over the difference.
    async fn relist(&mut self) {
        let bucket = Arc::clone(&self.bucket);
        let present = loop {
            let mut present = KeyMap::new();
            let take = &mut |page: Vec<ObjectInfo>| {
                for object in page {
                    present.insert(&object.key, ());
                    self.note(Change::Put(object));
                }
            };
            match bucket.each_page(take).await {
                Ok(()) => break present,
                Err(error) => {
                    tracing::warn!("listing the bucket: {}", berth_workspace::chain(&error));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        let gone: Vec<String> = self.keys().filter(|key| !present.contains_key(key)).collect();
        for key in gone {
            self.note(Change::Deleted { key });
        }
    }

    fn keys(&self) -> impl Iterator<Item = String> {
        self.folders.iter().flat_map(|(name, folder)| folder.keys(name))
    }

    /// Takes one change in.
    fn note(&mut self, change: Change) {
        let now = Instant::now();
        if let Some(name) = index::workspace_of_key(change.key()) {
            let folder = self.folders.entry(name.to_owned()).or_default();
            folder.index_changed(change, now);
            return;
        }
        // A key at the top of the bucket, without a folder, belongs to no workspace.
        let Some((name, path)) = change.key().split_once('/') else {
            return;
        };
        if name.starts_with('.') || name.is_empty() {
            return;
        }
        let (name, path) = (name.to_owned(), path.to_owned());
        let local = self.excludes.local_only(&path);
        let folder = self.folders.entry(name).or_default();
        folder.changed(path, change, local, now);
    }

    /// Looks at everything that the first listing brought, and announces it in the order of names: who comes first owns a
    /// contested host name.
    async fn first_looks(&mut self) {
        let due = self.take_due(None);
        let looks: Vec<_> = due
            .into_iter()
            .map(|look| look.run(Arc::clone(&self.bucket), self.excludes.clone()))
            .collect();
        let mut looks = futures::stream::iter(looks).buffered(FIRST_LOOKS);
        while let Some(looked) = looks.next().await {
            self.looked(looked);
        }
    }

    fn look_at_due(&mut self) {
        for look in self.take_due(Some(Instant::now())) {
            self.looks
                .spawn(look.run(Arc::clone(&self.bucket), self.excludes.clone()));
        }
    }

    /// The looks that are due by `now` (all that are marked, with `None`); folders that are gone are announced instead.
    fn take_due(&mut self, now: Option<Instant>) -> Vec<Look> {
        let due: Vec<String> = self
            .folders
            .iter()
            .filter(|(_, folder)| folder.due().is_some_and(|at| now.is_none_or(|now| at <= now)))
            .map(|(name, _)| name.clone())
            .collect();
        let mut looks = Vec::new();
        for name in due {
            let Some(folder) = self.folders.get_mut(&name) else {
                continue;
            };
            if !folder.exists() {
                let known = folder.was_announced();
                // The index object of a deleted workspace may outlive it for a moment; it says nothing alone.
                if folder.is_forgettable() {
                    self.folders.remove(&name);
                } else {
                    folder.settle();
                }
                self.gone(&name, known);
                continue;
            }
            match AppName::parse(&name) {
                Ok(app) => looks.push(folder.look(app)),
                Err(error) => {
                    folder.settle();
                    if self.announced_invalid.insert(name.clone()) {
                        self.announce(MonitorEvent::InvalidName {
                            name,
                            reason: error.to_string(),
                        });
                    }
                }
            }
        }
        looks
    }

    fn gone(&mut self, name: &str, known: bool) {
        if self.announced_invalid.remove(name) {
            self.announce(MonitorEvent::InvalidGone { name: name.to_owned() });
        } else if known && let Ok(name) = AppName::parse(name) {
            self.announce(MonitorEvent::WorkspaceGone { name });
        }
    }

    fn looked(&mut self, looked: Looked) {
        // Deleted while it was looked at: its mark is still set, and the next round announces that.
        let Some(folder) = self.folders.get_mut(looked.name.as_str()) else {
            return;
        };
        match folder.take_in(looked, Instant::now() + AGAIN) {
            Ok(Some(event)) => self.announce(event),
            Ok(None) => {}
            Err(error) => tracing::warn!("reading a workspace: {}", berth_workspace::chain(&error)),
        }
    }

    fn announce(&self, event: MonitorEvent) {
        // Nobody listens any more: the loop ends by itself.
        let _ = self.events.send(event);
    }
}
