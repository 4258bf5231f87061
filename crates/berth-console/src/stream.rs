//! Endless answers: log lines and events, one JSON object a line.

use std::{convert::Infallible, path::Path};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use berth_host::HostEvent;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::broadcast;

/// `values` as newline-separated JSON.
fn lines<T: Serialize>(values: impl Stream<Item = T> + Send + 'static) -> Response {
    let chunks = values.map(|value| {
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(chunks),
    )
        .into_response()
}

/// The last `tail` lines of the logs in `dir`, and with `follow` those to come.
pub(crate) fn logs(dir: &Path, tail: usize, follow: bool) -> std::io::Result<Response> {
    if follow {
        return Ok(lines(berth_sandbox::logs::follow(dir, tail)));
    }
    let last = match berth_sandbox::logs::read_tail(dir, tail) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    Ok(lines(futures::stream::iter(last)))
}

/// The host's recent events, and with `follow` those to come. An app's name keeps only its own.
pub(crate) fn events(
    past: Vec<HostEvent>,
    to_come: Option<broadcast::Receiver<HostEvent>>,
    app: Option<String>,
) -> Response {
    let wanted = move |event: &HostEvent| app.as_ref().is_none_or(|app| *app == event.app);
    let past = futures::stream::iter(past);
    let Some(receiver) = to_come else {
        return lines(past.filter(move |event| std::future::ready(wanted(event))));
    };
    // A client so slow that events were dropped for it misses those; it is told nothing wrong.
    let live =
        tokio_stream::wrappers::BroadcastStream::new(receiver).filter_map(|event| std::future::ready(event.ok()));
    lines(past.chain(live).filter(move |event| std::future::ready(wanted(event))))
}
