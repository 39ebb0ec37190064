// For programs that receive webhooks of the bus: is this from the bus, fresh, and new?
// No dependencies: WebCrypto, as Node 20, Deno, Bun, workers and browsers have it. What a stranger sends throws nothing.
//
//   const receiver = new WebhookReceiver(["whsec_…"]);      // several secrets while one is being changed
//   const status = await receiver.receive(request.headers, rawBody, async (verdict) => { … verdict.payload … });
//
// `rawBody` are the bytes as they came (Uint8Array, Buffer, ArrayBuffer or string); JSON that was parsed and written anew is
// not what was signed. `handle` is called once for each event; if it throws, the bus comes again later.

const PREFIX = "whsec_";
const PUBLIC_PREFIX = "whpk_";
const SCHEMES = { "v1,": "HMAC", "v1a,": "Ed25519" };
const HEADERS = ["webhook-id", "webhook-timestamp", "webhook-signature"];
const MAX_SIGNATURES = 20;
const encoder = new TextEncoder();

/** Remembers handled ids in memory; beyond `limit` the oldest is forgotten. Processes that work together need one they share. */
export class SeenIds {
  #busy = new Set();
  #done = new Set();

  constructor(limit = 10_000) {
    this.limit = limit;
  }

  /** Claim an id: "new", it is yours now; "busy", somebody is at it; "done", it was handled. */
  begin(id) {
    if (this.#done.has(id)) return "done";
    if (this.#busy.has(id)) return "busy";
    this.#busy.add(id);
    return "new";
  }

  /** The claim ends: it was handled, or it may come again. */
  end(id, done) {
    this.#busy.delete(id);
    if (!done) return;
    this.#done.add(id);
    for (const oldest of this.#done) {
      if (this.#done.size <= this.limit) break;
      this.#done.delete(oldest);
    }
  }
}

export class WebhookReceiver {
  #keys;

  /** `secrets`: any of them is good; public keys (whpk_…) stand among them. Throws for one that can't be, here and nowhere else. */
  constructor(secrets, { toleranceSeconds = 300, seen = new SeenIds(), now = () => Date.now() / 1000 } = {}) {
    if (secrets.length === 0) throw new TypeError("Give the secret of the endpoint.");
    const import_ = ([name, bytes]) => crypto.subtle.importKey("raw", bytes, { name, hash: "SHA-256" }, false, ["verify"]);
    this.#keys = Promise.all(secrets.map(keyOf).map(import_));
    this.toleranceSeconds = toleranceSeconds;
    this.seen = seen;
    this.now = now;
  }

  /** Whether headers (a Headers, or an object with names in any case) and a raw body come from the bus: {ok, reason, id, timestamp, payload}. */
  async check(headers, body) {
    const raw = bytesOf(body);
    if (raw === null) return { ok: false, reason: "bad_body" };
    const found = headersOf(headers);
    if (found === null) return { ok: false, reason: "no_header" };
    const [id, stamp, signatures] = found;
    if (!/^[A-Za-z0-9_-]{1,128}$/.test(id) || !/^[0-9]{1,12}$/.test(stamp)) return { ok: false, reason: "bad_header" };
    const age = this.now() - Number(stamp);
    if (Math.abs(age) > this.toleranceSeconds) return { ok: false, reason: age > 0 ? "too_old" : "too_new" };
    // The number is signed as it is read: leading zeros do not make another signature.
    const head = encoder.encode(`${id}.${Number(stamp)}.`);
    const signed = new Uint8Array(head.length + raw.length);
    signed.set(head);
    signed.set(raw, head.length);
    let ok = false;
    for (const signature of signatures.split(" ").slice(0, MAX_SIGNATURES)) {
      const scheme = signature.slice(0, signature.indexOf(",") + 1);
      const name = Object.hasOwn(SCHEMES, scheme) ? SCHEMES[scheme] : null;
      const proof = name === null ? null : fromBase64(signature.slice(scheme.length));
      if (proof === null) continue;
      for (const key of await this.#keys) {
        if (key.algorithm.name === name) ok = (await crypto.subtle.verify(name, key, proof, signed)) || ok;
      }
    }
    return ok ? { ok, id, timestamp: Number(stamp), payload: parsed(raw) } : { ok, reason: "bad_signature" };
  }

  /** Check a request and have it handled, once. The status to answer with: 204 handled, 200 a repeat, 401 not from the bus, 409 the same is being handled just now. Throws what `handle` throws. */
  async receive(headers, body, handle) {
    const verdict = await this.check(headers, body);
    if (!verdict.ok) return 401;
    const claim = await this.seen.begin(verdict.id);
    if (claim !== "new") return claim === "done" ? 200 : 409;
    let done = false;
    try {
      await handle(verdict);
      done = true;
    } finally {
      await this.seen.end(verdict.id, done);
    }
    return 204;
  }
}

/** The algorithm and the bytes of a key. */
function keyOf(secret) {
  if (typeof secret !== "string" || secret === "") throw new TypeError("A secret is a text that is not empty.");
  if (secret.startsWith(PUBLIC_PREFIX)) {
    const key = fromBase64(secret.slice(PUBLIC_PREFIX.length));
    if (key === null || key.length !== 32) throw new TypeError("Behind whpk_ stands the base64 of 32 bytes.");
    return ["Ed25519", key];
  }
  if (!secret.startsWith(PREFIX)) return ["HMAC", encoder.encode(secret)];
  const key = fromBase64(secret.slice(PREFIX.length));
  if (key === null || key.length < 24 || key.length > 64) {
    throw new TypeError("Behind whsec_ stands the base64 of 24 to 64 bytes.");
  }
  return ["HMAC", key];
}

/** Canonical base64 only, so that one digest has one text. */
function fromBase64(text) {
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text)) return null;
  const binary = atob(text);
  return btoa(binary) === text ? Uint8Array.from(binary, (character) => character.charCodeAt(0)) : null;
}

function bytesOf(body) {
  if (typeof body === "string") return encoder.encode(body);
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  return ArrayBuffer.isView(body) ? new Uint8Array(body.buffer, body.byteOffset, body.byteLength) : null;
}

/** Id, timestamp and signatures, each there once; null: not so. */
function headersOf(headers) {
  if (headers === null || typeof headers !== "object") return null;
  const pairs = typeof headers.entries === "function" ? [...headers.entries()] : Object.entries(headers);
  const values = HEADERS.map((wanted) => pairs.filter(([name]) => String(name).toLowerCase() === wanted));
  if (values.some((found) => found.length !== 1 || typeof found[0][1] !== "string")) return null;
  return values.map(([[, value]]) => value);
}

function parsed(raw) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(raw));
  } catch {
    return null;
  }
}
