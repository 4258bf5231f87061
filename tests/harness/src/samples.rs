//! Small apps that tests save: each says who it is, so that an answer proves which one ran.

use crate::Daemon;

/// The Quick Start's app, word for word.
pub fn quick_start(daemon: &Daemon, name: &str) {
    daemon.save(
        &format!("{name}/package.json"),
        r#"{
  "name": "myapp",
  "version": "1.0.0",
  "scripts": {
    "start": "node index.js"
  },
  "dependencies": {
    "express": "^4.18.2"
  }
}
"#,
    );
    daemon.save(
        &format!("{name}/index.js"),
        "const express = require('express');
const app = express();
app.get('/', (req, res) => res.send('Hello from S3!'));
app.listen(3000, () => console.log('Running on port 3000'));
",
    );
}

/// A node app without dependencies that answers `text`, on the port it is told.
pub fn node(daemon: &Daemon, name: &str, text: &str) {
    node_program(
        daemon,
        name,
        &format!(
            "require('http').createServer((q, s) => s.end({})).listen(process.env.PORT);",
            serde_json::Value::from(text)
        ),
    );
}

/// A node app of one file. The program is saved first: the manifest makes it an app.
pub fn node_program(daemon: &Daemon, name: &str, program: &str) {
    daemon.save(&format!("{name}/index.js"), program);
    daemon.save(
        &format!("{name}/package.json"),
        format!(r#"{{"name": "{name}", "version": "1.0.0", "scripts": {{"start": "node index.js"}}}}"#),
    );
}

/// A static site of one page.
pub fn site(daemon: &Daemon, name: &str, page: &str) {
    daemon.save(&format!("{name}/index.html"), page);
}
