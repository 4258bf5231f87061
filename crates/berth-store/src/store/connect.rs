//! The first contact: the client from its configuration, and the bucket, made if it is missing.

use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration};
use aws_smithy_http_client::tls;

use super::{ATTEMPT_TIMEOUT, ATTEMPTS, CONNECT_TIMEOUT, DEFAULT_REGION, FIRST_PAUSE, Inner, StoreConfig};
use crate::{Act, Result, StoreError};

pub(super) fn client(cfg: &StoreConfig, region: &str) -> Result<Client> {
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
    pub(super) async fn ensure_bucket(&self, region: &str) -> Result<()> {
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
}
