// A broadcast server on Socket.IO 4: a client joins the room of its id, an event "send" goes to a room.
const http = require('http').createServer();
const { Server } = require('socket.io');

const io = new Server(http, { perMessageDeflate: false, httpCompression: false });
let last = 0;

io.on('connection', (socket) => {
  socket.join(socket.handshake.query.client);
  socket.on('send', ({ to, payload }) => {
    io.to(to).emit('message', { id: `msg-${++last}`, to, payload, timestamp: new Date().toISOString() });
  });
});

http.listen(Number(process.argv[2]), '127.0.0.1', 4096);
