//! Errors of the S3 client: one variant for each thing that a caller would do something different about.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// What was being done when it failed; reads as `cannot ACT ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// First contact with the endpoint.
    Connect,
    /// Making the bucket.
    CreateBucket,
    /// LIST.
    List,
    /// GET, whole or a range.
    Get,
    /// HEAD.
    Head,
    /// PUT or a multipart upload.
    Put,
    /// Server-side copy.
    Copy,
    /// DELETE.
    Delete,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "open",
            Self::CreateBucket => "make",
            Self::List => "list",
            Self::Get => "get",
            Self::Head => "look up",
            Self::Put => "put",
            Self::Copy => "copy",
            Self::Delete => "delete",
        })
    }
}

/// Why an operation on the bucket failed. `target` is `s3://BUCKET/KEY`, or `s3://BUCKET` for the bucket itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing answers at the endpoint.
    #[error(
        "cannot {act} {target}: nothing answers at {endpoint}; check the endpoint's address and that the S3 server runs"
    )]
    Unreachable {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// The transport's own error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server does not know the access key, or the secret key does not belong to it.
    #[error("cannot {act} {target}: {endpoint} does not accept the key ({code}); check access_key and secret_key")]
    WrongKey {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// The server's code, such as `SignatureDoesNotMatch`.
        code: String,
    },
    /// The clocks are too far apart for the server to accept a signature.
    #[error(
        "cannot {act} {target}: {endpoint} finds this host's clock wrong: it is {ours} here and {theirs} there; let the host \
         keep time (timedatectl set-ntp true)"
    )]
    ClockSkew {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// This host's time, as HTTP writes it.
        ours: String,
        /// The server's time.
        theirs: String,
    },
    /// There is no secure connection to the endpoint.
    #[error("cannot {act} {target}: no secure connection to {endpoint}: {reason}")]
    Tls {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// Something answers at the endpoint, but not in S3's language.
    #[error(
        "cannot {act} {target}: {endpoint} is no S3 server (it answered HTTP {status} with something else); check the \
         endpoint's address and port"
    )]
    NotS3 {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// The answer's status.
        status: u16,
    },
    /// The key is right but may not do this.
    #[error("cannot {act} {target}: the key may not do that; give it list, read, write and delete on the bucket")]
    Forbidden {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
    },
    /// The bucket does not exist and could not be made.
    #[error("bucket {bucket} does not exist at {endpoint}: {reason}; make it, or name another in the configuration")]
    NoSuchBucket {
        /// The bucket.
        bucket: String,
        /// The endpoint's URL.
        endpoint: String,
        /// Why it could not be made.
        reason: String,
    },
    /// No object has the key.
    #[error("no object s3://{bucket}/{key}")]
    NoSuchKey {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A precondition did not hold: somebody else changed the object meanwhile.
    #[error("cannot {act} s3://{bucket}/{key}: the object there is not the expected one; read it again before writing")]
    Conflict {
        /// What was tried.
        act: Act,
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// The server answers but cannot do it now (5xx, slow-down, time-out, connection cut): worth trying again later.
    #[error("cannot {act} {target}: {endpoint} cannot do it now ({reason}); it is worth trying again")]
    Unavailable {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The endpoint's URL.
        endpoint: String,
        /// The server's code, or the transport's words.
        reason: String,
    },
    /// The server refused for good.
    #[error("cannot {act} {target}: the server refused with {code}: {message}")]
    Refused {
        /// What was tried.
        act: Act,
        /// Bucket and key.
        target: String,
        /// The server's code.
        code: String,
        /// The server's words.
        message: String,
    },
    /// A local file to upload cannot be read.
    #[error("cannot put {target}: cannot read {path}", path = path.display())]
    LocalFile {
        /// Bucket and key.
        target: String,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A local file was written to while it was uploaded; nothing of it was stored.
    #[error("{path} was written to while it was uploaded; nothing was stored", path = path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// The store's configuration makes no sense.
    #[error("store configuration: {what}")]
    Config {
        /// What is wrong and how to mend it.
        what: String,
    },
}

impl StoreError {
    /// Whether the same request may well succeed later: nothing answered, or the server said "not now", or somebody has
    /// to set a clock, a certificate or a network right first. The request itself is not at fault.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Unavailable { .. }
                | Self::ClockSkew { .. }
                | Self::Tls { .. }
                | Self::NotS3 { .. }
        )
    }

    /// Why nothing gets through, in a few words; none for what is about one request alone.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable { .. } => "S3 does not answer",
            Self::Unavailable { .. } => "S3 cannot take them now",
            Self::ClockSkew { .. } => "S3 finds this host's clock wrong",
            Self::Tls { .. } => "there is no secure connection to S3",
            Self::NotS3 { .. } => "what answers at the endpoint is no S3 server",
            Self::WrongKey { .. } => "S3 does not accept the key",
            Self::Forbidden { .. } => "the key may not do that",
            Self::NoSuchBucket { .. } => "the bucket does not exist any more",
            _ => return None,
        })
    }

    /// Whether the key has no object.
    #[must_use]
    pub fn is_no_such_key(&self) -> bool {
        matches!(self, Self::NoSuchKey { .. })
    }

    /// Whether somebody else changed the object first.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
