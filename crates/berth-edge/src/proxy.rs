//! One request, from its header to its access line: the callbacks that pingora's proxy makes, in their order.
//!
//! ```text
//!   request_filter          limits, health, route, redirect, hold for the app      (own answers end here)
//!   upstream_peer           where to connect; again after each refused attempt
//!   upstream_request_filter prefix off, X-Forwarded-* on
//!   response_filter         redirects and cookies put right
//!   fail_to_proxy           an error becomes one of our pages
//!   logging                 counters and the access line
//! ```
//!
//! The [`Lease`] is in the request's context, which pingora drops when the answer has ended or the tunnel closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use crate::apps::{Apps, Lease, Refusal, Route, Via};
use crate::client_socket::CONNECTION;
use crate::config::EdgeConfig;
use crate::counters::{Counters, Open};
use crate::hold::{Held, Holder};
use crate::pages::{self, Page, Rendered};
use crate::request::{self, Asked};
use crate::rewrite::Prefix;
use crate::routes::first_segment;
use crate::upstream_socket::{AppConnect, Purpose};

/// Kept-open connections to an app are closed after this time without a request.
const KEEP_IDLE: Duration = Duration::from_secs(30);

/// How long a client may take no byte of its answer.
const CLIENT_STALLED: Duration = Duration::from_secs(300);

/// How long the rest of a body is read that nobody wants, so that the client gets to see the answer.
const DRAIN_BODY: Duration = Duration::from_secs(2);

/// Waits between attempts to connect: doubled each time, up to the second.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// The status in logs and counters of a request whose client left before the answer began.
const CLIENT_LEFT: u16 = 499;

/// What all requests of an edge share.
pub(crate) struct Shared {
    config: EdgeConfig,
    apps: Arc<dyn Apps>,
    holder: Holder,
    counters: Arc<Counters>,
    draining: AtomicBool,
    /// Numbers for connections that are used once.
    once: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: &EdgeConfig, apps: Arc<dyn Apps>, counters: Arc<Counters>) -> Self {
        Self {
            config: config.clone(),
            holder: Holder::new(config, Arc::clone(&apps), Arc::clone(&counters)),
            apps,
            counters,
            draining: AtomicBool::new(false),
            once: AtomicU64::new(0),
        }
    }

    /// From now on the health check says that this edge is going down.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Pingora's view of the edge.
pub(crate) struct EdgeProxy(Arc<Shared>);

impl EdgeProxy {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

/// One request.
pub(crate) struct Request {
    begun: Instant,
    asked: Asked,
    route: Option<Route>,
    lease: Option<Box<dyn Lease>>,
    /// How long the app was waited for.
    cold: Duration,
    purpose: Purpose,
    prefix: Option<Prefix>,
    attempts: u32,
    first_refused: Option<Instant>,
    /// A kept-open connection turned out to be closed: take a new one.
    avoid_kept: bool,
    body_in: u64,
    client_left: bool,
    _open: Open,
}

impl Request {
    /// Time for another attempt to connect?
    fn may_retry(&mut self, limit: Duration) -> bool {
        self.first_refused.get_or_insert_with(Instant::now).elapsed() < limit
    }

    /// How long to wait before this attempt to connect.
    fn retry_wait(&self) -> Duration {
        let (first, most) = RETRY_WAITS;
        match (self.first_refused, self.attempts) {
            (None, _) | (_, 0) => Duration::ZERO,
            (Some(_), attempts) => first.saturating_mul(1 << attempts.min(8).saturating_sub(1)).min(most),
        }
    }

    fn app(&self) -> &str {
        self.route.as_ref().map_or("", |route| route.app.as_str())
    }

    fn via_prefix(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.via == Via::Prefix)
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Counters::add(&self.0.counters.requests, 1);
        Request {
            begun: Instant::now(),
            asked: Asked::default(),
            route: None,
            lease: None,
            cold: Duration::ZERO,
            purpose: Purpose::Request,
            prefix: None,
            attempts: 0,
            first_refused: None,
            avoid_kept: false,
            body_in: 0,
            client_left: false,
            _open: Open::new(&self.0.counters, |counters| &counters.open_requests),
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Request) -> Result<bool> {
        let _ = CONNECTION.try_with(|connection| connection.header_done());
        ctx.asked = Asked::of(session.req_header());
        if request::is_websocket(session.req_header()) {
            ctx.purpose = Purpose::Tunnel;
        }
        self.set_timeouts(session, ctx.purpose);
        if let Some(page) = self.over_limit(session) {
            return self.answer(session, ctx, page).await;
        }
        ctx.route = self.0.apps.route(&ctx.asked.host, &ctx.asked.path_text());
        if let Some(done) = self.reserved(session, ctx).await? {
            return Ok(done);
        }
        let Some(route) = ctx.route.clone() else {
            let page = Page::no_app(first_segment(&ctx.asked.path_text()));
            return self.answer(session, ctx, page).await;
        };
        if let Some(location) = ctx
            .asked
            .redirect_to_slash(&route)
            .filter(|_| ctx.purpose == Purpose::Request)
        {
            return send(session, pages::redirect(location), &ctx.asked).await;
        }
        self.acquire(session, ctx, &route).await
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Request) -> Result<Box<HttpPeer>> {
        if ctx.attempts > 0 {
            Counters::add(&self.0.counters.connect_retries, 1);
            tokio::time::sleep(ctx.retry_wait()).await;
        }
        ctx.attempts += 1;
        let Some(lease) = &ctx.lease else {
            return Error::e_explain(ErrorType::InternalError, "no lease");
        };
        let upstream = lease.upstream();
        if ctx.via_prefix() {
            ctx.prefix = Some(Prefix::new(ctx.app(), &ctx.asked.host, upstream.addr().port()));
        }
        let mut peer = HttpPeer::new(upstream.addr(), false, String::new());
        // A request that cannot be sent twice never takes a connection that the app may just be closing.
        let kept = ctx.purpose == Purpose::Request
            && !ctx.avoid_kept
            && session.req_header().method.is_idempotent()
            && session.is_body_empty();
        peer.group_key = if kept {
            upstream.generation()
        } else {
            (1 << 63) | self.0.once.fetch_add(1, Ordering::Relaxed)
        };
        let options = &mut peer.options;
        options.idle_timeout = Some(if kept { KEEP_IDLE } else { Duration::ZERO });
        options.total_connection_timeout = Some(self.0.config.connect_timeout);
        if ctx.purpose == Purpose::Request {
            options.read_timeout = Some(self.0.config.app_silence);
            options.write_timeout = Some(self.0.config.app_silence);
        }
        options.custom_l4 = Some(Arc::new(AppConnect {
            upstream,
            purpose: ctx.purpose,
        }));
        Ok(Box::new(peer))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing has been sent, so any request may try again. An app that is just restarting is back in a moment.
        let again = ctx.may_retry(self.0.config.connect_retry);
        error.set_retry(again);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Request,
        client_reused: bool,
    ) -> Box<Error> {
        if !session.req_header().method.is_idempotent() || session.as_ref().retry_buffer_truncated() {
            error.set_retry(false);
        } else {
            error.retry.decide_reuse(client_reused);
        }
        ctx.avoid_kept = true;
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Request,
    ) -> Result<()> {
        let strip = ctx.route.as_ref().filter(|route| route.via == Via::Prefix);
        upstream.set_raw_path(&ctx.asked.target_for_app(strip))?;
        let peer = session
            .client_addr()
            .and_then(|addr| addr.as_inet())
            .map(std::net::SocketAddr::ip);
        ctx.asked.forward(upstream, peer, strip, &self.0.config.domain)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Request,
    ) -> Result<()> {
        ctx.body_in += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        match self.0.config.max_body {
            Some(most) if ctx.body_in > most && !session.was_upgraded() => {
                Error::e_explain(ErrorType::HTTPStatus(413), "request body over the limit")
            }
            _ => Ok(()),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Request,
    ) -> Result<()> {
        if let Some(prefix) = &ctx.prefix {
            put_right(response, prefix)?;
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            Counters::add(&self.0.counters.tunnels, 1);
        } else if !response.status.is_informational() {
            response.insert_header("x-request-id", ctx.asked.request_id.as_str())?;
            if session.req_header().version == Version::HTTP_10 {
                // Chunks are not known to HTTP/1.0: the end of the connection is the end of the answer.
                response.remove_header(&header::TRANSFER_ENCODING);
                if !response.headers.contains_key(header::CONTENT_LENGTH) {
                    session.set_keepalive(None);
                }
            }
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Request) -> FailToProxy {
        let begun = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        let page = if begun { None } else { page_for(error) };
        let mut code = 0;
        match page {
            Some(page) => {
                code = page.status.as_u16();
                session.set_keepalive(None);
                if let Err(error) = self.answer(session, ctx, page).await {
                    tracing::debug!(%error, "cannot send an error page");
                }
            }
            None if *error.esource() == ErrorSource::Downstream => ctx.client_left = true,
            None => {}
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Request, _error: &Error) -> bool {
        // `logging` tells of it, with the app and the request's id.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Request,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Request) {
        let _ = CONNECTION.try_with(|connection| connection.request_done());
        let left = if ctx.client_left { CLIENT_LEFT } else { 0 };
        let status = session
            .response_written()
            .map_or(left, |response| response.status.as_u16());
        let sent = session.body_bytes_sent() as u64;
        let counters = &self.0.counters;
        counters.status(status);
        Counters::add(&counters.bytes_in, ctx.body_in);
        Counters::add(&counters.bytes_out, sent);
        Counters::add(&counters.clients_left, u64::from(ctx.client_left));
        self.access_line(session, ctx, status, sent);
        if let Some(error) = error.filter(|_| !ctx.client_left) {
            tracing::warn!(app = ctx.app(), request_id = %ctx.asked.request_id, status, %error, "request failed");
        }
    }
}

impl EdgeProxy {
    fn set_timeouts(&self, session: &mut Session, purpose: Purpose) {
        // A tunnel may be silent for as long as it likes.
        session.set_read_timeout(Some(self.0.config.client_silence).filter(|_| purpose == Purpose::Request));
        session.set_write_timeout(Some(CLIENT_STALLED));
        session.set_total_drain_timeout(Some(DRAIN_BODY));
    }

    fn over_limit(&self, session: &Session) -> Option<Page> {
        let config = &self.0.config;
        let request = session.req_header();
        if request.raw_path().len() > config.max_target {
            return Some(Page::target_too_long());
        }
        let size: usize = request
            .headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        if size > config.max_header {
            return Some(Page::header_too_large());
        }
        let length = request
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        config
            .max_body
            .filter(|most| length > Some(*most))
            .map(|_| Page::body_too_large())
    }

    /// Answers below `/.berth/`, unless the host is an app's own.
    async fn reserved(&self, session: &mut Session, ctx: &Request) -> Result<Option<bool>> {
        let apps_own = ctx
            .route
            .as_ref()
            .is_some_and(|route| matches!(route.via, Via::Host | Via::CustomHost));
        if apps_own || !ctx.asked.path.starts_with(b"/.berth/") {
            return Ok(None);
        }
        let path = ctx.asked.path_text();
        if path == "/.berth/healthz" || path.starts_with("/.berth/healthz?") {
            let health = pages::health(self.0.draining.load(Ordering::Relaxed));
            return send(session, health, &ctx.asked).await.map(Some);
        }
        self.answer(session, ctx, Page::reserved()).await.map(Some)
    }

    /// Holds the request until its app is ready.
    async fn acquire(&self, session: &mut Session, ctx: &mut Request, route: &Route) -> Result<bool> {
        let begun = Instant::now();
        let held = self.0.holder.hold(&route.app, session).await;
        ctx.cold = begun.elapsed();
        let page = match held {
            Held::Ready(lease) => {
                ctx.lease = Some(lease);
                return Ok(false);
            }
            Held::ClientLeft => {
                ctx.client_left = true;
                return Err(Error::explain(ErrorType::ConnectionClosed, "the client left").into_down());
            }
            Held::ShowProgress => Page::progress(),
            Held::Refused(refusal) => page_of(&refusal),
        };
        self.answer(session, ctx, page.of_app(route.app.as_str())).await
    }

    async fn answer(&self, session: &mut Session, ctx: &Request, page: Page) -> Result<bool> {
        let rendered = page.render(pages::wants_html(&session.req_header().headers), &ctx.asked.request_id);
        send(session, rendered, &ctx.asked).await
    }

    fn access_line(&self, session: &Session, ctx: &Request, status: u16, sent: u64) {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 100_000.0).round() / 100.0;
        tracing::info!(
            target: "access",
            method = session.req_header().method.as_str(),
            host = %ctx.asked.host,
            // Without the query: it may hold secrets.
            path = ctx.asked.path_text().split('?').next().unwrap_or_default(),
            status,
            bytes = sent,
            duration_ms = milliseconds(ctx.begun.elapsed()),
            app = ctx.app(),
            request_id = %ctx.asked.request_id,
            cold_ms = milliseconds(ctx.cold),
        );
    }
}

/// Sends one of our own answers; the body of the request, if any, is not wanted.
async fn send(session: &mut Session, answer: Rendered, asked: &Asked) -> Result<bool> {
    let mut header = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
    for (name, value) in &answer.headers {
        header.insert_header(*name, value.as_str())?;
    }
    header.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
    header.insert_header("x-request-id", asked.request_id.as_str())?;
    let bodyless = session.req_header().method == Method::HEAD || answer.body.is_empty();
    session.write_response_header(Box::new(header), bodyless).await?;
    if !bodyless {
        session.write_response_body(Some(answer.body), true).await?;
    }
    Ok(true)
}

fn page_of(refusal: &Refusal) -> Page {
    match refusal {
        Refusal::NoSuchApp => Page::no_app(None),
        Refusal::Failed { public, retry_after } => Page::failed(public, *retry_after),
        Refusal::TooMany { retry_after } => Page::too_many(*retry_after),
        Refusal::StartTimeout { .. } => Page::start_timeout(),
        Refusal::ShuttingDown => Page::shutting_down(),
    }
}

/// The page for an error of the proxy; none when there is nobody to read it.
fn page_for(error: &Error) -> Option<Page> {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(413), _) => Some(Page::body_too_large()),
        (ErrorType::ReadTimedout | ErrorType::WriteTimedout, ErrorSource::Upstream) => Some(Page::silent()),
        (_, ErrorSource::Upstream) => Some(Page::unreachable()),
        (
            ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error,
            ErrorSource::Downstream,
        ) => None,
        (_, ErrorSource::Downstream) => Some(Page::bad_request()),
        _ => Some(Page::internal()),
    }
}

/// Redirects and cookies of an app below a prefix.
fn put_right(response: &mut ResponseHeader, prefix: &Prefix) -> Result<()> {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        if let Some(value) = response.headers.get(&name).and_then(|value| value.to_str().ok()) {
            let right = prefix.location(value).into_owned();
            response.insert_header(name, right)?;
        }
    }
    if let Some(value) = response
        .headers
        .get(header::REFRESH)
        .and_then(|value| value.to_str().ok())
    {
        let right = prefix.refresh(value).into_owned();
        response.insert_header(header::REFRESH, right)?;
    }
    let cookies: Vec<http::HeaderValue> = response.headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    if cookies.is_empty() {
        return Ok(());
    }
    response.remove_header(&header::SET_COOKIE);
    for cookie in cookies {
        match cookie.to_str().map(|text| prefix.cookie(text).into_owned()) {
            Ok(right) => response.append_header(header::SET_COOKIE, right)?,
            // Bytes beyond ASCII: no path we could find; as it was.
            Err(_) => response.append_header(header::SET_COOKIE, cookie)?,
        };
    }
    Ok(())
}
