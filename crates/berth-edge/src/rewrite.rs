//! Answers of an app that is served below a prefix, put right: redirects and cookie paths.
//!
//! An app at `DOMAIN/NAME/` gets its requests without the prefix, so what it says about its own paths lacks it. The rules,
//! with P for `/NAME`:
//!
//! | the app says | the client gets |
//! | --- | --- |
//! | `Location: /x` | `P/x` |
//! | `Location: P`, `P/x`, `P?x` | the same: the app knew `X-Forwarded-Prefix` |
//! | `Location: http(s)://HOST/x`, `//HOST/x`, HOST being the request's own | the same host, `P/x` |
//! | `Location: http://127.0.0.1:PORT/x` or `localhost`, `0.0.0.0`, `[::1]`, PORT being the app's own | `P/x` |
//! | `Location: x`, `?x`, `#x`, another host | the same |
//! | `Set-Cookie: ...; Path=/` and `Path=/x` | `Path=P/` and `Path=P/x` |
//! | `Set-Cookie: ...; Path=P` or below, or no path, or a name with `__Host-` | the same |
//!
//! So an app that has a folder of its own name below itself cannot redirect to it by absolute path: it takes a relative
//! one, or is used through `NAME.DOMAIN`. Every rule, applied twice, does what it does once. `Content-Location` and the
//! address in `Refresh` follow the rules of `Location`.

use std::borrow::Cow;

use crate::routes::normal_host;

/// What has to be known to put an answer right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// `/NAME`.
    path: String,
    /// The request's `Host`, lower case, without a default port.
    host: String,
    /// The port the app listens on.
    app_port: u16,
}

impl Prefix {
    pub(crate) fn new(app: &str, host: &str, app_port: u16) -> Self {
        Self {
            path: format!("/{app}"),
            host: authority(host),
            app_port,
        }
    }

    /// A `Location` or `Content-Location` as the client must see it.
    pub(crate) fn location<'a>(&self, value: &'a str) -> Cow<'a, str> {
        if let Some((scheme, rest)) = split_scheme(value) {
            let (host, path) = split_authority(rest);
            if authority(host) == self.host {
                return Cow::Owned(format!("{scheme}{host}{}", self.path(path)));
            }
            if self.is_app(host) {
                return Cow::Owned(self.path(path).into_owned());
            }
            return Cow::Borrowed(value);
        }
        if value.starts_with('/') {
            self.path(value)
        } else {
            Cow::Borrowed(value)
        }
    }

    /// A `Refresh: SECONDS; url=ADDRESS` as the client must see it.
    pub(crate) fn refresh<'a>(&self, value: &'a str) -> Cow<'a, str> {
        let Some(at) = value.to_ascii_lowercase().find("url=") else {
            return Cow::Borrowed(value);
        };
        let (before, address) = value.split_at(at + "url=".len());
        let bare = address.trim_matches(['"', '\'', ' ']);
        match self.location(bare) {
            Cow::Borrowed(_) => Cow::Borrowed(value),
            Cow::Owned(right) => Cow::Owned(format!("{before}{right}")),
        }
    }

    /// A `Set-Cookie` as the client must see it.
    pub(crate) fn cookie<'a>(&self, value: &'a str) -> Cow<'a, str> {
        // Browsers refuse a `__Host-` cookie with any path but "/".
        if value
            .trim_start()
            .get(..7)
            .is_some_and(|name| name.eq_ignore_ascii_case("__Host-"))
        {
            return Cow::Borrowed(value);
        }
        let mut changed = false;
        let parts: Vec<Cow<'_, str>> = value
            .split(';')
            .enumerate()
            .map(|(index, part)| {
                let Some(path) = cookie_path(part).filter(|_| index > 0) else {
                    return Cow::Borrowed(part);
                };
                match self.path(path) {
                    Cow::Borrowed(_) => Cow::Borrowed(part),
                    Cow::Owned(right) => {
                        changed = true;
                        Cow::Owned(format!(" Path={right}"))
                    }
                }
            })
            .collect();
        if changed {
            Cow::Owned(parts.join(";"))
        } else {
            Cow::Borrowed(value)
        }
    }

    /// An absolute path (or the nothing after a host) with the prefix, once.
    fn path<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let has_it = path
            .strip_prefix(self.path.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        if has_it {
            Cow::Borrowed(path)
        } else if path.starts_with('/') {
            Cow::Owned(format!("{}{path}", self.path))
        } else {
            Cow::Owned(format!("{}/{path}", self.path))
        }
    }

    /// Is this the app's own address, which it learned from `HOST` and `PORT`?
    fn is_app(&self, host: &str) -> bool {
        let Some((name, port)) = host.rsplit_once(':') else {
            return false;
        };
        port.parse() == Ok(self.app_port)
            && matches!(
                name.to_ascii_lowercase().as_str(),
                "127.0.0.1" | "localhost" | "0.0.0.0" | "[::1]" | "[::]"
            )
    }
}

/// `("http://", "host/path")` of an absolute address, `("//", "host/path")` of one without scheme.
fn split_scheme(value: &str) -> Option<(&str, &str)> {
    for scheme in ["http://", "https://", "//"] {
        if let Some((head, rest)) = value.split_at_checked(scheme.len())
            && head.eq_ignore_ascii_case(scheme)
        {
            return Some((head, rest));
        }
    }
    None
}

fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Host and port as they are compared: lower case, default ports left out.
fn authority(host: &str) -> String {
    let name = normal_host(host);
    match host.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') && !matches!(port, "80" | "443" | "") => format!("{name}:{port}"),
        _ => name,
    }
}

/// `/x` of ` Path=/x`; only absolute paths count, browsers ignore others.
fn cookie_path(part: &str) -> Option<&str> {
    let (name, value) = part.split_once('=')?;
    Some(value.trim()).filter(|path| name.trim().eq_ignore_ascii_case("path") && path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn blog() -> Prefix {
        Prefix::new("blog", "Example.org:8080", 3000)
    }

    #[test]
    fn redirects_are_put_right() {
        for (said, seen) in [
            ("/", "/blog/"),
            ("/x?y=/z#a", "/blog/x?y=/z#a"),
            ("/blog", "/blog"),
            ("/blog/", "/blog/"),
            ("/blog/x", "/blog/x"),
            ("/blog?x", "/blog?x"),
            ("/blogs", "/blog/blogs"),
            ("/other/blog/", "/blog/other/blog/"),
            ("x", "x"),
            ("../x", "../x"),
            ("./", "./"),
            ("?x", "?x"),
            ("#x", "#x"),
            ("", ""),
            ("http://example.org:8080/x", "http://example.org:8080/blog/x"),
            ("HTTP://EXAMPLE.org:8080/x", "HTTP://EXAMPLE.org:8080/blog/x"),
            ("https://example.org:8080/x", "https://example.org:8080/blog/x"),
            ("http://example.org:8080", "http://example.org:8080/blog/"),
            ("http://example.org:8080?x", "http://example.org:8080/blog/?x"),
            ("http://example.org:8080/blog/x", "http://example.org:8080/blog/x"),
            ("//example.org:8080/x", "//example.org:8080/blog/x"),
            ("http://example.org/x", "http://example.org/x"),
            ("http://other.org/x", "http://other.org/x"),
            ("//other.org/x", "//other.org/x"),
            ("http://127.0.0.1:3000/x", "/blog/x"),
            ("http://localhost:3000", "/blog/"),
            ("http://0.0.0.0:3000/blog/x", "/blog/x"),
            ("http://[::1]:3000/x", "/blog/x"),
            ("http://localhost:3001/x", "http://localhost:3001/x"),
            ("mailto:a@example.org", "mailto:a@example.org"),
        ] {
            assert_eq!(blog().location(said), seen, "{said}");
        }
    }

    #[test]
    fn default_ports_are_the_same_host() {
        let prefix = Prefix::new("blog", "example.org", 3000);
        assert_eq!(
            prefix.location("https://example.org:443/x"),
            "https://example.org:443/blog/x"
        );
        assert_eq!(
            prefix.location("http://example.org:80/x"),
            "http://example.org:80/blog/x"
        );
        assert_eq!(prefix.location("http://example.org:81/x"), "http://example.org:81/x");
    }

    #[test]
    fn cookie_paths_are_put_right() {
        for (said, seen) in [
            ("a=b", "a=b"),
            ("a=b; Path=/", "a=b; Path=/blog/"),
            ("a=b; path=/; HttpOnly", "a=b; Path=/blog/; HttpOnly"),
            ("a=b;Path=/x;Secure", "a=b; Path=/blog/x;Secure"),
            ("a=b; Path=/blog", "a=b; Path=/blog"),
            ("a=b; Path=/blog/x", "a=b; Path=/blog/x"),
            ("a=b; Path=/blogs", "a=b; Path=/blog/blogs"),
            ("a=b; Path=x", "a=b; Path=x"),
            ("a=b; Path", "a=b; Path"),
            ("path=/; Secure", "path=/; Secure"),
            ("__Host-a=b; Path=/; Secure", "__Host-a=b; Path=/; Secure"),
            (
                "a=b; Domain=example.org; Path=/",
                "a=b; Domain=example.org; Path=/blog/",
            ),
        ] {
            assert_eq!(blog().cookie(said), seen, "{said}");
        }
    }

    #[test]
    fn refresh_addresses_are_put_right() {
        for (said, seen) in [
            ("5", "5"),
            ("5; url=/x", "5; url=/blog/x"),
            ("0;URL='/x'", "0;URL=/blog/x"),
            ("5; url=x", "5; url=x"),
            ("5; url=/blog/x", "5; url=/blog/x"),
        ] {
            assert_eq!(blog().refresh(said), seen, "{said}");
        }
    }

    proptest! {
        #[test]
        fn putting_right_twice_is_putting_right_once(
            value in "(http://|https://|//|)(example\\.org|localhost|other|)(:8080|:3000|)[/a-c?#.]{0,6}(blog)?[/a-c?#=;. ]{0,8}",
        ) {
            let prefix = blog();
            let once = prefix.location(&value).into_owned();
            prop_assert_eq!(prefix.location(&once).into_owned(), once.clone());
            let once = prefix.cookie(&value).into_owned();
            prop_assert_eq!(prefix.cookie(&once).into_owned(), once.clone());
            let refresh = format!("1; url={value}");
            let once = prefix.refresh(&refresh).into_owned();
            prop_assert_eq!(prefix.refresh(&once).into_owned(), once.clone());
            let cookie = format!("a=b; Path={value}");
            let once = prefix.cookie(&cookie).into_owned();
            prop_assert_eq!(prefix.cookie(&once).into_owned(), once.clone());
        }

        #[test]
        fn an_absolute_path_ends_below_the_prefix(path in "/[a-z/?#.]{0,12}") {
            prop_assume!(!path.starts_with("//"));
            let prefix = blog();
            let right = prefix.location(&path);
            prop_assert!(right == "/blog" || right.starts_with("/blog/") || right.starts_with("/blog?") || right.starts_with("/blog#"));
            prop_assert!(right.ends_with(path.as_str()));
        }
    }
}
