// @ts-check
/** Errors: what the bus refuses, in a frame or a body, becomes a BusError. */

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

/** @param {any} told a refusal, as a frame or a body has it */
export const errorOf = (told) =>
  new BusError(told.code ?? "refused", told.error, { status: told.status, field: told.field, retryAfterSeconds: told.retry_after_seconds });

/** True for a refusal that may be gone in a moment. @param {BusError} error */
export const passes = (error) =>
  ["unavailable", "outcome_unknown"].includes(error.code) || error.status === 503 || (error.status === 409 && error.retryAfterSeconds !== undefined);

/** @param {unknown} error */
export const sentenceOf = (error) => (error instanceof Error ? error.message : String(error));
