//! What goes wrong, and what a person is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_host::{AcquireError, AppState, FailKind, FailReason};

use crate::world::{World, app, eventually, get, hello, node, refs, workspace_json};

fn failed(error: AcquireError) -> (FailReason, Duration) {
    match error {
        AcquireError::Failed { reason, retry_after } => (reason, retry_after),
        other => panic!("{other:?}"),
    }
}

pub async fn a_crashed_app_is_started_again_by_the_next_request(world: Arc<World>) {
    let name = app("crashing");
    let script = "require('http').createServer((q, s) => {
        if (q.url == '/crash') { console.error('I fall'); process.exit(3); }
        s.end('up');
    }).listen(process.env.PORT);";
    world.save(&name, &refs(&node(script))).await;
    for round in 0..2 {
        assert_eq!(world.get(&name, "/").await.unwrap().1, "up");
        let lease = world.host.acquire(&name).await.unwrap();
        let _ = get(&lease, "/crash").await;
        drop(lease);
        eventually("the crash is noticed", || {
            world.snapshot(&name).state == AppState::Failed
        })
        .await;
        let error = world.snapshot(&name).error.unwrap();
        assert_eq!(error.kind, FailKind::Crashed);
        assert!(
            error.detail.contains("exit code 3") && error.detail.contains("I fall"),
            "{}",
            error.detail
        );
        if round == 1 {
            // A second crash in a row is slowed down, and whoever asks is told for how long.
            let (reason, retry_after) = failed(world.get(&name, "/").await.unwrap_err());
            assert_eq!(reason.kind, FailKind::Crashed);
            assert!(
                retry_after <= Duration::from_secs(1) && !retry_after.is_zero(),
                "{retry_after:?}"
            );
            eventually("the back-off is over", || {
                world
                    .snapshot(&name)
                    .retry_at
                    .is_none_or(|at| at <= time::OffsetDateTime::now_utc())
            })
            .await;
        }
    }
    assert_eq!(world.get(&name, "/").await.unwrap().1, "up");
    assert_eq!(world.snapshot(&name).starts, 3);
}

pub async fn a_start_command_that_ends_is_told_with_its_output(world: Arc<World>) {
    let name = app("early");
    world
        .save(&name, &refs(&node("console.log('no database here'); process.exit(4);")))
        .await;
    let (reason, retry_after) = failed(world.get(&name, "/").await.unwrap_err());
    assert_eq!(reason.kind, FailKind::ExitedEarly);
    assert!(
        reason.detail.contains("exit code 4") && reason.detail.contains("no database here"),
        "{}",
        reason.detail
    );
    assert!(!reason.public.contains("database"), "a visitor sees no internals");
    assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(1));
    eventually("nothing is left of it", || world.sandboxes_of(&name).is_empty()).await;
    world.save(&name, &refs(&hello("mended"))).await;
    assert_eq!(
        world.get(&name, "/").await.unwrap().1,
        "mended",
        "a save resets the back-off"
    );
}

pub async fn an_app_that_never_listens_is_given_up(world: Arc<World>) {
    let name = app("mute");
    world.save(&name, &refs(&node("setInterval(() => 0, 1000);"))).await;
    let begun = Instant::now();
    let (reason, _) = failed(world.get(&name, "/").await.unwrap_err());
    assert_eq!(reason.kind, FailKind::NeverListened);
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < Duration::from_secs(10),
        "{took:?}"
    );
    eventually("nothing is left of it", || world.sandboxes_of(&name).is_empty()).await;
}

pub async fn a_failed_install_is_told_with_its_output(world: Arc<World>) {
    let name = app("uninstallable");
    let mut files = hello("never");
    files.push((
        "workspace.json",
        workspace_json(&[("install", "\"echo no such package; exit 9\"")]),
    ));
    world.save(&name, &refs(&files)).await;
    let (reason, _) = failed(world.get(&name, "/").await.unwrap_err());
    assert_eq!(reason.kind, FailKind::InstallFailed);
    assert!(
        reason.detail.contains("exit code 9") && reason.detail.contains("no such package"),
        "{}",
        reason.detail
    );
    assert_eq!(world.snapshot(&name).state, AppState::Failed);
}

pub async fn shutdown_leaves_nothing(world: Arc<World>) {
    let name = app("last");
    world.save(&name, &refs(&hello("last"))).await;
    assert_eq!(world.get(&name, "/").await.unwrap().1, "last");
    assert!(!world.sandboxes().is_empty());
    // The last case: all apps of all cases end here.
    world.host.shutdown().await;
    assert_eq!(world.sandboxes(), Vec::<String>::new());
    assert_eq!(world.host.acquire(&name).await.unwrap_err(), AcquireError::ShuttingDown);
}
