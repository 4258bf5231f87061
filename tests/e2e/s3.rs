//! How a program that knows nothing of the mount reaches a daemon's bucket: the settings of an S3 client of its own.

use std::time::Duration;

use berth_harness::Daemon;
use berth_store::StoreConfig;

/// The daemon's server and bucket.
pub fn store_config(daemon: &Daemon) -> StoreConfig {
    let env = daemon.s3_env();
    StoreConfig {
        endpoint: Some(env["AWS_ENDPOINT_URL"].clone()),
        region: "us-east-1".into(),
        bucket: env["S3_BUCKET"].clone(),
        access_key: env["AWS_ACCESS_KEY_ID"].clone(),
        secret_key: env["AWS_SECRET_ACCESS_KEY"].clone(),
        session_token: None,
        path_style: true,
        poll_interval: Duration::from_secs(15),
    }
}
