// A broadcast server on uWebSockets.js, with its own publish and subscribe; POST /api/send sends, too.
const uWS = require('@trufflesuite/uws-js-unofficial');

const utf8 = new TextDecoder();
const app = uWS.App();
let last = 0;

function deliver(request) {
  const id = `msg-${++last}`;
  const message = { id, to: request.to, payload: request.payload, timestamp: new Date().toISOString() };
  app.publish(request.to, JSON.stringify({ type: 'message', message }), false);
  return id;
}

app.ws('/ws/:client', {
  compression: uWS.DISABLED,
  maxBackpressure: 256 * 1024 * 1024,
  idleTimeout: 120,
  upgrade(response, request, context) {
    const [key, protocol, extensions] = ['key', 'protocol', 'extensions'].map((name) =>
      request.getHeader(`sec-websocket-${name}`));
    response.upgrade({ client: request.getParameter(0) }, key, protocol, extensions, context);
  },
  open: (socket) => socket.subscribe(socket.client),
  message(socket, data) {
    const request = JSON.parse(utf8.decode(data));
    if (request.type === 'send') deliver(request);
  },
});

app.post('/api/send', (response) => {
  let text = '';
  response.onAborted(() => {});
  response.onData((part, isLast) => {
    text += utf8.decode(part);
    if (!isLast) return;
    const id = deliver(JSON.parse(text));
    response.writeHeader('Content-Type', 'application/json').end(JSON.stringify({ status: 'sent', message_id: id }));
  });
});

app.get('/health', (response) => response.end('ok'));
app.listen('127.0.0.1', Number(process.argv[2]), (listening) => listening || process.exit(1));
