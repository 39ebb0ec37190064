// @ts-check
/** Deliveries: repeats are dropped, acks said again, and the leases of what is in hand kept alive. */

import { deliveryOf, lifeOf, verdictOf } from "./message.js";
import { now } from "./time.js";

/** @import { Message, Verb } from "./message.js" */

const MAX_REMEMBERED = 10_000;
const KEEP_SECONDS = 10; // how often a lease is extended: a third of the usual one

/** What was delivered and what was said about it. The last 10,000 are remembered. */
export class Deliveries {
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

/** What is in hand, or waits here to be: the leases that are extended until they are let go. */
export class Leases {
  /** @type {Map<string, {message: Message, due: number, until: number}>} */ #held = new Map();

  /** Keep a message's lease alive for so many seconds from now. @param {Message} message @param {number} seconds */
  hold(message, seconds) {
    if (!message.requires_ack) return;
    const held = this.#held.get(deliveryOf(message)) ?? { message, due: now() + KEEP_SECONDS, until: 0 };
    held.until = now() + seconds;
    this.#held.set(deliveryOf(message), held);
  }

  /** @param {Message} message */
  has(message) {
    return this.#held.has(deliveryOf(message));
  }

  /** @param {Message} message */
  letGo(message) {
    this.#held.delete(deliveryOf(message));
  }

  /** Let go what was held long enough. */
  expire() {
    for (const { message, until } of this.#held.values()) if (until <= now()) this.letGo(message);
  }

  /** The messages whose lease is to be extended now; each is due again after a while. */
  *due() {
    for (const held of this.#held.values()) {
      if (held.due > now()) continue;
      held.due = now() + KEEP_SECONDS;
      yield held.message;
    }
  }
}

/** @param {Map<string, any>} map @param {string} key @param {any} value */
function remember(map, key, value) {
  map.set(key, value);
  if (map.size > MAX_REMEMBERED) map.delete(/** @type {string} */ (map.keys().next().value));
}
