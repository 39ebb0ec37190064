// @ts-check
/** The inbox: what came, each once and in order, handed to the handlers or to who iterates, and settled. */

import { Deliveries, Leases } from "./deliveries.js";
import { movesCursor, verdictOf } from "./message.js";

/** @import { Connection } from "./connection.js" */
/** @import { BusError } from "./errors.js" */
/** @import { Events, Handler } from "./events.js" */
/** @import { Message, Settled, Verb } from "./message.js" */
/** @import { Chosen } from "./options.js" */
/** @import { Outbox } from "./outbox.js" */

const LONGEST_WAIT_SECONDS = 3600; // what nobody has taken for so long is let go

/** @typedef {{message: Message, epoch: string}} Entry */

export class Inbox {
  /** @type {Entry[]} */ #received = [];
  /** @type {Entry | null} */ #inHand = null;
  /** @type {{resolve: (result: any) => void, reject: (error: any) => void}[]} */ #takers = []; // who iterates, and waits
  /** @type {Map<string, Message[]>} */ #asked = new Map(); // by correlation id, what came for requests that wait
  /** @type {string | null} */ #reached = null; // the cursor of the connection: behind what came
  #deliveries = new Deliveries();
  #leases = new Leases();
  #isDispatching = false;
  #options;
  #connection;
  #outbox;
  #events;

  /** @param {Chosen} options @param {Connection} connection @param {Outbox} outbox @param {Events} events */
  constructor(options, connection, outbox, events) {
    this.#options = options;
    this.#connection = connection;
    this.#outbox = outbox;
    this.#events = events;
  }

  /** Behind the last message that came: where a connection goes on. */
  get reached() {
    return this.#reached;
  }

  /** Behind what the application has dealt with. */
  get cursor() {
    const oldest = [this.#inHand, ...this.#received].find((entry) => entry !== null && movesCursor(entry.message));
    return oldest ? `${oldest.epoch}:${Number(oldest.message.seq) - 1}` : this.#reached;
  }

  get isFull() {
    return this.#received.length >= this.#options.maxReceived;
  }

  /** A session began there. @param {string | undefined} cursor */
  begun(cursor) {
    this.#reached = cursor ?? this.#reached;
  }

  /** A message came. @param {Message} message */
  take(message) {
    if (this.#deliveries.isRepeat(message)) {
      const again = this.#deliveries.answerAgain(message);
      if (again !== null) this.#outbox.submit(again.type, again, false).catch(() => {});
      return;
    }
    this.#leases.hold(message, LONGEST_WAIT_SECONDS);
    const waiting = message.correlation_id === null ? undefined : this.#asked.get(message.correlation_id);
    if (movesCursor(message)) this.#moveTo(`${this.#epoch}:${message.seq}`);
    if (waiting !== undefined) waiting.push(message);
    else this.#put(message);
  }

  /** Say something about a message. @param {Message} message @param {Verb} verb @param {Record<string, any>} [said] @returns {Promise<Settled>} */
  settle(message, verb, said = {}) {
    const frame = verdictOf(message, verb, said);
    this.#deliveries.settled(message, verb, frame);
    if (verb !== "progress") this.#leases.letGo(message);
    return this.#outbox.submit(verb, frame, false);
  }

  /** Extend the leases whose time has come. */
  watch() {
    this.#leases.expire();
    if (this.#connection.session === null) return;
    for (const message of this.#leases.due()) this.#outbox.submit("progress", verdictOf(message, "progress"), false).catch(() => {});
  }

  /** Keep back what comes for a request. `returned`: the request returns this one; `end`: all others come as messages. @param {string} correlationId */
  keepBack(correlationId) {
    /** @type {Message[]} */ const came = [];
    /** @type {Set<string>} */ const had = new Set();
    this.#asked.set(correlationId, came);
    return {
      returned: (/** @type {Message} */ reply) => {
        had.add(reply.id);
        this.#deliveries.isRepeat(reply);
        if (reply.requires_ack) this.settle(reply, "ack").catch(() => {});
      },
      end: () => {
        this.#asked.delete(correlationId);
        for (const message of came) if (!had.has(message.id)) this.#put(message);
      },
    };
  }

  /** The messages as they come; one that needs an ack is acked when the next is asked for. @returns {AsyncIterableIterator<Message>} */
  iterate() {
    /** @type {Message | null} */ let former = null;
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      next: async () => {
        if (former !== null && this.#options.autoAck && this.#leases.has(former)) this.settle(former, "ack").catch(() => {});
        former = null;
        const result = await new Promise((resolve, reject) => {
          this.#takers.push({ resolve, reject });
          this.dispatch();
          if (this.#connection.failure !== null) this.failed(this.#connection.failure);
        });
        if (!result.done) former = result.value;
        return result;
      },
      return: async () => {
        if (former !== null) this.#leases.letGo(former);
        return { done: true, value: undefined };
      },
    };
  }

  /** Nothing more comes: iteration ends, or fails. @param {BusError} error */
  failed(error) {
    for (const taker of this.#takers.splice(0)) {
      this.#connection.isClosed ? taker.resolve({ done: true, value: undefined }) : taker.reject(error);
    }
  }

  /** Hand out what came: to the handlers, one message after another, or to who iterates. */
  async dispatch() {
    if (this.#isDispatching) return;
    this.#isDispatching = true;
    try {
      while (this.#received.length > 0) {
        const handlers = this.#events.of("message");
        const taker = handlers.size > 0 ? undefined : this.#takers.shift();
        if (handlers.size === 0 && taker === undefined) return;
        const entry = /** @type {Entry} */ (this.#received.shift());
        if (this.#received.length * 2 < this.#options.maxReceived) this.#connection.resume();
        if (taker !== undefined) {
          this.#options.autoAck ? this.#leases.hold(entry.message, Infinity) : this.#leases.letGo(entry.message);
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
    this.#leases.hold(message, Infinity);
    /** @type {Promise<void>[]} */ const work = [];
    let failed = false;
    const noted = (/** @type {unknown} */ error) => ((failed = true), this.#events.emit("error", error));
    for (const handler of [...handlers]) {
      try {
        const result = handler(message);
        if (typeof result?.then === "function") work.push(result.then(() => {}, noted));
      } catch (error) {
        noted(error);
      }
    }
    const done = () => {
      if (!this.#leases.has(message)) return; // it was settled by hand
      if (this.#options.autoAck) this.settle(message, failed ? "nack" : "ack").catch(() => {});
      else this.#leases.letGo(message);
    };
    return work.length > 0 ? Promise.all(work).then(done) : (done(), null);
  }

  /** @param {Message} message */
  #put(message) {
    this.#received.push({ message, epoch: this.#epoch });
    if (this.#received.length > this.#options.maxReceived) this.#connection.renew();
    this.dispatch();
  }

  get #epoch() {
    return /** @type {string} */ (this.#reached).split(":")[0];
  }

  /** Move the cursor, never backwards in one epoch. @param {string} cursor */
  #moveTo(cursor) {
    const [epoch, seq] = cursor.split(":");
    const [former, reached] = (this.#reached ?? ":").split(":");
    if (epoch !== former || Number(seq) > Number(reached)) this.#reached = cursor;
  }
}
