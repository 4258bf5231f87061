//! Sandboxes as a person meets them, on this kernel, with a root file system made of busybox.
//!
//! This test has a `main` of its own: the spawner must be forked before the first thread, and the usual harness starts threads first. It
//! runs its cases one after the other, prints a line for each and a sum at the end. Arguments choose cases by parts of their names.
//! Needs root, `busybox-static`, and cgroups; without them it fails and says so.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use berth_sandbox::Spawner;
use world::World;

mod confinement;
mod exec;
mod life;
mod limits;
mod reach;
mod speed;

type Case = (&'static str, fn(Arc<World>) -> Pin<Box<dyn Future<Output = ()> + Send>>);

#[macro_export]
macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |world| Box::pin($module::$name(world)))),*]
    };
}

const CASES: &[Case] = cases![
    life::an_app_runs_and_its_exit_code_is_told,
    life::the_source_is_copied_and_install_steps_run_first,
    life::a_failed_install_tells_its_last_lines,
    life::a_command_that_is_not_there_is_named,
    life::a_stop_lets_the_app_end_by_itself,
    life::an_app_that_ignores_the_stop_is_killed_after_the_grace,
    life::a_stop_ends_a_running_install,
    life::orphans_are_reaped,
    life::a_broken_specification_leaves_nothing,
    life::logs_are_written_rotated_and_followed,
    life::a_sandbox_outlives_its_daemons_handle_and_is_adopted,
    life::a_sandbox_outlives_a_killed_daemon_and_its_spawner,
    life::a_killed_keeper_takes_its_sandbox_along,
    life::leftovers_are_cleaned,
    confinement::no_capabilities_no_new_privileges_and_a_filter,
    confinement::the_image_and_the_source_are_read_only,
    confinement::nothing_of_the_host_is_seen,
    confinement::forbidden_calls_are_refused,
    confinement::a_frozen_sandbox_can_be_stopped,
    confinement::a_frozen_sandbox_hands_its_pages_of_files_back_when_all_is_asked_for,
    limits::a_memory_hog_is_killed_alone,
    limits::a_fork_bomb_is_bounded,
    limits::a_full_app_folder_is_an_error_not_a_kill,
    exec::a_command_inside_has_its_own_pipes_and_exit_code,
    exec::a_command_inside_is_as_confined_as_the_app,
    exec::a_terminal_is_a_terminal,
    exec::a_command_that_is_not_there_is_an_error,
    exec::commands_end_with_their_sandbox,
    reach::an_app_is_reached_inside_its_namespace,
    reach::a_wired_app_has_an_address_and_a_resolver,
    speed::a_hundred_lives_leave_nothing,
    speed::a_quiet_start_is_quick,
];

fn main() -> ExitCode {
    let spawner = match Spawner::fork_before_threads() {
        Ok(spawner) => spawner,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(spec) = std::env::var_os(life::DAEMON) {
        return life::be_a_daemon(spawner, &spec);
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|a| a == "--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let world = match World::new(spawner) {
        Ok(world) => Arc::new(world),
        Err(reason) => {
            eprintln!("cannot test sandboxes here: {reason}");
            return ExitCode::FAILURE;
        }
    };
    run(&world, &wanted)
}

fn run(world: &Arc<World>, wanted: &[String]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        let end = runtime.block_on(async {
            tokio::time::timeout(
                std::time::Duration::from_secs(120),
                tokio::spawn(case(Arc::clone(world))),
            )
            .await
        });
        let good = matches!(end, Ok(Ok(())));
        println!(
            "test {name} ... {} ({:.0} ms)",
            if good { "ok" } else { "FAILED" },
            started.elapsed().as_secs_f64() * 1e3
        );
        if good {
            passed += 1
        } else {
            failed += 1
        }
        runtime.block_on(world.clean());
    }
    println!("test result: {passed} passed, {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
