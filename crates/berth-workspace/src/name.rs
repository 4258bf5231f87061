//! Names of apps: one DNS label, because a name is also a host (`NAME.DOMAIN`), a path prefix and a folder.
//!
//! A name that does not fit is refused with what is wrong and with the nearest name that would fit, because the person who
//! made the folder has to rename it. Folders that begin with a dot are never workspaces: `.berth`, `.git`, `.Trash-1000`.
//! `www` is an ordinary name here; that it is the site's root is the edge's business.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label (RFC 1035, 2.3.4).
const MAX_LEN: usize = 63;

/// The name of an app and of its workspace folder: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(String);

/// Why a text is no app name. Its `Display` says what is wrong and proposes a name that fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing but white space.
    #[error("an app needs a name: a-z, 0-9 and -, at most 63 characters")]
    Empty,
    /// Begins with a dot: a hidden folder, which is never a workspace.
    #[error("{name} is a hidden folder, and hidden folders are no apps{}", try_(suggestion))]
    Hidden {
        /// The text that was given.
        name: String,
        /// A name that fits, if one could be made.
        suggestion: Option<String>,
    },
    /// Holds a character that no host name may hold.
    #[error("{name} is no app name: only a-z, 0-9 and - may be used, not {}{}", show(*found), try_(suggestion))]
    Character {
        /// The text that was given.
        name: String,
        /// The first character that does not fit.
        found: char,
        /// A name that fits, if one could be made.
        suggestion: Option<String>,
    },
    /// Begins or ends with a hyphen.
    #[error(
        "{name} is no app name: it must begin and end with a letter or digit{}",
        try_(suggestion)
    )]
    Hyphen {
        /// The text that was given.
        name: String,
        /// A name that fits, if one could be made.
        suggestion: Option<String>,
    },
    /// Longer than 63 characters.
    #[error(
        "{name} is no app name: it has {len} characters, and at most 63 fit in a host name{}",
        try_(suggestion)
    )]
    TooLong {
        /// The text that was given.
        name: String,
        /// Its length in characters.
        len: usize,
        /// A name that fits, if one could be made.
        suggestion: Option<String>,
    },
}

fn try_(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(name) => format!("; try {name}"),
        None => String::new(),
    }
}

fn show(c: char) -> String {
    match c {
        ' ' => "a space".to_owned(),
        c if c.is_control() => format!("U+{:04X}", u32::from(c)),
        c => format!("`{c}`"),
    }
}

impl NameError {
    /// The proposed name that fits, if one could be made from what was given.
    #[must_use]
    pub fn suggestion(&self) -> Option<&str> {
        match self {
            Self::Empty => None,
            Self::Hidden { suggestion, .. }
            | Self::Character { suggestion, .. }
            | Self::Hyphen { suggestion, .. }
            | Self::TooLong { suggestion, .. } => suggestion.as_deref(),
        }
    }
}

impl AppName {
    /// Checks a text and makes a name of it.
    ///
    /// # Errors
    /// [`NameError`] with what is wrong and a name that would fit.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name.trim().is_empty() {
            return Err(NameError::Empty);
        }
        let (given, suggestion) = (name.to_owned(), suggest(name));
        if name.starts_with('.') {
            return Err(NameError::Hidden {
                name: given,
                suggestion,
            });
        }
        if let Some(found) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(NameError::Character {
                name: given,
                found,
                suggestion,
            });
        }
        if name.starts_with('-') || name.ends_with('-') {
            return Err(NameError::Hyphen {
                name: given,
                suggestion,
            });
        }
        if name.len() > MAX_LEN {
            return Err(NameError::TooLong {
                name: given,
                len: name.len(),
                suggestion,
            });
        }
        Ok(Self(given))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The nearest name that fits: lower case, runs of other characters become one hyphen, cut to 63.
fn suggest(name: &str) -> Option<String> {
    let mut out = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            _ if out.is_empty() || out.ends_with('-') => {}
            _ => out.push('-'),
        }
    }
    out.truncate(MAX_LEN);
    let fitting = out.trim_end_matches('-');
    (!fitting.is_empty()).then(|| fitting.to_owned())
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for AppName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::parse(s)
    }
}

impl TryFrom<String> for AppName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        Self::parse(&s)
    }
}

impl From<AppName> for String {
    fn from(name: AppName) -> Self {
        name.0
    }
}

impl AsRef<str> for AppName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Str and AppName hash and compare alike, so that maps keyed by name can be asked with a plain text.
impl Borrow<str> for AppName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dns_labels_are_names() {
        for name in ["a", "www", "0", "my-app", "a--b", &"x".repeat(63)] {
            assert_eq!(AppName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_would_fit() {
        let long = "x".repeat(64);
        let cases = [
            (
                "My_App",
                "My_App is no app name: only a-z, 0-9 and - may be used, not `M`; try my-app",
            ),
            ("my app", "not a space; try my-app"),
            ("a\nb", "not U+000A; try a-b"),
            ("a/b", "not `/`; try a-b"),
            (
                ".git",
                ".git is a hidden folder, and hidden folders are no apps; try git",
            ),
            ("-a", "must begin and end with a letter or digit; try a"),
            ("a-", "try a"),
            ("ä", "not `ä`"),
            ("  ", "an app needs a name"),
            (long.as_str(), "it has 64 characters, and at most 63"),
        ];
        for (given, message) in cases {
            let e = AppName::parse(given).expect_err(given).to_string();
            assert!(e.contains(message), "{given:?}: {e}");
        }
        assert_eq!(AppName::parse("---").unwrap_err().suggestion(), None);
    }

    #[test]
    fn serde_checks_too() {
        assert!(serde_json::from_str::<AppName>("\"A\"").is_err());
        assert_eq!(serde_json::to_string(&AppName::parse("a").unwrap()).unwrap(), "\"a\"");
    }

    proptest! {
        #[test]
        fn every_proposed_name_fits(given in any::<String>()) {
            match AppName::parse(&given) {
                Ok(name) => prop_assert_eq!(name.as_str(), given),
                Err(e) => if let Some(fitting) = e.suggestion() {
                    prop_assert!(AppName::parse(fitting).is_ok(), "{}", fitting);
                },
            }
        }

        #[test]
        fn exactly_the_labels_are_names(given in "[a-z0-9-]{0,70}") {
            let fits = (1..=63).contains(&given.len()) && !given.starts_with('-') && !given.ends_with('-');
            prop_assert_eq!(AppName::parse(&given).is_ok(), fits);
        }
    }
}
