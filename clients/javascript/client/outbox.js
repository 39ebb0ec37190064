// @ts-check
/** The outbox: what is asked of the bus, kept until it is answered, and asked again, once stored only once. */

import { BusError, passes } from "./errors.js";
import { Posts } from "./posts.js";
import { now } from "./time.js";

/** @import { Connection } from "./connection.js" */
/** @import { Events } from "./events.js" */
/** @import { Chosen } from "./options.js" */
/** @import { Rest } from "./rest.js" */
/** @import { Ending } from "./transports.js" */

const AGAIN_SECONDS = 1;

/**
 * What waits for its answer. `again` is when to ask again, 0 for not; `isUnderWay`: a request that REST has not answered yet.
 * @typedef {object} Pending
 * @property {number} ref
 * @property {Record<string, any>} frame
 * @property {number} size of the frame, in characters
 * @property {boolean} isSend
 * @property {boolean} isEphemeral
 * @property {boolean} attempted
 * @property {boolean} isUnderWay
 * @property {number} again
 * @property {Promise<any>} promise
 * @property {(told: any) => void} resolve
 * @property {(error: Error) => void} reject
 */

export class Outbox {
  /** @type {Map<number, Pending>} */ #pending = new Map(); // by ref, in order
  #refs = 0;
  #keys = random();
  #options;
  #connection;
  #events;
  #posts;

  /** @param {string} clientId @param {Chosen} options @param {Connection} connection @param {Rest} rest @param {Events} events */
  constructor(clientId, options, connection, rest, events) {
    this.#options = options;
    this.#connection = connection;
    this.#events = events;
    this.#posts = new Posts(clientId, rest, connection, this);
  }

  /** What waits for its answer, in order. */
  get waiting() {
    return [...this.#pending.values()];
  }

  /** How many sends have no receipt. */
  get unsent() {
    return this.waiting.filter((pending) => pending.isSend).length;
  }

  /** Ask something of the bus; settles with the answer. @param {string} type @param {Record<string, any>} fields @param {boolean} keyed @returns {Promise<any>} */
  submit(type, fields, keyed) {
    this.#connection.start();
    const { failure, session } = this.#connection;
    if (failure !== null) return Promise.reject(failure);
    const isSend = type === "send" || type === "request";
    if (isSend && this.#options.offline === "raise" && session === null) {
      return Promise.reject(new BusError("offline", "There is no connection, and nothing was sent."));
    }
    if (isSend && this.unsent >= this.#options.maxQueued) {
      return Promise.reject(new BusError("send_queue_full", `${this.unsent} sends wait for their receipts already; wait for some of them.`));
    }
    const ref = ++this.#refs;
    const key = keyed ? { idempotency_key: `${this.#keys}-${ref}` } : {};
    const frame = { ...key, ...defined(fields), type, ref };
    const size = sizeOf(frame);
    if (size instanceof Error) return Promise.reject(size);
    const { promise, resolve, reject } = promised();
    const isEphemeral = fields.ephemeral === true;
    const pending = { ref, frame, size, isSend, isEphemeral, attempted: false, isUnderWay: false, again: 0, promise, resolve, reject };
    this.#pending.set(ref, pending);
    this.write(pending);
    return promise;
  }

  /** Write it, if there is a connection. @param {Pending} pending */
  write(pending) {
    const { session } = this.#connection;
    if (session?.kind === "sse") void this.#posts.pump();
    else if (session !== null) {
      pending.attempted = true;
      pending.again = 0;
      session.write(pending.frame);
    }
  }

  /** A connection began: write all. */
  writeAll() {
    for (const pending of this.waiting) this.write(pending);
  }

  /** Over a WebSocket: write again what was told to come again, when its time has come. */
  writeAgain() {
    if (this.#connection.session?.kind !== "websocket") return;
    for (const pending of this.#pending.values()) if (pending.again > 0 && pending.again <= now()) this.write(pending);
  }

  /** An answer came, or a refusal. @param {any} frame @param {BusError | null} error */
  answered(frame, error) {
    const pending = this.#pending.get(frame.ref);
    if (pending === undefined) {
      if (error !== null && !(error.code === "too_large" && this.#failLargest(error))) this.#events.emit("error", error);
      return;
    }
    if (error !== null && passes(error) && this.#options.offline === "queue") {
      pending.again = now() + (error.retryAfterSeconds ?? AGAIN_SECONDS);
      return;
    }
    this.#pending.delete(frame.ref);
    if (error !== null) pending.reject(error);
    else {
      const { type, ref, ...told } = frame;
      pending.resolve(told);
    }
  }

  /** The connection was lost: what is not to be repeated fails. @param {Ending} ending */
  lost(ending) {
    const isLost = (/** @type {Pending} */ pending) => pending.isEphemeral || (pending.isSend && this.#options.offline === "raise");
    for (const pending of this.waiting.filter(isLost)) {
      this.#pending.delete(pending.ref);
      const key = pending.frame.idempotency_key;
      pending.reject(new BusError("offline", "The connection was lost before the receipt.", { idempotencyKey: key }));
    }
    if (ending.code === 1009) this.#failLargest(new BusError("too_large", `The message is larger than the server takes: ${ending.reason}`));
  }

  /** All of it fails. @param {BusError} error */
  failed(error) {
    for (const pending of this.#pending.values()) {
      pending.promise.catch(() => {}); // who does not wait for it is told by `close`
      const key = pending.attempted ? pending.frame.idempotency_key : undefined;
      pending.reject(new BusError(error.code, error.message, { status: error.status, idempotencyKey: key }));
    }
    this.#pending.clear();
  }

  /** The server found a frame too large without saying which: it was the largest. @param {BusError} error */
  #failLargest(error) {
    const written = this.waiting.filter((pending) => pending.attempted);
    if (written.length === 0) return false;
    const largest = written.reduce((a, b) => (a.size >= b.size ? a : b));
    this.answered({ ref: largest.ref }, new BusError("message_too_large", error.message, { status: 413 }));
    return true;
  }
}

/** 24 random characters; randomUUID is for secure contexts only. */
export const random = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

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

/** A promise with what settles it. @returns {Pick<Pending, "promise" | "resolve" | "reject">} */
function promised() {
  /** @type {any} */ const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}
