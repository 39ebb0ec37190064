// @ts-check
/**
 * A client of multi-agent-bridge: one named party of the bus, in a browser, in Node 22 or later, Deno or Bun. No dependencies.
 *
 *     import { Client } from "http://127.0.0.1:5001/client.js";
 *     const bus = new Client("browser-1");
 *     bus.on("message", (message) => console.log(message.from, message.payload));
 *     await bus.connect();
 *     await bus.send("code", { text: "hi" });        // settles when the message is on disk
 *
 * It holds a WebSocket, or where none opens an event stream beside REST, and comes back by itself: it goes on behind the last
 * message that came, and sends again, once, what has no receipt. What is sent, and what comes, has the names of the wire
 * (docs/protocol.md): `requires_ack`, `correlation_id`. Times are in seconds. docs/javascript.md tells the rest.
 */

const FIRST_SECONDS = 0.5;
const LONGEST_SECONDS = 20;
const RESTART_SPREAD_SECONDS = 3;
const OVERLOAD_SECONDS = [5, 20];
const STEADY_SECONDS = 10; // a connection that lasted this long was a good one: the next pause starts small again
const OPEN_SECONDS = 10;
const PROD_SECONDS = 2; // a bus that is silent waits for a key, for 10 s: a frame that brings none is answered at once, with 4401
const SILENCE_SECONDS = 20; // then a ping is sent, and after as long again without a frame the server counts as dead
const STREAM_SILENCE_SECONDS = 45; // an event stream says something every 15 s
const KEEP_SECONDS = 10; // how often a lease is extended: a third of the usual one
const LONGEST_WAIT_SECONDS = 3600; // what nobody has taken for so long is let go
const AGAIN_SECONDS = 1;
const WATCH_SECONDS = 2;
const MAX_REMEMBERED = 10_000;
const BATCH = 100;
const BATCH_CHARACTERS = 500_000;
const BLOCKED_AFTER = 2; // WebSockets in a row that did not open while the bus answered HTTP
const FINAL_STATUSES = [400, 401, 403];
const EVENTS = ["message", "open", "close", "gap", "dropped", "failed", "error"];

/** @typedef {string | string[]} Address a client, several of them, "all", "topic:…" or "queue:…" */
/** @typedef {"ack" | "nack" | "progress" | "release" | "reject"} Verb */
/** @typedef {(value: any) => any} Handler */

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

/** @typedef {{message_id: string | null, seq: number | null, recipients: {client: string, state: string, online?: number}[], duplicate?: boolean, deliver_at?: string}} Receipt */
/** @typedef {{status: string, message_id: string, attempt: number | null}} Settled */
/** @typedef {{status: string, request_id: string, correlation_id: string, missing: string[], replies: Message[]}} Reply */
/** @typedef {SendOptions & {wait?: number, require_online?: boolean}} RequestOptions */

/** What the bus refused, or what could not be done. `code` is stable (docs/protocol.md); here: offline, closed, send_queue_full. */
export class BusError extends Error {
  /** @param {string} code @param {string} sentence @param {{status?: number, field?: string, retryAfterSeconds?: number, idempotencyKey?: string}} [more] */
  constructor(code, sentence, more = {}) {
    super(sentence);
    this.name = "BusError";
    this.code = code;
    this.status = more.status;
    this.field = more.field;
    this.retryAfterSeconds = more.retryAfterSeconds;
    /** With this key the send can be repeated, and is stored once: it may be stored already. */
    this.idempotencyKey = more.idempotencyKey;
  }
}

/** A message, with the fields of the wire. What `requires_ack` is settled by one of the methods, each once said even offline. */
export class Message {
  /** @type {Client} */ #client;

  /** @param {Client} client @param {Record<string, any>} fields */
  constructor(client, fields) {
    this.#client = client;
    this.id = /** @type {string} */ (fields.id);
    this.seq = /** @type {number | null} */ (fields.seq);
    this.from = /** @type {string} */ (fields.from);
    this.to = /** @type {Address} */ (fields.to);
    this.type = /** @type {string} */ (fields.type);
    this.payload = /** @type {any} */ (fields.payload);
    this.timestamp = /** @type {string} */ (fields.timestamp);
    this.requires_ack = /** @type {boolean} */ (fields.requires_ack);
    this.correlation_id = /** @type {string | null} */ (fields.correlation_id ?? null);
    this.thread_id = /** @type {string | null} */ (fields.thread_id ?? null);
    this.attempt = /** @type {number} */ (fields.attempt ?? 1);
    Object.assign(this, fields);
  }

  /** It is dealt with. @returns {Promise<Settled>} */
  ack() {
    return this.#client.settle(this, "ack");
  }

  /** Give it back; it comes again after a while, which counts as a failure. @param {{delay?: number, reason?: string}} [said] */
  nack(said) {
    return this.#client.settle(this, "nack", said);
  }

  /** It takes longer. @param {{ack_wait?: number}} [said] */
  progress(said) {
    return this.#client.settle(this, "progress", said);
  }

  /** Give it back, uncounted. @param {{reason?: string}} [said] */
  release(said) {
    return this.#client.settle(this, "release", said);
  }

  /** It can't be dealt with: a dead letter. @param {{reason?: string}} [said] */
  reject(said) {
    return this.#client.settle(this, "reject", said);
  }

  /** Answer it, as `Client.reply`. @param {any} payload @param {SendOptions} [options] */
  reply(payload, options) {
    return this.#client.reply(this, payload, options);
  }
}

/**
 * How a connection, or an attempt at one, ended.
 * @typedef {{reason: string, code?: number, status?: number, errorCode?: string, afterSeconds?: number, lastedSeconds?: number, opened?: boolean}} Ending
 */

/** Counts the attempts in a row and draws the pauses: full jitter below a limit that doubles. */
export class Backoff {
  #attempts = 0;

  /** @param {() => number} [chance] */
  constructor(chance = Math.random) {
    this.chance = chance;
  }

  /** Seconds to wait before the next attempt. @param {Ending} ending */
  pause(ending) {
    if ((ending.lastedSeconds ?? 0) >= STEADY_SECONDS) this.#attempts = 0;
    const limit = Math.min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** Math.min(this.#attempts, 16));
    const isFirst = this.#attempts === 0;
    this.#attempts += 1;
    if (ending.afterSeconds !== undefined) {
      return ending.afterSeconds + this.chance() * Math.max(limit, RESTART_SPREAD_SECONDS);
    }
    if (ending.code === 1013) return OVERLOAD_SECONDS[0] + this.chance() * (OVERLOAD_SECONDS[1] - OVERLOAD_SECONDS[0]);
    return this.chance() * (ending.code === 1012 && isFirst ? RESTART_SPREAD_SECONDS : limit);
  }
}

/** What was delivered and what was said about it: repeats are dropped, acks said again. The last 10,000 are remembered. */
class Deliveries {
  /** @type {Map<string, Record<string, any> | null>} */ #came = new Map();
  /** @type {Map<string, true>} */ #acked = new Map();

  /** Remember a message; true when it came before. @param {Message & Record<string, any>} message */
  isRepeat(message) {
    const life = lifeOf(message);
    if ((message.replayed || message.redriven) && !message.redelivered) this.#acked.delete(life);
    else if (this.#came.has(deliveryOf(message)) || this.#acked.has(life)) return true;
    remember(this.#came, deliveryOf(message), null);
    return false;
  }

  /** What to say to a repeat: its ack, or what gave it back. @param {Message} message */
  answerAgain(message) {
    if (message.requires_ack && this.#acked.has(lifeOf(message))) return verdictOf(message, "ack");
    return this.#came.get(deliveryOf(message)) ?? null;
  }

  /** Note what is said. @param {Message} message @param {Verb} verb @param {Record<string, any>} frame */
  settled(message, verb, frame) {
    const delivery = deliveryOf(message);
    if (verb === "ack") remember(this.#acked, lifeOf(message), true);
    else if (verb === "release") this.#came.delete(delivery);
    else if (verb !== "progress" && this.#came.has(delivery)) this.#came.set(delivery, frame);
  }
}

/** @typedef {{received: (frame: any) => void, ended: (ending: Ending) => void}} Listener */
/** @typedef {{kind: "websocket" | "sse", confirmed: any, write: (frame: object) => void, close: (code: number) => void, watch: () => void}} Session */

/** Open a WebSocket; settles at its confirmation, rejects with an Ending. @returns {Promise<Session>} @param {string} url @param {string[]} protocols @param {string | null} token @param {Listener} listener */
function openSocket(url, protocols, token, listener) {
  return new Promise((resolve, reject) => {
    /** @type {WebSocket} */ let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch (error) {
      reject({ reason: `a WebSocket can't be opened: ${sentenceOf(error)}`, opened: false });
      return;
    }
    let opened = false;
    let isOver = false;
    let heardAt = now();
    let pingedAt = 0;
    /** @type {Session | null} */ let session = null;
    const timer = setTimeout(() => end({ reason: "the server did not confirm the connection in time", opened }), OPEN_SECONDS * 1000);
    /** @type {any} */ let prod;
    const end = (/** @type {Ending} */ ending) => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      clearTimeout(prod);
      if (socket.readyState < 2) socket.close();
      if (session === null) reject(ending);
      else listener.ended(ending);
    };
    socket.onopen = () => {
      opened = true;
      if (token !== null) socket.send(JSON.stringify({ type: "auth", token }));
      else prod = setTimeout(() => socket.send('{"type":"ping"}'), PROD_SECONDS * 1000);
    };
    socket.onerror = () => opened || end({ reason: "the WebSocket did not open", code: 1006, opened }); // Node 20 says no more
    socket.onclose = (event) => {
      const reason = event.reason || (event.code === 1006 ? "the connection broke" : `the server closed with ${event.code}`);
      end({ reason: opened ? reason : "the WebSocket did not open", code: event.code, opened });
    };
    socket.onmessage = (event) => {
      if (isOver) return;
      heardAt = now();
      const frame = JSON.parse(event.data);
      if (session !== null) listener.received(frame);
      else if (frame.type === "connection_confirmed") {
        clearTimeout(timer);
        clearTimeout(prod);
        session = {
          kind: "websocket",
          confirmed: frame,
          write: (what) => socket.readyState === 1 && socket.send(JSON.stringify(what)),
          close: (code) => socket.close(code),
          watch: () => {
            if (now() - heardAt < SILENCE_SECONDS) return;
            if (pingedAt < heardAt) {
              pingedAt = now();
              socket.send('{"type":"ping"}');
            } else if (now() - pingedAt >= SILENCE_SECONDS) end({ reason: "the server gave no sign of life", opened });
          },
        };
        resolve(session);
      }
    };
  });
}

/** Open an event stream by fetch, since an EventSource shows no key and no status. @returns {Promise<Session>} @param {string} url @param {Record<string, string>} headers @param {Listener} listener */
async function openStream(url, headers, listener) {
  const aborter = new AbortController();
  let heardAt = now();
  let isOver = false;
  /** @type {Session | null} */ let session = null;
  const timer = setTimeout(() => aborter.abort(), OPEN_SECONDS * 1000);
  /** @type {Response} */ let answer;
  try {
    answer = await fetch(url, { headers, credentials: "include", cache: "no-store", signal: aborter.signal });
  } catch (error) {
    clearTimeout(timer);
    throw { reason: `the bus can't be reached: ${sentenceOf(error)}` };
  }
  if (answer.status !== 200 || answer.body === null) {
    clearTimeout(timer);
    const refused = await refusalIn(answer);
    throw { reason: refused.message, errorCode: refused.code, status: answer.status, afterSeconds: refused.retryAfterSeconds };
  }
  /** @type {any} */ let gap;
  const confirmed = new Promise((resolve, reject) => {
    const end = (/** @type {Ending} */ ending) => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      aborter.abort();
      if (session === null) reject(ending);
      else listener.ended(ending);
    };
    const take = (/** @type {string} */ name, /** @type {string} */ data, /** @type {string} */ id) => {
      if (name === "gap") gap = JSON.parse(data);
      if (name === "connected") {
        clearTimeout(timer);
        const { cursor } = JSON.parse(data);
        session = {
          kind: "sse",
          confirmed: { type: "connection_confirmed", cursor, epoch: cursor.split(":")[0], resumed: { gap } },
          write: () => {},
          close: (code) => end({ reason: "closed", code }),
          watch: () => now() - heardAt >= STREAM_SILENCE_SECONDS && end({ reason: "the server gave no sign of life" }),
        };
        resolve(session);
      } else if (session !== null) listener.received(frameOf(name, data, id));
    };
    readEvents(answer.body, take, () => (heardAt = now())).then(
      () => end({ reason: "the stream ended" }),
      (error) => end({ reason: `the stream broke: ${sentenceOf(error)}` }),
    );
  });
  return confirmed;
}

/** Read an event stream to its end. @param {any} body @param {(name: string, data: string, id: string) => void} take @param {() => void} heard */
async function readEvents(body, take, heard) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  let id = "";
  /** @type {string[]} */ let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const at = line.indexOf(":");
      const field = at < 0 ? line : line.slice(0, at);
      const text = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (field === "event") name = text;
      else if (field === "id") id = text;
      else if (field === "data") data.push(text);
      else if (line === "") {
        if (data.length > 0) take(name || "message", data.join("\n"), id);
        name = id = "";
        data = [];
      }
    }
  }
}

/** An event of a stream as the frame that a WebSocket would bring; what was sent as an event has only its name and payload. @param {string} name @param {string} data @param {string} id */
function frameOf(name, data, id) {
  const parsed = parsedOr(data, data);
  if (["failed", "dropped", "goaway"].includes(name)) return { ...parsed, type: name };
  if (name === "message_received" && typeof parsed?.id === "string" && "seq" in parsed) return { type: "message", message: parsed };
  const seq = id ? Number(id.split(":")[1]) : null;
  const event = { id: `event-${id}`, seq, from: "$stream", to: "", type: name, payload: parsed, timestamp: "", requires_ack: false };
  return { type: "message", message: event };
}

/**
 * One party of the bus. Building one opens nothing; `connect`, or the first send, does; `close` ends it for good.
 *
 * Events (`on`): `message`; `open` {transport, cursor, epoch}; `close` {reason, code, again_after_seconds, error}: when it does not
 * come back the seconds are null, and `error` says why, if it was not by `close`; `gap` {requested, resumed_from, reason, lost}: messages were missed;
 * `dropped` {n}: so many ephemeral messages were; `failed` {message_id, recipient, reason}: a message that this client sent became
 * a dead letter; `error`: a handler failed, or the bus refused what nobody waits for.
 */
export class Client {
  /** @type {Map<string, Set<Handler>>} */ #handlers = new Map(EVENTS.map((name) => [name, new Set()]));
  /** @type {Map<number, any>} */ #outbox = new Map(); // what waits for its answer, by ref, in order
  /** @type {{message: Message, epoch: string}[]} */ #received = [];
  /** @type {{message: Message, epoch: string} | null} */ #inHand = null;
  /** @type {{resolve: (result: any) => void, reject: (error: any) => void}[]} */ #takers = [];
  /** @type {Map<string, {message: Message, due: number, until: number}>} */ #held = new Map(); // leases that are kept alive
  /** @type {Map<string, Message[]>} */ #asked = new Map(); // by correlation id, what came for requests that wait
  #deliveries = new Deliveries();
  #backoff = new Backoff();
  /** @type {Session | null} */ #session = null;
  /** @type {string | null} */ #cursor = null;
  /** @type {BusError | null} */ #failure = null;
  /** @type {Promise<void> | null} */ #running = null;
  /** @type {(() => void) | null} */ #wake = null; // ends the pause, or the rest
  #isClosed = false;
  #isDispatching = false;
  #isPumping = false;
  #blocked = 0; // WebSockets in a row that did not open while the bus answered
  #refusedTokens = 0;
  #refs = 0;
  #keys = random();
  /** @type {Set<string>} */ #topics;
  /** @type {Set<string>} */ #queues;

  /** @param {string} clientId @param {Options} [options] */
  constructor(clientId, options = {}) {
    if (!/^(?!\$)[A-Za-z0-9._:@-]{1,128}$/.test(clientId)) {
      throw new BusError("bad_name", "A client's name is 1 to 128 characters of A-Z a-z 0-9 . _ : @ -.", { field: "client_id" });
    }
    this.clientId = clientId;
    this.options = { since: null, maxInFlight: 10, transport: "auto", offline: "queue", autoAck: true, maxQueued: 1000, maxReceived: 10_000, ...options };
    this.url = (options.url ?? home()).replace(/\/+$/, "").replace(/^ws/, "http");
    this.#topics = new Set(options.topics ?? []);
    this.#queues = new Set(options.queues ?? []);
  }

  // ---- life

  /** Settles at the confirmed connection; fails with a BusError where coming back is no use, or after `close`. @returns {Promise<void>} */
  connect() {
    this.#start();
    if (this.#session !== null) return Promise.resolve();
    return new Promise((resolve, reject) => {
      if (this.#failure !== null) return reject(this.#failure);
      const ends = [this.on("open", () => over(resolve)), this.on("close", (end) => end.again_after_seconds === null && over(() => reject(this.#failure)))];
      const over = (/** @type {(_?: any) => void} */ then) => (ends.forEach((end) => end()), then());
    });
  }

  /** True while a confirmed connection is open. */
  get isConnected() {
    return this.#session !== null;
  }

  /** "websocket", "sse", or null without a connection. */
  get transport() {
    return this.#session?.kind ?? null;
  }

  /** Where the application stands: every plain message before it was handled. To be kept, and given as `since` some other time. */
  get cursor() {
    const oldest = [this.#inHand, ...this.#received].find((entry) => entry !== null && movesCursor(entry.message));
    return oldest ? `${oldest.epoch}:${Number(oldest.message.seq) - 1}` : this.#cursor;
  }

  /** How many sends have no receipt. */
  get unsent() {
    return [...this.#outbox.values()].filter((pending) => pending.isSend).length;
  }

  /** Listen to an event; returns what ends that. Handlers of `message` run one after another, in order, and may be async. @param {string} name @param {Handler} handler @returns {() => void} */
  on(name, handler) {
    const handlers = this.#handlers.get(name);
    if (handlers === undefined) throw new TypeError(`There is no event ${name}; there are ${EVENTS.join(", ")}.`);
    handlers.add(handler);
    if (name === "message") queueMicrotask(() => this.#dispatch());
    return () => void handlers.delete(handler);
  }

  /** Answer requests: what the handler returns is sent as the reply. @param {Handler} handler @param {string} [type] only messages of this type */
  onRequest(handler, type) {
    return this.on("message", async (/** @type {Message} */ message) => {
      const isMine = message.correlation_id !== null && message.type !== "reply" && (type === undefined || message.type === type);
      if (isMine) await message.reply(await handler(message));
    });
  }

  /** End: wait up to `timeoutSeconds` for receipts, then say goodbye. Returns how many sends were given up; they fail with `closed`. */
  async close({ timeoutSeconds = 5 } = {}) {
    if (this.#session !== null && this.#outbox.size > 0) {
      await within(Promise.allSettled([...this.#outbox.values()].map((pending) => pending.promise)), timeoutSeconds);
    }
    const left = this.unsent;
    this.#isClosed = true;
    this.#session?.close(1000);
    this.#wake?.();
    if (this.#running !== null) await within(this.#running, timeoutSeconds);
    this.#fail(new BusError("closed", "The client was closed."));
    return left;
  }

  // ---- sending

  /**
   * Send a message; settles with the receipt once it is stored. Offline it waits for the connection, in order; it carries an
   * idempotency key, so it is stored once however often the connection breaks. An ephemeral one is not repeated.
   * @param {Address} to @param {any} payload @param {SendOptions} [options] @returns {Promise<Receipt>}
   */
  send(to, payload, options = {}) {
    if (options.ephemeral && this.#session === null) {
      const names = Array.isArray(to) ? to : [to];
      return Promise.resolve({ message_id: null, seq: null, recipients: names.map((client) => ({ client, state: "dropped" })) });
    }
    const { type = "message", ...fields } = options;
    return this.#submit("send", { to, payload: payload ?? null, msg_type: type, ...fields }, !options.ephemeral);
  }

  /** Answer a message: to its sender, with its correlation id, in its thread. @param {Message} message @param {any} payload @param {SendOptions} [options] */
  reply(message, payload, options = {}) {
    const { correlation_id, id, thread_id } = message;
    const thread = thread_id === null ? {} : { thread_id };
    return this.send(message.from, payload, { type: "reply", correlation_id: correlation_id ?? id, ...thread, ...options });
  }

  /**
   * Send and wait for the answers, up to `wait` seconds (25, at most 50). `status` is `pending` when some are `missing` then: they
   * come as messages later. Replies that it returns do not come as messages, too.
   * @param {Address} to @param {any} payload @param {RequestOptions} [options] @returns {Promise<Reply>}
   */
  async request(to, payload, options = {}) {
    const { type = "message", ...fields } = options;
    const correlation_id = fields.correlation_id ?? random();
    /** @type {Message[]} */ const came = [];
    this.#asked.set(correlation_id, came);
    /** @type {Set<string>} */ const had = new Set();
    try {
      const found = await this.#submit("request", { to, payload: payload ?? null, msg_type: type, ...fields, correlation_id }, true);
      const replies = (found.replies ?? []).map((/** @type {any} */ each) => new Message(this, each));
      for (const reply of replies) {
        had.add(reply.id);
        this.#deliveries.isRepeat(reply);
        if (reply.requires_ack) this.settle(reply, "ack").catch(() => {});
      }
      return { ...found, replies };
    } finally {
      this.#asked.delete(correlation_id);
      for (const message of came) if (!had.has(message.id)) this.#put(message);
    }
  }

  /** Say something about a message that needs an ack; settles with what the bus made of it. @param {Message} message @param {Verb} verb @param {Record<string, any>} [said] @returns {Promise<Settled>} */
  settle(message, verb, said = {}) {
    const frame = verdictOf(message, verb, said);
    this.#deliveries.settled(message, verb, frame);
    if (verb !== "progress") this.#held.delete(deliveryOf(message));
    return this.#submit(verb, frame, false);
  }

  /** Hear topics, take from queues. A topic is heard from now on, and after a reconnect without a gap. @param {{topics?: string[], queues?: string[], maxInFlight?: number}} what */
  subscribe({ topics = [], queues = [], maxInFlight }) {
    topics.forEach((topic) => this.#topics.add(topic));
    queues.forEach((queue) => this.#queues.add(queue));
    if (maxInFlight !== undefined) this.options.maxInFlight = maxInFlight;
    return this.#subscribed("subscribe", topics, queues);
  }

  /** Hear and take no longer; what is in hand may be finished. @param {{topics?: string[], queues?: string[]}} what */
  unsubscribe({ topics = [], queues = [] }) {
    topics.forEach((topic) => this.#topics.delete(topic));
    queues.forEach((queue) => this.#queues.delete(queue));
    return this.#subscribed("unsubscribe", topics, queues);
  }

  // ---- receiving

  /** The messages as they come, until the client is closed. One that needs an ack is acked when the next is asked for; leaving the loop acks nothing. @returns {AsyncIterableIterator<Message>} */
  [Symbol.asyncIterator]() {
    /** @type {Message | null} */ let former = null;
    this.#start();
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      next: async () => {
        if (former !== null && this.options.autoAck && this.#held.has(deliveryOf(former))) this.settle(former, "ack").catch(() => {});
        former = null;
        const result = await new Promise((resolve, reject) => {
          this.#takers.push({ resolve, reject });
          this.#dispatch();
          if (this.#failure !== null) this.#endTakers(this.#failure);
        });
        if (!result.done) former = result.value;
        return result;
      },
      return: async () => {
        if (former !== null) this.#held.delete(deliveryOf(former));
        return { done: true, value: undefined };
      },
    };
  }

  // ---- what is asked of the bus

  /** @param {string} type @param {Record<string, any>} fields @param {boolean} keyed @returns {Promise<any>} */
  #submit(type, fields, keyed) {
    this.#start();
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const isSend = type === "send" || type === "request";
    if (isSend && this.options.offline === "raise" && this.#session === null) {
      return Promise.reject(new BusError("offline", "There is no connection, and nothing was sent."));
    }
    if (isSend && this.unsent >= this.options.maxQueued) {
      return Promise.reject(new BusError("send_queue_full", `${this.unsent} sends wait for their receipts already; wait for some of them.`));
    }
    const ref = ++this.#refs;
    const key = keyed ? { idempotency_key: `${this.#keys}-${ref}` } : {};
    const frame = { ...key, ...defined(fields), type, ref };
    const size = sizeOf(frame);
    if (size instanceof Error) return Promise.reject(size);
    /** @type {any} */ const pending = { ref, frame, size, isSend, isEphemeral: fields.ephemeral === true, attempted: false, again: 0 };
    pending.promise = new Promise((resolve, reject) => Object.assign(pending, { resolve, reject }));
    this.#outbox.set(ref, pending);
    this.#write(pending);
    return pending.promise;
  }

  /** @param {any} pending */
  #write(pending) {
    if (this.#session?.kind === "sse") void this.#pump();
    else if (this.#session !== null) {
      pending.attempted = true;
      pending.again = 0;
      this.#session.write(pending.frame);
    }
  }

  /** @param {any} frame @param {BusError | null} error */
  #answered(frame, error) {
    const pending = this.#outbox.get(frame.ref);
    if (pending === undefined) {
      if (error !== null && !(error.code === "too_large" && this.#failLargest(error))) this.#emit("error", error);
      return;
    }
    if (error !== null && passes(error) && this.options.offline === "queue") {
      pending.again = now() + (error.retryAfterSeconds ?? AGAIN_SECONDS);
      return;
    }
    this.#outbox.delete(frame.ref);
    if (error !== null) pending.reject(error);
    else {
      const { type, ref, ...told } = frame;
      pending.resolve(told);
    }
  }

  /** The server found a frame too large without saying which: it was the largest. @param {BusError} error */
  #failLargest(error) {
    const written = [...this.#outbox.values()].filter((pending) => pending.attempted);
    const largest = written.reduce((a, b) => (a !== null && a.size >= b.size ? a : b), null);
    if (largest !== null) this.#answered({ ref: largest.ref }, new BusError("message_too_large", error.message, { status: 413 }));
    return largest !== null;
  }

  /** Over an event stream: do by REST what the outbox holds, in order, until it is empty or the stream is over. */
  async #pump() {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      for (;;) {
        const waiting = [...this.#outbox.values()].filter((pending) => !pending.isUnderWay);
        if (waiting.length === 0 || this.#session?.kind !== "sse") return;
        const due = waiting.filter((pending) => pending.again <= now());
        if (due.length === 0) {
          await sleep(AGAIN_SECONDS);
          continue;
        }
        const first = due[0];
        try {
          if (first.frame.type === "send") await this.#postSends(due);
          else if (first.frame.type === "request") this.#postRequest(first);
          else if (first.frame.message_id !== undefined) await this.#postVerdict(first);
          else this.#answered({ ref: first.ref, topics: [...this.#topics], queues: [] }, null);
        } catch (error) {
          if (error instanceof BusError && !passes(error)) this.#answered({ ref: first.ref }, error);
          else await sleep(error instanceof BusError ? (error.retryAfterSeconds ?? AGAIN_SECONDS) : AGAIN_SECONDS);
        }
      }
    } finally {
      this.#isPumping = false;
    }
  }

  /** @param {any[]} waiting */
  async #postSends(waiting) {
    /** @type {any[]} */ const batch = [];
    let size = 0;
    for (const pending of waiting) {
      size += pending.size;
      if (pending.frame.type !== "send" || batch.length === BATCH || (size > BATCH_CHARACTERS && batch.length > 0)) break;
      batch.push(pending);
    }
    batch.forEach((pending) => (pending.attempted = true));
    const { results } = await this.#call("POST", "/api/send/batch", { messages: batch.map((pending) => this.#bodyOf(pending)) });
    batch.forEach((pending, at) => {
      const result = results[at];
      this.#answered({ ...result, ref: pending.ref }, result.error === undefined ? null : errorOf(result));
    });
  }

  /** @param {any} pending */
  #postRequest(pending) {
    pending.isUnderWay = true;
    this.#call("POST", "/api/request", this.#bodyOf(pending)).then(
      (found) => this.#answered({ ...found, ref: pending.ref }, null),
      (error) => {
        pending.isUnderWay = false;
        if (error instanceof BusError && !passes(error)) this.#answered({ ref: pending.ref }, error);
        else setTimeout(() => this.#write(pending), AGAIN_SECONDS * 1000);
      },
    );
  }

  /** @param {any} pending */
  async #postVerdict(pending) {
    const { type, ref, message_id, ...said } = pending.frame;
    const path = `/api/messages/${encodeURIComponent(message_id)}/${type}`;
    this.#answered({ message_id, ...(await this.#call("POST", path, { client: this.clientId, ...said })), ref }, null);
  }

  /** A send's frame as a body for REST. @param {any} pending */
  #bodyOf(pending) {
    const { type, ref, msg_type, ...fields } = pending.frame;
    return { from: this.clientId, type: msg_type, ...fields };
  }

  /** One call over REST. Throws a BusError for a refusal, a TypeError without an answer. @param {string} method @param {string} path @param {object} [body] */
  async #call(method, path, body) {
    const headers = { ...(await this.#headers()), ...(body ? { "Content-Type": "application/json" } : {}) };
    const answer = await fetch(this.url + path, { method, headers, credentials: "include", body: body && JSON.stringify(body) });
    if (!answer.ok) throw await refusalIn(answer);
    return answer.json();
  }

  async #headers() {
    const token = await this.#token();
    return /** @type {Record<string, string>} */ (token === null ? {} : { "X-API-Key": token });
  }

  async #token() {
    const { token } = this.options;
    return typeof token === "function" ? await token() : (token ?? null);
  }

  /** @param {"subscribe" | "unsubscribe"} verb @param {string[]} topics @param {string[]} queues */
  #subscribed(verb, topics, queues) {
    const limit = verb === "subscribe" && queues.length > 0 ? { max_in_flight: this.options.maxInFlight } : {};
    const answer = this.#submit(verb, { topics, queues, ...limit }, false);
    if (this.#session?.kind === "sse") this.#session.close(4000); // a stream is opened anew to hear other topics
    return answer;
  }

  // ---- what comes

  /** @param {any} frame */
  #take(frame) {
    if (frame.type === "message") this.#takeMessage(new Message(this, frame.message));
    else if (["sent", "acked", "reply", "subscribed"].includes(frame.type)) this.#answered(frame, null);
    else if (frame.type === "error") this.#answered(frame, errorOf(frame));
    else if (["dropped", "failed"].includes(frame.type)) {
      const { type, ...told } = frame;
      this.#emit(type, told);
    }
  }

  /** @param {Message} message */
  #takeMessage(message) {
    if (this.#deliveries.isRepeat(message)) {
      const again = this.#deliveries.answerAgain(message);
      if (again !== null) this.#submit(again.type, again, false).catch(() => {});
      return;
    }
    if (message.requires_ack) this.#hold(message, LONGEST_WAIT_SECONDS);
    const waiting = message.correlation_id === null ? undefined : this.#asked.get(message.correlation_id);
    if (movesCursor(message)) this.#moveTo(`${this.#epoch}:${message.seq}`);
    if (waiting !== undefined) waiting.push(message);
    else this.#put(message);
  }

  get #epoch() {
    return /** @type {string} */ (this.#cursor).split(":")[0];
  }

  /** Move the cursor, never backwards in one epoch. @param {string} cursor */
  #moveTo(cursor) {
    const [epoch, seq] = cursor.split(":");
    const [former, reached] = (this.#cursor ?? ":").split(":");
    if (epoch !== former || Number(seq) > Number(reached)) this.#cursor = cursor;
  }

  /** @param {Message} message */
  #put(message) {
    this.#received.push({ message, epoch: this.#epoch });
    if (this.#received.length > this.options.maxReceived) this.#session?.close(4000);
    this.#dispatch();
  }

  /** Hand out what came: to the handlers, one message after another, or to who iterates. */
  async #dispatch() {
    if (this.#isDispatching) return;
    this.#isDispatching = true;
    try {
      while (this.#received.length > 0) {
        const handlers = /** @type {Set<Handler>} */ (this.#handlers.get("message"));
        const taker = handlers.size > 0 ? undefined : this.#takers.shift();
        if (handlers.size === 0 && taker === undefined) return;
        const entry = /** @type {{message: Message, epoch: string}} */ (this.#received.shift());
        if (this.#received.length * 2 < this.options.maxReceived) this.#wakeFromRest();
        if (taker !== undefined) {
          this.options.autoAck ? this.#hold(entry.message, Infinity) : this.#held.delete(deliveryOf(entry.message));
          taker.resolve({ done: false, value: entry.message });
        } else {
          this.#inHand = entry;
          const work = this.#handle(entry.message, handlers);
          if (work !== null) await work;
          this.#inHand = null;
        }
      }
    } finally {
      this.#isDispatching = false;
    }
  }

  /** Run the handlers; null when none of them made us wait. @param {Message} message @param {Set<Handler>} handlers @returns {Promise<void> | null} */
  #handle(message, handlers) {
    if (message.requires_ack) this.#hold(message, Infinity);
    /** @type {Promise<void>[]} */ const work = [];
    let failed = false;
    const noted = (/** @type {unknown} */ error) => ((failed = true), this.#emit("error", error));
    for (const handler of [...handlers]) {
      try {
        const result = handler(message);
        if (typeof result?.then === "function") work.push(result.then(() => {}, noted));
      } catch (error) {
        noted(error);
      }
    }
    const done = () => {
      if (!this.#held.has(deliveryOf(message))) return; // it was settled by hand
      if (this.options.autoAck) this.settle(message, failed ? "nack" : "ack").catch(() => {});
      else this.#held.delete(deliveryOf(message));
    };
    return work.length > 0 ? Promise.all(work).then(done) : (done(), null);
  }

  /** Keep a lease alive for so many seconds. @param {Message} message @param {number} seconds */
  #hold(message, seconds) {
    if (!message.requires_ack) return;
    const held = this.#held.get(deliveryOf(message)) ?? { message, due: now() + KEEP_SECONDS, until: 0 };
    held.until = now() + seconds;
    this.#held.set(deliveryOf(message), held);
  }

  /** Now and then: leases, silence, and what is to be said again. */
  #watch() {
    for (const [delivery, held] of this.#held) {
      if (held.until <= now()) this.#held.delete(delivery);
      else if (held.due <= now() && this.#session !== null) {
        held.due = now() + KEEP_SECONDS;
        this.#submit("progress", verdictOf(held.message, "progress"), false).catch(() => {});
      }
    }
    this.#session?.watch();
    if (this.#session?.kind === "websocket") {
      for (const pending of this.#outbox.values()) if (pending.again > 0 && pending.again <= now()) this.#write(pending);
    }
  }

  // ---- the connection

  #start() {
    if (this.#running === null && !this.#isClosed) this.#running = this.#run();
    else if (this.#isClosed && this.#failure === null) this.#failure = new BusError("closed", "The client was closed.");
  }

  async #run() {
    const watch = setInterval(() => this.#watch(), WATCH_SECONDS * 1000);
    const wake = () => this.#wake?.();
    globalThis.addEventListener?.("online", wake);
    try {
      while (!this.#isClosed) {
        const ending = await this.#live();
        if (this.#isClosed) break;
        const error = this.#refusal(ending);
        if (error !== null) return this.#fail(error, ending);
        const isAtOnce = ending.code === 4000; // we closed it: to rest, or to hear other topics
        const pause = isAtOnce ? 0 : this.#backoff.pause(ending);
        this.#emit("close", { reason: ending.reason, code: ending.code ?? 1006, again_after_seconds: pause, error: null });
        await this.#rest(pause, this.#received.length >= this.options.maxReceived);
      }
    } finally {
      clearInterval(watch);
      globalThis.removeEventListener?.("online", wake);
    }
  }

  /** Wait so many seconds, or, when too much came, until half of it is taken. @param {number} seconds @param {boolean} isFull @returns {Promise<void>} */
  #rest(seconds, isFull) {
    return new Promise((resolve) => {
      const timer = isFull ? undefined : setTimeout(() => this.#wake?.(), seconds * 1000);
      this.#isFull = isFull;
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = null;
        this.#isFull = false;
        resolve();
      };
      if (this.#isClosed) this.#wake();
    });
  }

  #isFull = false;

  #wakeFromRest() {
    if (this.#isFull) this.#wake?.();
  }

  /** One connection, from its beginning to its end. @returns {Promise<Ending>} */
  async #live() {
    /** @type {(ending: Ending) => void} */ let ended = () => {};
    const end = new Promise((resolve) => (ended = resolve));
    /** @type {number | undefined} */ let asked;
    /** @type {any[] | null} */ let early = []; // what comes with the confirmation
    const received = (/** @type {any} */ frame) => {
      if (early !== null) early.push(frame);
      else if (frame.type === "goaway") asked = (frame.reconnect_after_ms ?? 0) / 1000;
      else this.#take(frame);
    };
    const began = now();
    /** @type {Ending} */ let ending;
    try {
      const topics = [...this.#topics];
      const session = await this.#open({ received, ended }, topics);
      this.#blocked = session.kind === "websocket" ? 0 : this.#blocked;
      this.#begin(session, topics);
      const came = early;
      early = null;
      came.forEach(received);
      ending = { ...(await end), lastedSeconds: now() - began };
    } catch (failure) {
      if (failure instanceof Error) ending = { reason: sentenceOf(failure), status: /** @type {any} */ (failure).status };
      else ending = /** @type {Ending} */ (failure);
    }
    this.#session = null;
    const isLost = (/** @type {any} */ pending) => pending.isEphemeral || (pending.isSend && this.options.offline === "raise");
    for (const pending of [...this.#outbox.values()].filter(isLost)) {
      this.#outbox.delete(pending.ref);
      const key = pending.frame.idempotency_key;
      pending.reject(new BusError("offline", "The connection was lost before the receipt.", { idempotencyKey: key }));
    }
    if (ending.code === 1009) this.#failLargest(new BusError("too_large", `The message is larger than the server takes: ${ending.reason}`));
    return { ...ending, afterSeconds: asked ?? ending.afterSeconds };
  }

  /** @param {Listener} listener @param {string[]} topics @returns {Promise<Session>} */
  async #open(listener, topics) {
    const { transport, ticket, buyTickets } = this.options;
    const mayBlock = transport === "auto";
    if (transport !== "sse" && typeof WebSocket === "function" && !(mayBlock && this.#blocked >= BLOCKED_AFTER)) {
      const token = await this.#token();
      const bought = ticket ? await ticket() : token !== null && (buyTickets || this.#blocked > 0) ? await this.#buyTicket() : null;
      const query = this.#query({ since: this.#cursor ?? this.options.since, on_gap: this.options.onGap, topics: topics.join(",") });
      const url = `${this.url.replace(/^http/, "ws")}/ws/${encodeURIComponent(this.clientId)}${query}`;
      try {
        return await openSocket(url, bought ? ["bus", `ticket.${bought}`] : [], bought ? null : token, listener);
      } catch (ending) {
        if (/** @type {Ending} */ (ending).opened === false && mayBlock && (await this.#isReachable())) this.#blocked += 1;
        throw ending;
      }
    }
    const query = this.#query({ client_id: this.clientId, last_event_id: await this.#place(), on_gap: this.options.onGap, topics: topics.join(",") });
    return openStream(`${this.url}/stream/events${query}`, await this.#headers(), listener);
  }

  /** A ticket for one WebSocket: it counts before a cookie, which may be another bus's, and would be refused at the door. */
  async #buyTicket() {
    try {
      return (await this.#call("POST", "/api/tickets", { client: this.clientId })).ticket;
    } catch (error) {
      if (this.options.buyTickets) throw error;
      return null;
    }
  }

  /** Where a stream is to begin: it takes cursors and "earliest". */
  async #place() {
    const since = this.#cursor ?? this.options.since;
    if (!since || since === "earliest" || /^[0-9a-f]{12}:\d+$/.test(since)) return since;
    const query = this.#query({ to: this.clientId, since, limit: "0" });
    return (await this.#call("GET", `/api/messages${query}`)).cursor;
  }

  /** @param {Record<string, string | null | undefined>} fields */
  #query(fields) {
    const given = Object.entries(fields).filter(([, value]) => value);
    return given.length > 0 ? `?${new URLSearchParams(/** @type {[string, string][]} */ (given))}` : "";
  }

  async #isReachable() {
    try {
      await fetch(`${this.url}/health`, { mode: "no-cors", cache: "no-store" });
      return true;
    } catch {
      return false;
    }
  }

  /** @param {Session} session @param {string[]} topics those that the connection has from its beginning */
  #begin(session, topics) {
    const { cursor, epoch, resumed } = session.confirmed;
    this.#cursor = cursor ?? this.#cursor;
    this.#session = session;
    this.#refusedTokens = 0;
    if (resumed?.gap) this.#emit("gap", resumed.gap);
    const missing = [...this.#topics].filter((topic) => !topics.includes(topic));
    if (session.kind === "sse" && this.#queues.size > 0) {
      this.#emit("error", new BusError("needs_websocket", "Queues are taken from over a WebSocket, and none could be opened."));
    }
    if (session.kind === "websocket" && (missing.length > 0 || this.#queues.size > 0)) {
      session.write({ type: "subscribe", topics: missing, queues: [...this.#queues], max_in_flight: this.options.maxInFlight });
    }
    for (const pending of [...this.#outbox.values()]) this.#write(pending);
    this.#emit("open", { transport: session.kind, cursor, epoch });
    if (this.#isClosed) session.close(1000);
  }

  /** The error, when coming back is no use. @param {Ending} ending */
  #refusal(ending) {
    const { status = 0, code = 1006, reason } = ending;
    const isAnewPossible = typeof this.options.token === "function" || this.options.ticket !== undefined;
    if ((status === 401 || code === 4401) && isAnewPossible && this.#refusedTokens++ === 0) return null;
    const isFinal = FINAL_STATUSES.includes(status) || (code >= 4400 && code <= 4499);
    if (!isFinal) return null;
    const codes = /** @type {Record<number, string>} */ ({ 400: "malformed", 401: "unauthenticated", 403: "forbidden" });
    return new BusError(ending.errorCode ?? codes[status || code - 4000] ?? "refused", reason, { status: status || code - 4000 });
  }

  /** @param {BusError} error @param {Ending} [ending] */
  #fail(error, ending) {
    const isNew = this.#failure === null;
    this.#failure ??= error;
    this.#session = null;
    for (const pending of this.#outbox.values()) {
      pending.promise.catch(() => {}); // who does not wait for it is told by `close`
      const key = pending.attempted ? pending.frame.idempotency_key : undefined;
      pending.reject(new BusError(error.code, error.message, { status: error.status, idempotencyKey: key }));
    }
    this.#outbox.clear();
    this.#endTakers(error);
    if (isNew) this.#emit("close", { reason: error.message, code: ending?.code ?? 1000, again_after_seconds: null, error: this.#isClosed ? null : error });
  }

  /** Nothing more comes: iteration ends, or fails. @param {BusError} error */
  #endTakers(error) {
    for (const taker of this.#takers.splice(0)) this.#isClosed ? taker.resolve({ done: true, value: undefined }) : taker.reject(error);
  }

  /** @param {string} name @param {any} value */
  #emit(name, value) {
    const handlers = [.../** @type {Set<Handler>} */ (this.#handlers.get(name))];
    if (name === "error" && handlers.length === 0) console.error("multi-agent-bridge:", value);
    for (const handler of handlers) {
      try {
        handler(value);
      } catch (error) {
        if (name === "error") console.error("multi-agent-bridge:", error);
        else this.#emit("error", error);
      }
    }
  }
}

// ---- small things

/** Where the bus is: this file's folder if it came over HTTP, else the page's origin, else the usual place. */
function home() {
  const own = import.meta.url;
  if (/^https?:.*\/client\.js(\?.*)?$/.test(own)) return new URL(".", own).href;
  return globalThis.location?.origin ?? "http://127.0.0.1:5001";
}

const now = () => performance.now() / 1000;

/** @param {number} seconds */
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Wait for a promise, so long at most; no timer outlives it. @param {Promise<unknown>} promise @param {number} seconds @returns {Promise<void>} */
function within(promise, seconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    promise.finally(() => (clearTimeout(timer), resolve()));
  });
}

/** 24 random characters; randomUUID is for secure contexts only. */
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {Message & Record<string, any>} message */
const lifeOf = (message) => (message.redriven ? `${message.id}/${message.seq}` : message.id);

/** @param {Message} message */
const deliveryOf = (message) => `${lifeOf(message)}#${message.attempt}`;

/** @param {Message} message */
const movesCursor = (message) => message.seq !== null && !message.requires_ack;

/** @param {Message} message @param {Verb} verb @param {Record<string, any>} [said] */
const verdictOf = (message, verb, said = {}) => ({ type: verb, message_id: message.id, attempt: message.attempt, ...said });

/** @param {Map<string, any>} map @param {string} key @param {any} value */
function remember(map, key, value) {
  map.set(key, value);
  if (map.size > MAX_REMEMBERED) map.delete(/** @type {string} */ (map.keys().next().value));
}

/** @param {Record<string, any>} fields */
const defined = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/** The length of something as JSON, or why it is none. @param {object} frame */
function sizeOf(frame) {
  try {
    return JSON.stringify(frame).length;
  } catch (error) {
    return /** @type {TypeError} */ (error);
  }
}

/** @param {unknown} error */
const sentenceOf = (error) => (error instanceof Error ? error.message : String(error));

/** @param {string} text @param {any} otherwise */
function parsedOr(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** True for a refusal that may be gone in a moment. @param {BusError} error */
const passes = (error) => ["unavailable", "outcome_unknown"].includes(error.code) || error.status === 503 || (error.status === 409 && error.retryAfterSeconds !== undefined);

/** @param {any} told a refusal, as a frame or a body has it */
const errorOf = (told) =>
  new BusError(told.code ?? "refused", told.error, { status: told.status, field: told.field, retryAfterSeconds: told.retry_after_seconds });

/** @param {Response} answer */
async function refusalIn(answer) {
  const body = parsedOr(await answer.text(), {});
  const after = Number(answer.headers.get("Retry-After") ?? NaN);
  const retryAfterSeconds = Number.isFinite(after) ? after : undefined;
  return new BusError(body.code ?? `http_${answer.status}`, body.error ?? `The server answered ${answer.status}.`, { status: answer.status, field: body.field, retryAfterSeconds });
}
