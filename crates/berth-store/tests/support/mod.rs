//! An embedded server on a free port with a folder of its own, and stores that use it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod talking;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_store::{Change, EmbeddedConfig, EmbeddedServer, Store, StoreConfig};
use tokio::sync::broadcast;

pub const ACCESS: &str = "TESTACCESSKEY";
pub const SECRET: &str = "test-secret-key-of-some-length";
pub const BUCKET: &str = "workspaces";

pub fn server_config(dir: &Path) -> EmbeddedConfig {
    EmbeddedConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data_dir: dir.to_owned(),
        access_key: ACCESS.to_owned(),
        secret_key: SECRET.to_owned(),
        bucket: BUCKET.to_owned(),
        cache: EmbeddedConfig::CACHE,
    }
}

pub fn store_config(address: SocketAddr) -> StoreConfig {
    StoreConfig {
        endpoint: Some(format!("http://{address}")),
        region: "us-east-1".to_owned(),
        bucket: BUCKET.to_owned(),
        access_key: ACCESS.to_owned(),
        secret_key: SECRET.to_owned(),
        session_token: None,
        path_style: true,
        poll_interval: Duration::from_millis(50),
    }
}

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub server: EmbeddedServer,
    pub store: Store,
}

pub async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let server = EmbeddedServer::start(server_config(dir.path())).await.unwrap();
    let store = Store::connect(store_config(server.local_addr()), Some(server.feed()))
        .await
        .unwrap();
    Fixture { dir, server, store }
}

/// A plain S3 client, for what `Store` does not do.
pub fn raw(address: SocketAddr) -> aws_sdk_s3::Client {
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "test"))
        .region(Region::new("us-east-1"))
        .force_path_style(true)
        .endpoint_url(format!("http://{address}"));
    aws_sdk_s3::Client::from_conf(config.build())
}

/// The next change, or a failure after ten seconds without one.
pub async fn next(changes: &mut broadcast::Receiver<Change>) -> Change {
    tokio::time::timeout(Duration::from_secs(10), changes.recv())
        .await
        .expect("no change came")
        .unwrap()
}

/// Waits until it is so; a failure after twenty seconds.
pub async fn eventually(condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "it did not come to be so");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bytes that do not repeat, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
