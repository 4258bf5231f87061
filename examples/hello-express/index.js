// A small JSON API with Express. Its dependencies are installed in its sandbox and nowhere else.
const express = require('express');

const app = express();
app.use(express.json());

const notes = ['Save a file on the mount and the app is new.'];

app.get('/', (request, response) => response.json({ hello: 'express', notes }));
app.post('/notes', (request, response) => {
  const { text } = request.body;
  if (typeof text !== 'string' || text === '') {
    return response.status(400).json({ error: 'send {"text": "..."}' });
  }
  notes.push(text);
  response.status(201).json({ notes });
});

app.listen(process.env.PORT, () => console.log(`listening on ${process.env.PORT}`));
