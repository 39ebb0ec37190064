"""How programs reach the bus: REST and WebSocket. Each keeps the extension contract: its last function is `register`."""
