//! The values a configuration file is made of: sizes and durations, read from what people write and shown the same way.
//!
//! Both check themselves while the file is being read, so that a mistake is reported with its line. Sizes are binary, as in
//! docker and rclone: `500M` is 500 × 1024 × 1024 bytes.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written `512M`, `1G`, `64KiB` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The units from large to small, by the letter people write.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no size: write for example \"512M\" or \"1G\"");
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper
            .strip_suffix("IB")
            .or_else(|| upper.strip_suffix('B'))
            .unwrap_or(&upper);
        let unit = UNITS.iter().find(|(letter, _)| bare.ends_with(*letter));
        let (digits, factor) = match unit {
            Some((letter, factor)) => (bare.trim_end_matches(*letter), *factor),
            None => (bare, 1),
        };
        let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
        let bytes = number * factor as f64;
        if !bytes.is_finite() || bytes < 0.0 || bytes > (1_u64 << 60) as f64 {
            return Err(wrong());
        }
        Ok(Size(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
        {
            Some((letter, factor)) => write!(f, "{}{letter}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// A length of time, written `300ms`, `15s`, `10m` or `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Span)
            .map_err(|error| format!("{text:?} is no length of time ({error}): write for example \"15s\" or \"10m\""))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A time without use after which something happens, written like a [`Span`], or `never` (also `off` and `0`), which is
/// [`Duration::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Idle(pub Duration);

impl FromStr for Idle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text.trim(), "never" | "off" | "0") {
            return Ok(Self(Duration::MAX));
        }
        match text.parse::<Span>() {
            Ok(Span(Duration::ZERO)) => Ok(Self(Duration::MAX)),
            Ok(Span(time)) => Ok(Self(time)),
            Err(error) => Err(format!("{error}, or \"never\"")),
        }
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Duration::MAX => f.write_str("never"),
            time => Span(time).fmt(f),
        }
    }
}

impl Serialize for Idle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Idle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Switch(bool),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(0) | Written::Switch(false) => Ok(Self(Duration::MAX)),
            Written::Number(n) => Err(de::Error::custom(format!(
                "{n} needs a unit: write for example \"{n}s\""
            ))),
            Written::Switch(true) => Err(de::Error::custom(
                "true is no length of time: write for example \"10m\"",
            )),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_binary_and_show_as_they_were_written() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("64KiB", 64 << 10),
            ("1.5G", 3 << 29),
            ("100", 100),
            ("2mb", 2 << 20),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        assert_eq!(Size(512 << 20).to_string(), "512M");
        for wrong in ["", "M", "-1G", "12Q", "1e400", "many"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        assert_eq!("10m".parse::<Span>().unwrap().0, Duration::from_secs(600));
        assert_eq!("300ms".parse::<Span>().unwrap().to_string(), "300ms");
        assert!("soon".parse::<Span>().is_err());
    }

    #[test]
    fn an_idle_time_may_be_never() {
        for never in ["never", "off", "0", "0s"] {
            assert_eq!(never.parse::<Idle>().unwrap(), Idle(Duration::MAX), "{never}");
        }
        assert_eq!(Idle(Duration::MAX).to_string(), "never");
        assert_eq!("1h 30m".parse::<Idle>().unwrap().0, Duration::from_secs(5400));
        assert!("soon".parse::<Idle>().unwrap_err().contains("never"));
        #[derive(Deserialize)]
        struct Section {
            idle: Idle,
        }
        let read = |line: &str| toml::from_str::<Section>(line).map(|section| section.idle.0);
        assert_eq!(read("idle = 0").unwrap(), Duration::MAX);
        assert_eq!(read("idle = false").unwrap(), Duration::MAX);
        assert!(read("idle = 600").unwrap_err().to_string().contains("600s"));
    }
}
