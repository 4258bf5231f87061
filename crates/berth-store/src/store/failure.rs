//! From the SDK's errors, the transport's and the server's to ours: what a caller would do something different about.

use std::error::Error;
use std::time::SystemTime;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use rustls::CertificateError;

use super::Inner;
use super::wire::cause;
use crate::{Act, StoreError};

/// What an error is said about: the key, or the bucket when there is none.
pub(super) fn target(bucket: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => format!("s3://{bucket}/{key}"),
        None => format!("s3://{bucket}"),
    }
}

/// An answer that is no success.
#[derive(Clone, Copy)]
pub(super) struct Refusal<'a> {
    pub status: u16,
    pub code: Option<&'a str>,
    pub message: Option<&'a str>,
    /// The server's clock, as it wrote it.
    pub date: Option<&'a str>,
    /// The answer is a web page.
    pub html: bool,
}

impl Refusal<'_> {
    /// Whether the server, or something before it, just cannot answer now.
    fn is_passing(&self) -> bool {
        // 501 stays 501 however often it is asked.
        (self.status >= 500 && self.status != 501) || self.status == 429 || self.status == 408
    }
}

impl Inner {
    /// Says which of our errors this one is.
    pub(super) fn failure<E>(&self, act: Act, key: Option<&str>, error: SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (target, endpoint) = (target(&self.bucket, key), self.endpoint.clone());
        let unavailable = |reason| StoreError::Unavailable {
            act,
            target: target.clone(),
            endpoint: endpoint.clone(),
            reason,
        };
        let raw = error.raw_response();
        let header = |name: &str| raw.and_then(|r| r.headers().get(name));
        let html = header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        match &error {
            SdkError::ServiceError(answer) => {
                let refusal = Refusal {
                    status: answer.raw().status().as_u16(),
                    code: answer.err().code(),
                    message: answer.err().message(),
                    date: header("date"),
                    html,
                };
                self.refusal(act, key, &refusal)
            }
            SdkError::DispatchFailure(d) if !d.is_user() => self.not_connected(act, key, Box::new(error)),
            SdkError::TimeoutError(_) => unavailable("no answer in time".to_owned()),
            SdkError::ResponseError(answer) if html => self.no_s3_server(act, key, answer.raw().status().as_u16()),
            SdkError::ResponseError(_) => unavailable(format!("the answer broke off: {}", DisplayErrorContext(&error))),
            _ => StoreError::Refused {
                act,
                target,
                code: "ClientError".to_owned(),
                message: DisplayErrorContext(&error).to_string(),
            },
        }
    }

    /// There is no connection: nobody is there, or TLS says no.
    pub(super) fn not_connected(
        &self,
        act: Act,
        key: Option<&str>,
        source: Box<dyn Error + Send + Sync>,
    ) -> StoreError {
        let (target, endpoint) = (target(&self.bucket, key), self.endpoint.clone());
        match cause::<rustls::Error>(source.as_ref()) {
            Some(tls) => StoreError::Tls {
                act,
                target,
                endpoint,
                reason: tls_reason(tls),
            },
            None => StoreError::Unreachable {
                act,
                target,
                endpoint,
                source,
            },
        }
    }

    pub(super) fn no_s3_server(&self, act: Act, key: Option<&str>, status: u16) -> StoreError {
        StoreError::NotS3 {
            act,
            target: target(&self.bucket, key),
            endpoint: self.endpoint.clone(),
            status,
        }
    }

    /// A broken body, after a good head.
    pub(super) fn broken_body(&self, act: Act, key: &str, error: &(dyn Error + 'static)) -> StoreError {
        StoreError::Unavailable {
            act,
            target: target(&self.bucket, Some(key)),
            endpoint: self.endpoint.clone(),
            reason: format!("the body broke off: {}", DisplayErrorContext(error)),
        }
    }

    /// A listing that cannot be read to its end.
    pub(super) fn broken_list(&self, reason: &str) -> StoreError {
        StoreError::Unavailable {
            act: Act::List,
            target: target(&self.bucket, None),
            endpoint: self.endpoint.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Which of our errors an answer is.
    pub(super) fn refusal(&self, act: Act, key: Option<&str>, refusal: &Refusal<'_>) -> StoreError {
        let status = refusal.status;
        let code = refusal.code.unwrap_or_default();
        // The answer to a LIST has a body, so an S3 server says which error it is.
        let mute = code.is_empty() && matches!(act, Act::Connect | Act::List | Act::CreateBucket);
        if (refusal.html || mute) && !refusal.is_passing() {
            return self.no_s3_server(act, key, status);
        }
        if let Some(missing) = self.missing(act, key, refusal, code) {
            return missing;
        }
        let (target, endpoint) = (target(&self.bucket, key), self.endpoint.clone());
        match code {
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => StoreError::WrongKey {
                act,
                target,
                endpoint,
                code: code.to_owned(),
            },
            "RequestTimeTooSkewed" => StoreError::ClockSkew {
                act,
                target,
                endpoint,
                ours: http_time(SystemTime::now()),
                theirs: refusal.date.unwrap_or("not said").to_owned(),
            },
            "AccessDenied" | "AllAccessDisabled" => StoreError::Forbidden { act, target },
            "RequestTimeout" | "SlowDown" | "InternalError" | "ServiceUnavailable" | "OperationAborted" => {
                StoreError::Unavailable {
                    act,
                    target,
                    endpoint,
                    reason: code.to_owned(),
                }
            }
            _ if status == 401 || status == 403 => StoreError::Forbidden { act, target },
            _ if refusal.is_passing() => StoreError::Unavailable {
                act,
                target,
                endpoint,
                reason: format!("HTTP {status} {code}").trim_end().to_owned(),
            },
            _ => StoreError::Refused {
                act,
                target,
                code: if code.is_empty() {
                    format!("HTTP {status}")
                } else {
                    code.to_owned()
                },
                message: refusal.message.unwrap_or_default().to_owned(),
            },
        }
    }

    /// The refusals that say what is, or is not, in the bucket.
    fn missing(&self, act: Act, key: Option<&str>, refusal: &Refusal<'_>, code: &str) -> Option<StoreError> {
        let no_bucket = |reason: &str| StoreError::NoSuchBucket {
            bucket: self.bucket.clone(),
            endpoint: self.endpoint.clone(),
            reason: reason.to_owned(),
        };
        Some(match (code, key, refusal.status) {
            ("NoSuchBucket", ..) => no_bucket("it was removed, or never made"),
            ("PreconditionFailed" | "ConditionalRequestConflict", Some(key), _) | (_, Some(key), 412) => {
                self.conflict(act, key)
            }
            ("NoSuchUpload", ..) => StoreError::Unavailable {
                act,
                target: target(&self.bucket, key),
                endpoint: self.endpoint.clone(),
                reason: "the server forgot the upload".to_owned(),
            },
            (_, Some(key), 404) => self.no_such_key(key),
            (_, None, 404) => no_bucket("the server has none of that name"),
            _ => return None,
        })
    }
}

/// As HTTP writes it.
fn http_time(time: SystemTime) -> String {
    DateTime::from(time).fmt(DateTimeFormat::HttpDate).unwrap_or_default()
}

/// What is wrong with the certificate, and what to do about it.
fn tls_reason(error: &rustls::Error) -> String {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    match error {
        // A known authority of the same name with another key counts as unknown.
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "this host does not know the authority that issued its certificate; add that authority to the host's \
             certificates (update-ca-certificates), or name a file that has it in SSL_CERT_FILE"
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "its certificate is for another host name; write the endpoint with a name that the certificate has"
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired; renew it, and see that this host's clock is right"
        }
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; see that this host's clock is right"
        }
        InvalidMessage(_) => "it does not speak TLS; write the endpoint with http:// instead",
        other => return format!("{other}; see that the endpoint is right and offers TLS 1.2 or 1.3"),
    }
    .to_owned()
}
