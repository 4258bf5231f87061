//! The S3 client of one bucket, for the embedded server and for any other.
//!
//! Every operation may be repeated: the SDK retries what failed on the way (three tries in all, with short pauses), and a
//! conditional PUT that meets its own earlier try is recognised (`upload.rs`). Longer outages are the caller's to bridge;
//! [`StoreError::is_unavailable`] tells them from refusals.
//!
//! Connections are kept and reused, one for each request under way; there is no limit on how many run at once.

mod failure;
mod upload;
mod watch;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, EncodingType};
use aws_smithy_http_client::tls;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::sync::broadcast;

use self::watch::Changes;
use crate::{Act, Change, ObjectInfo, Precondition, Result, StoreError};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one try may take, body and all; a part has 8 MiB.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// Tries of one request.
const ATTEMPTS: u32 = 3;
/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The region when none is named: what S3 servers other than AWS take for granted.
const DEFAULT_REGION: &str = "us-east-1";
/// What may stand in `x-amz-copy-source` as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');

/// Where the bucket is and how to get at it.
#[derive(Clone)]
pub struct StoreConfig {
    /// The server's URL; none means AWS.
    pub endpoint: Option<String>,
    /// The region's name; empty means `us-east-1`. The embedded server takes any.
    pub region: String,
    /// The bucket's name.
    pub bucket: String,
    /// The public half of the key pair.
    pub access_key: String,
    /// The secret half of the key pair.
    pub secret_key: String,
    /// For temporary AWS keys.
    pub session_token: Option<String>,
    /// `http://host/bucket/key` rather than `http://bucket.host/key`.
    pub path_style: bool,
    /// How often a server without a change feed is listed.
    pub poll_interval: Duration,
}

/// The client of one bucket. Clones share connections and the change feed.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("endpoint", &self.inner.endpoint)
            .field("bucket", &self.inner.bucket)
            .finish()
    }
}

struct Inner {
    client: Client,
    bucket: String,
    /// For errors.
    endpoint: String,
    changes: Changes,
    /// Whether the server honours preconditions of writes.
    conditional: bool,
}

impl Store {
    /// Connects, makes the bucket if it is missing, and starts the change feed: `feed` is the embedded server's; without
    /// one the bucket is listed every `poll_interval`.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], [`StoreError::WrongKey`], [`StoreError::Forbidden`], [`StoreError::NoSuchBucket`]:
    /// each says what to do.
    pub async fn connect(cfg: StoreConfig, feed: Option<broadcast::Receiver<Change>>) -> Result<Store> {
        let client = client(&cfg)?;
        let endpoint = cfg.endpoint.clone().unwrap_or_else(|| "AWS S3".to_owned());
        let embedded = feed.is_some();
        let changes = feed.map_or_else(Changes::polled, Changes::fed);
        let mut inner = Inner {
            client,
            bucket: cfg.bucket.clone(),
            endpoint,
            changes,
            conditional: true,
        };
        inner.ensure_bucket(&cfg.region).await?;
        if !embedded {
            inner.conditional = inner.probe_conditional_writes().await?;
            if !inner.conditional {
                tracing::warn!(
                    endpoint = inner.endpoint,
                    "the S3 server ignores preconditions of writes"
                );
            }
        }
        if let Changes::Polled(polled) = &inner.changes {
            polled.prime(inner.list("").await?);
        }
        let inner = Arc::new(inner);
        watch::start(&inner, cfg.poll_interval.max(Duration::from_millis(10)));
        Ok(Store { inner })
    }

    /// All objects whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// As any request; see [`StoreError`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix).await
    }

    /// The whole object, in memory.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`], and as any request.
    pub async fn get(&self, key: &str) -> Result<(ObjectInfo, Bytes)> {
        self.inner.get(key).await
    }

    /// The bytes of `range` that the object has: fewer at its end, none after it.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`], and as any request.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.inner.get_range(key, range).await
    }

    /// The object's description; none when there is no such object.
    ///
    /// # Errors
    /// As any request; see [`StoreError`].
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.inner.head(key).await
    }

    /// Stores `body`. When it returns, the server has acknowledged it.
    ///
    /// Dropped half-way, the object may or may not have been stored.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `pre` does not hold, and as any request.
    pub async fn put(&self, key: &str, body: Bytes, pre: Precondition) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(key);
        let info = self.inner.put(key, body, &pre).await?;
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    /// Stores a local file; above 16 MiB in parts, with at most 32 MiB of it in memory.
    ///
    /// # Errors
    /// [`StoreError::LocalFile`] when it cannot be read, [`StoreError::Conflict`] when `pre` does not hold, and as any
    /// request.
    pub async fn put_file(&self, key: &str, path: &Path, pre: Precondition) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(key);
        let info = self.inner.put_file(key, path, &pre).await?;
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    /// Copies on the server, headers and all.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`] for `from`, and as any request.
    pub async fn copy(&self, from: &str, to: &str) -> Result<ObjectInfo> {
        let writing = self.inner.changes.writing(to);
        let info = self.inner.copy(from, to).await?;
        if let Some(writing) = writing {
            writing.done(Change::Put(info.clone()));
        }
        Ok(info)
    }

    /// Removes the object; it is no error when there is none.
    ///
    /// # Errors
    /// As any request; see [`StoreError`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let writing = self.inner.changes.writing(key);
        let request = self.inner.client.delete_object().bucket(&self.inner.bucket).key(key);
        request
            .send()
            .await
            .map_err(|e| self.inner.failure(Act::Delete, Some(key), e))?;
        if let Some(writing) = writing {
            writing.done(Change::Deleted { key: key.to_owned() });
        }
        Ok(())
    }

    /// All changes from now on, our own included (published before the write returns).
    ///
    /// A receiver that lagged has missed some and must list anew.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }

    /// The server's URL, for people.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.inner.endpoint
    }

    /// Whether the server honours preconditions of writes. Where it does not, they are checked by a HEAD just before the
    /// PUT, and two hosts that write one key in the same instant may overwrite each other.
    #[must_use]
    pub fn has_conditional_writes(&self) -> bool {
        self.inner.conditional
    }
}

fn client(cfg: &StoreConfig) -> Result<Client> {
    if let Some(url) = &cfg.endpoint
        && !(url.starts_with("http://") || url.starts_with("https://"))
    {
        let what = format!("endpoint `{url}` is no URL; write it as http://HOST:PORT or https://HOST");
        return Err(StoreError::Config { what });
    }
    if cfg.bucket.is_empty() {
        return Err(StoreError::Config {
            what: "the bucket has no name".to_owned(),
        });
    }
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let keys = Credentials::new(
        &cfg.access_key,
        &cfg.secret_key,
        cfg.session_token.clone(),
        None,
        "berth configuration",
    );
    let region = if cfg.region.is_empty() {
        DEFAULT_REGION
    } else {
        &cfg.region
    };
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .credentials_provider(keys)
        .region(Region::new(region.to_owned()))
        .force_path_style(cfg.path_style)
        // The default adds CRCs that servers other than AWS refuse.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(ATTEMPTS)
                .with_initial_backoff(FIRST_PAUSE),
        )
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .build(),
        );
    config.set_endpoint_url(cfg.endpoint.clone());
    Ok(Client::from_conf(config.build()))
}

impl Inner {
    /// A LIST of one key says more than a HEAD, whose errors have no body. A missing bucket is made.
    async fn ensure_bucket(&self, region: &str) -> Result<()> {
        let looked = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .max_keys(1)
            .send()
            .await;
        let error = match looked {
            Ok(_) => return Ok(()),
            Err(e) => self.failure(Act::Connect, None, e),
        };
        if !matches!(error, StoreError::NoSuchBucket { .. }) {
            return Err(error);
        }
        // AWS wants the region named when it is not the first one, and refuses it then.
        let elsewhere = self.endpoint.contains("amazonaws.com") || self.endpoint == "AWS S3";
        let place = (elsewhere && !region.is_empty() && region != DEFAULT_REGION).then(|| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(region))
                .build()
        });
        let made = self
            .client
            .create_bucket()
            .bucket(&self.bucket)
            .set_create_bucket_configuration(place)
            .send()
            .await;
        match made {
            Ok(_) => {
                tracing::info!(bucket = self.bucket, endpoint = self.endpoint, "bucket made");
                Ok(())
            }
            // Another host was first.
            Err(e) if e.as_service_error().is_some_and(|s| s.is_bucket_already_owned_by_you()) => Ok(()),
            Err(e) => match self.failure(Act::CreateBucket, None, e) {
                unavailable if unavailable.is_unavailable() => Err(unavailable),
                why => Err(StoreError::NoSuchBucket {
                    bucket: self.bucket.clone(),
                    endpoint: self.endpoint.clone(),
                    reason: format!("it cannot be made ({why})"),
                }),
            },
        }
    }

    /// Writes an object twice, the second time only if there is none: a server that lets that pass ignores conditions.
    async fn probe_conditional_writes(&self) -> Result<bool> {
        let key = format!(".berth/probe-{}", hex::encode(rand::random::<[u8; 8]>()));
        let put = || {
            self.client
                .put_object()
                .bucket(&self.bucket)
                .key(&key)
                .body(Vec::new().into())
        };
        put().send().await.map_err(|e| self.failure(Act::Put, Some(&key), e))?;
        let second = put()
            .if_none_match("*")
            .send()
            .await
            .map_err(|e| self.failure(Act::Put, Some(&key), e));
        let removed = self.client.delete_object().bucket(&self.bucket).key(&key).send().await;
        removed.map_err(|e| self.failure(Act::Delete, Some(&key), e))?;
        match second {
            Ok(_) => Ok(false),
            Err(e) if e.is_conflict() => Ok(true),
            // Some servers refuse the header.
            Err(StoreError::Refused { .. }) => Ok(false),
            Err(StoreError::Unavailable { reason, .. }) if reason.contains("501") => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut objects = Vec::new();
        let mut token = None;
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .encoding_type(EncodingType::Url);
            let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
            let page = request
                .set_prefix(prefix)
                .set_continuation_token(token.take())
                .send()
                .await;
            let page = page.map_err(|e| self.failure(Act::List, None, e))?;
            let encoded = page.encoding_type() == Some(&EncodingType::Url);
            for object in page.contents() {
                objects.push(ObjectInfo {
                    key: decoded(object.key().unwrap_or_default(), encoded),
                    size: length(object.size()),
                    etag: unquoted(object.e_tag()),
                    modified: time(object.last_modified()),
                });
            }
            token = page.next_continuation_token().map(str::to_owned);
            if page.is_truncated() != Some(true) || token.is_none() {
                return Ok(objects);
            }
        }
    }

    async fn get(&self, key: &str) -> Result<(ObjectInfo, Bytes)> {
        let got = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        let got = got.map_err(|e| self.failure(Act::Get, Some(key), e))?;
        let mut info = ObjectInfo {
            key: key.to_owned(),
            size: length(got.content_length()),
            etag: unquoted(got.e_tag()),
            modified: time(got.last_modified()),
        };
        let body = got
            .body
            .collect()
            .await
            .map_err(|e| self.broken_body(Act::Get, key, &e))?
            .into_bytes();
        info.size = body.len() as u64;
        Ok((info, body))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let got = match self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .range(header)
            .send()
            .await
        {
            Ok(got) => got,
            // The range begins after the object's end.
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 416) => return Ok(Bytes::new()),
            Err(e) => return Err(self.failure(Act::Get, Some(key), e)),
        };
        let body = got
            .body
            .collect()
            .await
            .map_err(|e| self.broken_body(Act::Get, key, &e))?;
        Ok(body.into_bytes())
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => Ok(Some(ObjectInfo {
                key: key.to_owned(),
                size: length(head.content_length()),
                etag: unquoted(head.e_tag()),
                modified: time(head.last_modified()),
            })),
            Err(e) => match self.failure(Act::Head, Some(key), e) {
                StoreError::NoSuchKey { .. } => Ok(None),
                other => Err(other),
            },
        }
    }

    async fn copy(&self, from: &str, to: &str) -> Result<ObjectInfo> {
        let source = format!("{}/{}", self.bucket, utf8_percent_encode(from, PLAIN));
        if from == to {
            // S3 refuses a copy onto itself that changes nothing.
            let there = self.head(from).await?;
            return there.ok_or_else(|| StoreError::NoSuchKey {
                bucket: self.bucket.clone(),
                key: from.to_owned(),
            });
        }
        let copied = self
            .client
            .copy_object()
            .bucket(&self.bucket)
            .key(to)
            .copy_source(source)
            .send()
            .await;
        copied.map_err(|e| match self.failure(Act::Copy, Some(to), e) {
            StoreError::NoSuchKey { bucket, .. } => StoreError::NoSuchKey {
                bucket,
                key: from.to_owned(),
            },
            other => other,
        })?;
        // The answer has no size, and the source may have changed since anybody looked.
        let there = self.head(to).await?;
        there.ok_or_else(|| StoreError::Conflict {
            act: Act::Copy,
            bucket: self.bucket.clone(),
            key: to.to_owned(),
        })
    }
}

/// `encoding-type=url`, where a `+` is a space.
fn decoded(key: &str, encoded: bool) -> String {
    if encoded {
        percent_decode_str(&key.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    } else {
        key.to_owned()
    }
}

fn length(n: Option<i64>) -> u64 {
    n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

fn unquoted(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

fn time(t: Option<&DateTime>) -> SystemTime {
    t.and_then(|t| SystemTime::try_from(*t).ok()).unwrap_or(UNIX_EPOCH)
}

/// Now, to the second: what the server will say about an object just stored, but for the difference of the clocks.
fn now() -> SystemTime {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    UNIX_EPOCH + Duration::from_secs(secs)
}
