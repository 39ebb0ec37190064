/* The log as it grows. The server sends at most 200 messages a second and counts the rest; rows are used again. */

import { get } from "../api.js";
import { badge, el, put, toast } from "../dom.js";
import { address, number } from "../format.js";

const ROWS = 100;
const COLUMNS = [["Time", "tight.tab"], ["From", "who-to"], ["To", "who-to"], ["Type", "who-to"], ["Payload", "clip.mono.soft"]];
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

/**
 * A live table of what fits `narrow` ({client, from, to, type, topic}); `signal` ends it. `.state` is an element that says how
 * the connection is, `.count` one that counts; `pause(bool)`, `narrow(object)`, `clear()`.
 */
export function liveTable(narrow, signal) {
  const body = el("tbody", { role: "rowgroup" });
  const none = el("div.empty", el("b", "Nothing yet"), "What is sent from now on shows up here.");
  const table = el("table.wraps", { role: "table", hidden: true }, el("caption.silent", "Messages, the youngest first"),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, COLUMNS.map(([name]) => el("th", { scope: "col", role: "columnheader" }, name)))), body);
  const box = el("div.feed", el("div.table-box", { tabindex: "0", role: "region", "aria-label": "Messages" }, table), none);
  const state = el("span"), count = el("span.soft.number");
  let source = null, retry = 0, cursor = "", attempts = 0, paused = false;
  let waiting = [], held = 0, passed = 0, shown = 0, drawing = false;

  function row() {
    const node = el("tr", { role: "row" }, COLUMNS.map(([name, classes]) => el(`td.${classes}`, { role: "cell", "data-label": name })));
    node.cells[0].append(el("a"));
    return node;
  }

  function write(node, message) {
    const [time, from, to, type, payload] = node.cells;
    time.firstChild.href = `#/messages/${message.id}`;
    time.firstChild.textContent = clock.format(new Date(message.timestamp));
    from.textContent = message.from;
    to.textContent = address(message.to, message.more_names);
    type.textContent = message.requires_ack ? `${message.type} · ack` : message.type;
    payload.textContent = message.preview;
  }

  /** Show what has come since the last frame: rows go from the end to the top, all at once; one with the focus stays. */
  function draw() {
    drawing = false;
    const batch = waiting.splice(0).slice(-ROWS);
    const nodes = [];
    for (const message of batch) {
      const isFull = body.rows.length + nodes.length >= ROWS && body.lastChild && !body.lastChild.contains(document.activeElement);
      const node = isFull ? body.lastChild : row();
      if (isFull) node.remove();
      write(node, message);
      nodes.unshift(node);
    }
    body.prepend(...nodes);
    shown += batch.length;
    table.hidden = body.rows.length === 0;
    none.hidden = !table.hidden;
    tally();
  }

  function tally() {
    const rest = Math.max(0, passed - shown - held);
    const parts = [`${number(shown)} shown`];
    if (held) parts.push(`${number(held)} held`);
    if (rest) parts.push(`${number(rest)} passed by`);
    count.textContent = parts.join(" · ");
  }

  function hear(event) {
    const seen = JSON.parse(event.data);
    cursor = seen.cursor;
    passed += seen.passed;
    waiting.push(...seen.messages);
    if (waiting.length > ROWS) waiting = waiting.slice(-ROWS);
    if (paused) {
      held += seen.messages.length;
      tally();
    } else if (!drawing) {
      drawing = true;
      requestAnimationFrame(draw);
    }
  }

  function open() {
    source?.close();
    clearTimeout(retry);
    if (signal.aborted) return;
    const url = new URL("/api/log/stream", location.origin);
    for (const [name, value] of Object.entries(narrow)) if (value) url.searchParams.set(name, value);
    if (cursor) url.searchParams.set("since", cursor);
    const mine = (source = new EventSource(url));
    put(state, badge("connecting", "warn", true));
    mine.addEventListener("connected", () => {
      attempts = 0;
      put(state, paused ? badge("paused", "warn", true) : badge("live", "good", true));
    });
    mine.addEventListener("log", hear);
    mine.onerror = () => mine === source && again();
  }

  /** The stream ended: find out why, and come back after a moment that grows. */
  async function again() {
    source.close();
    put(state, badge("reconnecting", "bad", true));
    attempts += 1;
    const pause = Math.min(8000, 400 * 2 ** attempts) * (0.5 + Math.random() / 2);
    try {
      await get("/api/auth/me");
    } catch (error) {
      if (error.status === 401) return;
    }
    retry = setTimeout(open, pause);
  }

  signal.addEventListener("abort", () => {
    source?.close();
    clearTimeout(retry);
  });
  open();
  return Object.assign(box, {
    state, count,
    pause(value) {
      paused = value;
      if (source?.readyState === EventSource.OPEN) put(state, paused ? badge("paused", "warn", true) : badge("live", "good", true));
      if (!paused) {
        held = 0;
        draw();
      }
    },
    narrow(values) {
      narrow = values;
      box.clear();
      cursor = "";
      open();
    },
    clear() {
      waiting = [];
      body.replaceChildren();
      passed = shown = held = 0;
      table.hidden = true;
      none.hidden = false;
      tally();
    },
  });
}

const FILTERS = [["client", "Client", "sender or recipient"], ["type", "Type", "command"], ["topic", "Topic", "builds.>"]];

export default {
  title: () => "Live feed",
  scope: "read-all",

  render(context) {
    const inputs = FILTERS.map(([name, label, placeholder]) =>
      [name, el("input", { value: context.query.get(name) ?? "", placeholder, spellcheck: "false", autocapitalize: "none", size: 18, "aria-label": label })]);
    const values = () => Object.fromEntries(inputs.map(([name, input]) => [name, input.value.trim()]));
    const live = liveTable(values(), context.signal);
    const pause = el("button", { type: "button", "aria-pressed": "false", "data-shortcut": "p", onclick: () => {
      const paused = pause.getAttribute("aria-pressed") !== "true";
      pause.setAttribute("aria-pressed", String(paused));
      live.pause(paused);
      toast(paused ? "The feed is paused." : "The feed is live.");
    } }, "Pause");

    let typing = 0;
    function changed() {
      clearTimeout(typing);
      typing = setTimeout(() => {
        context.remember(values());
        live.narrow(values());
      }, 350);
    }
    for (const [, input] of inputs) input.addEventListener("input", changed);

    context.tools(live.state, pause, el("button", { type: "button", onclick: () => live.clear() }, "Clear"));
    context.add(
      el("div.bar", { role: "search", "aria-label": "Filters" }, inputs.map(([name, input]) =>
        el("label.inline", FILTERS.find(([key]) => key === name)[1], input)), el("span.spring"), live.count),
      el("section.card", live));
  },
};
