// @ts-check
/** The connection of a client: opened, watched, and opened again, until the client is closed or the bus refuses for good. */

import { Backoff } from "./backoff.js";
import { BusError, sentenceOf } from "./errors.js";
import { queryOf } from "./rest.js";
import { now, within } from "./time.js";
import { openSocket, openStream } from "./transports.js";

/** @import { Events } from "./events.js" */
/** @import { Chosen } from "./options.js" */
/** @import { Rest } from "./rest.js" */
/** @import { Ending, Listener, Session } from "./transports.js" */

const WATCH_SECONDS = 2;
const BLOCKED_AFTER = 2; // WebSockets in a row that did not open while the bus answered HTTP
const FINAL_STATUSES = [400, 401, 403];
const RENEWED = 4000; // we closed it ourselves: to rest, or to hear other topics

/**
 * @typedef {object} Owner whose connection it is, and what that hears of it
 * @property {() => string | null} cursor where to go on
 * @property {() => boolean} isFull whether more came than is taken
 * @property {(cursor: string | undefined) => void} begun a session begins, behind this cursor
 * @property {() => void} ready what waits can be written
 * @property {(frame: any) => void} received
 * @property {() => void} watch every 2 s, connected or not
 * @property {(ending: Ending) => void} lost the session is over
 * @property {(error: BusError) => void} failed there will be no other
 */

export class Connection {
  /** What is heard and taken from, in this session and the next. @type {Set<string>} */ topics;
  /** @type {Set<string>} */ queues;
  #clientId;
  #options;
  #rest;
  #events;
  #owner;
  #backoff = new Backoff();
  /** @type {Session | null} */ #session = null;
  /** @type {BusError | null} */ #failure = null;
  /** @type {Promise<void> | null} */ #running = null;
  /** @type {(() => void) | null} */ #wake = null; // ends the pause, or the rest
  #isResting = false; // until there is room
  #isClosed = false;
  #blocked = 0; // WebSockets in a row that did not open while the bus answered
  #refusedTokens = 0;

  /** @param {string} clientId @param {Chosen} options @param {Rest} rest @param {Events} events @param {Owner} owner */
  constructor(clientId, options, rest, events, owner) {
    this.topics = new Set(options.topics ?? []);
    this.queues = new Set(options.queues ?? []);
    this.#clientId = clientId;
    this.#options = options;
    this.#rest = rest;
    this.#events = events;
    this.#owner = owner;
  }

  /** The confirmed session, or null. */
  get session() {
    return this.#session;
  }

  /** Why it does not come back, or null. */
  get failure() {
    return this.#failure;
  }

  get isClosed() {
    return this.#isClosed;
  }

  /** Begin, unless it began already or is closed. */
  start() {
    if (this.#running === null && !this.#isClosed) this.#running = this.#run();
    else if (this.#isClosed && this.#failure === null) this.#failure = new BusError("closed", "The client was closed.");
  }

  /** End the session, for another one to begin. */
  renew() {
    this.#session?.close(RENEWED);
  }

  /** There is room for more: end the rest, if it rests for want of room. */
  resume() {
    if (this.#isResting) this.#wake?.();
  }

  /** End for good, after so many seconds at the latest. @param {number} timeoutSeconds */
  async close(timeoutSeconds) {
    this.#isClosed = true;
    this.#session?.close(1000);
    this.#wake?.();
    if (this.#running !== null) await within(this.#running, timeoutSeconds);
    this.#fail(new BusError("closed", "The client was closed."));
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
        const pause = ending.code === RENEWED ? 0 : this.#backoff.pause(ending);
        this.#events.emit("close", { reason: ending.reason, code: ending.code ?? 1006, again_after_seconds: pause, error: null });
        await this.#pause(pause, this.#owner.isFull());
      }
    } finally {
      clearInterval(watch);
      globalThis.removeEventListener?.("online", wake);
    }
  }

  #watch() {
    this.#owner.watch();
    this.#session?.watch();
  }

  /** Wait so many seconds, or, when too much came, until half of it is taken. @param {number} seconds @param {boolean} isFull @returns {Promise<void>} */
  #pause(seconds, isFull) {
    return new Promise((resolve) => {
      const timer = isFull ? undefined : setTimeout(() => this.#wake?.(), seconds * 1000);
      this.#isResting = isFull;
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = null;
        this.#isResting = false;
        resolve();
      };
      if (this.#isClosed) this.#wake();
    });
  }

  /** One session, from its beginning to its end. @returns {Promise<Ending>} */
  async #live() {
    /** @type {(ending: Ending) => void} */ let ended = () => {};
    const end = new Promise((resolve) => (ended = resolve));
    /** @type {number | undefined} */ let asked;
    /** @type {any[] | null} */ let early = []; // what comes with the confirmation
    const received = (/** @type {any} */ frame) => {
      if (early !== null) early.push(frame);
      else if (frame.type === "goaway") asked = (frame.reconnect_after_ms ?? 0) / 1000;
      else this.#owner.received(frame);
    };
    const began = now();
    /** @type {Ending} */ let ending;
    try {
      const topics = [...this.topics];
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
    this.#owner.lost(ending);
    return { ...ending, afterSeconds: asked ?? ending.afterSeconds };
  }

  /** @param {Listener} listener @param {string[]} topics @returns {Promise<Session>} */
  async #open(listener, topics) {
    const { transport, ticket, buyTickets, onGap } = this.#options;
    const mayBlock = transport === "auto";
    if (transport !== "sse" && typeof WebSocket === "function" && !(mayBlock && this.#blocked >= BLOCKED_AFTER)) {
      const token = await this.#rest.token();
      const bought = ticket ? await ticket() : token !== null && (buyTickets || this.#blocked > 0) ? await this.#buyTicket() : null;
      const query = queryOf({ since: this.#owner.cursor() ?? this.#options.since, on_gap: onGap, topics: topics.join(",") });
      const url = `${this.#rest.url.replace(/^http/, "ws")}/ws/${encodeURIComponent(this.#clientId)}${query}`;
      try {
        return await openSocket(url, bought ? ["bus", `ticket.${bought}`] : [], bought ? null : token, listener);
      } catch (ending) {
        if (/** @type {Ending} */ (ending).opened === false && mayBlock && (await this.#rest.isReachable())) this.#blocked += 1;
        throw ending;
      }
    }
    const query = queryOf({ client_id: this.#clientId, last_event_id: await this.#place(), on_gap: onGap, topics: topics.join(",") });
    return openStream(`${this.#rest.url}/stream/events${query}`, await this.#rest.headers(), listener);
  }

  /** A ticket for one WebSocket: it counts before a cookie, which may be another bus's, and would be refused at the door. */
  async #buyTicket() {
    try {
      return (await this.#rest.call("POST", "/api/tickets", { client: this.#clientId })).ticket;
    } catch (error) {
      if (this.#options.buyTickets) throw error;
      return null;
    }
  }

  /** Where a stream is to begin: it takes cursors and "earliest". */
  async #place() {
    const since = this.#owner.cursor() ?? this.#options.since;
    if (!since || since === "earliest" || /^[0-9a-f]{12}:\d+$/.test(since)) return since;
    const query = queryOf({ to: this.#clientId, since, limit: "0" });
    return (await this.#rest.call("GET", `/api/messages${query}`)).cursor;
  }

  /** @param {Session} session @param {string[]} topics those that it has from its beginning */
  #begin(session, topics) {
    const { cursor, epoch, resumed } = session.confirmed;
    this.#owner.begun(cursor);
    this.#session = session;
    this.#refusedTokens = 0;
    if (resumed?.gap) this.#events.emit("gap", resumed.gap);
    const missing = [...this.topics].filter((topic) => !topics.includes(topic));
    if (session.kind === "sse" && this.queues.size > 0) {
      this.#events.emit("error", new BusError("needs_websocket", "Queues are taken from over a WebSocket, and none could be opened."));
    }
    if (session.kind === "websocket" && (missing.length > 0 || this.queues.size > 0)) {
      session.write({ type: "subscribe", topics: missing, queues: [...this.queues], max_in_flight: this.#options.maxInFlight });
    }
    this.#owner.ready();
    this.#events.emit("open", { transport: session.kind, cursor, epoch });
    if (this.#isClosed) session.close(1000);
  }

  /** The error, when coming back is no use. @param {Ending} ending */
  #refusal(ending) {
    const { status = 0, code = 1006, reason } = ending;
    const isAnewPossible = typeof this.#options.token === "function" || this.#options.ticket !== undefined;
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
    this.#owner.failed(error);
    if (!isNew) return;
    const told = this.#isClosed ? null : error;
    this.#events.emit("close", { reason: error.message, code: ending?.code ?? 1000, again_after_seconds: null, error: told });
  }
}
