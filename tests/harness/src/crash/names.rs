//! Whose names are whose.

use md5::{Digest, Md5};

/// Which thread a path belongs to; `None`: all of them, or nobody.
#[must_use]
pub fn owner(path: &str) -> Option<usize> {
    let mut parts = path.split('/');
    let (first, second) = (parts.next()?, parts.next());
    let own = match (first, second) {
        ("one" | "two", Some("shared")) => parts.next()?,
        ("one" | "two", Some(own)) => own,
        (solo, _) => solo.strip_prefix("solo-")?,
    };
    let digits = own.strip_prefix('t')?.split('-').next()?;
    digits.parse().ok()
}

/// The folders that are there from the first round on and never go.
#[must_use]
pub fn roots(threads: usize) -> Vec<String> {
    let mut roots = vec!["one".to_owned(), "two".into(), "one/shared".into()];
    for thread in 0..threads {
        roots.extend([format!("one/t{thread}"), format!("two/t{thread}")]);
    }
    roots
}

/// The MD5 of some content, in hex.
#[must_use]
pub fn sum(content: &[u8]) -> String {
    Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
