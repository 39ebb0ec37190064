/* The bus's own REST API, asked with the session's cookie. Nothing else is ever asked. */

export class Refused extends Error {
  /** What the bus said no to: `status` 0 when it did not answer at all. */
  constructor(status, code, sentence) {
    super(sentence);
    this.status = status;
    this.code = code;
  }
}

export const session = { me: null, onUnauthenticated: () => {} };

/** True when the reader's credential has a scope; administrators have all. */
export function may(scope) {
  return !!session.me && (session.me.admin || session.me.scopes.includes(scope));
}

class Exact {
  /* A number that JavaScript would round, as it was written. */
  constructor(source) {
    this.source = source;
  }

  toJSON() {
    return JSON.rawJSON ? JSON.rawJSON(this.source) : this.source;
  }
}

function keepExact(_, value, context) {
  return typeof value === "number" && context?.source && String(value) !== context.source ? new Exact(context.source) : value;
}

/**
 * Ask. `query` leaves out what is empty; `text`: a body
 * that is JSON already; `exact`: numbers come as they are written. Raises Refused.
 */
export async function call(method, path, { query, body, text: ready, headers, signal, exact } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  const options = { method, signal, credentials: "same-origin", cache: "no-store", headers: { ...headers } };
  if (method !== "GET") options.headers["X-Requested-With"] = "console";
  if (body !== undefined || ready !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = ready ?? JSON.stringify(body);
  }
  let answer, text;
  try {
    answer = await fetch(url, options);
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable", "The server does not answer. This page tries again by itself.");
  }
  let said = null;
  try {
    said = JSON.parse(text, exact ? keepExact : undefined);
  } catch {
    said = null;
  }
  if (answer.ok && said !== null) return said;
  const refusal = new Refused(answer.status, said?.code ?? "", said?.error ?? `The server answered ${answer.status}.`);
  if (answer.status === 401 && !headers?.["X-API-Key"]) session.onUnauthenticated();
  throw refusal;
}

export const get = (path, query, signal) => call("GET", path, { query, signal });
export const post = (path, body) => call("POST", path, { body: body ?? undefined });
export const part = encodeURIComponent;

/** Who the cookie stands for; null: nobody, and one has to sign in. */
export async function whoAmI() {
  try {
    session.me = await get("/api/auth/me");
  } catch (error) {
    session.me = null;
    if (error.status !== 401) throw error;
  }
  return session.me;
}

let asked = null;

/** Which optional parts this server has: {search, series}. */
export function has() {
  asked ??= get("/console/parts.json").catch((error) => {
    asked = null;
    throw error;
  });
  return asked;
}

/** The bus's own time series; null where metrics are off. */
export async function figures(query, signal) {
  return (await has()).series ? get("/api/series", query, signal) : null;
}
