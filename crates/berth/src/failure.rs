//! How a command ends when it fails: one sentence on standard error, one exit code for scripts.

use std::{error::Error, fmt, process::ExitCode};

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It did not work (1).
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }

    /// What was typed or configured is wrong (2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
        }
    }

    /// There is no such app, workspace or image (3).
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: 3,
            message: message.into(),
        }
    }

    /// No daemon answers (4).
    pub fn no_daemon(message: impl Into<String>) -> Self {
        Self {
            code: 4,
            message: message.into(),
        }
    }

    /// The command to run in a sandbox is not there (127, as in a shell).
    pub fn no_command(message: impl Into<String>) -> Self {
        Self {
            code: 127,
            message: message.into(),
        }
    }

    /// An error with all its causes (1).
    pub fn from_error(error: &dyn Error) -> Self {
        Self::failed(berth_workspace::chain(error))
    }

    /// Says what failed and gives the exit code.
    pub fn report(self) -> ExitCode {
        eprintln!("berth: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
