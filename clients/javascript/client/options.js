// @ts-check
/** Options: what a client may be told when it is built, what a send may say, and what holds if nothing is said. */

/** @typedef {string | string[]} Address a client, several of them, "all", "topic:…" or "queue:…" */

/**
 * @typedef {object} Options
 * @property {string} [url] where the bus is; the place that this file came from, or the page's own, if not given
 * @property {string | (() => string | Promise<string>)} [token] an API key or a JWT, or what gets one, asked before each connection
 * @property {() => string | Promise<string>} [ticket] gets a ticket for one WebSocket, before each connection
 * @property {boolean} [buyTickets] buy a ticket with the token for each WebSocket, instead of showing the token in the first frame
 * @property {string | null} [since] a cursor, an ISO time, "latest" or "earliest", for the first connection; else the kept cursor
 * @property {"oldest" | "latest"} [onGap] where to go on when the cursor is too old
 * @property {string[]} [topics] patterns to hear from the beginning
 * @property {string[]} [queues] queues to take from
 * @property {number} [maxInFlight] items of queues in hand at a time
 * @property {"auto" | "websocket" | "sse"} [transport] "auto": event streams where WebSockets do not open
 * @property {"queue" | "raise"} [offline] what a send does without a connection: wait for one, or fail
 * @property {boolean} [autoAck] ack what handlers and iteration have dealt with, nack where a handler failed; true if not given
 * @property {number} [maxQueued] sends without a receipt; one more fails
 * @property {number} [maxReceived] messages that came and were not taken; with more the connection rests until half of them are
 */

/**
 * @typedef {object} SendOptions what a send may say beside `to` and the payload
 * @property {string} [type]
 * @property {boolean} [require_ack]
 * @property {number} [ack_wait]
 * @property {number} [ttl]
 * @property {number} [delay]
 * @property {string} [deliver_at]
 * @property {string | number} [priority]
 * @property {boolean} [ephemeral]
 * @property {string | null} [correlation_id]
 * @property {string | null} [reply_to]
 * @property {string | null} [thread_id]
 * @property {Record<string, string>} [headers]
 * @property {string} [idempotency_key]
 */

/** @typedef {SendOptions & {wait?: number, require_online?: boolean}} RequestOptions */

export const DEFAULTS = {
  since: null,
  maxInFlight: 10,
  transport: "auto",
  offline: "queue",
  autoAck: true,
  maxQueued: 1000,
  maxReceived: 10_000,
};

/** @typedef {Options & {maxInFlight: number, maxQueued: number, maxReceived: number}} Chosen the options with the defaults filled in */
