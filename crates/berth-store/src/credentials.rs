//! The embedded server's one key pair, made by chance at first start and kept in a file only its owner can read.
//!
//! The file is two lines, `access_key = ...` and `secret_key = ...`, so that a person can copy them into another client.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rand::Rng;

/// One S3 key pair.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The public half: 20 characters, `A-Z2-7`.
    pub access_key: String,
    /// The secret half: 40 characters, `A-Za-z0-9`.
    pub secret_key: String,
}

/// The secret never gets into a log through `{:?}`.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// Why the key pair's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file is there but cannot be read.
    #[error("cannot read the S3 key pair in {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file is not what this module writes.
    #[error(
        "{path} holds no S3 key pair: `access_key = ...` and `secret_key = ...` are wanted; mend it, or remove it to have a new pair made",
        path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A new pair cannot be written down.
    #[error("cannot write a new S3 key pair to {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Reads the key pair in `path`; makes one (mode 0600, atomically and durably) when there is no such file.
///
/// Blocking file I/O, a few hundred bytes. Two processes that do this at once end up with the same pair.
///
/// # Errors
/// The file cannot be read or written, or holds something else.
pub fn load_or_create_credentials(path: impl AsRef<Path>) -> Result<Credentials, CredentialsError> {
    let path = path.as_ref();
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).ok_or_else(|| CredentialsError::Malformed { path: path.into() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path),
        Err(source) => Err(CredentialsError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn parse(text: &str) -> Option<Credentials> {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (k, v) = line.split_once('=')?;
            (k.trim() == name && !v.trim().is_empty()).then(|| v.trim().to_owned())
        })
    };
    Some(Credentials {
        access_key: value("access_key")?,
        secret_key: value("secret_key")?,
    })
}

fn create(path: &Path) -> Result<Credentials, CredentialsError> {
    let fresh = Credentials {
        access_key: random(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 20),
        secret_key: random(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 40),
    };
    match write_new(path, &fresh) {
        Ok(()) => Ok(fresh),
        // Another process was first: its pair is the one.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => load_or_create_credentials(path),
        Err(source) => Err(CredentialsError::Write {
            path: path.into(),
            source,
        }),
    }
}

fn random(alphabet: &[u8], len: usize) -> String {
    let mut rng = rand::rng();
    (0..len)
        .map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())]))
        .collect()
}

/// Written under a temporary name, then linked: a crash leaves either nothing or the whole file under `path`, and the
/// link fails when somebody else made it meanwhile.
fn write_new(path: &Path, pair: &Credentials) -> io::Result<()> {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let temp = dir.join(format!(
        ".s3-credentials.{}.{}",
        std::process::id(),
        random(b"abcdefghijkmnpqrstuvwxyz", 8)
    ));
    let linked = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        write!(
            file,
            "access_key = {}\nsecret_key = {}\n",
            pair.access_key, pair.secret_key
        )?;
        file.sync_all()?;
        fs::hard_link(&temp, path)
    })();
    let removed = fs::remove_file(&temp);
    linked.and(removed)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_start_makes_a_pair_that_later_starts_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/s3-credentials");
        let first = load_or_create_credentials(&path).unwrap();
        assert_eq!((first.access_key.len(), first.secret_key.len()), (20, 40));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create_credentials(&path).unwrap(), first);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        assert!(!format!("{first:?}").contains(&first.secret_key));
    }

    #[test]
    fn a_file_with_something_else_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3-credentials");
        fs::write(&path, "access_key = A\nsecret_key =\n").unwrap();
        let err = load_or_create_credentials(&path).unwrap_err();
        assert!(matches!(err, CredentialsError::Malformed { .. }), "{err}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "access_key = A\nsecret_key =\n");
    }

    #[test]
    fn starters_at_the_same_time_agree_on_one_pair() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3-credentials");
        let pairs: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..8)
                .map(|_| s.spawn(|| load_or_create_credentials(&path).unwrap()))
                .collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(pairs.iter().all(|p| *p == pairs[0]));
    }
}
