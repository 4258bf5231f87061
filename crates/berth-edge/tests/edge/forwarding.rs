//! What the app sees of a request, and what the client sees of an answer.

use hyper::Response;

use crate::double::{World, body, client, http_app, mirror};

async fn mirrored(world: &World, request: reqwest::RequestBuilder) -> Vec<String> {
    let _ = world;
    let text = request.send().await.expect("an answer").text().await.expect("a body");
    text.lines().map(str::to_owned).collect()
}

fn has(lines: &[String], line: &str) -> bool {
    lines.iter().any(|found| found == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_below_a_prefix_learns_where_it_is() {
    let world = World::new(&[("blog", mirror().await)]);
    let lines = mirrored(
        &world,
        client()
            .get(world.url("/blog/a%2Fb//c/?x=/blog/"))
            .header("host", "berth.test:8080"),
    )
    .await;
    assert_eq!(lines[0], "GET /a%2Fb//c/?x=/blog/ HTTP/1.1");
    for line in [
        "host: berth.test:8080",
        "x-forwarded-host: berth.test:8080",
        "x-forwarded-proto: http",
        "x-forwarded-prefix: /blog",
        "x-forwarded-for: 127.0.0.1",
    ] {
        assert!(has(&lines, line), "{line} in {lines:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_on_a_host_of_its_own_has_no_prefix() {
    let world = World::new(&[("blog", mirror().await), ("www", mirror().await)]);
    for (host, path) in [
        ("blog.berth.test", "/blog/x"),
        ("BLOG.berth.test.:8080", "/"),
        ("blog.custom.test", "/x"),
        ("berth.test", "/elsewhere"),
        ("127.0.0.1", "/"),
    ] {
        let request = client()
            .get(world.url(path))
            .header("host", host)
            .header("x-forwarded-prefix", "/spoofed");
        let lines = mirrored(&world, request).await;
        assert_eq!(lines[0], format!("GET {path} HTTP/1.1"));
        assert!(has(&lines, &format!("host: {host}")), "{lines:#?}");
        assert!(
            !lines.iter().any(|line| line.starts_with("x-forwarded-prefix")),
            "{lines:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_the_client_are_kept_apart_from_what_is_known() {
    let world = World::new(&[("blog", mirror().await)]);
    let request = client()
        .get(world.url("/blog/"))
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "evil.test")
        .header("proxy", "http://evil.test")
        .header("x-request-id", "my-id.1")
        .header("connection", "x-mine")
        .header("x-mine", "hop by hop")
        .header("te", "trailers")
        .header("keep-alive", "5");
    let lines = mirrored(&world, request).await;
    assert!(has(&lines, "x-forwarded-for: 203.0.113.9, 127.0.0.1"), "{lines:#?}");
    assert!(has(&lines, "x-forwarded-proto: http"));
    assert!(has(&lines, &format!("x-forwarded-host: {}", world.addr)));
    assert!(has(&lines, "x-request-id: my-id.1"));
    for gone in ["proxy:", "x-mine:", "te:", "keep-alive:", "connection:"] {
        assert!(!lines.iter().any(|line| line.starts_with(gone)), "{gone} in {lines:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_id_from_client_to_app_and_back() {
    let world = World::new(&[("blog", mirror().await)]);
    let answer = client().get(world.url("/blog/")).send().await.expect("an answer");
    let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
    assert_eq!(id.len(), 32);
    assert!(
        answer
            .text()
            .await
            .expect("a body")
            .contains(&format!("x-request-id: {id}\n"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_and_cookies_of_an_app_below_a_prefix_are_put_right() {
    let app = http_app(|request| async move {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let mut answer = Response::builder().status(302);
        answer = match request.uri().path() {
            "/login" => answer
                .header("location", "/home")
                .header("content-location", "/login.en")
                .header("refresh", "3; url=/home")
                .header("set-cookie", "a=1; Path=/")
                .header("set-cookie", "b=2; HttpOnly")
                .header("set-cookie", "c=3; Path=/admin; Secure"),
            "/absolute" => answer.header("location", format!("http://{host}/x?y")),
            "/knows" => answer.header("location", "/blog/home"),
            "/relative" => answer.header("location", "home"),
            "/away" => answer.header("location", "https://elsewhere.test/x"),
            _ => answer.status(200),
        };
        answer.body(body("")).expect("an answer")
    })
    .await;
    let world = World::new(&[("blog", app)]);
    let get = |path: &str| client().get(world.url(path)).send();

    let login = get("/blog/login").await.expect("an answer");
    assert_eq!(login.headers()["location"], "/blog/home");
    assert_eq!(login.headers()["content-location"], "/blog/login.en");
    assert_eq!(login.headers()["refresh"], "3; url=/blog/home");
    let cookies: Vec<_> = login
        .headers()
        .get_all("set-cookie")
        .iter()
        .map(|value| value.to_str().expect("text"))
        .collect();
    assert_eq!(
        cookies,
        ["a=1; Path=/blog/", "b=2; HttpOnly", "c=3; Path=/blog/admin; Secure"]
    );

    for (path, location) in [
        ("/blog/absolute", format!("http://{}/blog/x?y", world.addr)),
        ("/blog/knows", "/blog/home".to_owned()),
        ("/blog/relative", "home".to_owned()),
        ("/blog/away", "https://elsewhere.test/x".to_owned()),
    ] {
        assert_eq!(
            get(path).await.expect("an answer").headers()["location"],
            location,
            "{path}"
        );
    }

    let own = client()
        .get(world.url("/login"))
        .header("host", "blog.berth.test")
        .send()
        .await
        .expect("an answer");
    assert_eq!(
        own.headers()["location"],
        "/home",
        "a host of its own needs no putting right"
    );
    assert_eq!(own.headers()["set-cookie"], "a=1; Path=/");
}
