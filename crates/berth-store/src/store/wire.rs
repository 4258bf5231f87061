//! The requests that a mount sends by the thousand (GET, HEAD, PUT and DELETE of one object), and the one for events, on
//! hyper alone.
//!
//! The SDK takes some 300 µs of CPU for each request; here it is a fifth of that, which a walk over 5,000 small files
//! notices. Everything else (LIST, COPY, uploads in parts, buckets) goes through the SDK.
//!
//! The body of a PUT is signed, but not to this very host without TLS: nothing between the two can change it.

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::error::DisplayErrorContext;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use time::OffsetDateTime;

use super::failure::{Refusal, target};
use super::sign::{Header, Signer, UNSIGNED, encoded_path, sha256};
use super::{ATTEMPT_TIMEOUT, ATTEMPTS, CONNECT_TIMEOUT, FIRST_PAUSE, Inner, StoreConfig};
use crate::{Act, Result, StoreError};

/// A connection that was idle for longer is not used again: servers close theirs after 5 s at the earliest.
const IDLE: Duration = Duration::from_secs(4);

/// A server may announce any length: memory is taken in advance for this much. Nobody asks for more in one request.
const MOST_ANNOUNCED: usize = 16 << 20;

/// One request about one object.
pub(super) struct Ask<'a> {
    pub act: Act,
    pub method: Method,
    pub key: &'a str,
    pub headers: Vec<Header>,
    pub body: Bytes,
}

/// What the server said, whole.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A refusal, and the HTTP status it came with if any.
pub(super) type Refused = (StoreError, Option<u16>);

/// Connections, and how to sign.
pub(super) struct Wire {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// `http://HOST:PORT`.
    base: String,
    host: String,
    /// What stands before the key: `/` or `/BUCKET/`.
    prefix: String,
    signer: Signer,
    session_token: Option<String>,
    sign_bodies: bool,
}

impl Wire {
    pub(super) fn new(cfg: &StoreConfig, region: &str) -> Result<Self> {
        let base = cfg.endpoint.clone().unwrap_or_else(|| aws_endpoint(region));
        let unusable = || StoreError::Config {
            what: format!("endpoint `{base}` is no URL; write it as http://HOST:PORT or https://HOST"),
        };
        let uri: Uri = base.parse().map_err(|_| unusable())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(unusable());
        };
        let (host, bucket) = match cfg.path_style {
            true => (authority.to_string(), format!("{}/", cfg.bucket)),
            false => (format!("{}.{authority}", cfg.bucket), String::new()),
        };
        let host = host
            .trim_end_matches(if scheme == "https" { ":443" } else { ":80" })
            .to_owned();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|source| StoreError::Config {
                what: format!("this host's certificates cannot be read ({source}); install ca-certificates"),
            })?;
        Ok(Self {
            http: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(tls.https_or_http().enable_http1().wrap_connector(connector)),
            base: format!("{scheme}://{host}"),
            prefix: format!("{}/{bucket}", uri.path().trim_end_matches('/')),
            sign_bodies: scheme == "https" || !is_this_host(authority.host()),
            host,
            signer: Signer::new(&cfg.access_key, &cfg.secret_key, region),
            session_token: cfg.session_token.clone(),
        })
    }

    /// `query` is in the order and spelling in which it is signed.
    fn request(&self, ask: &Ask<'_>, query: &str, body_hash: &str) -> Result<Request<Full<Bytes>>, http::Error> {
        let path = encoded_path(&self.prefix, ask.key);
        let mut headers = ask.headers.clone();
        headers.push(("host", self.host.clone()));
        headers.extend(self.session_token.clone().map(|token| ("x-amz-security-token", token)));
        let method = ask.method.as_str();
        self.signer.sign(
            method,
            (&path, query),
            body_hash,
            &mut headers,
            OffsetDateTime::now_utc(),
        );
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}{path}{mark}{query}", self.base));
        for (name, value) in headers {
            request = request.header(name, HeaderValue::try_from(value)?);
        }
        if ask.method == Method::PUT {
            request = request.header(CONTENT_LENGTH, ask.body.len());
        }
        request.body(Full::new(ask.body.clone()))
    }
}

impl Inner {
    /// Sends it, again if it failed on the way or the server said "not now".
    pub(super) async fn send(&self, ask: Ask<'_>) -> Result<Answer, Refused> {
        let body_hash = match self.wire.sign_bodies {
            true => sha256(&ask.body),
            false => UNSIGNED.to_owned(),
        };
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let (error, status) = match self.try_once(&ask, &body_hash).await {
                Ok(answer) => {
                    *self.trouble.lock() = None;
                    return Ok(answer);
                }
                Err(refused) => refused,
            };
            *self.trouble.lock() = error.trouble();
            let certain = matches!(error, StoreError::Tls { .. } | StoreError::NotS3 { .. });
            let passing = !certain && status.is_none_or(|s| matches!(s, 408 | 429 | 500 | 502..=504));
            if tries == ATTEMPTS || !passing || !error.is_unavailable() {
                return Err((error, status));
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause *= 2;
            tries += 1;
        }
    }

    async fn try_once(&self, ask: &Ask<'_>, body_hash: &str) -> Result<Answer, Refused> {
        let sent = tokio::time::timeout(ATTEMPT_TIMEOUT, self.exchange(ask, body_hash)).await;
        let answer = match sent {
            Ok(answer) => answer.map_err(|error| (error, None))?,
            Err(_) => return Err((self.unavailable(ask, "no answer in time".to_owned()), None)),
        };
        if answer.status.is_success() {
            let foreign = is_html(&answer.headers) && answer.header("etag").is_none();
            return match foreign && ask.method != Method::DELETE {
                true => Err((self.no_s3_server(ask.act, Some(ask.key), answer.status.as_u16()), None)),
                false => Ok(answer),
            };
        }
        let error = self.refused(ask.act, Some(ask.key), answer.status, &answer.headers, &answer.body);
        Err((error, Some(answer.status.as_u16())))
    }

    /// Which of our errors an answer is that is no success.
    pub(super) fn refused(
        &self,
        act: Act,
        key: Option<&str>,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> StoreError {
        let text = String::from_utf8_lossy(body);
        let refusal = Refusal {
            status: status.as_u16(),
            code: element(&text, "Code"),
            message: element(&text, "Message"),
            date: headers.get(http::header::DATE).and_then(|d| d.to_str().ok()),
            html: is_html(headers),
        };
        self.refusal(act, key, &refusal)
    }

    async fn exchange(&self, ask: &Ask<'_>, body_hash: &str) -> Result<Answer> {
        let (head, body) = self.begin(ask, "", body_hash).await?.into_parts();
        let body = own(body).await.map_err(|e| self.broken_body(ask.act, ask.key, &e))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// GET of the bucket itself with `query`, once, whatever the answer; its body is still to be read.
    pub(super) async fn open(&self, act: Act, query: &str) -> Result<Response<Incoming>> {
        let ask = Ask {
            act,
            method: Method::GET,
            key: "",
            headers: Vec::new(),
            body: Bytes::new(),
        };
        self.begin(&ask, query, &sha256(b"")).await
    }

    /// Sends it once; the answer's head.
    async fn begin(&self, ask: &Ask<'_>, query: &str, body_hash: &str) -> Result<Response<Incoming>> {
        let request = self.wire.request(ask, query, body_hash);
        let request = request.map_err(|error| StoreError::Refused {
            act: ask.act,
            target: target(&self.bucket, Some(ask.key)),
            code: "ClientError".to_owned(),
            message: error.to_string(),
        })?;
        self.wire.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                self.not_connected(ask.act, Some(ask.key), Box::new(error))
            } else {
                self.unavailable(ask, format!("the connection broke: {}", DisplayErrorContext(&error)))
            }
        })
    }

    fn unavailable(&self, ask: &Ask<'_>, reason: String) -> StoreError {
        StoreError::Unavailable {
            act: ask.act,
            target: target(&self.bucket, Some(ask.key)),
            endpoint: self.endpoint.clone(),
            reason,
        }
    }
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `Content-Length`, of a HEAD.
    pub(super) fn length(&self) -> u64 {
        self.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)
    }

    pub(super) fn modified(&self) -> SystemTime {
        let date = self.header("last-modified").and_then(http_date);
        date.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The whole body, in memory of its own: a piece as hyper gives it is part of its buffer of 8 KiB and more, and who keeps a
/// small body would keep that.
async fn own(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let announced = body.size_hint().exact().and_then(|len| usize::try_from(len).ok());
    let mut whole = BytesMut::with_capacity(announced.unwrap_or_default().min(MOST_ANNOUNCED));
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            whole.extend_from_slice(&piece);
        }
    }
    Ok(whole.freeze())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn http_date(text: &str) -> Option<SystemTime> {
    use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
    DateTime::from_str(text, DateTimeFormat::HttpDate).ok()?.try_into().ok()
}

pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/html"))
}

/// The text of the first `<NAME>`; S3's errors are flat.
fn element<'t>(xml: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

fn aws_endpoint(region: &str) -> String {
    let end = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://s3.{region}.{end}")
}

fn is_this_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether one of the causes is an `E`, and which.
pub(super) fn cause<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<E>() {
            return Some(found);
        }
        // An I/O error that wraps another one names that one's cause as its own.
        if let Some(io) = current.downcast_ref::<std::io::Error>()
            && let Some(inner) = io.get_ref()
        {
            next = Some(inner);
            continue;
        }
        next = current.source();
    }
    None
}
