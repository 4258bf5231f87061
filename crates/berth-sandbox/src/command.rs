//! Starting programs inside a sandbox: the environment they get and how they are found.
//!
//! Used by the init for install steps and the app, and by `exec`. There is no `Command` of the standard library here, because pid 1 waits
//! for all children itself, and because a child must find its program in the sandbox's PATH, not in the keeper's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_sys::process;
use nix::unistd::{AccessFlags, access};

use crate::spec::{APP_HOME, APP_PATH};

/// Exit code of a command that was not found, as in a shell.
const NOT_FOUND: i32 = 127;
/// Exit code of a command that could not be run, as in a shell.
const NOT_RUNNABLE: i32 = 126;

/// What every program inside gets, before the app's own variables.
pub(crate) fn base_environment(app: &str, cwd: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("PATH", APP_PATH),
        ("HOME", APP_HOME),
        ("USER", "app"),
        ("LOGNAME", "app"),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
        ("TMPDIR", "/tmp"),
        ("HOSTNAME", app),
        ("PWD", cwd),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A command whose every part is ready for execve.
pub(crate) struct Prepared {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Prepared {
    /// Prepares `argv` with `layers` of variables, later ones over earlier ones.
    ///
    /// # Errors
    /// Words for people: an empty command, or a zero byte in it.
    pub fn new(argv: &[String], layers: &[&BTreeMap<String, String>]) -> Result<Self, String> {
        let name = argv
            .first()
            .filter(|n| !n.is_empty())
            .ok_or("the command is empty")?
            .clone();
        let mut env: BTreeMap<&str, &str> = BTreeMap::new();
        for layer in layers {
            env.extend(layer.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        }
        let candidates = if name.contains('/') {
            vec![PathBuf::from(&name)]
        } else {
            let path = env.get("PATH").copied().unwrap_or(APP_PATH);
            path.split(':')
                .filter(|d| !d.is_empty())
                .map(|d| Path::new(d).join(&name))
                .collect()
        };
        let text =
            |s: &[u8]| CString::new(s).map_err(|_| format!("`{name}`: a zero byte in its arguments or variables"));
        Ok(Self {
            candidates: candidates
                .iter()
                .map(|p| text(p.as_os_str().as_bytes()))
                .collect::<Result<_, _>>()?,
            argv: argv.iter().map(|a| text(a.as_bytes())).collect::<Result<_, _>>()?,
            env: env
                .iter()
                .map(|(k, v)| text(format!("{k}={v}").as_bytes()))
                .collect::<Result<_, _>>()?,
            name,
        })
    }

    /// Replaces this process. Returns only when that failed: the exit code a shell would give, and the reason.
    pub fn exec(&self) -> (i32, String) {
        let mut refused: Option<io::Error> = None;
        for candidate in &self.candidates {
            if access(candidate.as_c_str(), AccessFlags::F_OK).is_err() {
                continue;
            }
            let error = process::exec(candidate, &self.argv, &self.env);
            refused.get_or_insert(error);
        }
        match refused {
            None => (NOT_FOUND, format!("command not found: {}", self.name)),
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => (
                NOT_FOUND,
                format!(
                    "cannot run {}: the interpreter in its first line is not in the image",
                    self.name
                ),
            ),
            Some(error) => (NOT_RUNNABLE, format!("cannot run {}: {error}", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn later_variables_win_and_the_path_is_the_commands_own() {
        let base = base_environment("hello", "/app");
        let own = BTreeMap::from([
            ("PATH".to_owned(), "/one:/two".to_owned()),
            ("PORT".to_owned(), "80".to_owned()),
        ]);
        let ready = Prepared::new(&["node".to_owned()], &[&base, &own]).unwrap();
        assert_eq!(ready.candidates, [c"/one/node".to_owned(), c"/two/node".to_owned()]);
        assert!(ready.env.contains(&c"PATH=/one:/two".to_owned()) && ready.env.contains(&c"HOME=/tmp/home".to_owned()));
    }

    #[test]
    fn a_command_that_is_not_there_is_said_by_name() {
        let ready = Prepared::new(&["no-such-program".to_owned()], &[]).unwrap();
        assert_eq!(ready.exec(), (127, "command not found: no-such-program".to_owned()));
    }

    #[test]
    fn an_empty_command_is_refused() {
        assert!(Prepared::new(&[], &[]).is_err());
        assert!(Prepared::new(&["a\0b".to_owned()], &[]).is_err());
    }
}
