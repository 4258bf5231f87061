//! ETags as they are kept in memory by the hundred thousand.
//!
//! Most are checksums: 32 hex digits, of an upload in parts with the number of parts after a dash. Those are kept as the 16
//! bytes they stand for, without an allocation; any other as its text. Either way the text comes back as it was.

use std::fmt;

/// One ETag, without quotes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ETag(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    /// `parts` is 0 where the text has none.
    Checksum {
        bytes: [u8; 16],
        parts: u32,
    },
    Text(Box<str>),
}

impl ETag {
    /// Whether the server gave none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Form::Text(text) if text.is_empty())
    }
}

impl From<&str> for ETag {
    fn from(text: &str) -> Self {
        Self(checksum(text).unwrap_or_else(|| Form::Text(text.into())))
    }
}

/// Only of a text that comes back the same: no capitals, no leading zeros.
fn checksum(text: &str) -> Option<Form> {
    let (hex, parts) = match text.split_once('-') {
        None => (text, 0),
        Some((_, parts)) if !parts.starts_with(|c: char| matches!(c, '1'..='9')) => return None,
        Some((hex, parts)) => (hex, parts.parse().ok()?),
    };
    if hex.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(Form::Checksum { bytes, parts })
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Text(text) => f.write_str(text),
            Form::Checksum { bytes, parts } => {
                write!(f, "{:032x}", u128::from_be_bytes(*bytes))?;
                match parts {
                    0 => Ok(()),
                    parts => write!(f, "-{parts}"),
                }
            }
        }
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl PartialEq<str> for ETag {
    fn eq(&self, text: &str) -> bool {
        match &self.0 {
            Form::Text(own) => **own == *text,
            Form::Checksum { .. } => checksum(text).as_ref() == Some(&self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUM: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_checksum_takes_no_memory_of_its_own() {
        for text in [SUM.to_owned(), format!("{SUM}-1"), format!("{SUM}-10000")] {
            let tag = ETag::from(&*text);
            assert!(matches!(tag.0, Form::Checksum { .. }), "{text}");
        }
        assert_eq!(size_of::<Option<ETag>>(), 24);
    }

    fn texts() -> impl Strategy<Value = String> {
        let odd = [
            "",
            "-",
            "W/1",
            &SUM.to_uppercase(),
            &format!("{SUM}-"),
            &format!("{SUM}-0"),
            &format!("{SUM}-01"),
            &format!("{SUM}-+1"),
            &format!("{SUM}-4294967296"),
            &format!("{SUM}-1-1"),
            &format!("{SUM}0"),
            &format!("é{}", &SUM[2..]),
        ]
        .map(str::to_owned);
        prop_oneof![
            prop::sample::select(odd.to_vec()),
            "[0-9a-f]{32}",
            "[0-9a-f]{31,33}-[0-9]{1,10}",
            ".*"
        ]
    }

    proptest! {
        #[test]
        fn every_etag_comes_back_as_it_was_and_is_equal_to_itself_alone(a in texts(), b in texts()) {
            let tag = ETag::from(&*a);
            prop_assert_eq!(tag.to_string(), a.clone());
            prop_assert_eq!(tag == *a, true);
            prop_assert_eq!(tag == *b, a == b);
            let other = ETag::from(&*b);
            prop_assert_eq!(tag == other, a == b);
            prop_assert_eq!(tag.is_empty(), a.is_empty());
        }
    }
}
