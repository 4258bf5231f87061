//! The announcer's helper as a program of its own, for tests of the mount without the daemon; the daemon starts itself as it.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_mount::announcer_asked_for().unwrap_or(ExitCode::FAILURE)
}
