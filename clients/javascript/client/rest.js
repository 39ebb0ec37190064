// @ts-check
/** REST: calls of the bus, with the credential that the options name. */

import { BusError } from "./errors.js";

/** @import { Options } from "./options.js" */

export class Rest {
  /** @param {string} url without a slash at its end @param {Options} options */
  constructor(url, options) {
    this.url = url;
    this.options = options;
  }

  /** One call. Throws a BusError for a refusal, a TypeError without an answer. @param {string} method @param {string} path @param {object} [body] */
  async call(method, path, body) {
    const headers = { ...(await this.headers()), ...(body ? { "Content-Type": "application/json" } : {}) };
    const answer = await fetch(this.url + path, { method, headers, credentials: "include", body: body && JSON.stringify(body) });
    if (!answer.ok) throw await refusalIn(answer);
    return answer.json();
  }

  async headers() {
    const token = await this.token();
    return /** @type {Record<string, string>} */ (token === null ? {} : { "X-API-Key": token });
  }

  async token() {
    const { token } = this.options;
    return typeof token === "function" ? await token() : (token ?? null);
  }

  /** Whether the bus answers HTTP, whatever it says. */
  async isReachable() {
    try {
      await fetch(`${this.url}/health`, { mode: "no-cors", cache: "no-store" });
      return true;
    } catch {
      return false;
    }
  }
}

/** The query of a URL, of the fields that have a value. @param {Record<string, string | null | undefined>} fields */
export function queryOf(fields) {
  const given = Object.entries(fields).filter(([, value]) => value);
  return given.length > 0 ? `?${new URLSearchParams(/** @type {[string, string][]} */ (given))}` : "";
}

/** @param {Response} answer one that is no success */
export async function refusalIn(answer) {
  const body = parsedOr(await answer.text(), {});
  const after = Number(answer.headers.get("Retry-After") ?? NaN);
  const { status } = answer;
  const retryAfterSeconds = Number.isFinite(after) ? after : undefined;
  return new BusError(body.code ?? `http_${status}`, body.error ?? `The server answered ${status}.`, { status, field: body.field, retryAfterSeconds });
}

/** What a text says as JSON, or something else where it is none. @param {string} text @param {any} otherwise */
export function parsedOr(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}
