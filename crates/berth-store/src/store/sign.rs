//! AWS Signature Version 4, for the few requests that are sent without the SDK.
//!
//! Every header that a request has is signed, and its query as it is given. The key of a day is derived once.

use std::fmt::Write as _;

use parking_lot::Mutex;
use percent_encoding::utf8_percent_encode;
use ring::{digest, hmac};
use time::OffsetDateTime;

use super::PLAIN;

/// Stands for the body's hash where the body is not signed.
pub(super) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// A header, its name in lower case.
pub(super) type Header = (&'static str, String);

/// Signs with one key pair for one region.
pub(super) struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
    /// The day (`20261123`) and the key derived for it.
    day: Mutex<(String, Option<hmac::Key>)>,
}

impl Signer {
    pub(super) fn new(access_key: &str, secret_key: &str, region: &str) -> Self {
        Self {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            region: region.to_owned(),
            day: Mutex::default(),
        }
    }

    /// Adds `x-amz-content-sha256`, `x-amz-date` and `authorization`. `headers` must have `host` by now, and the query
    /// must be in order.
    pub(super) fn sign(
        &self,
        method: &str,
        (path, query): (&str, &str),
        body_hash: &str,
        headers: &mut Vec<Header>,
        now: OffsetDateTime,
    ) {
        let (day, time) = stamps(now);
        headers.push(("x-amz-content-sha256", body_hash.to_owned()));
        headers.push(("x-amz-date", time.clone()));
        headers.sort_unstable_by_key(|(name, _)| *name);
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut canonical = format!("{method}\n{path}\n{query}\n");
        for (name, value) in headers.iter() {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{names}\n{body_hash}");
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let signature = hex::encode(hmac::sign(&self.key(&day), text.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key
        );
        headers.push(("authorization", authorization));
    }

    fn key(&self, day: &str) -> hmac::Key {
        let mut cached = self.day.lock();
        if let (its, Some(key)) = &*cached
            && its == day
        {
            return key.clone();
        }
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", self.secret_key).as_bytes());
        for step in [day, &self.region, "s3", "aws4_request"] {
            key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, step.as_bytes()).as_ref());
        }
        *cached = (day.to_owned(), Some(key.clone()));
        key
    }
}

/// The path as it is sent and signed.
pub(super) fn encoded_path(prefix: &str, key: &str) -> String {
    format!("{prefix}{}", utf8_percent_encode(key, PLAIN))
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// `20261123` and `20261123T012345Z`.
fn stamps(now: OffsetDateTime) -> (String, String) {
    let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
    let time = format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
    (day, time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use time::macros::datetime;

    /// The example of AWS's own documentation, "GET Object".
    #[test]
    fn the_published_example_is_signed_as_published() {
        let signer = Signer::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "us-east-1",
        );
        let mut headers = vec![
            ("host", "examplebucket.s3.amazonaws.com".to_owned()),
            ("range", "bytes=0-9".to_owned()),
        ];
        signer.sign(
            "GET",
            (&encoded_path("/", "test.txt"), ""),
            &sha256(b""),
            &mut headers,
            datetime!(2013-05-24 00:00:00 UTC),
        );
        let (_, authorization) = headers.last().unwrap();
        assert!(
            authorization.ends_with("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            "{authorization}"
        );
    }
}
