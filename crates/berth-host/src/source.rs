//! Where sandboxes find the source of their app: a folder with one for each workspace, which is never written to from here.

use std::path::PathBuf;
use std::sync::Arc;

use berth_workspace::AppName;
use futures::future::BoxFuture;

type Ready = dyn Fn() -> BoxFuture<'static, ()> + Send + Sync;

/// The workspaces as sandboxes see them.
#[derive(Clone)]
pub struct Source {
    folder: PathBuf,
    ready: Option<Arc<Ready>>,
}

impl Source {
    /// In a folder that shows every save as soon as the bucket does.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            ready: None,
        }
    }

    /// In a folder that may show a save later than the bucket. `ready` is awaited before a sandbox is made: what was saved
    /// before it was called can be seen when it is done.
    #[must_use]
    pub fn once(self, ready: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self {
            ready: Some(Arc::new(ready)),
            ..self
        }
    }

    /// The folder of one workspace.
    pub(crate) fn of(&self, app: &AppName) -> PathBuf {
        self.folder.join(app.as_str())
    }

    /// Returns when all that was saved until now can be seen.
    pub(crate) async fn ready(&self) {
        if let Some(ready) = &self.ready {
            ready().await;
        }
    }
}
