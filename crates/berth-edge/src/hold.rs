//! Holding a request until its app is ready.
//!
//! The request waits before its body is read, so nothing of it is lost however large it is. Four things end the wait:
//! the app is ready, the app is refused, the time is up, the client has left. On the way out the future of
//! [`Apps::acquire`] is dropped, which takes the claim back.
//!
//! A browser that waits for a page gets the progress page after a while instead. Its next request comes a second later;
//! so that the app goes on starting in between, one waiter an app stays behind on the browser's behalf.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_workspace::AppName;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use pingora::proxy::Session;
use tokio::time::{sleep, timeout};

use crate::apps::{Apps, Lease, Refusal};
use crate::client_socket::CONNECTION;
use crate::config::EdgeConfig;
use crate::counters::{Counters, Open};
use crate::pages;

/// How a wait ended.
pub(crate) enum Held {
    Ready(Box<dyn Lease>),
    Refused(Refusal),
    ClientLeft,
    /// A person waits in front of a browser: show something.
    ShowProgress,
}

/// What the waits of one edge share.
pub(crate) struct Holder {
    apps: Arc<dyn Apps>,
    start_timeout: Duration,
    progress_after: Option<Duration>,
    counters: Arc<Counters>,
    /// Apps that are waited for on behalf of a browser which will ask again.
    waited_for: Arc<Mutex<HashSet<AppName>>>,
}

impl Holder {
    pub(crate) fn new(config: &EdgeConfig, apps: Arc<dyn Apps>, counters: Arc<Counters>) -> Self {
        Self {
            apps,
            start_timeout: config.start_timeout,
            progress_after: config.progress_after,
            counters,
            waited_for: Arc::default(),
        }
    }

    /// Waits for `app` on behalf of this request. Its body stays unread.
    pub(crate) async fn hold(&self, app: &AppName, session: &mut Session) -> Held {
        let progress_after = self.progress_after.filter(|_| wants_progress(session));
        let begun = Instant::now();
        let held = {
            let _held = Open::new(&self.counters, |counters| &counters.held_now);
            tokio::select! {
                // First the app: the usual case is that it is ready, and nothing else need be looked at.
                biased;
                acquired = timeout(self.start_timeout, self.apps.acquire(app)) => match acquired {
                    Ok(Ok(lease)) => Held::Ready(lease),
                    Ok(Err(refusal)) => Held::Refused(refusal),
                    Err(_) => Held::Refused(Refusal::StartTimeout { waited: self.start_timeout }),
                },
                () = client_left(session) => Held::ClientLeft,
                () = later(progress_after) => Held::ShowProgress,
            }
        };
        self.counters.held_for(begun.elapsed());
        if matches!(held, Held::ShowProgress) {
            self.stay_behind(app);
        }
        held
    }

    /// Keeps the app starting for a browser that will ask again.
    fn stay_behind(&self, app: &AppName) {
        if !self.waited_for.lock().insert(app.clone()) {
            return;
        }
        let (apps, waited_for, app, limit) = (
            Arc::clone(&self.apps),
            Arc::clone(&self.waited_for),
            app.clone(),
            self.start_timeout,
        );
        tokio::spawn(async move {
            // What comes of it is told to the next request.
            let _ = timeout(limit, apps.acquire(&app)).await;
            waited_for.lock().remove(&app);
        });
    }
}

/// Resolves when the client has gone; never, when that cannot be known.
async fn client_left(session: &mut Session) {
    if let Ok(connection) = CONNECTION.try_with(Arc::clone) {
        if connection.left().await.is_err() {
            std::future::pending::<()>().await;
        }
    } else if session.is_http2() {
        // Only waits for the stream's reset, whether or not there is a body: that stays unread.
        let _ = session.read_body_or_idle(true).await;
    } else {
        std::future::pending::<()>().await;
    }
}

async fn later(after: Option<Duration>) {
    match after {
        Some(after) => sleep(after).await,
        None => std::future::pending().await,
    }
}

/// Is this a person's browser that opens a page? (`Sec-Fetch-Mode` is only sent over TLS and to localhost.)
fn wants_progress(session: &Session) -> bool {
    let request = session.req_header();
    request.method == Method::GET && is_navigation(&request.headers)
}

fn is_navigation(headers: &HeaderMap) -> bool {
    let is = |name: &str, value: &str| {
        headers
            .get(name)
            .is_some_and(|found| found.as_bytes() == value.as_bytes())
    };
    pages::wants_html(headers)
        && match headers.get("sec-fetch-mode") {
            Some(_) => is("sec-fetch-mode", "navigate"),
            None => is("upgrade-insecure-requests", "1"),
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn only_a_browser_that_opens_a_page_gets_the_progress_page() {
        let navigation = |pairs: &[(&'static str, &'static str)]| {
            is_navigation(
                &pairs
                    .iter()
                    .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                    .collect(),
            )
        };
        assert!(navigation(&[
            ("accept", "text/html,*/*"),
            ("upgrade-insecure-requests", "1")
        ]));
        assert!(navigation(&[("accept", "text/html"), ("sec-fetch-mode", "navigate")]));
        assert!(!navigation(&[
            ("accept", "text/html"),
            ("sec-fetch-mode", "cors"),
            ("upgrade-insecure-requests", "1")
        ]));
        assert!(!navigation(&[("accept", "text/html")]));
        assert!(!navigation(&[("accept", "*/*"), ("upgrade-insecure-requests", "1")]));
        assert!(!navigation(&[]));
    }
}
