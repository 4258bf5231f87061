//! The host with real sandboxes, real images and a real S3 server: what a person sees of an app's life.
//!
//! This test has a `main` of its own: the spawner must be forked before the first thread, and the usual harness starts
//! threads first. It runs its cases one after the other and prints a line for each. Arguments choose cases by parts of their
//! names. Needs root, cgroups and the images `node`, `python` and `nginx` in /var/lib/berth/images; without them it fails and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod changes;
mod failures;
mod starts;
mod world;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_sandbox::Spawner;
use world::World;

type Case = (&'static str, fn(Arc<World>) -> Pin<Box<dyn Future<Output = ()> + Send>>);

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |world| Box::pin($module::$name(world)))),*]
    };
}

const CASES: &[Case] = cases![
    starts::the_first_request_starts_the_app_and_is_answered,
    starts::a_hundred_requests_start_one_sandbox,
    starts::an_app_on_another_port_is_found,
    starts::an_app_on_loopback_only_is_reached,
    starts::a_health_path_is_waited_for,
    starts::a_static_site_shows_an_edit_without_a_restart,
    starts::a_python_app_answers,
    starts::an_idle_app_is_stopped_and_leaves_nothing,
    starts::a_command_by_hand_has_the_apps_source,
    changes::an_edit_is_swapped_in_without_a_failed_request,
    changes::a_request_that_is_under_way_survives_the_swap,
    changes::an_edit_that_does_not_start_leaves_the_old_one_serving,
    changes::a_mistake_in_workspace_json_leaves_the_old_one_serving,
    changes::a_deleted_workspace_is_gone_with_its_sandbox_and_routes,
    changes::a_folder_with_an_impossible_name_is_shown_and_harms_nobody,
    changes::the_first_owner_of_a_host_name_keeps_it,
    changes::stop_and_restart_by_hand,
    failures::a_crashed_app_is_started_again_by_the_next_request,
    failures::a_start_command_that_ends_is_told_with_its_output,
    failures::an_app_that_never_listens_is_given_up,
    failures::a_failed_install_is_told_with_its_output,
    failures::shutdown_leaves_nothing,
];

fn main() -> ExitCode {
    let spawner = match Spawner::fork_before_threads() {
        Ok(spawner) => spawner,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if std::env::args().any(|argument| argument == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let world = match runtime.block_on(World::new(spawner)) {
        Ok(world) => Arc::new(world),
        Err(reason) => {
            eprintln!("cannot test the host here: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begun = Instant::now();
        let end = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(120), tokio::spawn(case(Arc::clone(&world)))).await
        });
        let good = matches!(end, Ok(Ok(())));
        println!(
            "test {name} ... {} ({:.0} ms)",
            if good { "ok" } else { "FAILED" },
            begun.elapsed().as_secs_f64() * 1e3
        );
        if good { passed += 1 } else { failed += 1 }
    }
    runtime.block_on(world.down());
    println!("test result: {passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
