/* Outgoing webhooks: endpoints, how they fare, each delivery with its attempts; test, pause, replay with a count first. */

import { call, get, part, post } from "../api.js";
import { ask, badge, card, copy, el, facts, field, link, put, select } from "../dom.js";
import { ago, exactly, moment, number, payload, plural } from "../format.js";
import { pages, table } from "../table.js";

const TONES = { enabled: "good", paused: "warn", disabled: "bad", done: "good", dead: "bad", waiting: "warn", leased: "warn", held: "warn", behind: "warn" };
const tone = (state) => badge(state, TONES[state] ?? "", true);
const percent = (rate) => (rate === null ? "–" : `${number(Math.round(rate * 1000) / 10)} %`);
const milliseconds = (value) => (value === null ? "–" : `${number(value)} ms`);

export const webhooks = {
  title: () => "Webhooks",
  scope: "admin",

  async render(context) {
    const shown = table({
      caption: "Endpoints of webhooks", key: (one) => one.id,
      empty: [el("b", "No endpoints"), "An endpoint is a URL that is told of messages and events as they happen."],
      columns: [
        { label: "Endpoint", title: true, cell: (one) => link(`#/webhooks/${one.id}`, one.description || one.url) },
        { label: "URL", class: "soft", cell: (one) => (one.description ? one.url : "") },
        { label: "State", class: "tight", cell: (one) => tone(one.state) },
        { label: "Events", cell: (one) => one.events.join(", ") },
        { label: "Pending", class: "number", cell: (one) => number(one.stats?.pending) },
        { label: "Dead", class: "number", cell: (one) => number(one.stats?.dead) },
        { label: "Succeed, 24 h", class: "number", cell: (one) => (one.stats ? percent(one.stats.success_rate) : "–") },
        { label: "95 %", class: "number", cell: (one) => (one.stats ? milliseconds(one.stats.p95_ms) : "–") },
        { label: "", class: "actions", cell: (one) => el("button.small", { type: "button", onclick: () => test(one) }, "Test") },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/webhooks", { limit: 50, cursor }, context.signal);
      const rows = await Promise.all(page.webhooks.map(async (one) => ({ ...one, stats: await get(`/api/webhooks/${one.id}/stats`, {}, context.signal).catch(() => null) })));
      return { rows, cursor: page.cursor, more: page.more };
    });
    context.tools(el("button.main-action", { type: "button", onclick: () => create().then(() => list.refresh()).catch(context.fail) }, "New endpoint"));
    context.add(el("section.card", list), log(context, {}));
    await context.every(10, () => list.refresh());
  },
};

async function create() {
  const url = el("input", { type: "url", placeholder: "https://example.com/hook", required: true, spellcheck: "false" });
  const events = el("input", { value: "message.*", spellcheck: "false" });
  const description = el("input");
  const made = await ask({
    title: "A new endpoint",
    fields: [field("URL", url), field("Events", events, "Names parted by commas; message.* or * for all that begin so."), field("What it is for", description)],
    action: "Make it",
    act: () => post("/api/webhooks", { url: url.value.trim(), events: events.value.split(",").map((one) => one.trim()).filter(Boolean), description: description.value.trim() }),
  });
  if (made?.secret) await tellSecret("The endpoint's secret", made.secret);
}

/** A secret is shown once. */
export function tellSecret(title, secret) {
  return ask({
    title, text: "It is shown this once: keep it where the receiver reads it.",
    fields: [el("pre.payload", { tabindex: "0" }, secret), el("div", el("button", { type: "button", onclick: () => copy(secret) }, "Copy"))], cancel: "Done",
  });
}

async function test(endpoint) {
  const told = el("p", { role: "status" }, "Sending …");
  const dialog = ask({ title: `Test of ${endpoint.url}`, fields: [told], cancel: "Close" });
  try {
    const result = await post(`/api/webhooks/${endpoint.id}/test`);
    put(told, badge(result.outcome, result.ok ? "good" : "bad"), facts([
      ["Status", result.status], ["Detail", result.detail], ["Address", result.address], ["In all", milliseconds(result.total_ms)],
      ["Answer", result.response && el("pre.payload", result.response)]]));
  } catch (error) {
    put(told, error.message);
  }
  await dialog;
}

export const webhook = {
  title: () => "Webhook",
  scope: "admin",

  async render(context) {
    const id = context.parts[1];
    const about = el("div.card-body.first"), fares = el("div.card-body.first"), state = el("span"), toggle = el("button", { type: "button" });
    let endpoint = null;

    async function look() {
      const [found, stats] = await Promise.all([get(`/api/webhooks/${part(id)}`, {}, context.signal), get(`/api/webhooks/${part(id)}/stats`, {}, context.signal)]);
      endpoint = found;
      context.head.querySelector("h1").textContent = found.description || found.url;
      put(state, tone(found.state));
      toggle.textContent = found.state === "enabled" ? "Pause" : "Resume …";
      put(about, facts([
        ["URL", found.url], ["Kind", found.kind], ["Id", el("code", found.id)], ["Events", found.events.join(", ")], ["Clients", found.clients.join(", ")],
        ["Topics", found.topics.join(", ")], ["Types", found.types.join(", ")], ["In order", found.ordered], ["Because", found.reason],
        ["Timeout", `${found.timeout_seconds} s`], ["Since", `${moment(found.since)} (${found.state})`], ["Secrets", found.secrets.join(", ")]]));
      put(fares, facts([
        ["Pending", number(stats.pending)], ["Dead", number(stats.dead)], ["Attempts, 24 h", number(stats.attempts)], ["Succeed, 24 h", percent(stats.success_rate)],
        ["Median", milliseconds(stats.p50_ms)], ["95 %", milliseconds(stats.p95_ms)], ["Breaker", stats.lane.state.replaceAll("_", " ")],
        ["Rests until", stats.lane.rests_until && moment(stats.lane.rests_until)]]));
    }

    async function turn() {
      if (endpoint.state === "enabled") {
        await context.act(() => post(`/api/webhooks/${id}/pause`), "It is paused; what is due is kept.");
      } else {
        const counted = await context.act(() => post(`/api/webhooks/${id}/resume`, { dry_run: true }));
        if (!counted) return;
        const held = select([["deliver", "deliver it"], ["set_aside", "set it aside, for replays"]], "deliver");
        await ask({
          title: "Resume?", text: `${plural(counted.held, "delivery is", "deliveries are")} held.`, fields: counted.held ? [field("What is held", held)] : [],
          action: "Resume", act: () => post(`/api/webhooks/${id}/resume`, { held: held.value }),
        });
      }
      look().catch(context.fail);
    }

    async function replay() {
      const state = select([["dead", "dead ones"], ["done", "delivered ones"]], "dead");
      const chosen = await ask({ title: "Replay deliveries", text: "They are counted before anything is sent.", fields: [field("Which", state)], action: "Count", act: () => post("/api/webhooks/replays", { webhook: id, state: state.value, dry_run: true }) });
      if (!chosen) return;
      const done = await ask({
        title: chosen.matched ? `Send ${plural(chosen.matched, "delivery", "deliveries")} again?` : "Nothing to replay", text: chosen.matched ? "Each has its old id, so a receiver that keeps ids drops what it has." : "No such delivery is kept.",
        action: chosen.matched ? "Replay" : null, act: () => post("/api/webhooks/replays", { webhook: id, state: state.value }),
      });
      if (done) context.act(async () => done, "The replay runs.");
    }

    async function remove() {
      const done = await ask({ title: "Delete this endpoint?", text: "What it is owed goes with it.", action: "Delete", danger: true, act: () => call("DELETE", `/api/webhooks/${id}`) });
      if (done) location.hash = "#/webhooks";
    }

    toggle.addEventListener("click", turn);
    context.tools(state, el("button", { type: "button", onclick: () => test(endpoint).then(look).catch(context.fail) }, "Test"), toggle,
      el("button", { type: "button", onclick: replay }, "Replay …"), el("button.danger", { type: "button", onclick: remove }, "Delete …"));
    context.add(el("div.cards", el("section.card", about), el("section.card", fares)), log(context, { webhook: id }));
    await context.every(10, look);
  },
};

/** The log of deliveries, the youngest first. */
function log(context, narrow) {
  const state = select([["", "any state"], "waiting", "leased", "behind", "done", "dead"], "", { "aria-label": "State" });
  const shown = table({
    caption: "Deliveries, the youngest first", key: (one) => one.id, empty: [el("b", "No deliveries"), "Nothing was due to a receiver yet."],
    columns: [
      { label: "Delivery", title: true, class: "mono tight", cell: (one) => link(`#/deliveries/${one.id}`, one.id) },
      { label: "Event", cell: (one) => one.event },
      { label: "State", class: "tight", cell: (one) => tone(one.state) },
      { label: "Attempts", class: "number", cell: (one) => number(one.attempts) },
      { label: "Cause", class: "soft", cell: (one) => one.cause?.replaceAll("_", " ") ?? "" },
      { label: "Made", class: "tight", cell: (one) => el("span", { title: exactly(one.created) }, ago(one.created)) },
      { label: "Next or end", class: "tight", cell: (one) => moment(one.ended ?? one.due) },
      { label: "", class: "actions", cell: (one) => (["done", "dead"].includes(one.state) ? el("button.small", { type: "button", onclick: () => replayOne(one) }, "Replay") : null) },
    ],
  });
  const list = pages(shown, async (cursor) => {
    const page = await get("/api/webhooks/deliveries", { ...narrow, state: state.value, limit: 50, cursor }, context.signal);
    return { rows: page.deliveries, cursor: page.cursor, more: page.more };
  });

  async function replayOne(one) {
    await context.act(() => post(`/api/webhooks/deliveries/${one.id}/replay`), (done) => (done.replayed ? "It is sent again." : "It waits already, or was replayed within the last minute."));
    list.refresh().catch(context.fail);
  }

  state.addEventListener("change", () => list.refresh({ again: true }).catch(context.fail));
  context.every(5, () => list.refresh());
  return card("Deliveries", list, state);
}

export const delivery = {
  title: ([, id]) => id,
  scope: "admin",

  async render(context) {
    const found = await get(`/api/webhooks/deliveries/${part(context.parts[1])}`, {}, context.signal);
    const one = found.delivery;
    context.tools(tone(one.state), one.webhook ? link(`#/webhooks/${one.webhook}`, "Its endpoint") : null);
    context.add(el("div.columns",
      el("div.stack",
        el("section.card", el("div.card-body.first", facts([
          ["Event", one.event], ["Event's id", el("code", one.event_id)], ["Made", exactly(one.created)], ["Ended", one.ended && exactly(one.ended)],
          ["Next attempt", !one.ended && one.due && moment(one.due)], ["Cause", one.cause], ["Number in order", one.sequence], ["Replayed", one.replayed ? "yes" : ""]]))),
        card("What is told", el("div.card-body", el("pre.payload", { tabindex: "0", role: "region", "aria-label": "Data" }, payload(found.data))))),
      card(plural(found.attempts.length, "attempt"), el("div.card-body", found.attempts.length ? el("ol.life", found.attempts.map(attempt)) : el("p.soft", "None has ended yet.")))));
  },
};

function attempt(one) {
  const stages = [["name", one.dns_ms], ["connect", one.connect_ms], ["TLS", one.tls_ms], ["first byte", one.ttfb_ms], ["in all", one.total_ms]]
    .filter(([, value]) => value !== null).map(([name, value]) => `${name} ${number(value)} ms`).join(" · ");
  return el("li", { class: one.outcome === "ok" ? "good" : "bad" }, el("div.when", { title: exactly(one.began) }, moment(one.began)),
    el("div.what", `Attempt ${one.attempt}: ${one.outcome.replaceAll("_", " ")}${one.status ? ` (${one.status})` : ""}`),
    one.detail ? el("p", one.detail) : null, stages ? el("p", stages) : null, one.response ? el("pre.payload", one.response) : null);
}
