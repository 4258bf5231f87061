//! Places where a test lets this process die.
//!
//! `BERTH_CRASH_POINT=NAME` or `NAME:COUNT` kills the process (SIGKILL, as a power cut would: nothing is flushed, no
//! destructor runs) at the COUNT-th passage of the point NAME. Builds without debug assertions have no such points.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

struct Wanted {
    name: String,
    left: AtomicU64,
}

/// Dies here if the environment says so.
pub(crate) fn point(name: &'static str) {
    if !cfg!(debug_assertions) {
        return;
    }
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("BERTH_CRASH_POINT").ok()?;
        let (name, count) = text.rsplit_once(':').unwrap_or((&text, "1"));
        Some(Wanted {
            name: name.to_owned(),
            left: AtomicU64::new(count.parse().unwrap_or(1)),
        })
    });
    if let Some(wanted) = wanted
        && wanted.name == name
        && wanted.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        // A kill that fails would let the test go on as if it had not been asked for; it cannot fail for oneself.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}
