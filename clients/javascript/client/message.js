// @ts-check
/** Messages as they came, and what can be said about them. */

/** @import { Client } from "../client.js" */
/** @import { Address, SendOptions } from "./options.js" */

/** @typedef {"ack" | "nack" | "progress" | "release" | "reject"} Verb */
/** @typedef {{message_id: string | null, seq: number | null, recipients: {client: string, state: string, online?: number}[], duplicate?: boolean, deliver_at?: string}} Receipt */
/** @typedef {{status: string, message_id: string, attempt: number | null}} Settled */
/** @typedef {{status: string, request_id: string, correlation_id: string, missing: string[], replies: Message[]}} Reply */

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

/** The name of a message's life: a dead letter that is sent again begins a new one. @param {Message & Record<string, any>} message */
export const lifeOf = (message) => (message.redriven ? `${message.id}/${message.seq}` : message.id);

/** The name of one delivery of it. @param {Message} message */
export const deliveryOf = (message) => `${lifeOf(message)}#${message.attempt}`;

/** @param {Message} message */
export const movesCursor = (message) => message.seq !== null && !message.requires_ack;

/** The frame that says something about a message. @param {Message} message @param {Verb} verb @param {Record<string, any>} [said] */
export const verdictOf = (message, verb, said = {}) => ({ type: verb, message_id: message.id, attempt: message.attempt, ...said });
