//! Errors with their causes in one line: how every part tells a person what failed.
//!
//! Each error says its own act and object; what lies beneath comes from `source()`. Some libraries repeat their cause in their own
//! text: what was told is not told again.

use std::error::Error;

/// `error` and its causes, separated by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let told = inner.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount image node{suffix}")]
    struct Outer {
        suffix: &'static str,
        #[source]
        source: std::io::Error,
    }

    #[test]
    fn causes_are_told_once() {
        let with = |suffix| Outer {
            suffix,
            source: std::io::Error::other("checksum differs"),
        };
        assert_eq!(chain(&with("")), "cannot mount image node: checksum differs");
        assert_eq!(
            chain(&with(": checksum differs")),
            "cannot mount image node: checksum differs"
        );
    }
}
