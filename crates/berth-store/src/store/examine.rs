//! A look at a server for people: whether it can be used, what it can do, and what time it is there.
//!
//! Nothing is made that stays: the bucket is not made when it is missing, and the probes' objects are taken away again.

use std::time::{Duration, Instant, SystemTime};

use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    Abilities, Inner, Store, StoreConfig, events,
    watch::Changes,
    wire::{http_date, is_html},
};
use crate::{Act, Precondition, Result};

/// What a server is found to be.
#[derive(Debug, Clone)]
pub struct Examination {
    /// Which conditions of writes it checks itself.
    pub abilities: Abilities,
    /// Whether LIST says which version each object is.
    pub etag_in_list: bool,
    /// Whether it tells of changes; none when it could not say.
    pub events: Option<bool>,
    /// What time it is there, to the second.
    pub server_time: Option<SystemTime>,
    /// When it said so, by our clock.
    pub at: SystemTime,
    /// How long a small request took.
    pub took: Duration,
}

impl Store {
    /// Finds out what the server of a bucket can do, without being a client of it.
    ///
    /// # Errors
    /// As [`Store::connect`]; a missing bucket too.
    pub async fn examine(cfg: &StoreConfig) -> Result<Examination> {
        let mut inner = Inner::new(cfg, Changes::none(), CancellationToken::new())?;
        let begun = Instant::now();
        let (server_time, at) = inner.look_in().await?;
        let took = begun.elapsed();
        inner.abilities = inner.probe().await?;
        let etag_in_list = inner.probe_list().await?;
        let events = match inner.ask_events().await {
            events::Answer::Stream(_) => Some(true),
            events::Answer::None => Some(false),
            events::Answer::Later => None,
        };
        Ok(Examination {
            abilities: inner.abilities,
            etag_in_list,
            events,
            server_time,
            at,
            took,
        })
    }
}

impl Inner {
    /// One small LIST; the server's time, and ours when it came.
    async fn look_in(&self) -> Result<(Option<SystemTime>, SystemTime)> {
        let answer = self.open(Act::Connect, "list-type=2&max-keys=1").await?;
        let at = SystemTime::now();
        let (head, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|e| self.broken_body(Act::Connect, "", &e))?;
        if !head.status.is_success() {
            return Err(self.refused(Act::Connect, None, head.status, &head.headers, &body.to_bytes()));
        }
        if is_html(&head.headers) {
            return Err(self.no_s3_server(Act::Connect, None, head.status.as_u16()));
        }
        let date = head.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
        Ok((date.and_then(http_date), at))
    }

    async fn probe_list(&self) -> Result<bool> {
        let key = format!(".berth/probe-{}", hex::encode(rand::random::<[u8; 8]>()));
        self.put(&key, bytes::Bytes::new(), &Precondition::None, None).await?;
        let listed = self.list(&key).await;
        self.send_delete(&key, None).await?;
        Ok(listed?.iter().any(|info| info.key == key && !info.etag.is_empty()))
    }
}
