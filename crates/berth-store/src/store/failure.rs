//! From the SDK's errors to ours: what a caller would do something different about.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use super::Inner;
use crate::{Act, StoreError};

/// What an error is said about: the key, or the bucket when there is none.
pub(super) fn target(bucket: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => format!("s3://{bucket}/{key}"),
        None => format!("s3://{bucket}"),
    }
}

impl Inner {
    /// Says which of our errors this one is.
    pub(super) fn failure<E>(&self, act: Act, key: Option<&str>, error: SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (target, endpoint) = (target(&self.bucket, key), self.endpoint.clone());
        match &error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let (code, message) = (answer.err().code(), answer.err().message());
                return self.refusal(act, key, status, code, message);
            }
            SdkError::DispatchFailure(d) if !d.is_user() => {
                return StoreError::Unreachable {
                    act,
                    target,
                    endpoint,
                    source: Box::new(error),
                };
            }
            SdkError::TimeoutError(_) => {
                return StoreError::Unavailable {
                    act,
                    target,
                    endpoint,
                    reason: "no answer in time".to_owned(),
                };
            }
            SdkError::ResponseError(_) => {
                let reason = format!("the answer broke off: {}", DisplayErrorContext(&error));
                return StoreError::Unavailable {
                    act,
                    target,
                    endpoint,
                    reason,
                };
            }
            _ => {}
        }
        let message = DisplayErrorContext(&error).to_string();
        StoreError::Refused {
            act,
            target,
            code: "ClientError".to_owned(),
            message,
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

    fn refusal(
        &self,
        act: Act,
        key: Option<&str>,
        status: u16,
        code: Option<&str>,
        message: Option<&str>,
    ) -> StoreError {
        let (target, endpoint, bucket) = (target(&self.bucket, key), self.endpoint.clone(), self.bucket.clone());
        let code = code.unwrap_or_default();
        match (code, key) {
            ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken", _) => {
                StoreError::WrongKey {
                    act,
                    target,
                    endpoint,
                    code: code.to_owned(),
                }
            }
            ("NoSuchBucket", _) => StoreError::NoSuchBucket {
                bucket,
                endpoint,
                reason: "it was removed, or never made".to_owned(),
            },
            ("PreconditionFailed" | "ConditionalRequestConflict", Some(key)) => StoreError::Conflict {
                act,
                bucket,
                key: key.to_owned(),
            },
            (_, Some(key)) if status == 412 => StoreError::Conflict {
                act,
                bucket,
                key: key.to_owned(),
            },
            ("NoSuchUpload", _) => StoreError::Unavailable {
                act,
                target,
                endpoint,
                reason: "the server forgot the upload".to_owned(),
            },
            (_, Some(key)) if status == 404 => StoreError::NoSuchKey {
                bucket,
                key: key.to_owned(),
            },
            (_, None) if status == 404 => StoreError::NoSuchBucket {
                bucket,
                endpoint,
                reason: "the server has none of that name".to_owned(),
            },
            ("AccessDenied" | "AllAccessDisabled", _) => StoreError::Forbidden { act, target },
            _ if status == 401 || status == 403 => StoreError::Forbidden { act, target },
            ("RequestTimeout" | "SlowDown" | "InternalError" | "ServiceUnavailable" | "OperationAborted", _) => {
                StoreError::Unavailable {
                    act,
                    target,
                    endpoint,
                    reason: code.to_owned(),
                }
            }
            // 501 stays 501 however often it is asked.
            _ if (status >= 500 && status != 501) || status == 429 || status == 408 => {
                let reason = if code.is_empty() {
                    format!("HTTP {status}")
                } else {
                    format!("HTTP {status} {code}")
                };
                StoreError::Unavailable {
                    act,
                    target,
                    endpoint,
                    reason,
                }
            }
            _ => StoreError::Refused {
                act,
                target,
                code: if code.is_empty() {
                    format!("HTTP {status}")
                } else {
                    code.to_owned()
                },
                message: message.unwrap_or_default().to_owned(),
            },
        }
    }
}
