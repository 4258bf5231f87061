//! The published JSON Schema of `workspace.json`, for editors: completion, a word about each key, red underlines.
//!
//! `file.rs` reads the file by hand for the sake of exact complaints; these types say the same once more in the form that
//! `schemars` turns into a schema. A test holds the two together, and another that `docs/workspace.schema.json` is current.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// How Berth runs a workspace. All keys are optional; what is left out is found by looking at the files.
#[derive(JsonSchema)]
#[schemars(title = "workspace.json", deny_unknown_fields)]
#[allow(dead_code)] // Only its schema is used.
struct Workspace {
    /// Where this schema is; for editors only.
    #[schemars(rename = "$schema")]
    schema: Option<String>,
    /// The kind of app. Without it the files tell: package.json, requirements.txt, go.mod, index.html, ...
    #[schemars(rename = "type")]
    kind: Option<Kind>,
    /// The port the app listens on, given to it as PORT. Default: node 3000, python 8000, go and static 8080.
    #[schemars(range(min = 1, max = 65535))]
    port: Option<u16>,
    /// What starts the app: a text run by `sh -c`, or program and arguments.
    command: Option<Command>,
    /// Environment variables. Numbers, true and false become texts.
    env: Option<BTreeMap<String, Text>>,
    /// What installs the app, in place of the usual steps; false installs nothing.
    install: Option<Install>,
    /// Host names of its own, such as shop.example.com.
    hosts: Option<Vec<String>>,
    /// Limits of this app; the host's own maximum still holds.
    limits: Option<Limits>,
    /// A path that must answer before the app counts as ready.
    #[schemars(regex(pattern = "^/"))]
    health: Option<String>,
    /// Freeze the app after this time without a request, if it does nothing by itself; the next one thaws it: 90s, 10m, or never.
    idle_freeze: Option<Idle>,
    /// Stop the app after this time without a request: 90s, 10m, 1h, or never.
    idle_stop: Option<Idle>,
    /// Static apps: the folder that is served.
    root: Option<String>,
    /// Patterns, beside the host's, of what is never stored: NAME/** for folders, NAME for files, at any depth.
    #[schemars(extend("maxItems" = 64))]
    exclude: Option<Vec<String>>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)]
enum Kind {
    Node,
    Python,
    Go,
    Static,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Command {
    Shell(String),
    Argv(#[schemars(length(min = 1))] Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Install {
    Switch(bool),
    Command(Command),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Text {
    Words(String),
    Number(f64),
    Switch(bool),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Idle {
    Time(String),
    Never(#[schemars(extend("const" = false))] bool),
}

/// Bytes, or a text such as 512M; K, M, G and T count in 1024s.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Size {
    Bytes(u64),
    Text(#[schemars(regex(pattern = r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"))] String),
}

/// What the app may use.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code)]
struct Limits {
    /// Memory, at least 16M.
    memory: Option<Size>,
    /// CPUs; 0.5 is half of one.
    #[schemars(range(min = 0.01, max = 1024.0))]
    cpus: Option<f64>,
    /// Processes and threads.
    #[schemars(range(min = 16, max = 4_194_304))]
    pids: Option<u32>,
    /// Size of /app: the source and its dependencies.
    app_size: Option<Size>,
    /// Size of /tmp.
    tmp_size: Option<Size>,
}

/// The schema as pretty-printed JSON with a final newline.
#[must_use]
pub fn json_schema() -> String {
    let mut schema = schemars::schema_for!(Workspace).to_value();
    without_null(&mut schema);
    // A schema is plain JSON already: nothing that can fail to be written.
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// `Option` becomes "or null" in a schema, but `null` is no value here: a key is left out instead.
fn without_null(node: &mut Value) {
    match node {
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Object(members) => {
            members.values_mut().for_each(without_null);
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = &types[..] {
                    let only = only.clone();
                    members.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = members.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(only)] = &choices[..] {
                    let only = only.clone();
                    members.remove("anyOf");
                    members.extend(only);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::file::{KEYS, LIMIT_KEYS};
    use std::collections::BTreeSet;

    fn keys(node: &serde_json::Value) -> BTreeSet<&str> {
        node["properties"]
            .as_object()
            .expect("properties")
            .keys()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn the_schema_has_exactly_the_keys_that_are_read() {
        let schema: serde_json::Value = serde_json::from_str(&json_schema()).unwrap();
        assert_eq!(keys(&schema), BTreeSet::from(KEYS));
        assert_eq!(keys(&schema["$defs"]["Limits"]), BTreeSet::from(LIMIT_KEYS));
        assert_eq!(schema["additionalProperties"], false);
        assert!(schema["required"].is_null(), "every key is optional");
        assert!(!json_schema().contains("null"), "null is no value of any key");
    }

    #[test]
    fn the_published_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/workspace.schema.json");
        if std::env::var_os("BERTH_WRITE_SCHEMA").is_some() {
            std::fs::write(path, json_schema()).expect("write the schema");
        }
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            published,
            json_schema(),
            "run the tests once with BERTH_WRITE_SCHEMA=1 to bring {path} up to date"
        );
    }
}
