//! The single values of `workspace.json`: each reader takes a node and says what is wrong with it, at its place.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;

use super::{Command, Install, MAX_PATTERN, MAX_PATTERNS, Member, Mistake, Node, Value, object};
use crate::Kind;
use crate::json::shorten;
use crate::suggest::nearest;

/// Longest host name (RFC 1035).
const MAX_HOST: usize = 253;

/// Words people use for a kind.
const OTHER_KINDS: [(&str, &str); 13] = [
    ("nodejs", "node"),
    ("node.js", "node"),
    ("javascript", "node"),
    ("js", "node"),
    ("typescript", "node"),
    ("react", "node"),
    ("py", "python"),
    ("python3", "python"),
    ("golang", "go"),
    ("html", "static"),
    ("nginx", "static"),
    ("site", "static"),
    ("website", "static"),
];

fn wrong(node: &Node, message: impl Into<String>) -> Mistake {
    Mistake {
        at: node.at,
        message: message.into(),
    }
}

fn text<'a>(node: &'a Node, what: &str, example: &str) -> Result<&'a str, Mistake> {
    match node.text() {
        Some(text) if text.contains('\0') => Err(wrong(node, format!("`{what}` cannot hold a NUL character"))),
        Some(text) => Ok(text),
        None => Err(wrong(
            node,
            format!("`{what}` is a text such as {example}, not {}", node.value.describe()),
        )),
    }
}

pub(super) fn kind(node: &Node) -> Result<Kind, Mistake> {
    let given = text(node, "type", "\"node\"")?;
    if let Ok(kind) = given.parse() {
        return Ok(kind);
    }
    let lower = given.to_lowercase();
    let meant = OTHER_KINDS
        .iter()
        .find(|(other, _)| *other == lower)
        .map(|(_, kind)| *kind);
    let hint = match meant.or_else(|| nearest(&lower, Kind::ALL.map(Kind::as_str))) {
        Some(kind) => format!("; did you mean \"{kind}\"?"),
        None => String::new(),
    };
    Err(wrong(
        node,
        format!(
            "unknown type \"{}\": the types are node, python, go and static{hint}",
            shorten(given)
        ),
    ))
}

pub(super) fn port(node: &Node) -> Result<u16, Mistake> {
    match &node.value {
        Value::Number(number) => match number.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong(
                node,
                format!("port {} is not between 1 and 65535", shorten(number)),
            )),
        },
        Value::String(text) if text.parse::<u16>().is_ok_and(|p| p > 0) => Err(wrong(
            node,
            format!("`port` is a number: write {text} without the quotes"),
        )),
        other => Err(wrong(
            node,
            format!("`port` is a number such as 3000, not {}", other.describe()),
        )),
    }
}

pub(super) fn command(node: &Node, what: &str) -> Result<Command, Mistake> {
    const EXAMPLE: &str = "\"npm run dev\", or a list such as [\"node\", \"server.js\"]";
    match &node.value {
        Value::String(line) if line.trim().is_empty() => Err(wrong(
            node,
            format!("`{what}` is empty; write a command or remove the key"),
        )),
        Value::String(_) => Ok(Command::Shell(text(node, what, EXAMPLE)?.to_owned())),
        Value::Array(items) => {
            let argv = items
                .iter()
                .map(|item| text(item, what, EXAMPLE).map(str::to_owned))
                .collect::<Result<Vec<_>, _>>()?;
            match argv.first() {
                Some(program) if !program.trim().is_empty() => Ok(Command::Argv(argv)),
                _ => Err(wrong(
                    node,
                    format!("`{what}` names no program; write for example [\"node\", \"server.js\"]"),
                )),
            }
        }
        other => Err(wrong(
            node,
            format!("`{what}` is a text such as {EXAMPLE}, not {}", other.describe()),
        )),
    }
}

/// `true` is what is done anyway and so the same as no key.
pub(super) fn install(node: &Node) -> Result<Option<Install>, Mistake> {
    match node.value {
        Value::Bool(false) => Ok(Some(Install::Skip)),
        Value::Bool(true) => Ok(None),
        Value::String(_) | Value::Array(_) => command(node, "install").map(|c| Some(Install::Run(c))),
        ref other => {
            let found = other.describe();
            Err(wrong(
                node,
                format!("`install` is a command, or false to install nothing, not {found}"),
            ))
        }
    }
}

pub(super) fn env(node: &Node) -> Result<BTreeMap<String, String>, Mistake> {
    let mut env = BTreeMap::new();
    for Member { key, at, value } in object(node, "`env`")? {
        let shown = shorten(key);
        let mut chars = key.chars();
        let head = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !head || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let message =
                format!("`{shown}` is no name of a variable: letters, digits and _, not beginning with a digit");
            return Err(Mistake { at: *at, message });
        }
        if env.contains_key(key) {
            return Err(Mistake {
                at: *at,
                message: format!("`env.{shown}` stands twice; remove one"),
            });
        }
        let text = match &value.value {
            Value::String(_) => text(value, &format!("env.{shown}"), "\"value\"")?.to_owned(),
            Value::Number(number) => number.clone(),
            Value::Bool(yes) => yes.to_string(),
            other => {
                let found = other.describe();
                return Err(wrong(
                    value,
                    format!("`env.{shown}` is a text, a number, true or false, not {found}"),
                ));
            }
        };
        env.insert(key.clone(), text);
    }
    Ok(env)
}

pub(super) fn hosts(node: &Node) -> Result<Vec<String>, Mistake> {
    let Value::Array(items) = &node.value else {
        let found = node.value.describe();
        return Err(wrong(
            node,
            format!("`hosts` is a list such as [\"shop.example.com\"], not {found}"),
        ));
    };
    let mut hosts = Vec::new();
    for item in items {
        let host = host(item)?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    Ok(hosts)
}

pub(super) fn exclude(node: &Node) -> Result<Vec<String>, Mistake> {
    let Value::Array(items) = &node.value else {
        let found = node.value.describe();
        return Err(wrong(
            node,
            format!("`exclude` is a list such as [\"*.bin\"], not {found}"),
        ));
    };
    if let Some(one_more) = items.get(MAX_PATTERNS) {
        let many = items.len();
        return Err(wrong(
            one_more,
            format!(
                "`exclude` has {many} patterns, and {MAX_PATTERNS} are the most; put such files in one folder: \"out/**\""
            ),
        ));
    }
    let mut patterns = Vec::new();
    for item in items {
        let pattern = text(item, "exclude", "\"*.bin\"")?.to_owned();
        if pattern.len() > MAX_PATTERN {
            return Err(wrong(
                item,
                format!("a pattern of {} bytes: {MAX_PATTERN} are the most", pattern.len()),
            ));
        }
        crate::Excludes::new(std::slice::from_ref(&pattern)).map_err(|error| wrong(item, error.to_string()))?;
        patterns.push(pattern);
    }
    Ok(patterns)
}

fn host(node: &Node) -> Result<String, Mistake> {
    let given = text(node, "hosts", "\"shop.example.com\"")?;
    let host = given.trim_end_matches('.').to_ascii_lowercase();
    let shown = shorten(given);
    if host.contains("://") || host.contains('/') {
        return Err(wrong(
            node,
            format!("\"{shown}\" is a URL; write the host name alone, such as \"shop.example.com\""),
        ));
    }
    if host.contains(':') {
        return Err(wrong(
            node,
            format!("\"{shown}\" names a port; write the host name alone"),
        ));
    }
    if host.contains('*') {
        return Err(wrong(
            node,
            format!("\"{shown}\": wildcards are not possible here; list each host"),
        ));
    }
    if !host.is_ascii() {
        return Err(wrong(
            node,
            format!("\"{shown}\": write the name in its ASCII form (xn--...)"),
        ));
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // A last label of digits alone would be an IPv4 address.
    let digits = host
        .rsplit('.')
        .next()
        .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if host.len() > MAX_HOST || digits || !host.split('.').all(label) {
        return Err(wrong(
            node,
            format!("\"{shown}\" is no host name; write for example \"shop.example.com\""),
        ));
    }
    Ok(host)
}

pub(super) fn health(node: &Node) -> Result<String, Mistake> {
    let path = text(node, "health", "\"/healthz\"")?;
    if !path.starts_with('/') {
        return Err(wrong(
            node,
            format!(
                "`health` is a path that begins with /, such as \"/healthz\", not \"{}\"",
                shorten(path)
            ),
        ));
    }
    if path.contains(|c: char| c.is_whitespace() || c.is_control() || !c.is_ascii() || c == '#') {
        return Err(wrong(
            node,
            "`health` holds a character that a path in a request cannot; write it percent-encoded",
        ));
    }
    Ok(path.to_owned())
}

/// A time without requests after which something happens; [`Duration::MAX`] for `"never"` and `false`. `otherwise` says what
/// "never" does.
pub(super) fn idle(node: &Node, key: &str, otherwise: &str) -> Result<Duration, Mistake> {
    let given = match &node.value {
        Value::Bool(false) => return Ok(Duration::MAX),
        Value::String(given) => given.trim(),
        Value::Number(n) => {
            let n = shorten(n);
            return Err(wrong(
                node,
                format!("`{key}` needs a unit: write \"{n}s\" for seconds or \"{n}m\" for minutes"),
            ));
        }
        other => {
            return Err(wrong(
                node,
                format!(
                    "`{key}` is a time such as \"10m\", or \"never\", not {}",
                    other.describe()
                ),
            ));
        }
    };
    if given == "never" {
        return Ok(Duration::MAX);
    }
    match humantime::parse_duration(given) {
        Ok(time) if time < Duration::from_secs(1) => Err(wrong(
            node,
            format!("`{key}` {given} is too short: at least 1s; to {otherwise} write \"never\""),
        )),
        Ok(time) => Ok(time),
        Err(_) => Err(wrong(
            node,
            format!(
                "`{key}` \"{}\" is no time: write for example \"90s\", \"10m\", \"1h\" or \"never\"",
                shorten(given)
            ),
        )),
    }
}

pub(super) fn root(node: &Node) -> Result<String, Mistake> {
    let given = text(node, "root", "\"public\"")?;
    if given.starts_with('/') && given != "/" {
        return Err(wrong(
            node,
            format!(
                "`root` is a folder inside the workspace: write \"{}\"",
                shorten(given.trim_matches('/'))
            ),
        ));
    }
    let mut parts = Vec::new();
    for part in given.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(wrong(node, "`root` cannot leave the workspace with `..`")),
            part => parts.push(part),
        }
    }
    let root = parts.join("/");
    if root.contains(char::is_control) {
        return Err(wrong(node, "`root` holds a control character"));
    }
    Ok(root)
}

/// A size in bytes: a number, or a text with K, M, G or T. As in docker's `--memory`, all of them count in 1024s.
pub(super) fn size(node: &Node, what: &str, least: u64) -> Result<u64, Mistake> {
    let (bytes, given) = match &node.value {
        Value::Number(n) => (n.parse::<u64>().ok(), n.as_str()),
        Value::String(s) => (parse_size(s), s.as_str()),
        other => {
            return Err(wrong(
                node,
                format!("`{what}` is a size such as \"512M\", not {}", other.describe()),
            ));
        }
    };
    let given = shorten(given);
    let Some(bytes) = bytes else {
        return Err(wrong(
            node,
            format!("`{what}` {given:?} is no size: write for example \"512M\" or \"1.5G\""),
        ));
    };
    if bytes < least {
        let least = ByteSize::b(least).display().iec();
        let hint = match given.parse::<u32>() {
            Ok(n) => format!("; for megabytes write \"{n}M\""),
            Err(_) => String::new(),
        };
        return Err(wrong(
            node,
            format!("`{what}` {given} is too small: at least {least}{hint}"),
        ));
    }
    Ok(bytes)
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start().to_ascii_lowercase());
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return None,
    };
    let factor = 1u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    // Beyond 2^53 a float no longer holds every byte, and no host has that much.
    (bytes.is_finite() && bytes < 9e15).then_some(bytes as u64)
}

pub(super) fn cpus(node: &Node) -> Result<f64, Mistake> {
    let cpus = match &node.value {
        Value::Number(n) => n.parse::<f64>().ok(),
        other => {
            return Err(wrong(
                node,
                format!("`limits.cpus` is a number such as 0.5, not {}", other.describe()),
            ));
        }
    };
    match cpus {
        Some(cpus) if (0.01..=1024.0).contains(&cpus) => Ok(cpus),
        _ => Err(wrong(node, "`limits.cpus` is not between 0.01 and 1024")),
    }
}

pub(super) fn pids(node: &Node) -> Result<u32, Mistake> {
    let pids = match &node.value {
        Value::Number(n) => n.parse::<u32>().ok(),
        other => {
            return Err(wrong(
                node,
                format!("`limits.pids` is a number such as 256, not {}", other.describe()),
            ));
        }
    };
    match pids {
        // npm alone takes a dozen threads; 4194304 is the kernel's own end.
        Some(pids) if (16..=4_194_304).contains(&pids) => Ok(pids),
        _ => Err(wrong(node, "`limits.pids` is not between 16 and 4194304")),
    }
}
