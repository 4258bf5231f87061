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

/// What makes `server` of a node program, which has `crypto`, echo what comes by a WebSocket, and listen: without packages, the
/// handshake and unfragmented text frames by hand.
pub const ECHO_AND_LISTEN: &str = r#"
server.on('upgrade', (q, socket) => {
  const accept = crypto.createHash('sha1').update(q.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ' + accept + '\r\n\r\n');
  socket.on('data', d => {
    if ((d[0] & 15) !== 1) return socket.end();
    const n = d[1] & 127, mask = d.subarray(2, 6), text = Buffer.from(d.subarray(6, 6 + n)).map((b, i) => b ^ mask[i % 4]);
    socket.write(Buffer.concat([Buffer.from([0x81, n]), text]));
  });
  socket.on('error', () => {});
});
server.listen(process.env.PORT);
"#;

/// A static site of one page.
pub fn site(daemon: &Daemon, name: &str, page: &str) {
    daemon.save(&format!("{name}/index.html"), page);
}
