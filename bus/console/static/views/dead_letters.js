/* Dead letters: look at them, send them again or throw them away, one or many; many are counted first. */

import { call, get, part, post } from "../api.js";
import { ask, badge, card, el, facts, link, put, select } from "../dom.js";
import { address, ago, bytes, exactly, moment, number, payload, plural } from "../format.js";
import { pages, table } from "../table.js";

const REASONS = ["rejected", "expired", "max_attempts", "overflow", "no_recipient", "invalid"];
const spoken = (reason) => reason.replaceAll("_", " ");

export const deadLetters = {
  title: () => "Dead letters",
  hint: "Messages that did not reach somebody: rejected, out of attempts, expired, or without room. A redrive sends them again under the same id.",
  scope: "admin",

  async render(context) {
    const owner = el("input", { placeholder: "client or queue:name", "aria-label": "Owner", value: context.query.get("owner") ?? "", spellcheck: "false", autocapitalize: "none" });
    const from = el("input", { placeholder: "sender", "aria-label": "Sender", value: context.query.get("from") ?? "", spellcheck: "false", autocapitalize: "none" });
    const reason = select([["", "any reason"], ...REASONS.map((one) => [one, spoken(one)])], context.query.get("reason") ?? "", { "aria-label": "Reason" });
    const choice = () => ({ owner: owner.value.trim(), reason: reason.value, from: from.value.trim() });
    const given = () => Object.fromEntries(Object.entries(choice()).filter(([, value]) => value));
    const shown = table({
      caption: "Dead letters, the oldest first", key: (one) => `${one.id}/${one.owner}`,
      empty: [el("b", "No dead letters"), "Everything that needed an ack was acked, or is still under way."],
      columns: [
        { label: "Message", title: true, class: "mono tight", cell: (one) => link(`#/dead-letters/${one.id}`, one.id) },
        { label: "For", cell: (one) => one.owner },
        { label: "Why", class: "tight", cell: (one) => badge(spoken(one.reason), "bad", true) },
        { label: "From", cell: (one) => one.message.from },
        { label: "Type", cell: (one) => one.message.type },
        { label: "Attempts", class: "number", cell: (one) => number(one.attempts.length) },
        { label: "Died", class: "tight", cell: (one) => el("span", { title: exactly(one.died_at) }, ago(one.died_at)) },
        { label: "Detail", class: "clip soft", cell: (one) => one.detail ?? one.attempts.at(-1)?.reason ?? "" },
        { label: "", class: "actions", cell: (one) => [
          el("button.small", { type: "button", onclick: () => redriveOne(one) }, "Redrive"),
          el("button.small.danger", { type: "button", onclick: () => purgeOne(one) }, "Purge")] },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/dead-letters", { ...choice(), limit: 50, cursor }, context.signal);
      return { rows: page.dead_letters, cursor: page.cursor, more: page.more };
    });
    const again = () => list.refresh().catch(context.fail);

    async function redriveOne(letter) {
      await redrive(letter);
      again();
    }
    async function purgeOne(letter) {
      await purge(letter);
      again();
    }

    async function redriveMany() {
      const counted = await context.act(() => post("/api/dead-letters/redrive", { ...given(), dry_run: true }));
      if (!counted) return;
      const done = await ask({
        title: `Redrive ${plural(counted.matched, "dead letter")}?`,
        text: counted.matched ? `Each is sent again under its id and begins at attempt 1${counted.matched > 1000 ? "; the first 1,000 of them, now" : ""}. What finds no room stays here.` : "Nothing matches the filters.",
        action: counted.matched ? "Redrive" : null, act: () => post("/api/dead-letters/redrive", given()),
      });
      if (done) context.act(async () => done, (result) => `${number(result.redriven)} of ${number(result.matched)} were sent again.`);
      again();
    }

    async function purgeMany() {
      const counted = await context.act(() => call("DELETE", "/api/dead-letters", { query: { ...choice(), dry_run: true } }));
      if (!counted) return;
      const word = el("input", { "aria-label": `Type ${counted.matched} to confirm`, inputmode: "numeric", autocomplete: "off" });
      const done = await ask({
        title: `Purge ${plural(counted.matched, "dead letter")}?`,
        text: counted.matched ? `They are gone for good. Type ${counted.matched} to go on.` : "Nothing matches the filters.",
        fields: counted.matched ? [word] : [], action: counted.matched ? "Purge" : null, danger: true,
        act: () => {
          if (word.value.trim() !== String(counted.matched)) throw new Error(`Type ${counted.matched}, the number of dead letters that go.`);
          return call("DELETE", "/api/dead-letters", { query: choice() });
        },
      });
      if (done) context.act(async () => done, (result) => `${number(result.purged)} of ${number(result.matched)} are gone.`);
      again();
    }

    const changed = () => {
      context.remember(choice());
      list.refresh({ again: true }).catch(context.fail);
    };
    for (const input of [owner, from, reason]) input.addEventListener("change", changed);
    context.add(
      el("div.bar", owner, from, reason, el("span.spring"),
        el("button", { type: "button", onclick: redriveMany }, "Redrive all that match …"),
        el("button.danger", { type: "button", onclick: purgeMany }, "Purge all that match …")),
      el("section.card", list));
    await context.every(5, () => list.refresh());
  },
};

function redrive(letter) {
  return ask({
    title: "Redrive this dead letter?", text: `It goes to ${letter.owner} again, under the same id, beginning at attempt 1.`,
    action: "Redrive", act: () => post(`/api/dead-letters/${part(letter.id)}/redrive`, { owner: letter.owner }),
  });
}

function purge(letter) {
  return ask({
    title: "Purge this dead letter?", text: `The message is gone for ${letter.owner}, for good.`, action: "Purge", danger: true,
    act: () => call("DELETE", `/api/dead-letters/${part(letter.id)}`, { query: { owner: letter.owner } }),
  });
}

export const deadLetter = {
  title: ([, id]) => id,
  scope: "admin",

  async render(context) {
    const id = context.parts[1];
    const place = el("div.stack");
    context.tools(link(`#/messages/${id}`, "Its whole life"));
    context.add(place);

    async function look() {
      const page = await get(`/api/dead-letters/${part(id)}`, {}, context.signal);
      put(place, page.dead_letters.map((letter) => card(`For ${letter.owner}`, el("div.card-body", el("div.stack",
        facts([
          ["Why", badge(spoken(letter.reason), "bad", true)], ["Detail", letter.detail], ["Died", `${moment(letter.died_at)} (${ago(letter.died_at)})`],
          ["From", link(`#/clients/${part(letter.message.from)}`, letter.message.from)], ["To", address(letter.message.to)], ["Type", letter.message.type],
          ["Sent", moment(letter.message.timestamp)], ["Size", bytes(payload(letter.message.payload).length)],
        ]),
        el("ol.life", letter.attempts.map((tried) => el("li", { class: "warn" },
          el("div.when", { title: exactly(tried.ended_at) }, moment(tried.ended_at)), el("div.what", `Attempt ${tried.attempt} ${tried.outcome}`),
          el("p", `by ${tried.consumer}${tried.reason ? `: ${tried.reason}` : ""}`)))),
        el("pre.payload", { tabindex: "0", role: "region", "aria-label": "Payload" }, payload(letter.message.payload)))),
        el("div.bar", el("button.small", { type: "button", onclick: () => redrive(letter).then(leave) }, "Redrive"),
          el("button.small.danger", { type: "button", onclick: () => purge(letter).then(leave) }, "Purge")))));
    }

    function leave(done) {
      if (done) location.hash = "#/dead-letters";
    }

    await look();
  },
};
