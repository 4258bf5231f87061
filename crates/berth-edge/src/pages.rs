//! Berth's own answers: errors, the progress page, the redirect to a prefix, health.
//!
//! A person gets a short HTML page (one file, its style inside, light and dark), a program gets `application/problem+json`
//! (RFC 9457). Which one is decided by `Accept`: HTML when it names `text/html`. Neither tells strangers anything about the
//! host: only the app's name and texts written here or marked as public.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;

/// One of Berth's own answers.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    title: &'static str,
    detail: String,
    app: Option<String>,
    retry_after: Option<Duration>,
    progress: bool,
}

/// A page as bytes, with the headers that belong to it.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

impl Page {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title,
            detail: detail.into(),
            app: None,
            retry_after: None,
            progress: false,
        }
    }

    pub(crate) fn of_app(mut self, app: &str) -> Self {
        self.app = Some(app.to_owned());
        self
    }

    pub(crate) fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// No app fits: `name` is what the address seems to ask for.
    pub(crate) fn no_app(name: Option<&str>) -> Self {
        match name {
            Some(name) => Self::new(
                StatusCode::NOT_FOUND,
                "No such app",
                format!("There is no app called “{}” here.", shortened(name)),
            ),
            None => Self::new(
                StatusCode::NOT_FOUND,
                "Nothing here yet",
                "Each folder of the workspaces is an app at its own address, /NAME/. The folder “www” would be this page.",
            ),
        }
    }

    pub(crate) fn reserved() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "Addresses below /.berth/ belong to the host.",
        )
    }

    pub(crate) fn failed(public: &str, retry_after: Option<Duration>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "The app does not start", public).retry_after(retry_after)
    }

    pub(crate) fn too_many(retry_after: Option<Duration>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The app is busy",
            "Too many requests wait for it already. Try again in a moment.",
        )
        .retry_after(retry_after.or(Some(Duration::from_secs(1))))
    }

    pub(crate) fn start_timeout() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "The app takes too long to start",
            "It was not ready in time. It may be soon: try again.",
        )
        .retry_after(Some(Duration::from_secs(10)))
    }

    pub(crate) fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "The host is restarting",
            "Try again in a moment.",
        )
        .retry_after(Some(Duration::from_secs(5)))
    }

    pub(crate) fn unreachable() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            "The app does not answer",
            "It runs, but did not take the request or broke off before its answer.",
        )
        .retry_after(Some(Duration::from_secs(1)))
    }

    pub(crate) fn silent() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "The app does not answer",
            "It took the request and then said nothing.",
        )
    }

    pub(crate) fn bad_request() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad request", "The request is not valid HTTP.")
    }

    pub(crate) fn target_too_long() -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            "Address too long",
            "The address of this request is longer than is allowed here.",
        )
    }

    pub(crate) fn header_too_large() -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Request header too large",
            "The headers of this request (perhaps its cookies) are larger than is allowed here.",
        )
    }

    pub(crate) fn body_too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Request too large",
            "The body of this request is larger than is allowed here.",
        )
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong",
            "The host could not handle this request.",
        )
    }

    /// What a waiting browser sees; it asks again by itself until the app is there.
    pub(crate) fn progress() -> Self {
        let mut page = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "Starting",
            "The app is starting. This page turns into it by itself.",
        )
        .retry_after(Some(Duration::from_secs(1)));
        page.progress = true;
        page
    }

    /// The page in the form that `accept` asks for.
    pub(crate) fn render(&self, wants_html: bool, request_id: &str) -> Rendered {
        let (kind, body) = if wants_html {
            ("text/html; charset=utf-8", self.html(request_id))
        } else {
            ("application/problem+json", self.problem(request_id))
        };
        let mut headers = own_headers();
        headers.push(("content-type", kind.to_owned()));
        headers.push(("vary", "accept".to_owned()));
        if let Some(after) = self.retry_after {
            headers.push(("retry-after", after.as_secs().max(1).to_string()));
        }
        Rendered {
            status: self.status,
            headers,
            body: body.into(),
        }
    }

    fn problem(&self, request_id: &str) -> String {
        let problem = Problem {
            r#type: "about:blank",
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            app: self.app.as_deref(),
            request_id,
        };
        serde_json::to_string(&problem).unwrap_or_else(|_| "{}".to_owned())
    }

    fn html(&self, request_id: &str) -> String {
        let title = escape(self.title);
        let detail = escape(&self.detail);
        let heading = self
            .app
            .as_deref()
            .map_or_else(|| title.clone(), |app| format!("{title}: {}", escape(app)));
        let (head, mark) = if self.progress {
            (
                "<meta http-equiv=\"refresh\" content=\"1\">",
                "<div class=\"bar\" role=\"progressbar\" aria-label=\"starting\"><i></i></div>".to_owned(),
            )
        } else {
            ("", format!("<p class=\"code\">{}</p>", self.status.as_u16()))
        };
        let foot = if request_id.is_empty() || self.progress {
            String::new()
        } else {
            format!("<p class=\"id\">Request {}</p>", escape(request_id))
        };
        format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">{head}<title>{heading}</title>\
             <style>{STYLE}</style></head><body><main>{mark}<h1>{heading}</h1><p>{detail}</p>{foot}</main></body></html>"
        )
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{margin:0;min-height:100vh;display:grid;place-items:center;\
font:16px/1.5 system-ui,sans-serif;background:#fafafa;color:#222}main{max-width:34rem;padding:2rem}h1{font-size:1.4rem;margin:.2rem 0}\
p{margin:.4rem 0}.code{font-size:.9rem;color:#888;margin:0}.id{font-size:.8rem;color:#888}.bar{height:4px;border-radius:2px;\
background:#ddd;overflow:hidden;margin-bottom:1rem}.bar i{display:block;height:100%;width:35%;background:#2a6fdb;\
animation:s 1.2s ease-in-out infinite alternate}@keyframes s{to{margin-left:65%}}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}.bar{background:#333}}\
@media(prefers-reduced-motion:reduce){.bar i{animation:none}}";

/// The plain answer of `/.berth/healthz`.
pub(crate) fn health(draining: bool) -> Rendered {
    let (status, text) = if draining {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ok\n")
    };
    let mut headers = own_headers();
    headers.push(("content-type", "text/plain; charset=utf-8".to_owned()));
    Rendered {
        status,
        headers,
        body: Bytes::from_static(text.as_bytes()),
    }
}

/// The redirect from `/NAME` to `/NAME/`: permanent in method and meaning, but not to be remembered, as names come and go.
pub(crate) fn redirect(location: String) -> Rendered {
    let mut headers = own_headers();
    headers.push(("location", location));
    Rendered {
        status: StatusCode::PERMANENT_REDIRECT,
        headers,
        body: Bytes::new(),
    }
}

fn own_headers() -> Vec<(&'static str, String)> {
    [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        (
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
        ),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

/// Does this client read HTML?
pub(crate) fn wants_html(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .windows(9)
            .any(|part| part == b"text/html")
    })
}

fn shortened(name: &str) -> String {
    let short: String = name.chars().take(63).collect();
    if short.len() < name.len() {
        format!("{short}…")
    } else {
        short
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn text(page: &Page, html: bool) -> String {
        String::from_utf8(page.render(html, "id-1").body.to_vec()).unwrap()
    }

    #[test]
    fn names_from_strangers_are_shown_as_text() {
        let page = Page::no_app(Some("<script>alert(1)</script>"));
        let html = text(&page, true);
        assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{html}");
        assert!(!html.contains("<script"), "{html}");
    }

    #[test]
    fn programs_get_problem_json() {
        let page = Page::failed("npm ci: exit 1", Some(Duration::from_secs(7))).of_app("blog");
        let rendered = page.render(false, "id-1");
        let problem: serde_json::Value = serde_json::from_slice(&rendered.body).unwrap();
        assert_eq!(problem["status"], 503);
        assert_eq!(problem["app"], "blog");
        assert_eq!(problem["detail"], "npm ci: exit 1");
        assert_eq!(problem["request_id"], "id-1");
        assert!(
            rendered
                .headers
                .contains(&("content-type", "application/problem+json".to_owned()))
        );
        assert!(rendered.headers.contains(&("retry-after", "7".to_owned())));
        assert!(
            rendered
                .headers
                .contains(&("x-content-type-options", "nosniff".to_owned()))
        );
    }

    #[test]
    fn accept_decides() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, value.parse().unwrap());
            wants_html(&headers)
        };
        assert!(with("text/html,application/xhtml+xml;q=0.9"));
        assert!(with("Text/HTML"));
        assert!(!with("*/*"));
        assert!(!with("application/json"));
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn the_progress_page_asks_again_by_itself_and_needs_nothing_from_elsewhere() {
        let html = text(&Page::progress().of_app("blog"), true);
        assert!(html.contains("http-equiv=\"refresh\""));
        assert!(!html.contains("src=") && !html.contains("href="), "{html}");
    }
}
