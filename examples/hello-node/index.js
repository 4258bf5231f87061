// A web app in plain Node.js: no package.json scripts, no dependencies.
const http = require('node:http');

const page = (visits) => `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Node.js on Berth</title>
<style>
  :root { color-scheme: light dark; font: 18px/1.6 system-ui, sans-serif }
  body { margin: 0; min-height: 100vh; display: grid; place-items: center }
  main { max-width: 36rem; padding: 2rem }
  h1 { line-height: 1.2 }
</style>
<main>
  <h1>Hello from Node.js ${process.versions.node}</h1>
  <p>This process has answered ${visits} request${visits === 1 ? '' : 's'} since it was started ${Math.round(process.uptime())} s ago.</p>
</main>
`;

let visits = 0;
http
  .createServer((request, response) => {
    visits += 1;
    response.setHeader('content-type', 'text/html; charset=utf-8');
    response.end(page(visits));
  })
  .listen(process.env.PORT, () => console.log(`listening on ${process.env.PORT}`));
