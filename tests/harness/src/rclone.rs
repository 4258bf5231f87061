//! rclone: an S3 client that shares no code with Berth.

use std::process::Command;

/// A bucket, and who may use it.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The server's URL.
    pub endpoint: String,
    /// The name of the key.
    pub access_key: String,
    /// The key.
    pub secret_key: String,
    /// The bucket's name.
    pub name: String,
}

impl Bucket {
    /// rclone with the bucket as `b:`, to be given its arguments and run.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("rclone");
        command
            .args(["--config", "/dev/null"])
            .env("RCLONE_CONFIG_B_TYPE", "alias")
            .env("RCLONE_CONFIG_B_REMOTE", format!("s3remote:{}", self.name))
            .env("RCLONE_CONFIG_S3REMOTE_TYPE", "s3")
            .env("RCLONE_CONFIG_S3REMOTE_PROVIDER", "Other")
            .env("RCLONE_CONFIG_S3REMOTE_ACCESS_KEY_ID", &self.access_key)
            .env("RCLONE_CONFIG_S3REMOTE_SECRET_ACCESS_KEY", &self.secret_key)
            .env("RCLONE_CONFIG_S3REMOTE_ENDPOINT", &self.endpoint)
            // It cannot take a bundle of certificates for a plain connection.
            .env_remove("AWS_CA_BUNDLE");
        command
    }

    /// What rclone prints with these arguments.
    ///
    /// # Panics
    /// When it is missing or fails.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn rclone(&self, arguments: &[&str]) -> Vec<u8> {
        let done = self.command().args(arguments).output();
        let done = done.expect("rclone is missing: apt-get install rclone");
        let complaint = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "rclone {arguments:?}: {complaint}");
        done.stdout
    }
}
