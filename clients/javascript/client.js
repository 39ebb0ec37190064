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

import { Connection } from "./client/connection.js";
import { BusError, errorOf } from "./client/errors.js";
import { Events } from "./client/events.js";
import { Inbox } from "./client/inbox.js";
import { Message } from "./client/message.js";
import { DEFAULTS } from "./client/options.js";
import { Outbox, random } from "./client/outbox.js";
import { Rest } from "./client/rest.js";
import { within } from "./client/time.js";

export { Backoff } from "./client/backoff.js";
export { BusError, Message };

/** @import { Chosen } from "./client/options.js" */
/** @typedef {import("./client/events.js").Handler} Handler */
/** @typedef {import("./client/message.js").Receipt} Receipt */
/** @typedef {import("./client/message.js").Reply} Reply */
/** @typedef {import("./client/message.js").Settled} Settled */
/** @typedef {import("./client/message.js").Verb} Verb */
/** @typedef {import("./client/options.js").Address} Address */
/** @typedef {import("./client/options.js").Options} Options */
/** @typedef {import("./client/options.js").RequestOptions} RequestOptions */
/** @typedef {import("./client/options.js").SendOptions} SendOptions */

/**
 * One party of the bus. Building one opens nothing; `connect`, or the first send, does; `close` ends it for good.
 *
 * Events (`on`): `message`; `open` {transport, cursor, epoch}; `close` {reason, code, again_after_seconds, error}: when it does not
 * come back the seconds are null, and `error` says why, if it was not by `close`; `gap` {requested, resumed_from, reason, lost}: messages were missed;
 * `dropped` {n}: so many ephemeral messages were; `failed` {message_id, recipient, reason}: a message that this client sent became
 * a dead letter; `error`: a handler failed, or the bus refused what nobody waits for.
 */
export class Client {
  #events = new Events();
  /** @type {Connection} */ #connection;
  /** @type {Outbox} */ #outbox;
  /** @type {Inbox} */ #inbox;

  /** @param {string} clientId @param {Options} [options] */
  constructor(clientId, options = {}) {
    if (!/^(?!\$)[A-Za-z0-9._:@-]{1,128}$/.test(clientId)) {
      throw new BusError("bad_name", "A client's name is 1 to 128 characters of A-Z a-z 0-9 . _ : @ -.", { field: "client_id" });
    }
    this.clientId = clientId;
    this.options = /** @type {Chosen} */ ({ ...DEFAULTS, ...options });
    this.url = (options.url ?? home()).replace(/\/+$/, "").replace(/^ws/, "http");
    const rest = new Rest(this.url, this.options);
    this.#connection = new Connection(clientId, this.options, rest, this.#events, {
      cursor: () => this.#inbox.reached,
      isFull: () => this.#inbox.isFull,
      begun: (cursor) => this.#inbox.begun(cursor),
      ready: () => this.#outbox.writeAll(),
      received: (frame) => this.#take(frame),
      watch: () => (this.#inbox.watch(), this.#outbox.writeAgain()),
      lost: (ending) => this.#outbox.lost(ending),
      failed: (error) => (this.#outbox.failed(error), this.#inbox.failed(error)),
    });
    this.#outbox = new Outbox(clientId, this.options, this.#connection, rest, this.#events);
    this.#inbox = new Inbox(this.options, this.#connection, this.#outbox, this.#events);
  }

  // ---- life

  /** Settles at the confirmed connection; fails with a BusError where coming back is no use, or after `close`. @returns {Promise<void>} */
  connect() {
    this.#connection.start();
    if (this.isConnected) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const failed = () => reject(this.#connection.failure);
      if (this.#connection.failure !== null) return failed();
      const ends = [this.on("open", () => over(resolve)), this.on("close", (end) => end.again_after_seconds === null && over(failed))];
      const over = (/** @type {() => void} */ then) => (ends.forEach((end) => end()), then());
    });
  }

  /** True while a confirmed connection is open. */
  get isConnected() {
    return this.#connection.session !== null;
  }

  /** "websocket", "sse", or null without a connection. */
  get transport() {
    return this.#connection.session?.kind ?? null;
  }

  /** Where the application stands: every plain message before it was handled. To be kept, and given as `since` some other time. */
  get cursor() {
    return this.#inbox.cursor;
  }

  /** How many sends have no receipt. */
  get unsent() {
    return this.#outbox.unsent;
  }

  /** Listen to an event; returns what ends that. Handlers of `message` run one after another, in order, and may be async. @param {string} name @param {Handler} handler @returns {() => void} */
  on(name, handler) {
    const handlers = this.#events.of(name);
    handlers.add(handler);
    if (name === "message") queueMicrotask(() => this.#inbox.dispatch());
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
    const { waiting } = this.#outbox;
    if (this.isConnected && waiting.length > 0) {
      await within(Promise.allSettled(waiting.map((pending) => pending.promise)), timeoutSeconds);
    }
    const left = this.unsent;
    await this.#connection.close(timeoutSeconds);
    return left;
  }

  // ---- sending

  /**
   * Send a message; settles with the receipt once it is stored. Offline it waits for the connection, in order; it carries an
   * idempotency key, so it is stored once however often the connection breaks. An ephemeral one is not repeated.
   * @param {Address} to @param {any} payload @param {SendOptions} [options] @returns {Promise<Receipt>}
   */
  send(to, payload, options = {}) {
    if (options.ephemeral && !this.isConnected) {
      const names = Array.isArray(to) ? to : [to];
      return Promise.resolve({ message_id: null, seq: null, recipients: names.map((client) => ({ client, state: "dropped" })) });
    }
    const { type = "message", ...fields } = options;
    return this.#outbox.submit("send", { to, payload: payload ?? null, msg_type: type, ...fields }, !options.ephemeral);
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
    const answers = this.#inbox.keepBack(correlation_id);
    try {
      const found = await this.#outbox.submit("request", { to, payload: payload ?? null, msg_type: type, ...fields, correlation_id }, true);
      const replies = (found.replies ?? []).map((/** @type {any} */ each) => new Message(this, each));
      replies.forEach(answers.returned);
      return { ...found, replies };
    } finally {
      answers.end();
    }
  }

  /** Say something about a message that needs an ack; settles with what the bus made of it. @param {Message} message @param {Verb} verb @param {Record<string, any>} [said] @returns {Promise<Settled>} */
  settle(message, verb, said = {}) {
    return this.#inbox.settle(message, verb, said);
  }

  /** Hear topics, take from queues. A topic is heard from now on, and after a reconnect without a gap. @param {{topics?: string[], queues?: string[], maxInFlight?: number}} what */
  subscribe({ topics = [], queues = [], maxInFlight }) {
    topics.forEach((topic) => this.#connection.topics.add(topic));
    queues.forEach((queue) => this.#connection.queues.add(queue));
    if (maxInFlight !== undefined) this.options.maxInFlight = maxInFlight;
    return this.#subscribed("subscribe", topics, queues);
  }

  /** Hear and take no longer; what is in hand may be finished. @param {{topics?: string[], queues?: string[]}} what */
  unsubscribe({ topics = [], queues = [] }) {
    topics.forEach((topic) => this.#connection.topics.delete(topic));
    queues.forEach((queue) => this.#connection.queues.delete(queue));
    return this.#subscribed("unsubscribe", topics, queues);
  }

  /** @param {"subscribe" | "unsubscribe"} verb @param {string[]} topics @param {string[]} queues */
  #subscribed(verb, topics, queues) {
    const limit = verb === "subscribe" && queues.length > 0 ? { max_in_flight: this.options.maxInFlight } : {};
    const answer = this.#outbox.submit(verb, { topics, queues, ...limit }, false);
    if (this.transport === "sse") this.#connection.renew(); // a stream is opened anew to hear other topics
    return answer;
  }

  // ---- receiving

  /** The messages as they come, until the client is closed. One that needs an ack is acked when the next is asked for; leaving the loop acks nothing. @returns {AsyncIterableIterator<Message>} */
  [Symbol.asyncIterator]() {
    this.#connection.start();
    return this.#inbox.iterate();
  }

  /** @param {any} frame */
  #take(frame) {
    if (frame.type === "message") this.#inbox.take(new Message(this, frame.message));
    else if (["sent", "acked", "reply", "subscribed"].includes(frame.type)) this.#outbox.answered(frame, null);
    else if (frame.type === "error") this.#outbox.answered(frame, errorOf(frame));
    else if (["dropped", "failed"].includes(frame.type)) {
      const { type, ...told } = frame;
      this.#events.emit(type, told);
    }
  }
}

/** Where the bus is: this file's folder if it came over HTTP, else the page's origin, else the usual place. */
function home() {
  const own = import.meta.url;
  if (/^https?:.*\/client\.js(\?.*)?$/.test(own)) return new URL(".", own).href;
  return globalThis.location?.origin ?? "http://127.0.0.1:5001";
}
