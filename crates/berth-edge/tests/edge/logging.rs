//! The access line.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::double::{World, client, hello, until};

type Line = HashMap<String, String>;
type Lines = Arc<Mutex<Vec<Line>>>;

struct Record(Lines);

impl<S: tracing::Subscriber> Layer<S> for Record {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "access" {
            let mut line = Fields(Line::new());
            event.record(&mut line);
            self.0.lock().push(line.0);
        }
    }
}

struct Fields(Line);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// All access lines of this process, which runs other tests too: look for an id of your own.
fn lines() -> &'static Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(Record(Arc::clone(&lines)));
        tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
        lines
    })
}

async fn line(id: &str) -> Line {
    let find = || lines().lock().iter().find(|line| line["request_id"] == id).cloned();
    until("the access line", || find().is_some()).await;
    find().expect("found before")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_leaves_one_line_that_says_what_happened() {
    lines();
    let world = World::closed(&[("blog", hello("twelve bytes").await)], |_| {});
    let request = client()
        .get(world.url("/blog/page?token=secret"))
        .header("x-request-id", "log-1")
        .header("host", "berth.test");
    let request = tokio::spawn(request.send());
    until("it is held", || world.app("blog").waiting() == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    world.app("blog").open();
    request
        .await
        .expect("a task")
        .expect("an answer")
        .text()
        .await
        .expect("a body");
    let line = line("log-1").await;
    for (field, value) in [
        ("method", "GET"),
        ("host", "berth.test"),
        ("path", "/blog/page"),
        ("status", "200"),
        ("bytes", "12"),
        ("app", "blog"),
    ] {
        assert_eq!(line[field], value, "{field} in {line:?}");
    }
    let number = |field: &str| line[field].parse::<f64>().expect("a number");
    assert!(
        number("cold_ms") >= 30.0 && number("duration_ms") >= number("cold_ms"),
        "{line:?}"
    );
    assert_eq!(
        lines()
            .lock()
            .iter()
            .filter(|line| line["request_id"] == "log-1")
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_left_is_logged_as_499() {
    lines();
    let world = World::closed(&[("blog", hello("x").await)], |_| {});
    let request = tokio::spawn(client().get(world.url("/blog/")).header("x-request-id", "log-2").send());
    until("it is held", || world.app("blog").waiting() == 1).await;
    request.abort();
    assert_eq!(line("log-2").await["status"], "499");
    let answer = client()
        .get(world.url("/nosuch"))
        .header("x-request-id", "log-3")
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 404);
    let line = line("log-3").await;
    assert_eq!((line["status"].as_str(), line["app"].as_str()), ("404", ""));
}
