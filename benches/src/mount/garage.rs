//! One Garage node, with a bucket for each piece of work, that writes down every request it gets.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{bucket::Keys, world};

/// In the form that Garage asks for; the server lives as long as the run.
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const REGION: &str = "garage";

/// A running server; ended when dropped.
pub struct Garage {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
    child: Child,
}

impl Garage {
    /// Starts it under `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let program = super::command::tool("garage")?;
        let folder = folder.join("garage");
        fs::create_dir_all(&folder)?;
        let held: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let ports: Vec<u16> = held
            .iter()
            .map(|held| Ok(held.local_addr()?.port()))
            .collect::<Result<_>>()?;
        drop(held);
        let (at, [port, rpc, admin]) = (folder.display(), [ports[0], ports[1], ports[2]]);
        let text = format!(
            "metadata_dir = \"{at}/meta\"\ndata_dir = \"{at}/data\"\ndb_engine = \"lmdb\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
             rpc_secret = \"{SECRET_KEY}\"\n\
             [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"127.0.0.1:{port}\"\n\
             [admin]\napi_bind_addr = \"127.0.0.1:{admin}\"\n"
        );
        fs::write(folder.join("garage.toml"), text)?;
        let log = fs::File::create(folder.join("log"))?;
        let mut command = Command::new(&program);
        command
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_CONFIG_FILE", folder.join("garage.toml"))
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
            .env("GARAGE_DEFAULT_BUCKET", "unused")
            .env("RUST_LOG", "garage=warn,garage_api_common=info")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = world::detached(&mut command).spawn().context("cannot start Garage")?;
        let garage = Self {
            program,
            folder,
            port,
            child,
        };
        let since = Instant::now();
        while garage.ask(&["bucket", "info", "unused"]).is_err() {
            if since.elapsed() > Duration::from_secs(60) {
                bail!("Garage did not start:\n{}", garage.log(0));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(garage)
    }

    /// Makes the bucket if it is missing.
    pub fn bucket(&self, name: &str) -> Result<()> {
        if self.ask(&["bucket", "info", name]).is_err() {
            self.ask(&["bucket", "create", name])?;
            self.ask(&[
                "bucket", "allow", "--read", "--write", "--owner", name, "--key", ACCESS_KEY,
            ])?;
        }
        Ok(())
    }

    /// How to get at `bucket`.
    pub fn keys(&self, bucket: &str) -> Keys {
        Keys {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            region: REGION.into(),
            bucket: bucket.into(),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
        }
    }

    /// How much of the requests' log there is by now.
    pub fn mark(&self) -> u64 {
        fs::metadata(self.folder.join("log")).map_or(0, |log| log.len())
    }

    /// The paths of the requests with this method since `mark`. A server-side copy is a PUT too.
    pub fn requests(&self, method: &str, mark: u64) -> Vec<String> {
        let word = format!(" {method} /");
        let log = self.log(mark);
        let paths = log.lines().filter_map(|line| {
            let at = line.find(&word)?;
            line[at + word.len() - 1..].split_whitespace().next()
        });
        paths.map(str::to_owned).collect()
    }

    fn log(&self, mark: u64) -> String {
        let bytes = fs::read(self.folder.join("log")).unwrap_or_default();
        let new = bytes.get(usize::try_from(mark).unwrap_or(0)..).unwrap_or_default();
        String::from_utf8_lossy(new).into_owned()
    }

    fn ask(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.folder.join("garage.toml")).args(words);
        super::command::output(&mut command, Duration::from_secs(20)).map(drop)
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
