//! The event stream that some servers have (`GET /BUCKET?events=...`, first made by MinIO): one line of JSON for each change,
//! blanks in between so that both sides see that the other is there.
//!
//! ```text
//!   asked ──200, event stream──▶ live ──broken, or silent for a minute──▶ asked again, ever more rarely
//!     └──────anything else────▶ none: LIST alone tells
//! ```
//! A line says which key changed, never what the tree is told: the key is looked at (`watch/look.rs`). Nobody tells what
//! happened before the stream was there, so each time it is, a LIST follows. A server that answers the same question with a
//! listing, as most do that do not know it, has no events.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{
    Inner,
    watch::{Claim, Watched},
};
use crate::Act;

/// In the order in which it is signed.
const QUERY: &str = "events=s3%3AObjectCreated%3A%2A&events=s3%3AObjectRemoved%3A%2A&prefix=&suffix=";
/// A server that has events says so within this time: MinIO with its first blank, after half a second.
const ANSWER: Duration = Duration::from_secs(5);
/// A stream without even a blank for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// Pauses between tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A stream that lived this long was no failure.
const LIVED: Duration = Duration::from_secs(10);
/// The longest line that is read.
const LONGEST: usize = 1 << 20;

/// What a line of the stream says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// These keys of the bucket changed.
    Keys(Vec<(String, Claim)>),
    /// Something that is not understood: it may have been a change.
    Unclear,
}

/// What a server answers when it is asked for events.
#[derive(Debug)]
pub(super) enum Answer {
    /// Them.
    Stream(Incoming),
    /// It has none.
    None,
    /// It cannot say now.
    Later,
}

#[derive(Deserialize)]
struct Notification {
    #[serde(rename = "Records", default)]
    records: Option<Vec<Record>>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "eventName", default)]
    name: String,
    s3: Entity,
}

#[derive(Deserialize)]
struct Entity {
    #[serde(default)]
    bucket: Option<Bucket>,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Object {
    /// As in a query: `+` is a space.
    key: String,
    #[serde(rename = "eTag", default)]
    etag: Option<String>,
}

/// Reads one line; none for a blank one.
pub(super) fn parse(line: &[u8], bucket: &str) -> Option<Line> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    let Ok(notification) = serde_json::from_slice::<Notification>(line) else {
        return Some(Line::Unclear);
    };
    let records = notification.records.unwrap_or_default();
    let ours = records.into_iter().filter(|record| {
        let its = record.s3.bucket.as_ref().map(|its| its.name.as_str());
        its.is_none_or(|its| its.is_empty() || its == bucket)
    });
    Some(Line::Keys(ours.filter_map(Record::claim).collect()))
}

impl Record {
    fn claim(self) -> Option<(String, Claim)> {
        let key = self.s3.object.key.replace('+', " ");
        let key = percent_decode_str(&key).decode_utf8_lossy().into_owned();
        if key.is_empty() {
            return None;
        }
        let etag = self.s3.object.etag.unwrap_or_default();
        let etag = etag.trim_matches('"');
        let claim = match self.name.trim_start_matches("s3:") {
            name if name.starts_with("ObjectRemoved:") => Claim::Gone,
            name if name.starts_with("ObjectCreated:") && !etag.is_empty() => Claim::Is(etag.to_owned()),
            _ => Claim::Changed,
        };
        Some((key, claim))
    }
}

/// Puts pieces together to lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Calls `line` for each line that `piece` completes; `false` when one is too long to be an event.
    pub(super) fn push(&mut self, piece: &[u8], mut line: impl FnMut(&[u8])) -> bool {
        let mut pieces = piece.split(|byte| *byte == b'\n');
        let Some(first) = pieces.next() else { return true };
        self.rest.extend_from_slice(first);
        for next in pieces {
            line(&self.rest);
            self.rest.clear();
            self.rest.extend_from_slice(next);
        }
        // Blanks without a line's end are a sign of life too.
        if self.rest.trim_ascii().is_empty() {
            self.rest.clear();
        }
        self.rest.len() <= LONGEST
    }
}

impl Inner {
    /// Asks for the bucket's events.
    pub(super) async fn ask_events(&self) -> Answer {
        let answer = match tokio::time::timeout(ANSWER, self.open(Act::List, QUERY)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.is_unavailable() => return Answer::Later,
            Ok(Err(_)) => return Answer::None,
            Err(_) => return Answer::Later,
        };
        let kind = answer.headers().get(http::header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        match answer.status() {
            StatusCode::OK if kind.starts_with("text/event-stream") || kind.starts_with("application/x-ndjson") => {
                Answer::Stream(answer.into_body())
            }
            status if matches!(status.as_u16(), 408 | 429 | 500 | 502..=504) => Answer::Later,
            _ => Answer::None,
        }
    }
}

/// Follows the bucket's event stream for as long as the server has one.
pub(super) async fn follow(store: Weak<Inner>, watched: Arc<Watched>) {
    let mut pause = PAUSES.0;
    let mut lived = false;
    loop {
        let Some(inner) = store.upgrade() else { return };
        let bucket = inner.bucket.clone();
        match inner.ask_events().await {
            Answer::Stream(stream) => {
                tracing::debug!(bucket, "the S3 server tells of changes");
                drop(inner);
                watched.set_told(true);
                // What happened before, nobody tells.
                watched.list_soon();
                let since = Instant::now();
                let why = read(stream, &bucket, &watched).await;
                watched.set_told(false);
                tracing::info!(bucket, why, "the S3 server's event stream ended; asking for it again");
                if since.elapsed() >= LIVED {
                    pause = PAUSES.0;
                }
                lived = true;
            }
            // A server that had them may be behind a proxy that answers for it.
            Answer::None if !lived => {
                tracing::debug!(bucket, "the S3 server has no events; it is asked by LIST");
                return;
            }
            Answer::None | Answer::Later => drop(inner),
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Reads to the stream's end; why it ended.
async fn read(mut stream: Incoming, bucket: &str, watched: &Watched) -> String {
    let mut lines = Lines::default();
    loop {
        let frame = match tokio::time::timeout(SILENCE, stream.frame()).await {
            Err(_) => return format!("nothing came for {} s", SILENCE.as_secs()),
            Ok(None) => return "the server ended it".to_owned(),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(piece) = frame.into_data() else { continue };
        let fits = lines.push(&piece, |line| match parse(line, bucket) {
            None => {}
            Some(Line::Keys(keys)) => keys.into_iter().for_each(|(key, claim)| watched.hear(&key, claim)),
            Some(Line::Unclear) => watched.list_soon(),
        });
        if !fits {
            return "a line is too long to be an event".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn line(name: &str, key: &str, rest: &str) -> String {
        format!(
            r#"{{"EventName":"{name}","Key":"b/x","Records":[{{"eventVersion":"2.0","eventName":"{name}",
            "s3":{{"bucket":{{"name":"b"}},"object":{{"key":"{key}"{rest}}}}}}}]}}"#
        )
        .replace('\n', "")
    }

    fn keys(line: &str) -> Vec<(String, Claim)> {
        match parse(line.as_bytes(), "b") {
            Some(Line::Keys(keys)) => keys,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_of_minio_names_a_key_and_what_it_became() {
        let put = line("s3:ObjectCreated:Put", "app/a+b%2Bc%C3%BC", r#","size":3,"eTag":"abc""#);
        assert_eq!(
            keys(&put),
            [("app/a b+c\u{fc}".to_owned(), Claim::Is("abc".to_owned()))]
        );
        let removed = line("s3:ObjectRemoved:Delete", "app/a", "");
        assert_eq!(keys(&removed), [("app/a".to_owned(), Claim::Gone)]);
        let copied = line("ObjectCreated:Copy", "app/a", "");
        assert_eq!(keys(&copied), [("app/a".to_owned(), Claim::Changed)]);
    }

    #[test]
    fn blanks_other_buckets_and_empty_lines_say_nothing_and_nonsense_may_have_been_a_change() {
        assert_eq!(parse(b"  \r", "b"), None);
        assert_eq!(keys(r#"{"Records":[]}"#), []);
        assert_eq!(keys(r#"{"Records":null}"#), []);
        let elsewhere = line("s3:ObjectCreated:Put", "a", "").replace(r#""name":"b""#, r#""name":"c""#);
        assert_eq!(keys(&elsewhere), []);
        for unclear in ["{", "[1]", r#"{"Records":[{"s3":7}]}"#, "hello"] {
            assert_eq!(parse(unclear.as_bytes(), "b"), Some(Line::Unclear), "{unclear}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_server_sends_is_read_to_its_end(bytes: Vec<u8>) {
            let _ = parse(&bytes, "b");
        }

        #[test]
        fn an_event_with_anything_put_into_it_is_read_to_its_end(
            at in 0_usize..200,
            with in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut bytes = line("s3:ObjectCreated:Put", "app/a", r#","eTag":"abc""#).into_bytes();
            let at = at.min(bytes.len());
            bytes.splice(at..(at + 2).min(bytes.len()), with);
            let _ = parse(&bytes, "b");
        }

        #[test]
        fn lines_are_the_same_however_they_are_cut_into_pieces(
            lines in proptest::collection::vec("[a-z ]{0,12}", 1..8),
            cuts in proptest::collection::vec(1_usize..9, 1..40),
        ) {
            let text = lines.join("\n") + "\n";
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.into_iter().cycle());
            let (mut reader, mut seen) = (Lines::default(), Vec::new());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                let fits = reader.push(piece, |line| seen.push(String::from_utf8_lossy(line).trim().to_owned()));
                prop_assert!(fits);
                rest = after;
            }
            let wanted: Vec<_> = lines.iter().map(|line| line.trim().to_owned()).collect();
            prop_assert_eq!(seen, wanted);
        }
    }
}
