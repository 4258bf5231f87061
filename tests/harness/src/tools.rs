//! Where the programs are that `cargo xtask test` installs for the tests.

use std::path::PathBuf;

/// The program `name` in the folder of tools: `BERTH_TEST_TOOLS`, else where `cargo xtask test` puts them.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let place = std::env::var_os("BERTH_TEST_TOOLS").map_or_else(|| "/var/tmp/berth-cache/tools".into(), PathBuf::from);
    let path = place.join("bin").join(name);
    assert!(
        path.exists(),
        "this test needs {}; install it with: cargo xtask tools",
        path.display()
    );
    path
}
