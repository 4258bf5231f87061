//! Berth's mount: the real daemon, on the Garage node or with its own server.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use berth_harness::{Daemon, Options};

use super::{
    bucket::{Bucket, Keys},
    command::{self, until},
    garage::Garage,
    subject::Subject,
    world,
};

/// The daemon's mount.
pub struct Ours {
    berth: String,
    /// None: the embedded server.
    garage: Option<Rc<Garage>>,
    work: String,
    daemon: Option<Daemon>,
    running: bool,
    bucket: Option<Bucket>,
}

impl Ours {
    pub fn new(berth: &str, garage: Option<&Rc<Garage>>) -> Self {
        Self {
            berth: berth.into(),
            garage: garage.map(Rc::clone),
            work: String::new(),
            daemon: None,
            running: false,
            bucket: None,
        }
    }

    /// A daemon's folders for this work, with the bucket; not yet mounted.
    fn prepare(&mut self, work: &str) -> Result<()> {
        let images = world::inside().unwrap_or_default().join("images");
        // A cache that holds the largest file of the work; the rest as it comes.
        let mut options = Options {
            // No app runs here: no image is needed.
            env: vec![("BERTH_PATHS_IMAGES".into(), images.to_string_lossy().into_owned())],
            lines: vec![("mount", "cache_max = \"3G\"".into())],
            ..Options::default()
        };
        let mut keys = None;
        if let Some(garage) = &self.garage {
            garage.bucket(work)?;
            let found = garage.keys(work);
            for line in [
                format!("endpoint = {:?}", found.endpoint),
                format!("region = {:?}", found.region),
                format!("bucket = {:?}", found.bucket),
                format!("access_key = {:?}", found.access_key),
                format!("secret_key = {:?}", found.secret_key),
            ] {
                options.lines.push(("s3", line));
            }
            keys = Some(found);
        }
        let mut daemon = Daemon::prepared(&self.berth, options);
        world::remember(daemon.disk())?;
        world::remember(daemon.run_dir())?;
        let keys = match keys {
            Some(keys) => keys,
            None => {
                daemon.launch();
                self.running = true;
                let found = daemon.s3_env();
                let value = |name: &str| found.get(name).cloned().with_context(|| format!("no {name}"));
                Keys {
                    endpoint: value("AWS_ENDPOINT_URL")?,
                    region: "us-east-1".into(),
                    bucket: value("S3_BUCKET")?,
                    access_key: value("AWS_ACCESS_KEY_ID")?,
                    secret_key: value("AWS_SECRET_ACCESS_KEY")?,
                }
            }
        };
        self.daemon = Some(daemon);
        self.bucket = Some(Bucket::connect(&keys)?);
        work.clone_into(&mut self.work);
        Ok(())
    }

    fn mount(&mut self) -> Result<Duration> {
        let folder = self.folder();
        let daemon = self.daemon.as_mut().context("no daemon")?;
        let begun = Instant::now();
        daemon.spawn();
        self.running = true;
        if !until(Duration::from_secs(30), Duration::from_millis(2), || {
            command::is_mounted(&folder)
        }) {
            let log = daemon.log();
            anyhow::bail!("not mounted: {}", log.lines().last().unwrap_or_default());
        }
        Ok(begun.elapsed())
    }

    fn stop(&mut self) {
        if let (Some(daemon), true) = (self.daemon.as_mut(), self.running) {
            daemon.stop();
        }
        self.running = false;
    }
}

impl Subject for Ours {
    fn name(&self) -> &'static str {
        if self.garage.is_some() {
            "berth"
        } else {
            "berth embedded"
        }
    }

    fn fresh(&mut self, work: &str) -> Result<Duration> {
        if self.daemon.is_none() || self.work != work {
            self.down();
            self.prepare(work)?;
        }
        self.stop();
        if let Some(daemon) = &self.daemon {
            // With its own server, the bucket is in the same folder and stays.
            let forget = if self.garage.is_some() { "state" } else { "state/cache" };
            let _ = fs::remove_dir_all(daemon.disk().join(forget));
        }
        command::drop_caches(3)?;
        self.mount()
    }

    fn kill(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("no daemon")?;
        daemon.kill();
        self.running = false;
        Ok(())
    }

    fn again(&mut self) -> Result<()> {
        Command::new("umount").arg("-l").arg(self.folder()).status()?;
        self.mount().map(drop)
    }

    fn down(&mut self) {
        self.bucket = None;
        self.stop();
        self.daemon = None;
    }

    fn folder(&self) -> PathBuf {
        self.daemon.as_ref().map_or_else(PathBuf::new, Daemon::workspaces)
    }

    fn session(&self) -> Option<PathBuf> {
        self.daemon.as_ref().map(|daemon| daemon.run_dir().join("source"))
    }

    fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().filter(|_| self.running).map(Daemon::pid)
    }

    fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    fn on_garage(&self) -> bool {
        self.garage.is_some()
    }

    fn is_ours(&self) -> bool {
        true
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.down();
    }
}
