#![forbid(unsafe_code)]
//! `cargo xtask`: what a person does with this repository, in one word each.
//!
//! On a fresh Debian with nothing but Rust and apt, `cargo xtask up` ends with running apps, and `cargo xtask test` with
//! the tests' verdict. Each step looks first whether it has been done, so that a second run takes seconds, and says in
//! one line what it does. Debian packages come from the one list in `packages.rs`; everything else is cargo's and
//! `berth`'s own.

mod bench;
mod crash;
mod examples;
mod http;
mod lint;
mod packages;
mod promises;
mod step;
mod suites;
mod test;
mod tools;
mod up;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask up            install what is needed, build, start the daemon and the example apps
cargo xtask down          stop the daemon that `up` started
cargo xtask test [ARGS]   run all tests; ARGS go to `cargo test`
cargo xtask tools         install the suites and S3 servers that tests run
cargo xtask suites [--full]  run other people's suites and programs on the mount; --full: as long as before a release
cargo xtask bench NAME    measure: cold-start, start, proxy, memory or mount; --help after the name lists its options
cargo xtask crash [ARGS]  kill daemons while programs save, and count what is lost: --rounds N, --seed S
cargo xtask lint          formatting, clippy and the rules of the house
cargo xtask image NAME..  build images: node, python, go, nginx, or all";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["up"] => up::up(),
        ["down"] => up::down(),
        ["test", rest @ ..] => test::test(rest),
        ["tools"] => tools::install(),
        ["suites"] => suites::suites(suites::Size::Ci),
        ["suites", "--full"] => suites::suites(suites::Size::Full),
        ["bench", rest @ ..] if !rest.is_empty() => bench::bench(rest),
        ["crash", rest @ ..] => crash::crash(rest),
        ["lint"] => lint::lint(),
        ["image", names @ ..] if !names.is_empty() => up::images(names),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
