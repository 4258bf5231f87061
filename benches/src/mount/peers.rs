//! The peers: Debian's rclone with the flags people used and with tuned ones, and s3fs.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    bucket::{Bucket, Keys},
    command::{self, until},
    garage::Garage,
    subject::Subject,
    world,
};

/// How the reference design ran rclone.
const RCLONE_OLD: &str =
    "--vfs-cache-mode writes --vfs-cache-max-size 500M --dir-cache-time 1m --poll-interval 15s --allow-other";
/// The fastest safe-looking flags that were found.
const RCLONE_TUNED: &str = "--vfs-cache-mode full --vfs-write-back 0s --dir-cache-time 1h --transfers 32 --allow-other";

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    RcloneOld,
    RcloneTuned,
    S3fs,
}

/// A peer's mount.
pub struct PeerMount {
    peer: Peer,
    garage: Rc<Garage>,
    place: PathBuf,
    keys: Keys,
    bucket: Option<Bucket>,
    child: Option<Child>,
}

impl PeerMount {
    pub fn new(peer: Peer, garage: &Rc<Garage>, place: &Path) -> Self {
        let place = place.join(format!("{peer:?}"));
        Self {
            peer,
            garage: Rc::clone(garage),
            place,
            keys: garage.keys("unused"),
            bucket: None,
            child: None,
        }
    }

    fn command(&self) -> Result<Command> {
        let keys = &self.keys;
        let mut command;
        match self.peer {
            Peer::RcloneOld | Peer::RcloneTuned => {
                let flags = if self.peer == Peer::RcloneOld {
                    RCLONE_OLD
                } else {
                    RCLONE_TUNED
                };
                command = Command::new("rclone");
                command
                    .args(["--config", "/dev/null", "--cache-dir"])
                    .arg(self.place.join("cache"))
                    .args(["mount", &format!("bench:{}", keys.bucket)])
                    .arg(self.folder())
                    .args(flags.split(' '));
                for (name, value) in [
                    ("TYPE", "s3"),
                    ("PROVIDER", "Other"),
                    ("NO_CHECK_BUCKET", "true"),
                    ("REGION", &keys.region),
                    ("ENDPOINT", &keys.endpoint),
                    ("ACCESS_KEY_ID", &keys.access_key),
                    ("SECRET_ACCESS_KEY", &keys.secret_key),
                ] {
                    command.env(format!("RCLONE_CONFIG_BENCH_{name}"), value);
                }
            }
            Peer::S3fs => {
                let passwords = self.place.join("passwd");
                let mut file = fs::File::options()
                    .create(true)
                    .write(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&passwords)?;
                write!(file, "{}:{}", keys.access_key, keys.secret_key)?;
                command = Command::new("s3fs");
                command
                    .arg(&keys.bucket)
                    .arg(self.folder())
                    .arg("-f")
                    .arg("-o")
                    .arg(format!(
                        "passwd_file={},url={},use_path_request_style,endpoint={},allow_other",
                        passwords.display(),
                        keys.endpoint,
                        keys.region
                    ));
            }
        }
        // rclone does not start with a bundle of certificates for a plain connection; a proxy would be asked for
        // loopback.
        for name in [
            "AWS_CA_BUNDLE",
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
        ] {
            command.env_remove(name);
        }
        Ok(command)
    }

    fn mount(&mut self) -> Result<Duration> {
        fs::create_dir_all(self.folder())?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.place.join("log"))?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        self.child = Some(
            world::detached(&mut command)
                .spawn()
                .with_context(|| format!("cannot start {:?}", self.peer))?,
        );
        let folder = self.folder();
        if !until(Duration::from_secs(20), Duration::from_millis(2), || {
            command::is_mounted(&folder)
        }) {
            let said = fs::read_to_string(self.place.join("log")).unwrap_or_default();
            bail!(
                "{:?} did not mount: {}",
                self.peer,
                said.lines().last().unwrap_or_default()
            );
        }
        Ok(begun.elapsed())
    }
}

impl Subject for PeerMount {
    fn name(&self) -> &'static str {
        match self.peer {
            Peer::RcloneOld => "rclone old",
            Peer::RcloneTuned => "rclone tuned",
            Peer::S3fs => "s3fs",
        }
    }

    fn fresh(&mut self, work: &str) -> Result<Duration> {
        self.down();
        self.garage.bucket(work)?;
        if self.keys.bucket != work || self.bucket.is_none() {
            self.keys = self.garage.keys(work);
            self.bucket = Some(Bucket::connect(&self.keys)?);
        }
        command::drop_caches(3)?;
        self.mount()
    }

    fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("no process")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn again(&mut self) -> Result<()> {
        Command::new("umount").arg("-l").arg(self.folder()).status()?;
        self.mount().map(drop)
    }

    fn down(&mut self) {
        if command::is_mounted(&self.folder()) {
            let quiet = |words: &[&str]| {
                let mut umount = Command::new("umount");
                umount.args(words).arg(self.folder()).stderr(Stdio::null());
                umount.status().is_ok_and(|status| status.success())
            };
            if !quiet(&[]) {
                quiet(&["-l"]);
            }
        }
        if let Some(mut child) = self.child.take() {
            for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
                if let (Some(signal), Ok(pid)) = (signal, i32::try_from(child.id())) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
                let since = Instant::now();
                while since.elapsed() < Duration::from_secs(5) && matches!(child.try_wait(), Ok(None)) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        let _ = fs::remove_dir_all(self.place.join("cache"));
    }

    fn folder(&self) -> PathBuf {
        self.place.join("mnt")
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    fn on_garage(&self) -> bool {
        true
    }
}

impl Drop for PeerMount {
    fn drop(&mut self) {
        self.down();
    }
}
