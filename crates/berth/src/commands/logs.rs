//! `berth logs` and `berth events`.

use std::{io::Write, process::ExitCode};

use berth_host::HostEvent;
use berth_sandbox::logs::{LogLine, LogStream};

use crate::{
    cli,
    client::{Client, encode},
    failure::Failure,
};

pub async fn logs(client: &Client, wanted: &cli::Logs) -> Result<ExitCode, Failure> {
    let path = format!(
        "/v1/apps/{}/logs?tail={}&follow={}",
        encode(&wanted.name),
        wanted.tail,
        wanted.follow
    );
    let show = |line: &[u8]| {
        if wanted.json {
            return put(&mut std::io::stdout(), &String::from_utf8_lossy(line));
        }
        let Ok(line) = serde_json::from_slice::<LogLine>(line) else {
            return true;
        };
        let text = match (wanted.timestamps, line.stream) {
            (true, _) => format!("{} {}", line.t, line.text),
            (false, LogStream::Berth) => format!("[berth] {}", line.text),
            (false, _) => line.text,
        };
        // As with docker: what the app wrote to its standard error comes out on ours.
        match line.stream {
            LogStream::Stderr => put(&mut std::io::stderr(), &text),
            LogStream::Stdout | LogStream::Berth => put(&mut std::io::stdout(), &text),
        }
    };
    until_interrupted(client.lines(&path, show)).await
}

pub async fn events(client: &Client, wanted: &cli::Events) -> Result<ExitCode, Failure> {
    let app = wanted
        .name
        .as_ref()
        .map(|name| format!("&app={}", encode(name)))
        .unwrap_or_default();
    let path = format!("/v1/events?follow={}{app}", wanted.follow);
    let show = |line: &[u8]| {
        if wanted.json {
            return put(&mut std::io::stdout(), &String::from_utf8_lossy(line));
        }
        let Ok(event) = serde_json::from_slice::<HostEvent>(line) else {
            return true;
        };
        let time = event.time.replace_nanosecond(0).unwrap_or(event.time);
        let format = time::format_description::well_known::Rfc3339;
        put(
            &mut std::io::stdout(),
            &format!(
                "{}  {}  {}",
                time.format(&format).unwrap_or_default(),
                event.app,
                event.text
            ),
        )
    };
    until_interrupted(client.lines(&path, show)).await
}

/// Writes a line; `false` when the reader has gone.
fn put(to: &mut impl Write, text: &str) -> bool {
    writeln!(to, "{text}").and_then(|()| to.flush()).is_ok()
}

/// Ctrl-C ends what would go on for ever, without an error.
async fn until_interrupted(work: impl Future<Output = Result<(), Failure>>) -> Result<ExitCode, Failure> {
    tokio::select! {
        done = work => done.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
    }
}
