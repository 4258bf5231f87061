//! Cold starts, and going back to nothing.

use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use berth_host::{AppState, RunRequest};
use berth_sandbox::ExecRequest;

use crate::world::{World, app, eventually, hello, node, refs, workspace_json};

pub async fn the_first_request_starts_the_app_and_is_answered(world: Arc<World>) {
    let name = app("hello");
    world.save(&name, &refs(&hello("hello from S3"))).await;
    assert_eq!(
        world.snapshot(&name).state,
        AppState::Cold,
        "nothing runs until a request comes"
    );
    assert!(world.sandboxes_of(&name).is_empty());
    let begun = Instant::now();
    let answer = world.get(&name, "/").await.unwrap();
    let took = begun.elapsed();
    assert_eq!(answer, (200, "hello from S3".to_owned()));
    let snapshot = world.snapshot(&name);
    assert_eq!(
        (snapshot.state, snapshot.starts, snapshot.port),
        (AppState::Ready, 1, Some(3000))
    );
    assert_eq!(snapshot.serving_revision, snapshot.revision);
    let cold = snapshot.last_cold_start.unwrap();
    assert!(cold.ready_ms > 0.0 && cold.total_ms >= cold.ready_ms, "{cold:?}");
    println!("    cold start {:.0} ms: {cold:?}", took.as_secs_f64() * 1e3);
    let begun = Instant::now();
    for _ in 0..1000 {
        drop(world.host.acquire(&name).await.unwrap());
    }
    println!("    1000 warm leases in {:.2} ms", begun.elapsed().as_secs_f64() * 1e3);
}

pub async fn a_hundred_requests_start_one_sandbox(world: Arc<World>) {
    let name = app("crowd");
    world.save(&name, &refs(&hello("one"))).await;
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let (world, name) = (Arc::clone(&world), name.clone());
            tokio::spawn(async move { world.get(&name, "/").await.unwrap() })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), (200, "one".to_owned()));
    }
    let snapshot = world.snapshot(&name);
    assert_eq!((snapshot.starts, snapshot.requests, snapshot.in_flight), (1, 100, 0));
}

pub async fn an_app_on_another_port_is_found(world: Arc<World>) {
    let name = app("stubborn");
    let script = "require('http').createServer((q, s) => s.end('elsewhere')).listen(4567);";
    world.save(&name, &refs(&node(script))).await;
    assert_eq!(world.get(&name, "/").await.unwrap(), (200, "elsewhere".to_owned()));
    assert_eq!(world.snapshot(&name).port, Some(4567));
}

pub async fn an_app_on_loopback_only_is_reached(world: Arc<World>) {
    for (workspace, address) in [("lonely4", "127.0.0.1"), ("lonely6", "::1")] {
        let name = app(workspace);
        let script =
            format!("require('http').createServer((q, s) => s.end('at home')).listen(process.env.PORT, '{address}');");
        world.save(&name, &refs(&node(&script))).await;
        assert_eq!(
            world.get(&name, "/").await.unwrap(),
            (200, "at home".to_owned()),
            "{address}"
        );
        assert_eq!(world.snapshot(&name).address.unwrap().ip().to_string(), address);
    }
}

pub async fn a_health_path_is_waited_for(world: Arc<World>) {
    let name = app("healthy");
    // Answers 503 for the first half second.
    let script = "const t = Date.now(); require('http').createServer((q, s) => {
        if (q.url == '/healthz' && Date.now() - t < 500) { s.statusCode = 503; }
        s.end('warm');
    }).listen(process.env.PORT);";
    let mut files = node(script);
    files.push(("workspace.json", workspace_json(&[("health", "\"/healthz\"")])));
    world.save(&name, &refs(&files)).await;
    assert_eq!(world.get(&name, "/").await.unwrap(), (200, "warm".to_owned()));
    let cold = world.snapshot(&name).last_cold_start.unwrap();
    assert!(cold.ready_ms >= 500.0, "it was ready before it was healthy: {cold:?}");
}

pub async fn a_static_site_shows_an_edit_without_a_restart(world: Arc<World>) {
    let name = app("site");
    world.save(&name, &[("index.html", "<h1>first</h1>")]).await;
    assert_eq!(world.get(&name, "/").await.unwrap(), (200, "<h1>first</h1>".to_owned()));
    world.save(&name, &[("index.html", "<h1>second</h1>")]).await;
    assert_eq!(
        world.get(&name, "/").await.unwrap(),
        (200, "<h1>second</h1>".to_owned())
    );
    eventually("the new revision is shown", || {
        let snapshot = world.snapshot(&name);
        snapshot.serving_revision == snapshot.revision
    })
    .await;
    assert_eq!(
        world.snapshot(&name).starts,
        1,
        "an edit of a page needs no new sandbox"
    );
}

pub async fn a_python_app_answers(world: Arc<World>) {
    let name = app("snake");
    let script = "import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'sss')
http.server.HTTPServer(('0.0.0.0', int(os.environ['PORT'])), H).serve_forever()
";
    world.save(&name, &[("app.py", script)]).await;
    assert_eq!(world.get(&name, "/").await.unwrap(), (200, "sss".to_owned()));
    println!("    {:?}", world.snapshot(&name).last_cold_start.unwrap());
}

pub async fn an_idle_app_is_stopped_and_leaves_nothing(world: Arc<World>) {
    let name = app("sleepy");
    let mut files = hello("awake");
    files.push(("workspace.json", workspace_json(&[("idle_stop", "\"1s\"")])));
    world.save(&name, &refs(&files)).await;
    // An open request keeps it, however long it lasts.
    let lease = world.host.acquire(&name).await.unwrap();
    let id = world.sandboxes_of(&name);
    assert_eq!(id.len(), 1);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(
        world.snapshot(&name).state,
        AppState::Ready,
        "an app with an open request was taken for idle"
    );
    drop(lease);
    eventually("the idle app is cold", || world.snapshot(&name).state == AppState::Cold).await;
    assert_eq!(world.sandboxes_of(&name), Vec::<String>::new());
    assert_eq!(world.cgroups_of(&name), Vec::<String>::new());
    assert_eq!(
        world.get(&name, "/").await.unwrap(),
        (200, "awake".to_owned()),
        "the next request wakes it"
    );
    assert_eq!(world.snapshot(&name).starts, 2);
}

pub async fn a_command_by_hand_has_the_apps_source(world: Arc<World>) {
    let name = app("byhand");
    world.save(&name, &refs(&hello("by hand"))).await;
    let argv = ["sh", "-c", "ls; exit 7"].map(str::to_owned).to_vec();
    let exec = ExecRequest {
        argv,
        ..ExecRequest::default()
    };
    let mut session = world
        .host
        .run(RunRequest {
            app: name.clone(),
            exec,
            install: false,
        })
        .await
        .unwrap();
    let stdout = session.exec.stdout.take().unwrap();
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::from(stdout).read_to_string(&mut text).unwrap();
        text
    });
    let exit = session.wait().await;
    let text = text.await.unwrap();
    assert!(text.contains("index.js") && text.contains("package.json"), "{text}");
    assert_eq!(exit.code, Some(7));
    assert_eq!(
        world.sandboxes_of(&name),
        Vec::<String>::new(),
        "the sandbox went with its command"
    );
    assert_eq!(
        world.snapshot(&name).state,
        AppState::Cold,
        "the app itself was not started"
    );
}
