// A broadcast server on `ws`: who connects to /ws/<id> gets what is sent to <id>; POST /api/send sends, too.
const http = require('http');
const { WebSocketServer, WebSocket } = require('ws');

const rooms = new Map();
let last = 0;

function deliver(request) {
  const id = `msg-${++last}`;
  const message = { id, to: request.to, payload: request.payload, timestamp: new Date().toISOString() };
  const text = JSON.stringify({ type: 'message', message });
  for (const socket of rooms.get(request.to) ?? []) {
    if (socket.readyState === WebSocket.OPEN) socket.send(text);
  }
  return id;
}

const server = http.createServer((request, response) => {
  if (request.url === '/health') return response.end('ok');
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const id = deliver(JSON.parse(Buffer.concat(parts)));
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({ status: 'sent', message_id: id }));
  });
});

new WebSocketServer({ server, perMessageDeflate: false }).on('connection', (socket, request) => {
  const client = request.url.split('/')[2];
  if (!rooms.has(client)) rooms.set(client, new Set());
  rooms.get(client).add(socket);
  socket.on('message', (data) => {
    const request = JSON.parse(data);
    if (request.type === 'send') deliver(request);
  });
  socket.on('close', () => rooms.get(client).delete(socket));
});

server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1', 4096);
