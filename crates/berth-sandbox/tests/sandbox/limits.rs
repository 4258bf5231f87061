//! What an app may use, and that only the app suffers when it wants more.

use std::sync::Arc;

use crate::world::{World, eventually, text};

pub async fn a_memory_hog_is_killed_alone(world: Arc<World>) {
    let neighbour = world.spec("echo ready; while :; do sleep 0.05; done");
    let neighbour_logs = neighbour.log_dir.clone();
    let (neighbour, _neighbour_events) = world.start(neighbour).await;
    eventually("the neighbour is ready", || text(&neighbour_logs).contains("ready")).await;
    let mut hog = world.spec("a=x; while :; do a=$a$a; done");
    hog.limits.memory = 16 << 20;
    let log_dir = hog.log_dir.clone();
    let (hog, _events) = world.start(hog).await;
    let exit = hog.ended().await;
    assert!(exit.oom, "{exit:?}");
    assert_eq!(
        exit.signal,
        Some(9),
        "the app was killed and its init told so: {exit:?}"
    );
    assert!(
        berth_sandbox::logs::read_tail(&log_dir, 5)
            .unwrap()
            .iter()
            .any(|l| l.text.contains("out of memory"))
    );
    assert!(neighbour.exit().is_none() && neighbour.stats().pids > 0 && neighbour.stats().oom_kills == 0);
    neighbour.stop(std::time::Duration::ZERO).await.unwrap();
}

pub async fn a_fork_bomb_is_bounded(world: Arc<World>) {
    let spec = world.spec("echo ready; b() { b | b & }; b; while :; do sleep 0.05; done");
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    eventually("the limit is reached", || {
        sandbox.stats().pids >= 64 || text(&log_dir).contains("fork")
    })
    .await;
    assert!(sandbox.stats().pids <= 64, "{:?}", sandbox.stats());
    sandbox.stop(std::time::Duration::ZERO).await.unwrap();
}

pub async fn a_full_app_folder_is_an_error_not_a_kill(world: Arc<World>) {
    let script = "dd if=/dev/zero of=/app/big bs=1M count=20 2>&1; dd if=/dev/zero of=/tmp/big bs=1M count=20 2>&1; echo still here";
    let mut spec = world.spec(script);
    spec.limits.memory = 16 << 20;
    let (exit, text) = world.run_spec(spec).await;
    assert!(exit.success() && !exit.oom, "{exit:?}");
    assert_eq!(text.matches("No space left on device").count(), 2, "{text}");
    assert!(text.ends_with("still here\n"));
    let mut spec = world.spec("echo never");
    std::fs::write(spec.source.join("big"), vec![0; 9 << 20]).unwrap();
    spec.limits.app_size = 4 << 20;
    let (_sandbox, events) = world.start(spec).await;
    let failed = crate::world::all(events).await;
    assert!(
        failed.iter().any(
            |e| matches!(e, berth_sandbox::SandboxEvent::InstallFailed { step, tail, .. }
        if step == "copy" && tail.iter().any(|l| l.contains("app_size")))
        ),
        "{failed:?}"
    );
}
