//! `berth doctor`: what of a host is as Berth needs it, what is not, and how to mend it.
//!
//! Each check looks at one thing and gives one [`Check`]: a state, what was found, and for everything but "ok" what to do. A check
//! never changes the host; where only trying tells (a link between two namespaces), it tries in namespaces of its own that are
//! gone afterwards. Checks do not depend on each other, so one broken part never hides another.
//!
//! What needs other parts of Berth (the store, the images, the daemon itself) comes in through [`Subject`] as closures, so that
//! this module knows neither their configuration nor their types.
//!
//! * [`kernel`]: version, namespaces, file systems, seccomp, links, nftables;
//! * [`cgroups`]: which hierarchy, and its controllers;
//! * [`host`]: capabilities, ports, disk, folders, names, certificates;
//! * [`store`]: S3, the clock, what is not yet in S3 and what is not shown of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

pub mod cgroups;
mod command;
pub mod host;
pub mod kernel;
pub mod store;

pub use command::command;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Berth works, but not as well as it could.
    Warn,
    /// Berth does not work, or not all of it.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// What was found, for people.
    pub found: String,
    /// What to do about it; `None` when nothing is to be done.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Warn,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Fail,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

/// The worst state among checks: what the exit code follows. `Ok` for none.
#[must_use]
pub fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

/// A port the daemon listens on.
#[derive(Clone, Debug)]
pub struct Port {
    /// What for: "http", "s3".
    pub purpose: String,
    /// Where.
    pub address: SocketAddr,
}

/// What an S3 server said, and is found to be.
#[derive(Clone, Debug)]
pub struct StoreAnswer {
    /// What time it is there, if it says so.
    pub server_time: Option<SystemTime>,
    /// When it said so, by our clock.
    pub received: SystemTime,
    /// How long a small request took.
    pub took: Duration,
    /// The requests whose conditions it ignores: `PUT`, `DELETE`, `COPY`.
    pub ignored: Vec<&'static str>,
    /// Whether a listing says which version each object is.
    pub etag_in_list: bool,
    /// Whether it has an event stream, if it says so.
    pub events: Option<bool>,
    /// Whether the daemon feeds itself with the changes.
    pub fed: bool,
    /// The longest time between two listings.
    pub poll_interval: Duration,
}

/// Why an S3 server cannot be used.
#[derive(Clone, Debug)]
pub struct StoreProblem {
    /// In words.
    pub found: String,
    /// What to do about it.
    pub mend: String,
}

/// What the running daemon says about its saves and its mount.
#[derive(Clone, Debug, Default)]
pub struct DaemonState {
    /// What is not yet in S3, in words; none when all is.
    pub waiting: Option<String>,
    /// How long the oldest of it waits.
    pub oldest: Option<Duration>,
    /// The folder of what is saved and not yet in S3.
    pub journal_dir: PathBuf,
    /// What that folder takes on disk, and the most it may take.
    pub journal_size: (u64, u64),
    /// What was found damaged in it.
    pub journal_damage: Vec<String>,
    /// Objects that the mount does not show.
    pub unshown: u64,
    /// Some of them, each with the reason.
    pub unshown_objects: Vec<String>,
}

/// One image and what became of checking it.
#[derive(Clone, Debug)]
pub struct ImageState {
    /// `node`, `python`, `go`, `nginx`.
    pub name: String,
    /// Size and age for people, or what is wrong with it.
    pub verified: Result<String, ImageProblem>,
}

/// What is wrong with an image.
#[derive(Clone, Debug)]
pub enum ImageProblem {
    /// It was never built here.
    Missing,
    /// Its checksum is not the recorded one, or it cannot be read; in words.
    Broken(String),
}

/// The host to look at: what the configuration says, and how to ask other parts of Berth.
pub struct Subject<'a> {
    /// Where the daemon keeps what must last.
    pub state_dir: PathBuf,
    /// Where it keeps what must not.
    pub run_dir: PathBuf,
    /// Where apps' logs go.
    pub log_dir: PathBuf,
    /// Where the bucket is mounted.
    pub mountpoint: PathBuf,
    /// Whether a daemon with this configuration answers on its admin socket: then its ports and its mount are expected.
    pub running: bool,
    /// What it says, if it answers.
    pub daemon: Option<DaemonState>,
    /// Whether the store is the daemon's own: then it cannot answer while no daemon runs.
    pub embedded_store: bool,
    /// Whether sandboxes are given a way out.
    pub network: bool,
    /// The ports of the configuration.
    pub ports: Vec<Port>,
    /// Names that must resolve: of the S3 endpoint and of the domain. Addresses and `localhost` may be among them.
    pub names: Vec<String>,
    /// The certificates apps are given; `None` to look where distributions keep them.
    pub ca_bundle: Option<PathBuf>,
    /// Resolves a name; the error in words.
    pub resolve: &'a dyn Fn(&str) -> Result<Vec<IpAddr>, String>,
    /// Finds out about the S3 server.
    pub store: &'a dyn Fn() -> Result<StoreAnswer, StoreProblem>,
    /// Checks every image there should be.
    pub images: &'a dyn Fn() -> Vec<ImageState>,
}

/// Looks at everything. Blocking: seconds if names or S3 do not answer, else well under one.
#[must_use]
pub fn run(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = kernel::checks(subject.network);
    checks.extend(cgroups::checks());
    checks.extend(host::checks(subject));
    checks.extend(if subject.embedded_store && !subject.running {
        vec![Check::ok(
            "S3",
            "the embedded server, which answers while `berth serve` runs",
        )]
    } else {
        store::checks(subject.store)
    });
    if let Some(daemon) = &subject.daemon {
        checks.extend(store::daemon_checks(daemon));
    }
    checks.extend((subject.images)().into_iter().map(image));
    checks
}

fn image(image: ImageState) -> Check {
    let name = format!("image {}", image.name);
    let build = format!("berth image build {}", image.name);
    match image.verified {
        Ok(found) => Check::ok(name, found),
        Err(ImageProblem::Missing) => Check::fail(name, "not built", build),
        Err(ImageProblem::Broken(what)) => {
            Check::fail(name, what, format!("berth image remove {}; {build}", image.name))
        }
    }
}

/// Resolves a name with the host's resolver: for [`Subject::resolve`].
///
/// # Errors
/// What the resolver said.
pub fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    use std::net::ToSocketAddrs;
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_whole_run_gives_every_check_once_and_a_way_to_mend_each_that_is_not_ok() {
        let folder = tempfile::tempdir().unwrap();
        let subject = Subject {
            state_dir: folder.path().into(),
            run_dir: folder.path().into(),
            log_dir: folder.path().into(),
            mountpoint: folder.path().join("none"),
            running: false,
            daemon: Some(DaemonState::default()),
            embedded_store: false,
            network: true,
            ports: vec![Port {
                purpose: "http".into(),
                address: ([127, 0, 0, 1], 0).into(),
            }],
            names: vec!["localhost".into()],
            ca_bundle: None,
            resolve: &resolve,
            store: &|| {
                Err(StoreProblem {
                    found: "connection refused".into(),
                    mend: "start it".into(),
                })
            },
            images: &|| {
                vec![
                    ImageState {
                        name: "node".into(),
                        verified: Ok("61 MB".into()),
                    },
                    ImageState {
                        name: "go".into(),
                        verified: Err(ImageProblem::Missing),
                    },
                ]
            },
        };
        let checks = run(&subject);
        for check in &checks {
            println!(
                "{:5} {}: {} {}",
                check.status,
                check.name,
                check.found,
                check.mend.as_deref().unwrap_or("")
            );
            assert_eq!(check.mend.is_some(), check.status != Status::Ok, "{check:?}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| &check.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "{names:?}");
        assert_eq!(worst(&checks), Status::Fail, "S3 does not answer");
        let go = checks.iter().find(|check| check.name == "image go").unwrap();
        assert_eq!(go.mend.as_deref(), Some("berth image build go"));
    }

    #[test]
    fn without_checks_all_is_well() {
        assert_eq!(worst(&[]), Status::Ok);
        assert_eq!(worst(&[Check::ok("a", ""), Check::warn("b", "", "c")]), Status::Warn);
    }
}
