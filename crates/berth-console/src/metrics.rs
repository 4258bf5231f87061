//! The daemon's state as numbers, in the text format of Prometheus.
//!
//! A collector that cannot read a unix socket gets them by `curl --unix-socket /run/berth/berth.sock http://berth/metrics`.

use std::{fmt::Write as _, time::SystemTime};

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use berth_host::{AppSnapshot, AppState};

use crate::DaemonStatus;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) fn answer(status: &DaemonStatus, apps: &[AppSnapshot], now: SystemTime) -> Response {
    let states: Vec<AppState> = apps.iter().map(|app| app.state).collect();
    let text = text(status, now) + &by_state(&states);
    ([(CONTENT_TYPE, TEXT)], text).into_response()
}

/// How many apps are in each state; a state without an app is told too, so that a graph has no gaps.
fn by_state(states: &[AppState]) -> String {
    let name = "berth_apps";
    let mut text = format!("# HELP {name} Apps by state.\n# TYPE {name} gauge\n");
    for state in AppState::ALL {
        let count = states.iter().filter(|other| **other == state).count();
        let _ = writeln!(text, "{name}{{state=\"{state}\"}} {count}");
    }
    text
}

/// One metric: its name, what it says, whether it only grows, its value.
type Metric = (&'static str, &'static str, bool, f64);

fn text(status: &DaemonStatus, now: SystemTime) -> String {
    let oldest = status.pending.oldest.and_then(|since| now.duration_since(since).ok());
    let mut metrics: Vec<Metric> = vec![
        (
            "berth_uptime_seconds",
            "Time since the daemon came up.",
            false,
            status.uptime_s as f64,
        ),
        (
            "berth_pending_count",
            "Saves that are not yet in S3.",
            false,
            status.pending.count as f64,
        ),
        (
            "berth_pending_bytes",
            "Bytes of saves that are not yet in S3.",
            false,
            status.pending.bytes as f64,
        ),
        (
            "berth_pending_oldest_seconds",
            "How long the oldest save has not been in S3; 0 when all are.",
            false,
            oldest.map_or(0.0, |age| age.as_secs_f64()),
        ),
        (
            "berth_s3_up",
            "1 when S3 took or answered the last request, 0 when it cannot be used.",
            false,
            if status.s3.trouble.is_none() { 1.0 } else { 0.0 },
        ),
        (
            "berth_local_files",
            "Files that live on this host only.",
            false,
            status.local.files as f64,
        ),
        (
            "berth_local_bytes",
            "Bytes of files that live on this host only.",
            false,
            status.local.bytes as f64,
        ),
        (
            "berth_unshown_count",
            "Objects that the mount does not show.",
            false,
            status.unshown.count as f64,
        ),
        (
            "berth_unannounced_total",
            "Changes made elsewhere that raised no inotify event.",
            true,
            status.unannounced as f64,
        ),
    ];
    if let Some(journal) = &status.journal {
        metrics.extend([
            (
                "berth_journal_disk_bytes",
                "What the journal of saves takes on disk.",
                false,
                journal.disk as f64,
            ),
            (
                "berth_journal_max_bytes",
                "What the journal of saves may take on disk.",
                false,
                journal.max as f64,
            ),
        ]);
    }
    if let Some(hints) = &status.s3.hints {
        let dropped = hints.foreign + hints.forged + hints.stale + hints.repeated;
        metrics.extend([
            (
                "berth_hints_sent_total",
                "Hints sent to other hosts.",
                true,
                hints.sent as f64,
            ),
            (
                "berth_hints_heard_total",
                "Hints of other hosts.",
                true,
                hints.heard as f64,
            ),
            (
                "berth_hints_dropped_total",
                "Datagrams that were no hint, forged, old or repeated.",
                true,
                dropped as f64,
            ),
        ]);
    }
    let mut text = String::new();
    for (name, help, grows, value) in metrics {
        let kind = if grows { "counter" } else { "gauge" };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn apps_are_counted_by_state() {
        let told = by_state(&[AppState::Frozen, AppState::Ready, AppState::Frozen]);
        for line in [
            "berth_apps{state=\"frozen\"} 2",
            "berth_apps{state=\"ready\"} 1",
            "berth_apps{state=\"failed\"} 0",
        ] {
            assert!(told.lines().any(|found| found == line), "{line} in {told}");
        }
    }

    #[test]
    fn what_is_not_yet_in_s3_is_told_as_numbers() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut status = DaemonStatus {
            version: "0".into(),
            pid: 1,
            uptime_s: 7,
            domain: "localhost".into(),
            edge: Vec::new(),
            mount: "/workspaces".into(),
            s3_endpoint: String::new(),
            bucket: "b".into(),
            local: berth_mount::LocalUsage::default(),
            pending: berth_mount::Pending::default(),
            unshown: berth_mount::Unshown::default(),
            unannounced: 0,
            journal: None,
            s3: crate::S3Status::default(),
        };
        let quiet = text(&status, now);
        assert!(quiet.contains("\nberth_pending_oldest_seconds 0\n"), "{quiet}");
        assert!(
            quiet.contains("\nberth_s3_up 1\n") && !quiet.contains("hints"),
            "{quiet}"
        );
        status.pending.count = 3;
        status.pending.bytes = 1_258_291;
        status.pending.oldest = Some(now - Duration::from_millis(12_500));
        status.s3.trouble = Some("S3 does not answer".into());
        status.journal = Some(berth_mount::JournalUsage {
            disk: 4096,
            max: 1 << 31,
            ..berth_mount::JournalUsage::default()
        });
        status.s3.hints = Some(berth_store::HintCounts {
            forged: 2,
            ..berth_store::HintCounts::default()
        });
        let busy = text(&status, now);
        for line in [
            "berth_pending_count 3",
            "berth_pending_bytes 1258291",
            "berth_pending_oldest_seconds 12.5",
            "berth_s3_up 0",
            "berth_journal_disk_bytes 4096",
            "berth_journal_max_bytes 2147483648",
            "berth_hints_dropped_total 2",
        ] {
            assert!(busy.lines().any(|told| told == line), "{line} in {busy}");
        }
        for line in busy.lines().filter(|line| !line.starts_with('#')) {
            assert_eq!(line.split(' ').count(), 2, "{line}");
        }
    }
}
