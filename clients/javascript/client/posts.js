// @ts-check
/** Posts: over an event stream, what the outbox holds is done by REST, in order: sends in batches, all else one by one. */

import { BusError, errorOf, passes } from "./errors.js";
import { now, sleep } from "./time.js";

/** @import { Connection } from "./connection.js" */
/** @import { Outbox, Pending } from "./outbox.js" */
/** @import { Rest } from "./rest.js" */

const BATCH = 100;
const BATCH_CHARACTERS = 500_000;
const PAUSE_SECONDS = 1;

export class Posts {
  #isPumping = false;
  #clientId;
  #rest;
  #connection;
  #outbox;

  /** @param {string} clientId @param {Rest} rest @param {Connection} connection @param {Outbox} outbox */
  constructor(clientId, rest, connection, outbox) {
    this.#clientId = clientId;
    this.#rest = rest;
    this.#connection = connection;
    this.#outbox = outbox;
  }

  /** Post until the outbox is empty or the stream is over. */
  async pump() {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      for (;;) {
        const waiting = this.#outbox.waiting.filter((pending) => !pending.isUnderWay);
        if (waiting.length === 0 || this.#connection.session?.kind !== "sse") return;
        const due = waiting.filter((pending) => pending.again <= now());
        if (due.length === 0) await sleep(PAUSE_SECONDS);
        else await this.#post(due);
      }
    } finally {
      this.#isPumping = false;
    }
  }

  /** Post the first, and the sends behind it. @param {Pending[]} due */
  async #post(due) {
    const first = due[0];
    try {
      if (first.frame.type === "send") await this.#postSends(due);
      else if (first.frame.type === "request") this.#postRequest(first);
      else if (first.frame.message_id !== undefined) await this.#postVerdict(first);
      else this.#outbox.answered({ ref: first.ref, topics: [...this.#connection.topics], queues: [] }, null);
    } catch (error) {
      if (error instanceof BusError && !passes(error)) this.#outbox.answered({ ref: first.ref }, error);
      else await sleep(error instanceof BusError ? (error.retryAfterSeconds ?? PAUSE_SECONDS) : PAUSE_SECONDS);
    }
  }

  /** @param {Pending[]} due */
  async #postSends(due) {
    /** @type {Pending[]} */ const batch = [];
    let size = 0;
    for (const pending of due) {
      size += pending.size;
      if (pending.frame.type !== "send" || batch.length === BATCH || (size > BATCH_CHARACTERS && batch.length > 0)) break;
      batch.push(pending);
    }
    batch.forEach((pending) => (pending.attempted = true));
    const { results } = await this.#rest.call("POST", "/api/send/batch", { messages: batch.map((pending) => this.#bodyOf(pending)) });
    batch.forEach((pending, at) => {
      const result = results[at];
      this.#outbox.answered({ ...result, ref: pending.ref }, result.error === undefined ? null : errorOf(result));
    });
  }

  /** It may wait long for its answers: what is behind it does not wait for it. @param {Pending} pending */
  #postRequest(pending) {
    pending.isUnderWay = true;
    this.#rest.call("POST", "/api/request", this.#bodyOf(pending)).then(
      (found) => this.#outbox.answered({ ...found, ref: pending.ref }, null),
      (error) => {
        pending.isUnderWay = false;
        if (error instanceof BusError && !passes(error)) this.#outbox.answered({ ref: pending.ref }, error);
        else setTimeout(() => this.#outbox.write(pending), PAUSE_SECONDS * 1000);
      },
    );
  }

  /** @param {Pending} pending */
  async #postVerdict(pending) {
    const { type, ref, message_id, ...said } = pending.frame;
    const path = `/api/messages/${encodeURIComponent(message_id)}/${type}`;
    const told = await this.#rest.call("POST", path, { client: this.#clientId, ...said });
    this.#outbox.answered({ message_id, ...told, ref: pending.ref }, null);
  }

  /** A send's frame as a body for REST. @param {Pending} pending */
  #bodyOf(pending) {
    const { type, ref, msg_type, ...fields } = pending.frame;
    return { from: this.#clientId, type: msg_type, ...fields };
  }
}
