//! Which app a request is for: exact look-ups by host name, then by the first segment of the path.
//!
//! In this order, the first that fits wins:
//!
//! 1. a custom host (claimed in a `workspace.json`) leads to its app, whatever the path;
//! 2. `NAME.DOMAIN` leads to the app NAME; a name below DOMAIN that is no app leads nowhere (but `www.DOMAIN` without a
//!    workspace `www` is the same as DOMAIN);
//! 3. on any other host (DOMAIN itself, `localhost`, an address, a name we do not know) `/NAME` and `/NAME/...` lead to the
//!    app NAME: so an app called like a top folder of `www` hides that folder;
//! 4. else the workspace `www` answers, if there is one.
//!
//! Paths are compared byte by byte: `/a%2Fb`, `/A`, `//a` and `/../a` are no way of saying `/a`.

use std::collections::{HashMap, HashSet};

use berth_workspace::AppName;

use crate::apps::{Route, Via};

/// The workspace that is the site's root.
pub(crate) const ROOT_APP: &str = "www";

/// The routes at one moment. Immutable: a change makes a new table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    /// Lower case, no port, no trailing dot.
    domain: String,
    apps: HashSet<AppName>,
    hosts: HashMap<String, AppName>,
}

impl RouteTable {
    /// A table for `domain` with these apps, and these custom hosts with the app each leads to.
    ///
    /// A custom host whose app is not among `apps` is left out.
    pub fn new(
        domain: &str,
        apps: impl IntoIterator<Item = AppName>,
        hosts: impl IntoIterator<Item = (String, AppName)>,
    ) -> Self {
        let apps: HashSet<AppName> = apps.into_iter().collect();
        let hosts = hosts
            .into_iter()
            .filter(|(_, app)| apps.contains(app))
            .map(|(host, app)| (normal_host(&host), app))
            .collect();
        Self {
            domain: normal_host(domain),
            apps,
            hosts,
        }
    }

    /// The app for a request with this `Host` header (any port, any case, perhaps empty) and this path.
    #[must_use]
    pub fn resolve(&self, host: &str, path: &str) -> Option<Route> {
        let host = normal_host(host);
        if let Some(app) = self.hosts.get(&host) {
            return Some(Route {
                app: app.clone(),
                via: Via::CustomHost,
            });
        }
        if let Some(name) = self.below_domain(&host) {
            match self.apps.get(name) {
                Some(app) => {
                    return Some(Route {
                        app: app.clone(),
                        via: Via::Host,
                    });
                }
                None if name != ROOT_APP => return None,
                None => {}
            }
        }
        let by_path = first_segment(path).and_then(|name| self.apps.get(name));
        if let Some(app) = by_path {
            return Some(Route {
                app: app.clone(),
                via: Via::Prefix,
            });
        }
        self.apps.get(ROOT_APP).map(|app| Route {
            app: app.clone(),
            via: Via::Root,
        })
    }

    /// NAME of `NAME.DOMAIN`.
    fn below_domain<'a>(&self, host: &'a str) -> Option<&'a str> {
        if self.domain.is_empty() {
            return None;
        }
        host.strip_suffix(self.domain.as_str())?.strip_suffix('.')
    }
}

/// `host` in lower case without port and trailing dot; an IPv6 address keeps its brackets.
pub(crate) fn normal_host(host: &str) -> String {
    let name = match host.rfind(':') {
        // In `[::1]` the last colon is the address's own.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase()
}

/// `a` of `/a`, `/a/`, `/a/b` and `/a?x`.
pub(crate) fn first_segment(path: &str) -> Option<&str> {
    let rest = path.strip_prefix('/')?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(&rest[..end]).filter(|segment| !segment.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> AppName {
        AppName::parse(text).expect("a valid name")
    }

    fn table(apps: &[&str], hosts: &[(&str, &str)]) -> RouteTable {
        RouteTable::new(
            "Example.org",
            apps.iter().map(|app| name(app)),
            hosts.iter().map(|(host, app)| ((*host).to_owned(), name(app))),
        )
    }

    fn found(table: &RouteTable, host: &str, path: &str) -> Option<(String, Via)> {
        table
            .resolve(host, path)
            .map(|route| (route.app.to_string(), route.via))
    }

    #[test]
    fn hosts_and_paths_lead_to_apps() {
        let table = table(
            &["blog", "shop", "www"],
            &[("Shop.Example", "shop"), ("gone.example", "nothing")],
        );
        let some = |app: &str, via| Some((app.to_owned(), via));
        for (host, path, want) in [
            ("blog.example.org", "/shop/x", some("blog", Via::Host)),
            ("BLOG.example.ORG:8080", "/", some("blog", Via::Host)),
            ("blog.example.org.", "/", some("blog", Via::Host)),
            ("blog.example.org.:80", "/", some("blog", Via::Host)),
            ("shop.example:443", "/blog/", some("shop", Via::CustomHost)),
            ("gone.example", "/", some("www", Via::Root)),
            ("nosuch.example.org", "/blog/", None),
            ("a.blog.example.org", "/blog/", None),
            ("www.example.org", "/blog/", some("www", Via::Host)),
            ("example.org", "/blog", some("blog", Via::Prefix)),
            ("example.org", "/blog?x=1", some("blog", Via::Prefix)),
            ("example.org", "/blog/x", some("blog", Via::Prefix)),
            ("example.org", "/blogs", some("www", Via::Root)),
            ("example.org", "/Blog/", some("www", Via::Root)),
            ("example.org", "//blog/", some("www", Via::Root)),
            ("example.org", "/blog%2Fx", some("www", Via::Root)),
            ("example.org", "/../blog/", some("www", Via::Root)),
            ("example.org", "/", some("www", Via::Root)),
            ("example.org", "*", some("www", Via::Root)),
            ("localhost:8080", "/blog/", some("blog", Via::Prefix)),
            ("127.0.0.1:8080", "/shop", some("shop", Via::Prefix)),
            ("[::1]:8080", "/shop", some("shop", Via::Prefix)),
            ("[::1]", "/shop", some("shop", Via::Prefix)),
            ("", "/shop", some("shop", Via::Prefix)),
            ("unknown.test", "/shop", some("shop", Via::Prefix)),
            ("myexample.org", "/shop", some("shop", Via::Prefix)),
        ] {
            assert_eq!(found(&table, host, path), want, "{host} {path}");
        }
    }

    #[test]
    fn without_www_the_rest_leads_nowhere() {
        let table = table(&["blog"], &[]);
        assert_eq!(found(&table, "example.org", "/"), None);
        assert_eq!(found(&table, "example.org", "/other"), None);
        assert_eq!(
            found(&table, "www.example.org", "/blog/"),
            Some(("blog".to_owned(), Via::Prefix))
        );
    }

    /// The four rules of the module's doc, said as slowly as possible.
    fn naive(apps: &[String], hosts: &[(String, String)], host: &str, path: &str) -> Option<(String, Via)> {
        let mut host = host.to_ascii_lowercase();
        if !host.ends_with(']') && host.contains(':') {
            let parts: Vec<&str> = host.split(':').collect();
            host = parts[..parts.len() - 1].join(":");
        }
        if host.ends_with('.') {
            host.pop();
        }
        // Of hosts claimed twice the last one counts, as when a map is filled.
        for (claimed, app) in hosts.iter().rev() {
            if *claimed == host && apps.contains(app) {
                return Some((app.clone(), Via::CustomHost));
            }
        }
        let labels: Vec<&str> = host.split('.').collect();
        if labels.len() > 2 && labels[labels.len() - 2..] == ["example", "org"] {
            let label = labels[..labels.len() - 2].join(".");
            for app in apps {
                if *app == label {
                    return Some((label, Via::Host));
                }
            }
            if label != "www" {
                return None;
            }
        }
        for app in apps {
            let exact = format!("/{app}");
            if path == exact
                || ["/", "?", "#"]
                    .iter()
                    .any(|end| path.starts_with(&format!("{exact}{end}")))
            {
                return Some((app.clone(), Via::Prefix));
            }
        }
        apps.iter()
            .find(|app| *app == "www")
            .map(|app| (app.clone(), Via::Root))
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_the_rules_said_slowly(
            apps in proptest::collection::vec("(a|b|ab|www|a-b)", 0..5),
            hosts in proptest::collection::vec(("(a|b)\\.(test|example\\.org)", "(a|b|ab)"), 0..4),
            host in "(([aAbB]|www|ab|x)\\.)?(example\\.org|EXAMPLE\\.org|test|localhost|\\[::1\\]|10\\.0\\.0\\.1|)\\.?(:[0-9]{1,4})?",
            path in "/?(a|b|ab|www|A|a%2Fb|\\.\\.)?([/?#]([ab]|\\.\\.|/)*)?",
        ) {
            let table = RouteTable::new(
                "example.org",
                apps.iter().map(|app| name(app)),
                hosts.iter().map(|(host, app)| (host.clone(), name(app))),
            );
            prop_assert_eq!(found(&table, &host, &path), naive(&apps, &hosts, &host, &path));
        }
    }
}
