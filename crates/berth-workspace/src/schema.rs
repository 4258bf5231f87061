//! The published JSON Schema of `workspace.json`.

/// The schema as pretty-printed JSON with a final newline.
#[must_use]
pub fn json_schema() -> String {
    unimplemented!()
}
