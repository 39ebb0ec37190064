/* Is all well, and how much is going on: figures with their last minutes, two charts, checks, and what needs somebody. */

import { figures, get, may } from "../api.js";
import { chart } from "../chart.js";
import { badge, card, el, facts, link, put } from "../dom.js";
import { bytes, duration, number, plural, short } from "../format.js";

const SPANS = { "5 min": [300, 2], "1 h": [3600, 15], "24 h": [86400, 300] };
const TONES = { healthy: "good", degraded: "warn", unhealthy: "bad" };

/* Each figure: its name, the series it is made of, how it is written, where it leads. */
const FIGURES = [
  { name: "Published", unit: "/s", of: ["published_per_second"], format: number, href: "#/feed" },
  { name: "Delivered", unit: "/s", of: ["delivered_per_second"], format: number, href: "#/feed" },
  { name: "Connections", of: ["websockets", "event_streams"], format: number, href: "#/clients" },
  { name: "Commit, 99 %", of: ["commit_p99_seconds"], format: duration },
  { name: "Waiting in queues", of: ["waiting_in_queues"], format: short, href: "#/queues" },
  { name: "Dead letters", of: ["dead_letters"], format: short, href: "#/dead-letters", isBad: (value) => value > 0 },
];
const CHARTED = ["published_per_second", "delivered_per_second", "commit_p99_seconds", "lag_p99_seconds"];
const NAMES = [...new Set([...FIGURES.flatMap((one) => one.of), ...CHARTED])].join(",");

const rate = (value) => (value === null ? "–" : `${number(value)}/s`);

export default {
  title: () => "Overview",
  scope: "presence",

  async render(context) {
    let span = context.query.get("span") in SPANS ? context.query.get("span") : "5 min";
    const tiles = FIGURES.map(tile);
    const flow = chart({ label: "Messages a second", format: rate, height: 150,
      series: [{ name: "published" }, { name: "delivered", class: "second" }] });
    const times = chart({ label: "Latency", format: duration, height: 150,
      series: [{ name: "commit" }, { name: "arrival to write", class: "second" }] });
    const off = el("p.notice", { hidden: true }, "Metrics are off (ENABLE_METRICS), so there are no charts.");
    const checks = el("ul.checks"), needs = el("ul.checks"), about = el("div.card-body");
    const verdict = el("p.soft");
    const tabs = el("div.tabs", { role: "group", "aria-label": "Span of the charts" }, Object.keys(SPANS).map((name) =>
      el("button", { type: "button", "aria-pressed": String(name === span), onclick: () => choose(name) }, name)));

    function choose(name) {
      span = name;
      context.remember({ span: name === "5 min" ? "" : name });
      for (const button of tabs.children) button.setAttribute("aria-pressed", String(button.textContent === name));
      draw().catch(context.fail);
    }

    async function draw() {
      const [last_seconds, step_seconds] = SPANS[span];
      const told = await figures({ names: NAMES, last_seconds, step_seconds }, context.signal);
      off.hidden = told !== null;
      drawn.forEach((node) => (node.hidden = told === null));
      if (told === null) return;
      tiles.forEach((one) => one.update(told));
      flow.update(told, CHARTED.slice(0, 2).map((name) => told.series[name]));
      times.update(told, CHARTED.slice(2).map((name) => told.series[name]));
    }

    async function look() {
      const [status, health] = await Promise.all([get("/api/status", {}, context.signal), get("/health/status", {}, context.signal)]);
      put(verdict, `${plural(status.workers, "worker")} · ${status.durability.store}, ${status.durability.setting} durability · ` +
        `up ${duration(health.uptime_seconds)} · version ${status.version}`);
      put(checks, Object.entries(health.checks).map(([name, check]) => el("li",
        el("span.name", badge(name.replaceAll("_", " "), TONES[check.status] ?? "warn", true)), el("span.soft", check.message))));
      put(about, facts([
        ["Messages ever", number(status.metrics.total_messages)],
        ["Open deliveries", number(status.pending_acks)],
        ["Memory", `${bytes(health.system.memory.process_bytes)} this worker`],
        ["Processor", `${number(health.system.cpu.process_percent)} % this worker`],
        ["Disk", `${bytes(health.system.disk.free_bytes)} free`],
        ["An ack survives", status.durability.survives],
        ["Epoch", el("code", status.epoch)],
      ]));
    }

    async function lookForTrouble() {
      const found = await troubles(context.signal);
      put(needs, found.length ? found : el("li", el("span.name", badge("nothing", "good", true)), el("span.soft", "No dead letters, no failing receivers.")));
    }

    context.tools(tabs);
    const drawn = [el("div.figures", tiles), el("div.cards",
      card("Messages", el("div.card-body", flow), flow.legend), card("Latency, 99 %", el("div.card-body", times), times.legend)), tabs];
    context.add(verdict, off, drawn[0], drawn[1],
      el("div.columns",
        el("div.stack", card("Needs somebody", el("div.card-body", needs)), card("The log and this machine", about)),
        card("Health", el("div.card-body", checks))));
    await Promise.all([context.every(2, draw), context.every(5, look), context.every(15, lookForTrouble)]);
  },
};

function tile({ name, unit, of, format, href, isBad }) {
  const value = el("div.value", "–");
  const line = chart({ label: name, series: [{ name }], format, height: 34, bare: true });
  const node = el(href ? "a.figure" : "div.figure", { href }, el("div.name", name), value, line);
  node.update = (told) => {
    const [first, ...others] = of.map((series) => told.series[series] ?? []);
    const points = first.map((point, at) => (point === null ? null : others.reduce((sum, other) => sum + (other[at] ?? 0), point)));
    const last = points.at(-1) ?? points.at(-2) ?? null;
    put(value, format(last), unit && last !== null ? el("small", unit) : null);
    node.classList.toggle("bad", !!isBad?.(last));
    line.update(told, [points]);
  };
  return node;
}

/** What somebody should look at: dead letters, receivers that are off or failing. */
async function troubles(signal) {
  if (!may("admin")) return [el("li", el("span.name", "unknown"), el("span.soft", "Dead letters and webhooks are shown to administrators."))];
  const [dead, hooks] = await Promise.all([get("/api/dead-letters", { limit: 1 }, signal), get("/api/webhooks", { limit: 100 }, signal).catch(() => ({ webhooks: [] }))]);
  const found = [];
  for (const letter of dead.dead_letters) {
    found.push(el("li", el("span.name", badge("dead letters", "bad", true)),
      el("span", link("#/dead-letters", "There are dead letters"), el("span.soft", `; the oldest is of ${letter.owner}, ${letter.reason.replaceAll("_", " ")}.`))));
  }
  const stats = await Promise.all(hooks.webhooks.slice(0, 20).map((hook) => get(`/api/webhooks/${hook.id}/stats`, {}, signal).catch(() => null)));
  for (const [at, hook] of hooks.webhooks.entries()) {
    if (hook.state === "enabled") {
      if (stats[at]?.lane.state === "open") {
        found.push(el("li", el("span.name", badge("webhook failing", "bad", true)),
          el("span", link(`#/webhooks/${hook.id}`, hook.description || hook.url), el("span.soft", `; ${plural(stats[at].pending, "delivery", "deliveries")} pending.`))));
      }
      continue;
    }
    found.push(el("li", el("span.name", badge(`webhook ${hook.state}`, hook.state === "disabled" ? "bad" : "warn", true)),
      el("span", link(`#/webhooks/${hook.id}`, hook.description || hook.url), el("span.soft", hook.reason ? ` ${hook.reason}` : ""))));
  }
  return found;
}
