//! When the host is short of memory: the app that nobody has called for longest goes a rung down before its time, then the next.
//!
//! Every two seconds the memory is read. While it is short, one app a look is told so, and its machine decides what that means
//! (`machine/idle.rs`): it is frozen, then its memory handed back, then it is stopped. One at a time, because each look shows what
//! the one before has brought; the one unused for longest first, because it will be missed last. An app in use is never
//! told, nor one that was used in the last seconds.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::driver::Message;
use crate::machine::Event;

/// How often is looked, and who is spared.
pub(crate) struct Pace {
    /// Between two looks.
    pub(crate) look: Duration,
    /// An app that was used within this time is left alone.
    pub(crate) recent: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(2),
            recent: Duration::from_secs(10),
        }
    }
}

/// Tasks waited for memory during this share of the last ten seconds, in per cent: more is too much.
const STALLED: f64 = 10.0;
/// Less than one part in this many of the memory is available.
const AVAILABLE: u64 = 10;

/// Says whether memory is short.
pub(crate) trait Memory: Send + Sync + 'static {
    fn is_short(&self) -> bool;
}

/// The kernel's own figures.
pub(crate) struct HostMemory;

impl Memory for HostMemory {
    fn is_short(&self) -> bool {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        match stalled(&read("/proc/pressure/memory")) {
            // A kernel that tells how long tasks waited for memory knows best.
            Some(share) => share >= STALLED,
            None => is_nearly_full(&read("/proc/meminfo")),
        }
    }
}

/// The share of the last ten seconds in which some task waited for memory, of the text of `/proc/pressure/memory`.
fn stalled(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let mut fields = line.split(' ');
    fields.find_map(|field| field.strip_prefix("avg10=")?.parse().ok())
}

/// Of the text of `/proc/meminfo`.
fn is_nearly_full(text: &str) -> bool {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(available), Some(total)) => available < total / AVAILABLE,
        _ => false,
    }
}

/// Looks at the memory for as long as it is polled.
pub(crate) async fn watch(memory: Arc<dyn Memory>, pace: Pace, apps: impl Fn() -> Vec<Arc<App>>) {
    loop {
        tokio::time::sleep(pace.look).await;
        if memory.is_short()
            && let Some(app) = unused_longest(&apps(), pace.recent)
        {
            app.say(Message::Event(Event::Squeezed));
        }
    }
}

/// The app that nobody has called for longest, at least for `recent`, of those that can go down.
fn unused_longest(apps: &[Arc<App>], recent: Duration) -> Option<&Arc<App>> {
    let idle = apps.iter().filter(|app| app.status.borrow().yields).filter_map(|app| {
        let unused = app.front.read().as_ref()?.gate.unused_for();
        (unused >= recent).then_some((unused, app))
    });
    idle.max_by_key(|(unused, _)| *unused).map(|(_, app)| app)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let text = "some avg10=12.34 avg60=0.35 avg300=0.11 total=491573\nfull avg10=0.04 avg60=0.15 avg300=0.05 total=245747\n";
        assert_eq!(stalled(text), Some(12.34));
        assert_eq!(stalled(""), None, "a kernel without");
        let meminfo =
            |available: u64| format!("MemTotal:  1000000 kB\nMemFree:  5 kB\nMemAvailable:  {available} kB\n");
        assert!(is_nearly_full(&meminfo(99_999)));
        assert!(!is_nearly_full(&meminfo(100_001)));
        assert!(!is_nearly_full(""), "nobody knows, so nobody is hurt");
    }
}
