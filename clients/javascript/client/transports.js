// @ts-check
/** Transports: a WebSocket and an event stream, each opened as a session that hands out frames, until it ends. */

import { sentenceOf } from "./errors.js";
import { parsedOr, refusalIn } from "./rest.js";
import { now } from "./time.js";

const OPEN_SECONDS = 10;
const PROD_SECONDS = 2; // a bus that is silent waits for a key, for 10 s: a frame that brings none is answered at once, with 4401
const SILENCE_SECONDS = 20; // then a ping is sent, and after as long again without a frame the server counts as dead
const STREAM_SILENCE_SECONDS = 45; // an event stream says something every 15 s

/**
 * How a session, or an attempt at one, ended.
 * @typedef {{reason: string, code?: number, status?: number, errorCode?: string, afterSeconds?: number, lastedSeconds?: number, opened?: boolean}} Ending
 */
/** @typedef {{received: (frame: any) => void, ended: (ending: Ending) => void}} Listener */
/** @typedef {{kind: "websocket" | "sse", confirmed: any, write: (frame: object) => void, close: (code: number) => void, watch: () => void}} Session */

/** Open a WebSocket; settles at its confirmation, rejects with an Ending. @returns {Promise<Session>} @param {string} url @param {string[]} protocols @param {string | null} token @param {Listener} listener */
export function openSocket(url, protocols, token, listener) {
  return new Promise((resolve, reject) => {
    /** @type {WebSocket} */ let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch (error) {
      reject({ reason: `a WebSocket can't be opened: ${sentenceOf(error)}`, opened: false });
      return;
    }
    let opened = false;
    let isOver = false;
    let heardAt = now();
    let pingedAt = 0;
    /** @type {Session | null} */ let session = null;
    const timer = setTimeout(() => end({ reason: "the server did not confirm the connection in time", opened }), OPEN_SECONDS * 1000);
    /** @type {any} */ let prod;
    const end = (/** @type {Ending} */ ending) => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      clearTimeout(prod);
      if (socket.readyState < 2) socket.close();
      if (session === null) reject(ending);
      else listener.ended(ending);
    };
    socket.onopen = () => {
      opened = true;
      if (token !== null) socket.send(JSON.stringify({ type: "auth", token }));
      else prod = setTimeout(() => socket.send('{"type":"ping"}'), PROD_SECONDS * 1000);
    };
    socket.onerror = () => opened || end({ reason: "the WebSocket did not open", code: 1006, opened }); // Node 20 says no more
    socket.onclose = (event) => {
      const reason = event.reason || (event.code === 1006 ? "the connection broke" : `the server closed with ${event.code}`);
      end({ reason: opened ? reason : "the WebSocket did not open", code: event.code, opened });
    };
    socket.onmessage = (event) => {
      if (isOver) return;
      heardAt = now();
      const frame = JSON.parse(event.data);
      if (session !== null) listener.received(frame);
      else if (frame.type === "connection_confirmed") {
        clearTimeout(timer);
        clearTimeout(prod);
        session = {
          kind: "websocket",
          confirmed: frame,
          write: (what) => socket.readyState === 1 && socket.send(JSON.stringify(what)),
          close: (code) => socket.close(code),
          watch: () => {
            if (now() - heardAt < SILENCE_SECONDS) return;
            if (pingedAt < heardAt) {
              pingedAt = now();
              socket.send('{"type":"ping"}');
            } else if (now() - pingedAt >= SILENCE_SECONDS) end({ reason: "the server gave no sign of life", opened });
          },
        };
        resolve(session);
      }
    };
  });
}

/** Open an event stream by fetch, since an EventSource shows no key and no status. @returns {Promise<Session>} @param {string} url @param {Record<string, string>} headers @param {Listener} listener */
export async function openStream(url, headers, listener) {
  const aborter = new AbortController();
  let heardAt = now();
  let isOver = false;
  /** @type {Session | null} */ let session = null;
  const timer = setTimeout(() => aborter.abort(), OPEN_SECONDS * 1000);
  /** @type {Response} */ let answer;
  try {
    answer = await fetch(url, { headers, credentials: "include", cache: "no-store", signal: aborter.signal });
  } catch (error) {
    clearTimeout(timer);
    throw { reason: `the bus can't be reached: ${sentenceOf(error)}` };
  }
  if (answer.status !== 200 || answer.body === null) {
    clearTimeout(timer);
    const refused = await refusalIn(answer);
    throw { reason: refused.message, errorCode: refused.code, status: answer.status, afterSeconds: refused.retryAfterSeconds };
  }
  /** @type {any} */ let gap;
  const confirmed = new Promise((resolve, reject) => {
    const end = (/** @type {Ending} */ ending) => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      aborter.abort();
      if (session === null) reject(ending);
      else listener.ended(ending);
    };
    const take = (/** @type {string} */ name, /** @type {string} */ data, /** @type {string} */ id) => {
      if (name === "gap") gap = JSON.parse(data);
      if (name === "connected") {
        clearTimeout(timer);
        const { cursor } = JSON.parse(data);
        session = {
          kind: "sse",
          confirmed: { type: "connection_confirmed", cursor, epoch: cursor.split(":")[0], resumed: { gap } },
          write: () => {},
          close: (code) => end({ reason: "closed", code }),
          watch: () => now() - heardAt >= STREAM_SILENCE_SECONDS && end({ reason: "the server gave no sign of life" }),
        };
        resolve(session);
      } else if (session !== null) listener.received(frameOf(name, data, id));
    };
    readEvents(answer.body, take, () => (heardAt = now())).then(
      () => end({ reason: "the stream ended" }),
      (error) => end({ reason: `the stream broke: ${sentenceOf(error)}` }),
    );
  });
  return confirmed;
}

/** Read an event stream to its end. @param {any} body @param {(name: string, data: string, id: string) => void} take @param {() => void} heard */
async function readEvents(body, take, heard) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  let id = "";
  /** @type {string[]} */ let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const at = line.indexOf(":");
      const field = at < 0 ? line : line.slice(0, at);
      const text = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (field === "event") name = text;
      else if (field === "id") id = text;
      else if (field === "data") data.push(text);
      else if (line === "") {
        if (data.length > 0) take(name || "message", data.join("\n"), id);
        name = id = "";
        data = [];
      }
    }
  }
}

/** An event of a stream as the frame that a WebSocket would bring; what was sent as an event has only its name and payload. @param {string} name @param {string} data @param {string} id */
function frameOf(name, data, id) {
  const parsed = parsedOr(data, data);
  if (["failed", "dropped", "goaway"].includes(name)) return { ...parsed, type: name };
  if (name === "message_received" && typeof parsed?.id === "string" && "seq" in parsed) return { type: "message", message: parsed };
  const seq = id ? Number(id.split(":")[1]) : null;
  const event = { id: `event-${id}`, seq, from: "$stream", to: "", type: name, payload: parsed, timestamp: "", requires_ack: false };
  return { type: "message", message: event };
}
