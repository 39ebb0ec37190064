/* One message, and its whole life: accepted, committed, to whom and when, what became of it, who was told. */

import { call, get, may, part, post } from "../api.js";
import { ask, card, copy, el, facts, link, put } from "../dom.js";
import { address, bytes, exactly, moment, payload, plural } from "../format.js";

const SAID = {
  waiting: ["waits", "warn"], handed_over: ["was handed over", "good"], confirmed: ["has confirmed it", "good"],
  leased: ["has it in hands", "warn"], resting: ["rests after a failure", "warn"], acked: ["acked", "good"],
  dead_letter: ["became a dead letter", "bad"], scheduled: ["waits for its time", "warn"],
};
const OUTCOMES = { nacked: "warn", expired: "warn", rejected: "bad", acked: "good" };

export default {
  title: ([, id]) => id,

  async render(context) {
    const id = context.parts[1];
    const about = el("div.card-body.first"), text = el("pre.payload", { tabindex: "0", role: "region", "aria-label": "Payload" });
    const life = el("ol.life"), size = el("span.soft");
    context.tools(el("button", { type: "button", onclick: () => copy(id) }, "Copy id"));
    context.add(el("div.columns",
      el("div.stack", el("section.card", about), card("Payload", el("div.card-body", text), size,
        el("button.small.plain", { type: "button", onclick: () => copy(text.textContent) }, "Copy"))),
      card("Life", el("div.card-body", life))));

    async function look() {
      const found = await call("GET", `/api/messages/${part(id)}`, { signal: context.signal, exact: true });
      const { message } = found;
      put(about, facts(described(message, found)));
      const shown = payload(message.payload);
      if (text.textContent !== shown) text.textContent = shown;
      size.textContent = bytes(new TextEncoder().encode(shown).length);
      const [dead, told] = await Promise.all([deadLettersOf(id, found, context.signal), webhooksOf(id, context.signal)]);
      put(life, steps(found, dead, told, () => look().catch(context.fail)));
    }

    await context.every(5, look);
  },
};

function described(message, found) {
  const names = Array.isArray(message.to) ? message.to : [message.to];
  const isPlace = typeof message.to === "string" && (message.to === "all" || /^(topic|queue):/.test(message.to));
  return [
    ["From", el("span", link(`#/clients/${part(message.from)}`, message.from), message.verified ? el("span.soft", " verified") : null)],
    ["On behalf of", message.on_behalf_of],
    ["To", isPlace ? address(message.to) : names.slice(0, 50).map((name, at) => [at ? ", " : "", link(`#/clients/${part(name)}`, name)])],
    ["Type", message.type],
    ["Place", message.seq === null ? null : el("span.mono", message.seq)],
    ["Priority", message.priority],
    ["Thread", message.thread_id],
    ["Correlation", message.correlation_id],
    ["Reply to", message.reply_to],
    ["Expires", message.expires_at && `${moment(message.expires_at)} (${exactly(message.expires_at)})`],
    ["Due", found.deliver_at && exactly(found.deliver_at)],
    ["A copy of", message.replay_of && link(`#/messages/${message.replay_of}`, message.replay_of)],
    ["Restored", message.restored && "from the archive"],
    ["Redriven", message.redriven && "it was a dead letter"],
    ["Headers", message.headers && el("div", Object.entries(message.headers).map(([name, value]) => el("div.mono", `${name}: ${value}`)))],
  ];
}

/* One thing that happened: when (null: that is not kept), what, how it went, and more about it. */
function step(when, what, tone, ...more) {
  const node = el("li", { class: tone }, el("div.when", { title: when ? exactly(when) : null }, when ? moment(when) : "the time is not kept"),
    el("div.what", what), more.filter(Boolean));
  return { when, node };
}

function steps(found, dead, told, again) {
  const { message, recipients } = found;
  const isStored = message.seq !== null && !found.deliver_at;
  const list = [step(message.timestamp, "Accepted", "good", el("p", `from ${message.from}`))];
  if (isStored) list.push(step(message.timestamp, "Committed", "good", el("p", `as number ${message.seq} of the log, before the sender heard of it`)));
  if (found.deliver_at) list.push(step(found.deliver_at, "Due", "warn", el("p", "Until then it is outside the log.")));
  for (const one of recipients) {
    for (const tried of one.attempts ?? []) list.push(attempt(one, tried));
    if (one.state !== "dead_letter" || !dead.some((letter) => letter.owner === one.client)) list.push(standing(one));
  }
  if (!recipients.length) list.push(step(message.timestamp, `Went to ${address(message.to)}`, "good", el("p", "Who listened then is not kept, one by one.")));
  for (const letter of dead) {
    list.push(step(letter.died_at, `Set aside as a dead letter of ${letter.owner}`, "bad", el("p", `${letter.reason.replaceAll("_", " ")}${letter.detail ? `: ${letter.detail}` : ""}`),
      el("div.bar", el("button.small", { type: "button", onclick: () => redrive(letter, again) }, "Redrive"), link(`#/dead-letters/${letter.id}`, "Look at it"))));
  }
  for (const delivery of told) {
    const tone = { done: "good", dead: "bad" }[delivery.state] ?? "warn";
    list.push(step(delivery.ended ?? delivery.created, `Webhook ${delivery.event}: ${delivery.state}`, tone,
      el("p", plural(delivery.attempts, "attempt"), delivery.cause ? `, ${delivery.cause.replaceAll("_", " ")}` : "", ". ", link(`#/deliveries/${delivery.id}`, delivery.id))));
  }
  const times = list.map(({ when }, at) => when ?? list[at - 1]?.when ?? "");
  return list.map((one, at) => ({ ...one, at, time: times[at] })).sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : a.at - b.at)).map(({ node }) => node);
}

function attempt(one, tried) {
  const said = [tried.began_at ? `it began ${moment(tried.began_at)}` : "", tried.reason ?? ""].filter(Boolean).join("; ");
  return step(tried.ended_at, `Attempt ${tried.attempt} ${tried.outcome ?? "ended"} by ${tried.consumer}`, OUTCOMES[tried.outcome] ?? "warn",
    el("p", [tried.consumer === one.client ? "" : `of ${one.client}; `, said]));
}

/** How it stands with a recipient. */
function standing(one) {
  const [what, tone] = SAID[one.state] ?? [one.state, ""];
  const isPlace = one.client === "all" || /^(queue|topic):/.test(one.client);
  const name = isPlace ? one.client : link(`#/clients/${part(one.client)}`, one.client);
  const hands = one.by && one.by !== one.client ? one.by : null;
  const details = [
    hands ? `of ${one.client}` : "", one.attempt ? `attempt ${one.attempt}` : "", one.failures ? plural(one.failures, "failure") : "",
    one.since ? `since ${moment(one.since)}` : "", one.until ? `until ${moment(one.until)}` : "",
  ].filter(Boolean).join(", ");
  const title = hands ? [link(`#/clients/${part(hands)}`, hands), ` ${what}`] : [name, ` ${what}`];
  return step(one.settled_at ?? one.since ?? null, title, tone, details ? el("p", details) : null);
}

async function redrive(letter, again) {
  await ask({
    title: "Redrive this dead letter?", text: `It goes to ${letter.owner} again, under the same id, beginning at attempt 1.`,
    action: "Redrive", act: () => post(`/api/dead-letters/${part(letter.id)}/redrive`, { owner: letter.owner }),
  });
  again();
}

async function deadLettersOf(id, found, signal) {
  if (!may("admin") || !found.recipients.some((one) => one.state === "dead_letter")) return [];
  return get(`/api/dead-letters/${part(id)}`, {}, signal).then((page) => page.dead_letters, () => []);
}

async function webhooksOf(id, signal) {
  if (!may("admin")) return [];
  return get("/api/webhooks/deliveries", { message: id, limit: 50 }, signal).then((page) => page.deliveries.reverse(), () => []);
}
