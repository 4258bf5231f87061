//! What a request asks for, and how it is passed on: host and path in one form, its id, the `X-Forwarded-*` headers.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, Version, header};
use pingora::Result;
use pingora::http::RequestHeader;

use crate::apps::{Route, Via};

/// A request's id is kept when the client made one like this, else a new one is made.
const ID_LENGTH: usize = 128;

/// What a request asks for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// As the client sent it, with its port; empty when it sent none (HTTP/1.0).
    pub(crate) host: String,
    /// Path and query, byte for byte.
    pub(crate) path: Vec<u8>,
    pub(crate) request_id: String,
}

impl Asked {
    pub(crate) fn of(request: &RequestHeader) -> Self {
        let target = request.raw_path();
        let (in_target, path) = split_absolute(target);
        let host = request
            .headers
            .get(header::HOST)
            .map(|host| String::from_utf8_lossy(host.as_bytes()))
            .or_else(|| {
                request
                    .uri
                    .authority()
                    .map(|authority| Cow::Borrowed(authority.as_str()))
            })
            .or_else(|| in_target.map(String::from_utf8_lossy))
            .map(Cow::into_owned)
            .unwrap_or_default();
        Self {
            host,
            path,
            request_id: request_id(&request.headers),
        }
    }

    /// Path and query as text, for looking up and for logs.
    pub(crate) fn path_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.path)
    }

    /// Where `/NAME` (with or without a query) is sent: below `/NAME/` relative addresses of the app work.
    pub(crate) fn redirect_to_slash(&self, route: &Route) -> Option<String> {
        let rest = self.below(route)?;
        if rest.first() == Some(&b'/') {
            return None;
        }
        Some(format!("/{}/{}", route.app, std::str::from_utf8(rest).ok()?))
    }

    /// The target as the app sees it: without the prefix of `strip`.
    pub(crate) fn target_for_app(&self, strip: Option<&Route>) -> Vec<u8> {
        match strip.and_then(|route| self.below(route)) {
            Some(rest) if rest.first() == Some(&b'/') => rest.to_vec(),
            Some(rest) => [b"/", rest].concat(),
            None => self.path.clone(),
        }
    }

    /// What follows `/NAME`, when the route took that as a prefix.
    fn below(&self, route: &Route) -> Option<&[u8]> {
        if route.via != Via::Prefix {
            return None;
        }
        self.path
            .strip_prefix(b"/")?
            .strip_prefix(route.app.as_str().as_bytes())
    }

    /// Sets what an app may know of the client. What clients claim themselves is only kept where it is a list.
    pub(crate) fn forward(
        &self,
        upstream: &mut RequestHeader,
        peer: Option<IpAddr>,
        prefix: Option<&Route>,
        domain: &str,
    ) -> Result<()> {
        if let Some(peer) = peer {
            let mut chain: Vec<Cow<'_, str>> = Vec::new();
            for value in upstream.headers.get_all("x-forwarded-for") {
                chain.push(String::from_utf8_lossy(value.as_bytes()));
            }
            let shown = peer.to_canonical().to_string();
            chain.push(Cow::Borrowed(&shown));
            let chain = chain.join(", ");
            upstream.insert_header("x-forwarded-for", chain)?;
        }
        if !upstream.headers.contains_key(header::HOST) {
            // HTTP/1.0 clients may leave it out; the app is spoken to in HTTP/1.1, which wants one.
            upstream.insert_header(header::HOST, if self.host.is_empty() { domain } else { &self.host })?;
        }
        upstream.insert_header("x-forwarded-proto", "http")?;
        upstream.insert_header("x-forwarded-host", self.host.as_str())?;
        match prefix {
            Some(route) => upstream.insert_header("x-forwarded-prefix", format!("/{}", route.app))?,
            None => drop(upstream.remove_header("x-forwarded-prefix")),
        }
        // Some CGI programs take it for the variable HTTP_PROXY.
        upstream.remove_header("proxy");
        upstream.insert_header("x-request-id", self.request_id.as_str())
    }
}

/// Does this request ask for a WebSocket?
pub(crate) fn is_websocket(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_11
        && request
            .headers
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// `(host, "/path")` of `http://host/path`; a target of the usual form is a path already.
fn split_absolute(target: &[u8]) -> (Option<&[u8]>, Vec<u8>) {
    let Some(at) = target
        .windows(3)
        .position(|part| part == b"://")
        .filter(|at| !target[..*at].contains(&b'/'))
    else {
        return (None, target.to_vec());
    };
    let rest = &target[at + 3..];
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let path = if path.first() == Some(&b'/') {
        path.to_vec()
    } else {
        [b"/", path].concat()
    };
    (Some(host), path)
}

fn request_id(headers: &HeaderMap) -> String {
    let kept = headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=ID_LENGTH).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
        });
    kept.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use berth_workspace::AppName;

    use super::*;

    fn asked(target: &str, host: Option<&str>) -> Asked {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        if let Some(host) = host {
            request.insert_header(header::HOST, host).unwrap();
        }
        Asked::of(&request)
    }

    #[test]
    fn targets_of_all_forms_are_one_host_and_path() {
        for (target, host, want_host, want_path) in [
            ("/blog/x?y", Some("a.test:80"), "a.test:80", "/blog/x?y"),
            ("http://a.test/blog/x", Some("a.test"), "a.test", "/blog/x"),
            ("http://a.test/blog/x", None, "a.test", "/blog/x"),
            ("http://a.test", None, "a.test", "/"),
            ("http://a.test?x", None, "a.test", "/?x"),
            ("/x?u=http://b.test/", None, "", "/x?u=http://b.test/"),
        ] {
            let asked = asked(target, host);
            assert_eq!(
                (asked.host.as_str(), asked.path_text().as_ref()),
                (want_host, want_path),
                "{target}"
            );
        }
    }

    #[test]
    fn the_prefix_is_taken_off_byte_for_byte() {
        let route = Route {
            app: AppName::parse("blog").unwrap(),
            via: Via::Prefix,
        };
        let host = Route {
            app: AppName::parse("blog").unwrap(),
            via: Via::Host,
        };
        for (path, stripped) in [
            ("/blog/", "/"),
            ("/blog/a%2Fb", "/a%2Fb"),
            ("/blog//x", "//x"),
            ("/blog/../x", "/../x"),
            ("/blog/x?y=/blog/", "/x?y=/blog/"),
            ("/blog", "/"),
            ("/blog?x", "/?x"),
        ] {
            let asked = asked(path, None);
            assert_eq!(asked.target_for_app(Some(&route)), stripped.as_bytes(), "{path}");
            assert_eq!(asked.target_for_app(Some(&host)), path.as_bytes());
            assert_eq!(asked.target_for_app(None), path.as_bytes());
        }
        assert_eq!(
            asked("/blog", None).redirect_to_slash(&route).as_deref(),
            Some("/blog/")
        );
        assert_eq!(
            asked("/blog?x=1", None).redirect_to_slash(&route).as_deref(),
            Some("/blog/?x=1")
        );
        assert_eq!(asked("/blog/x", None).redirect_to_slash(&route), None);
        assert_eq!(asked("/blog", None).redirect_to_slash(&host), None);
    }

    #[test]
    fn ids_are_kept_when_they_are_harmless() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", http::HeaderValue::from_bytes(id.as_bytes()).unwrap());
            request_id(&headers)
        };
        assert_eq!(with("abc-1.2_3"), "abc-1.2_3");
        for bad in ["", "a b", "<x>", &"x".repeat(129)] {
            assert_eq!(with(bad).len(), 32, "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
