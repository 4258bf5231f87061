//! The admin socket: who may connect is said by its owner, group and mode (0660), checked by the kernel.

use std::{
    future::Future,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::Router;
use nix::unistd::Group;
use tokio::net::{UnixListener, UnixStream};

/// Why the admin socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A daemon answers on it.
    #[error(
        "another berth daemon serves on {path}; stop it first, or give this one its own [paths] run and [admin] socket"
    )]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// It could not be made.
    #[error("cannot make the admin socket {path}: {source}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket, mode 0660, owned by `group` where that group exists. A socket file that nobody answers on is replaced.
///
/// # Errors
/// [`ListenError::Taken`] if a daemon answers there.
pub async fn bind(path: &Path, group: &str) -> Result<UnixListener, ListenError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::Taken {
            path: path.to_path_buf(),
        });
    }
    make(path, group).map_err(|source| ListenError::Bind {
        path: path.to_path_buf(),
        source,
    })
}

fn make(path: &Path, group: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = Group::from_name(group) {
        nix::unistd::chown(path, None, Some(group.gid))?;
    }
    Ok(listener)
}

/// Serves the API until `stop` resolves; requests under way end first.
///
/// # Errors
/// Those of accepting connections.
pub async fn serve(
    listener: UnixListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_socket_in_use_is_never_taken_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/berth.sock");
        let first = bind(&path, "no-such-group").await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(bind(&path, "").await, Err(ListenError::Taken { .. })));
        drop(first);
        bind(&path, "").await.unwrap();
    }
}
