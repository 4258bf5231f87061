//! `berth ps`, `stats`, `inspect`, `start`, `stop`, `restart`, `status`.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use berth_console::{AppDetail, AppList, DaemonStatus};
use berth_host::{AppSnapshot, ColdStart};
use berth_mount::{LocalPaths, Pending, Rule, Unshown, Why};
use berth_store::Feed;

use super::{print_json, print_line, table};
use crate::{
    cli::AppArgument,
    client::{Client, encode},
    failure::Failure,
};

pub async fn ps(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let list: AppList = client.get("/v1/apps").await?;
    if json {
        return print_json(&list);
    }
    let mut shown = table::table(
        &[
            "APP", "KIND", "STATE", "SINCE", "PORT", "REVISION", "STARTS", "REQUESTS", "NOTE",
        ],
        &[6, 7],
    );
    for app in &list.apps {
        shown.add_row([
            app.name.to_string(),
            app.kind.map_or_else(|| "-".into(), |kind| kind.to_string()),
            app.state.to_string(),
            table::age(since(app)),
            app.port.map_or_else(|| "-".into(), |port| port.to_string()),
            app.serving_revision
                .as_ref()
                .or(app.revision.as_ref())
                .map_or_else(|| "-".into(), |revision| revision.short().to_string()),
            app.starts.to_string(),
            app.requests.to_string(),
            note(app),
        ]);
    }
    for folder in &list.invalid {
        shown.add_row([
            folder.name.as_str(),
            "-",
            "invalid",
            "-",
            "-",
            "-",
            "0",
            "0",
            folder.reason.as_str(),
        ]);
    }
    print_line(&table::render(&shown));
    if let Some(line) = waiting(&list.pending, list.s3_trouble.as_deref(), SystemTime::now()) {
        print_line(&format!("\n{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is saved and not yet in S3, and why; none when there is nothing.
pub fn waiting(pending: &Pending, trouble: Option<&str>, now: SystemTime) -> Option<String> {
    if pending.count == 0 {
        return None;
    }
    let saves = if pending.count == 1 { "save" } else { "saves" };
    let mut line = format!(
        "{} {saves} ({}) not yet in S3",
        pending.count,
        table::bytes(pending.bytes)
    );
    if let Some(age) = pending.oldest.and_then(|since| now.duration_since(since).ok()) {
        let oldest = if pending.count == 1 { "" } else { "the oldest " };
        line.push_str(&format!(", {oldest}for {}", table::age(age)));
    }
    if let Some(trouble) = trouble {
        line.push_str(&format!(": {trouble}"));
    }
    Some(line)
}

fn since(app: &AppSnapshot) -> Duration {
    (time::OffsetDateTime::now_utc() - app.since)
        .try_into()
        .unwrap_or_default()
}

/// What a person should know, in one line.
fn note(app: &AppSnapshot) -> String {
    app.error
        .as_ref()
        .map(|error| error.headline().to_owned())
        .or_else(|| app.warnings.first().cloned())
        .unwrap_or_default()
}

pub async fn stats(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let list: AppList = client.get("/v1/apps").await?;
    if json {
        return print_json(&list.apps);
    }
    let mut shown = table::table(
        &["APP", "STATE", "MEMORY", "CPU", "PROCESSES", "OPEN", "REQUESTS"],
        &[2, 3, 4, 5, 6],
    );
    let dash = || "-".to_owned();
    for app in &list.apps {
        shown.add_row([
            app.name.to_string(),
            app.state.to_string(),
            app.memory.map_or_else(dash, table::bytes),
            app.cpu_usec
                .map_or_else(dash, |usec| format!("{:.2}s", usec as f64 / 1e6)),
            app.pids.map_or_else(dash, |pids| pids.to_string()),
            app.in_flight.to_string(),
            app.requests.to_string(),
        ]);
    }
    print_line(&table::render(&shown));
    Ok(ExitCode::SUCCESS)
}

pub async fn inspect(client: &Client, name: &str, json: bool) -> Result<ExitCode, Failure> {
    let detail: AppDetail = client.get(&format!("/v1/apps/{}", encode(name))).await?;
    if json {
        return print_json(&detail);
    }
    let AppDetail { app, local } = detail;
    let line = |what: &str, value: String| print_line(&format!("{what:<17}{value}"));
    let dash = || "-".to_owned();
    line("Name", app.name.to_string());
    line("Kind", app.kind.map_or_else(dash, |kind| kind.to_string()));
    line("State", format!("{} for {}", app.state, table::age(since(&app))));
    line(
        "Newest revision",
        app.revision.as_ref().map_or_else(dash, ToString::to_string),
    );
    line(
        "Serves revision",
        app.serving_revision.as_ref().map_or_else(dash, ToString::to_string),
    );
    line(
        "Address inside",
        app.address.map_or_else(dash, |address| address.to_string()),
    );
    line("Sandbox", app.sandbox.clone().unwrap_or_else(dash));
    line(
        "Hosts",
        if app.hosts.is_empty() {
            dash()
        } else {
            app.hosts.join(", ")
        },
    );
    line("Starts", app.starts.to_string());
    line(
        "Requests",
        format!("{} ({} open, {} waiting)", app.requests, app.in_flight, app.waiting),
    );
    line("Memory", app.memory.map_or_else(dash, table::bytes));
    line("Processes", app.pids.map_or_else(dash, |pids| pids.to_string()));
    if let Some(start) = &app.last_cold_start {
        line("Last cold start", time_line(start));
    }
    for (at, told) in only_local(&local).into_iter().enumerate() {
        line(if at == 0 { "Only local" } else { "" }, told);
    }
    for warning in &app.warnings {
        line("Warning", warning.clone());
    }
    if let Some(error) = &app.error {
        line("Error", error.headline().to_owned());
        for more in error.detail.lines().skip(1) {
            line("", more.to_owned());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What of a workspace is on this host only: how much, the largest paths, and what keeps them out of S3.
fn only_local(local: &LocalPaths) -> Vec<String> {
    let sum = |files: u64, bytes: u64| {
        let noun = if files == 1 { "file" } else { "files" };
        format!("{files} {noun}, {}", table::bytes(bytes))
    };
    let mut told = vec![match local.files {
        0 => "nothing".to_owned(),
        _ => format!("{} (never in S3)", sum(local.files, local.bytes)),
    }];
    for path in &local.largest {
        let what = match path.path.as_str() {
            "/" => "the whole workspace",
            path => path,
        };
        told.push(format!(
            "{what}: {}, by {}",
            sum(path.files, path.bytes),
            by(&path.rule)
        ));
    }
    let more = local.paths.saturating_sub(local.largest.len() as u64);
    if more > 0 {
        told.push(format!("and {more} more paths; by rule:"));
        for share in &local.rules {
            told.push(format!("{}: {}", by(&share.rule), sum(share.files, share.bytes)));
        }
    }
    if local.stored_before > 0 {
        told.push(format!(
            "{} more match `exclude` of workspace.json and are in S3: they were stored before, and stay until they are removed",
            local.stored_before
        ));
    }
    told
}

fn by(rule: &Rule) -> String {
    match rule {
        Rule::Host(pattern) => format!("{pattern} of [mount] exclude"),
        Rule::Workspace(pattern) => format!("{pattern} of workspace.json"),
        Rule::Temporary => "its name, one of editors' temporary files".into(),
        Rule::Special => "its kind: no object can be a FIFO, socket or device".into(),
        Rule::NoLonger => "no rule any more: it goes to S3 with its next save".into(),
    }
}

/// The phases in their order, in milliseconds.
fn time_line(start: &ColdStart) -> String {
    let phases = [
        ("queue", Some(start.queue_ms)),
        ("network", Some(start.network_ms)),
        ("create", Some(start.create_ms)),
        ("copy", start.copy_ms),
        ("install", start.install_ms),
        ("launch", Some(start.launch_ms)),
        ("app", Some(start.ready_ms)),
    ];
    let told: Vec<_> = phases
        .iter()
        .filter_map(|(name, ms)| ms.map(|ms| format!("{name} {ms:.1}")))
        .collect();
    format!("{:.1} ms: {}", start.total_ms, told.join(", "))
}

/// Start, stop or restart.
pub async fn act(client: &Client, verb: &str, app: &AppArgument) -> Result<ExitCode, Failure> {
    let after: AppSnapshot = client.post(&format!("/v1/apps/{}/{verb}", encode(&app.name))).await?;
    if app.json {
        return print_json(&after);
    }
    print_line(&format!("{}: {}", after.name, after.state));
    Ok(ExitCode::SUCCESS)
}

pub async fn status(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let status: DaemonStatus = client.get("/v1/status").await?;
    if json {
        return print_json(&status);
    }
    let line = |what: &str, value: String| print_line(&format!("{what:<17}{value}"));
    line("Version", status.version);
    line("Process", status.pid.to_string());
    line("Up for", table::age(Duration::from_secs(status.uptime_s)));
    line("Domain", status.domain);
    line("Edge", status.edge.join(", "));
    line("Workspaces", status.mount.display().to_string());
    line("S3", format!("{} bucket {}", status.s3_endpoint, status.bucket));
    line(
        "Only local",
        format!(
            "{} files, {} (never in S3)",
            status.local.files,
            table::bytes(status.local.bytes)
        ),
    );
    let waits = waiting(&status.pending, status.s3.trouble.as_deref(), SystemTime::now());
    line("Not yet in S3", waits.unwrap_or_else(|| "nothing".into()));
    if let Some(trouble) = status.s3.trouble {
        line("S3 trouble", trouble);
    }
    if let Some(journal) = status.journal {
        let (disk, max) = (table::bytes(journal.disk), table::bytes(journal.max));
        line("Journal", format!("{disk} of {max} in {}", journal.dir.display()));
        for damage in journal.damaged {
            line("", damage);
        }
    }
    line("Changes elsewhere", seen_by(status.s3.feed).into());
    if status.unannounced > 0 {
        line(
            "",
            format!("{} were not announced to inotify watchers", status.unannounced),
        );
    }
    if let Some(hints) = status.s3.hints {
        let dropped = hints.foreign + hints.forged + hints.stale + hints.repeated;
        line(
            "Hints",
            format!("{} sent, {} heard, {dropped} dropped", hints.sent, hints.heard),
        );
    }
    line("Not shown", not_shown(&status.unshown));
    for object in status
        .unshown
        .objects
        .iter()
        .filter(|object| object.why != Why::Excluded)
    {
        line("", format!("{}: {}", object.key, object.why.words()));
    }
    Ok(ExitCode::SUCCESS)
}

fn seen_by(feed: Option<Feed>) -> &'static str {
    match feed {
        Some(Feed::Embedded) => "at once, from the embedded server",
        Some(Feed::Events) => "at once, from the server's event stream",
        Some(Feed::List) => "by listing: the server has no event stream",
        None => "not known",
    }
}

fn not_shown(unshown: &Unshown) -> String {
    let mut told = match unshown.count {
        0 => "nothing".to_owned(),
        1 => "1 object of the bucket".to_owned(),
        count => format!("{count} objects of the bucket"),
    };
    if unshown.excluded > 0 {
        told.push_str(&format!(", and {} on excluded paths", unshown.excluded));
    }
    told
}

#[cfg(test)]
mod tests {
    use berth_mount::{LocalPath, LocalShare};

    use super::*;

    #[test]
    fn what_is_only_local_is_told_with_the_rule_and_the_rest_is_summed_up() {
        assert_eq!(only_local(&LocalPaths::default()), ["nothing"]);
        let path = |path: &str, rule| LocalPath {
            path: path.into(),
            files: 1,
            bytes: 1_048_576,
            rule,
        };
        let host = Rule::Host("dist/**".into());
        let mut local = LocalPaths {
            files: 2,
            bytes: 2_097_152,
            paths: 2,
            largest: vec![
                path("dist/", host.clone()),
                path("a.bin", Rule::Workspace("*.bin".into())),
            ],
            ..LocalPaths::default()
        };
        let told = only_local(&local);
        assert_eq!(
            told,
            [
                "2 files, 2.0 MiB (never in S3)",
                "dist/: 1 file, 1.0 MiB, by dist/** of [mount] exclude",
                "a.bin: 1 file, 1.0 MiB, by *.bin of workspace.json",
            ]
        );
        local.paths = 9;
        local.stored_before = 3;
        local.rules.push(LocalShare {
            rule: host,
            files: 2,
            bytes: 0,
        });
        let told = only_local(&local).split_off(3);
        assert_eq!(told[0], "and 7 more paths; by rule:");
        assert!(told[1].starts_with("dist/** of [mount] exclude: 2 files"), "{told:?}");
        assert!(told[2].starts_with("3 more match"), "{told:?}");
    }

    #[test]
    fn what_is_not_yet_in_s3_is_said_with_its_age_and_the_reason() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut pending = Pending::default();
        assert_eq!(waiting(&pending, None, now), None);
        pending.count = 3;
        pending.bytes = 1_258_291;
        pending.oldest = Some(now - Duration::from_secs(12));
        assert_eq!(
            waiting(&pending, Some("S3 does not answer"), now).as_deref(),
            Some("3 saves (1.2 MiB) not yet in S3, the oldest for 12s: S3 does not answer")
        );
        pending.count = 1;
        assert_eq!(
            waiting(&pending, None, now).as_deref(),
            Some("1 save (1.2 MiB) not yet in S3, for 12s")
        );
    }
}
