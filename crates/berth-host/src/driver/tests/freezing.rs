//! An app that nobody calls is frozen, and whatever happens next finds it running again.

use super::*;
use crate::pressure::{Memory, Pace};

/// As long as an app must rest before it is frozen.
const REST: Duration = Duration::from_millis(60);

async fn restful() -> World {
    World::new(|config| {
        config.idle_freeze = REST;
        config.idle_reclaim = Duration::MAX;
        config.idle_stop = Duration::MAX;
    })
    .await
}

impl World {
    /// The app runs in a sandbox of its own; its first lease.
    async fn risen(&self, name: &AppName, n: usize) -> (Arc<Puppet>, Lease) {
        let asked = self.ask(name);
        let puppet = self.puppet(n).await;
        puppet.listen();
        (puppet, asked.await.unwrap().unwrap())
    }

    fn state(&self, name: &AppName) -> AppState {
        self.host.app(name).unwrap().state
    }

    async fn frozen(&self, name: &AppName, puppet: &Puppet) {
        eventually("it is frozen", || self.state(name) == AppState::Frozen).await;
        assert!(puppet.is_frozen());
    }

    /// Lets time pass by an app of its own that is idle from now on: when it is frozen, another one would be as well.
    async fn rest_is_over(&self, n: usize) {
        let clock = AppName::parse(&format!("clock{n}")).unwrap();
        self.bucket.put(&format!("{clock}/index.html"), "1");
        eventually("the clock is known", || {
            self.host.app(&clock).is_some_and(|app| app.revision.is_some())
        })
        .await;
        let (puppet, lease) = self.risen(&clock, n).await;
        drop(lease);
        self.frozen(&clock, &puppet).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_app_is_frozen_and_a_request_finds_it_running() {
    let world = restful().await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    drop(lease);
    for round in 0..3 {
        world.frozen(&app(), &puppet).await;
        let since = world.host.app(&app()).unwrap().since;
        let lease = world.host.acquire(&app()).await.unwrap();
        assert!(!puppet.is_frozen(), "round {round}: the lease came before the thaw");
        eventually("it is told as ready", || world.state(&app()) == AppState::Ready).await;
        assert!(world.host.app(&app()).unwrap().since > since);
        drop(lease);
    }
    let kinds: Vec<_> = world.host.recent_events().iter().map(|event| event.kind).collect();
    let count = |kind| kinds.iter().filter(|other| **other == kind).count();
    assert!(
        count(EventKind::Frozen) >= 3 && count(EventKind::Thawed) >= 3,
        "{kinds:?}"
    );
    assert_eq!(world.host.app(&app()).unwrap().starts, 1);
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_in_use_is_not_frozen_however_long_it_takes() {
    let world = restful().await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    world.rest_is_over(1).await;
    assert_eq!((world.state(&app()), puppet.is_frozen()), (AppState::Ready, false));
    drop(lease);
    world.frozen(&app(), &puppet).await;
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_works_by_itself_is_not_frozen_until_it_rests() {
    let world = restful().await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    let works = Arc::new(AtomicBool::new(true));
    let work = tokio::spawn({
        let (puppet, works) = (Arc::clone(&puppet), Arc::clone(&works));
        async move {
            while works.load(Ordering::Relaxed) {
                puppet.cpu_usec.fetch_add(1000, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    drop(lease);
    world.rest_is_over(1).await;
    assert_eq!((world.state(&app()), puppet.is_frozen()), (AppState::Ready, false));
    works.store(false, Ordering::Relaxed);
    work.await.unwrap();
    world.frozen(&app(), &puppet).await;
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_app_is_stopped_by_hand_and_by_its_deletion_and_hears_of_it() {
    // The puppet's `stop` asserts that it is not frozen.
    let world = restful().await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    drop(lease);
    world.frozen(&app(), &puppet).await;
    world.host.stop(&app()).await.unwrap();
    assert!(puppet.is_stopped());
    let (puppet, lease) = world.risen(&app(), 1).await;
    drop(lease);
    world.frozen(&app(), &puppet).await;
    world.bucket.delete("app/index.html");
    eventually("it is stopped", || puppet.is_stopped()).await;
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_while_it_is_frozen_brings_the_next_revision_up_beside_it() {
    let world = restful().await;
    let (old, lease) = world.risen(&app(), 0).await;
    drop(lease);
    world.frozen(&app(), &old).await;
    world.bucket.put("app/workspace.json", r#"{"idle_stop": "5m"}"#);
    let new = world.puppet(1).await;
    // It does not listen yet: a request is answered by the old one.
    let lease = world.host.acquire(&app()).await.unwrap();
    assert!(!old.is_frozen());
    drop(lease);
    new.listen();
    eventually("the old one is stopped", || old.is_stopped()).await;
    assert!(!new.is_stopped());
    world.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_app_hands_its_memory_back_and_is_stopped_in_the_end() {
    let world = World::new(|config| {
        config.idle_freeze = REST;
        config.idle_reclaim = REST * 2;
        config.idle_stop = REST * 4;
    })
    .await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    drop(lease);
    eventually("its memory is handed back", || puppet.reclaimed.load(Ordering::Relaxed)).await;
    eventually("it is stopped", || puppet.is_stopped()).await;
    eventually("nothing runs", || world.state(&app()) == AppState::Cold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_cannot_be_thawed_is_replaced_and_the_request_answered() {
    let world = restful().await;
    let (puppet, lease) = world.risen(&app(), 0).await;
    drop(lease);
    world.frozen(&app(), &puppet).await;
    puppet.stuck.store(true, Ordering::Relaxed);
    puppet.frozen.store(false, Ordering::Relaxed);
    let (_new, lease) = world.risen(&app(), 1).await;
    drop(lease);
    eventually("the old one is stopped", || puppet.is_stopped()).await;
    world.host.shutdown().await;
}

/// Memory that is short from the first look on.
struct Short;

impl Memory for Short {
    fn is_short(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_unused_for_longest_makes_room_first_and_one_in_use_never() {
    let day = Duration::from_secs(86_400);
    let world = World::new(|config| (config.idle_freeze, config.idle_stop) = (day, day)).await;
    let (first, lease) = world.risen(&app(), 0).await;
    drop(lease);
    let [second, used] = ["second", "used"].map(|name| AppName::parse(name).unwrap());
    for name in [&second, &used] {
        world.bucket.put(&format!("{name}/index.html"), "1");
        eventually("it is known", || {
            world.host.app(name).is_some_and(|app| app.revision.is_some())
        })
        .await;
    }
    let (third, held) = world.risen(&used, 1).await;
    let (other, lease) = world.risen(&second, 2).await;
    drop(lease);
    let pace = Pace {
        look: Duration::from_millis(5),
        recent: Duration::ZERO,
    };
    world.host.heed(Arc::new(Short), pace);
    eventually("both made room", || first.is_stopped() && other.is_stopped()).await;
    let story: Vec<_> = world
        .host
        .recent_events()
        .into_iter()
        .filter(|event| matches!(event.kind, EventKind::Frozen | EventKind::Stopped))
        .map(|event| (event.app, event.kind))
        .collect();
    let expected = [
        ("app", EventKind::Frozen),
        ("app", EventKind::Stopped),
        ("second", EventKind::Frozen),
        ("second", EventKind::Stopped),
    ];
    assert_eq!(story, expected.map(|(app, kind)| (app.to_owned(), kind)));
    assert!(!third.is_frozen() && !third.is_stopped());
    drop(held);
    world.host.shutdown().await;
}
