//! Which names lead to which app: the table the edge matches requests with.
//!
//! An app is reached under its own name always; custom host names (`hosts` in `workspace.json`) are claimed. The first
//! app to claim a host keeps it for as long as it asks for it; others that want it get a [`Conflict`], shown with the
//! app. When the owner lets go, the next claimant (by name) gets it.

use std::collections::{BTreeMap, BTreeSet};

use berth_workspace::AppName;

/// The routes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    /// Every workspace that is an app (also one that fails at the moment: its error page is an answer).
    pub apps: BTreeSet<AppName>,
    /// Custom host names (lower case) and their owners.
    pub hosts: BTreeMap<String, AppName>,
}

/// A host name that an app asked for and another one owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The host name.
    pub host: String,
    /// The app that has it.
    pub owner: AppName,
}

/// All claims, from which the table is made.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    wanted: BTreeMap<AppName, BTreeSet<String>>,
    owners: BTreeMap<String, AppName>,
}

impl Claims {
    /// `app` is routable now and asks for exactly `hosts`.
    pub(crate) fn set(&mut self, app: &AppName, hosts: &[String]) {
        let hosts: BTreeSet<String> = hosts
            .iter()
            .map(|host| host.trim_end_matches('.').to_ascii_lowercase())
            .collect();
        self.owners.retain(|host, owner| owner != app || hosts.contains(host));
        for host in &hosts {
            self.owners.entry(host.clone()).or_insert_with(|| app.clone());
        }
        self.wanted.insert(app.clone(), hosts);
        self.hand_over();
    }

    /// `app` is no longer routable.
    pub(crate) fn remove(&mut self, app: &AppName) {
        self.wanted.remove(app);
        self.owners.retain(|_, owner| owner != app);
        self.hand_over();
    }

    /// Whether `app` is routable.
    pub(crate) fn knows(&self, app: &AppName) -> bool {
        self.wanted.contains_key(app)
    }

    /// The hosts that `app` asked for and did not get.
    pub(crate) fn conflicts(&self, app: &AppName) -> Vec<Conflict> {
        let wanted = self.wanted.get(app).into_iter().flatten();
        wanted
            .filter_map(|host| {
                let owner = self.owners.get(host).filter(|owner| *owner != app)?;
                Some(Conflict {
                    host: host.clone(),
                    owner: owner.clone(),
                })
            })
            .collect()
    }

    /// The hosts that lead to `app`.
    pub(crate) fn hosts(&self, app: &AppName) -> Vec<String> {
        self.owners
            .iter()
            .filter(|(_, owner)| *owner == app)
            .map(|(host, _)| host.clone())
            .collect()
    }

    pub(crate) fn table(&self) -> RouteTable {
        RouteTable {
            apps: self.wanted.keys().cloned().collect(),
            hosts: self.owners.clone(),
        }
    }

    /// Gives hosts without an owner to the first app that still asks for them.
    fn hand_over(&mut self) {
        for (app, hosts) in &self.wanted {
            for host in hosts {
                self.owners.entry(host.clone()).or_insert_with(|| app.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn app(name: &str) -> AppName {
        AppName::parse(name).unwrap()
    }

    #[test]
    fn the_first_owner_of_a_host_keeps_it_and_the_other_app_is_told() {
        let mut claims = Claims::default();
        claims.set(&app("zebra"), &["Shop.Example".to_owned()]);
        claims.set(&app("ape"), &["shop.example".to_owned(), "ape.example".to_owned()]);
        assert_eq!(claims.table().hosts["shop.example"], app("zebra"));
        assert_eq!(
            claims.conflicts(&app("ape")),
            [Conflict {
                host: "shop.example".to_owned(),
                owner: app("zebra")
            }]
        );
        assert_eq!(claims.hosts(&app("ape")), ["ape.example"]);
        assert!(claims.conflicts(&app("zebra")).is_empty());
    }

    #[test]
    fn a_host_that_its_owner_lets_go_passes_to_the_one_who_waits_for_it() {
        let mut claims = Claims::default();
        claims.set(&app("zebra"), &["shop.example".to_owned()]);
        claims.set(&app("ape"), &["shop.example".to_owned()]);
        claims.set(&app("zebra"), &[]);
        assert_eq!(claims.table().hosts["shop.example"], app("ape"));
        claims.remove(&app("ape"));
        assert!(claims.table().hosts.is_empty());
        assert_eq!(claims.table().apps, BTreeSet::from([app("zebra")]));
    }
}
