//! Small files are fetched before they are asked for.
//!
//! Round trips are what reading a tree from S3 costs, so they are made side by side: whoever has to wait for one file of a
//! folder most likely wants the others next. Two queues:
//! - `ahead`: a file was opened that was not here. Its folder follows, then the rest of its workspace, in the order in
//!   which a walk meets them.
//! - `rest`: after the mount is up, the workspaces changed last, within [`Prefetch::budget`]; it stands back while
//!   anybody waits for S3.
//!
//! What is queued are inode numbers; a file that was fetched, written or removed meanwhile is passed over.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::{
    cache::{CacheMode, FetchError},
    core::Core,
    file::Base,
    tree::{Ino, Inode, ROOT, Tree},
};

/// Files up to this are fetched ahead.
const SMALL: u64 = 256 << 10;
/// The most bytes fetched ahead in one go.
const BUDGET: u64 = 256 << 20;
/// Requests at once.
const LANES: usize = 32;
/// A folder is not looked through twice within this.
const AGAIN: Duration = Duration::from_secs(60);
/// How often the background looks whether the readers are done.
const STAND_BACK: Duration = Duration::from_millis(5);

/// The queues.
#[derive(Debug)]
pub(crate) struct Prefetch {
    /// 0: this mode fetches nothing ahead.
    budget: u64,
    queue: Mutex<Queue>,
    /// Requests that somebody waits for.
    readers: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    ahead: VecDeque<Ino>,
    rest: VecDeque<Ino>,
    /// Bytes that may still be fetched for `ahead`.
    left: u64,
    /// Folders queued lately.
    queued: HashMap<Ino, Instant>,
    lanes: usize,
}

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Ahead,
    /// Was counted when it was queued.
    Rest,
}

/// While it lives, somebody waits for S3.
#[derive(Debug)]
pub(crate) struct Reading<'a>(&'a AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Prefetch {
    pub(crate) fn new(mode: CacheMode, cache_max: u64) -> Self {
        let budget = match mode {
            CacheMode::Full => BUDGET.min(cache_max / 2),
            _ => 0,
        };
        Self {
            budget,
            queue: Mutex::default(),
            readers: AtomicUsize::new(0),
            tasks: Mutex::default(),
        }
    }

    /// Somebody asks S3 and waits.
    pub(crate) fn reading(&self) -> Reading<'_> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Reading(&self.readers)
    }

    /// `ino` was opened and is not here: fetches what is likely to be opened next.
    pub(crate) fn ahead(&self, core: &Arc<Core>, ino: Ino) {
        if self.budget == 0 {
            return;
        }
        {
            let tree = core.tree.lock();
            let Ok(parent) = tree.get(ino).map(|inode| inode.parent) else {
                return;
            };
            let mut queue = self.queue.lock();
            queue.queued.retain(|_, at| at.elapsed() < AGAIN);
            if queue.is_new(parent) {
                queue.left = queue.left.max(self.budget / 4);
                for sibling in siblings(&tree, parent, ino).into_iter().rev() {
                    queue.ahead.push_front(sibling);
                }
            }
            let top = top_of(&tree, parent);
            if top != ROOT && queue.is_new(top) {
                queue.left = self.budget;
                queue.ahead.extend(walk(&tree, top, parent));
            }
        }
        self.work(core);
    }

    /// The mount is up: fetches what the budget allows.
    pub(crate) fn all(&self, core: &Arc<Core>) {
        if self.budget == 0 {
            return;
        }
        let mut wanted = VecDeque::new();
        {
            let tree = core.tree.lock();
            let mut left = self.budget;
            for (_, _, files) in workspaces(&tree) {
                for (ino, size) in files {
                    let Some(after) = left.checked_sub(size) else { break };
                    left = after;
                    wanted.push_back(ino);
                }
            }
        }
        self.queue.lock().rest = wanted;
        self.work(core);
    }

    /// As many lanes as there are files to fetch.
    fn work(&self, core: &Arc<Core>) {
        let new = {
            let mut queue = self.queue.lock();
            let wanted = LANES.min(queue.ahead.len() + queue.rest.len());
            let new = wanted.saturating_sub(queue.lanes);
            queue.lanes += new;
            new
        };
        for _ in 0..new {
            let own = core.clone();
            self.spawn(core, async move {
                while let Some((ino, queue)) = own.prefetch.next(&own).await {
                    own.prefetch.fetch(&own, ino, queue).await;
                }
            });
        }
    }

    /// Runs `fetch` until the mount ends.
    pub(crate) fn spawn(&self, core: &Arc<Core>, fetch: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        if !core.ended.load(Ordering::Relaxed) {
            tasks.spawn_on(fetch, &core.rt);
        }
    }

    /// The mount has ended: nothing is fetched any more, nor does a task hold on to the mount.
    pub(crate) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
    }

    /// The next file; `None`, and one lane fewer, when there is none.
    async fn next(&self, core: &Core) -> Option<(Ino, From)> {
        loop {
            {
                let mut queue = self.queue.lock();
                if core.ended.load(Ordering::Relaxed) {
                    queue.ahead.clear();
                    queue.rest.clear();
                }
                if let Some(ino) = queue.ahead.pop_front() {
                    return Some((ino, From::Ahead));
                }
                if queue.rest.is_empty() {
                    queue.lanes -= 1;
                    return None;
                }
                if self.readers.load(Ordering::Relaxed) == 0 {
                    return queue.rest.pop_front().map(|ino| (ino, From::Rest));
                }
            }
            tokio::time::sleep(STAND_BACK).await;
        }
    }

    async fn fetch(&self, core: &Arc<Core>, ino: Ino, from: From) {
        let Some(base) = wanted(&core.tree.lock(), ino) else {
            return;
        };
        if core.contents.holds(&base, 0) {
            return;
        }
        if from == From::Ahead {
            let mut queue = self.queue.lock();
            match queue.left.checked_sub(base.size) {
                Some(left) => queue.left = left,
                None => {
                    queue.ahead.clear();
                    return;
                }
            }
        }
        let fetched = match from {
            // Somebody reads beside it, and is about to ask for it.
            From::Ahead => core.contents.fetch(&core.store, &base, 0).await.map(drop),
            From::Rest => core.contents.fetch_ahead(&core.store, &base).await,
        };
        match fetched {
            // Changed: the feed will say so.
            Ok(()) | Err(FetchError::Changed(_)) => {}
            Err(FetchError::Store(error)) => {
                tracing::debug!(key = base.key, %error, "cannot fetch ahead; waiting to be asked");
                let mut queue = self.queue.lock();
                queue.ahead.clear();
                queue.rest.clear();
            }
        }
    }
}

impl Queue {
    fn is_new(&mut self, folder: Ino) -> bool {
        self.queued.insert(folder, Instant::now()).is_none()
    }
}

/// What S3 has of `ino`, if it is worth fetching ahead.
fn wanted(tree: &Tree, ino: Ino) -> Option<Base> {
    worth(tree, ino)?;
    tree.base(ino)
}

/// Its size, if it is.
fn worth(tree: &Tree, ino: Ino) -> Option<u64> {
    tree.stored_size(ino).filter(|size| *size > 0 && *size <= SMALL)
}

/// The files of `folder`: those after `ino`, then those before it.
fn siblings(tree: &Tree, folder: Ino, ino: Ino) -> Vec<Ino> {
    let Ok(dir) = tree.get(folder).and_then(|inode| inode.as_dir()) else {
        return Vec::new();
    };
    let mut all: Vec<Ino> = dir.children.values().copied().collect();
    let at = all.iter().position(|child| *child == ino).unwrap_or(0);
    all.rotate_left(at);
    all.retain(|child| *child != ino && tree.get(*child).is_ok_and(Inode::is_file));
    all
}

fn top_of(tree: &Tree, mut folder: Ino) -> Ino {
    while let Ok(inode) = tree.get(folder)
        && inode.parent != ROOT
        && folder != ROOT
    {
        folder = inode.parent;
    }
    folder
}

/// The files below `top` in the order in which a walk meets them, beginning with those of the folder `from`.
fn walk(tree: &Tree, top: Ino, from: Ino) -> Vec<Ino> {
    let mut files = Vec::new();
    let mut start = 0;
    let mut open = vec![top];
    while let Some(folder) = open.pop() {
        let Ok(dir) = tree.get(folder).and_then(|inode| inode.as_dir()) else {
            continue;
        };
        if folder == from {
            start = files.len();
        }
        let mut folders = Vec::new();
        for child in dir.children.values() {
            match tree.get(*child) {
                Ok(inode) if inode.is_dir() && !inode.local => folders.push(*child),
                Ok(inode) if inode.is_file() && !inode.local => files.push(*child),
                _ => {}
            }
        }
        open.extend(folders.into_iter().rev());
    }
    files.rotate_left(start);
    files
}

/// Every workspace's small files and their sizes: the one that changed last first, of equals the smaller.
#[allow(clippy::type_complexity)]
fn workspaces(tree: &Tree) -> Vec<(SystemTime, u64, Vec<(Ino, u64)>)> {
    let Ok(root) = tree.get(ROOT).and_then(|inode| inode.as_dir()) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for top in root.children.values() {
        let (mut newest, mut bytes, mut files) = (SystemTime::UNIX_EPOCH, 0, Vec::new());
        for ino in walk(tree, *top, *top) {
            let Some(size) = worth(tree, ino) else {
                continue;
            };
            if let Ok(times) = tree.times(ino) {
                newest = newest.max(times.mtime);
            }
            bytes += size;
            files.push((ino, size));
        }
        all.push((newest, bytes, files));
    }
    all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use berth_store::ObjectInfo;

    use super::*;
    use crate::tree::{Look, Node, Times};

    fn tree(files: &[(&str, u64, u64)]) -> Tree {
        let mut tree = Tree::new(0, 0);
        for (path, size, changed) in files {
            let times = Times::at(SystemTime::UNIX_EPOCH + Duration::from_secs(*changed));
            let look = Look {
                local: false,
                perm: 0o644,
                times,
            };
            let mut at = ROOT;
            let (folders, name) = path.rsplit_once('/').unwrap();
            for folder in folders.split('/') {
                at = tree.child(at, folder).unwrap().unwrap_or_else(|| {
                    let ino = tree.number();
                    tree.insert(ino, at, folder, look, Node::Dir(Box::default())).unwrap();
                    ino
                });
            }
            let info = ObjectInfo {
                key: (*path).into(),
                etag: "e".into(),
                size: *size,
                modified: times.mtime,
            };
            let ino = tree.number();
            let node = Node::File((&info).into());
            tree.insert(ino, at, name, look, node).unwrap();
        }
        tree
    }

    fn keys(tree: &Tree, inos: impl IntoIterator<Item = Ino>) -> Vec<String> {
        inos.into_iter().map(|ino| tree.key(ino).unwrap()).collect()
    }

    #[test]
    fn the_files_after_the_one_that_was_opened_come_first_then_the_rest_of_its_workspace() {
        let tree = tree(&[
            ("app/a/1", 1, 0),
            ("app/b/1", 1, 0),
            ("app/b/2", 1, 0),
            ("app/b/3", 1, 0),
            ("app/c/1", 1, 0),
            ("other/1", 1, 0),
        ]);
        let (folder, two) = (tree.find("app/b").unwrap(), tree.find("app/b/2").unwrap());
        assert_eq!(keys(&tree, siblings(&tree, folder, two)), ["app/b/3", "app/b/1"]);
        let top = top_of(&tree, folder);
        assert_eq!(
            keys(&tree, walk(&tree, top, folder)),
            ["app/b/1", "app/b/2", "app/b/3", "app/c/1", "app/a/1"]
        );
    }

    #[test]
    fn the_workspace_that_changed_last_comes_first_and_large_files_wait_to_be_asked() {
        let tree = tree(&[
            ("old/1", 1, 10),
            ("new/1", 1, 20),
            ("new/large", SMALL + 1, 30),
            ("new/empty", 0, 30),
            ("same/1", 9, 10),
        ]);
        let files = workspaces(&tree).into_iter().flat_map(|(_, _, files)| files);
        assert_eq!(keys(&tree, files.map(|(ino, _)| ino)), ["new/1", "old/1", "same/1"]);
    }
}
