/* API keys: who has which rights, until when; make, rotate, revoke. */

import { call, get, post } from "../api.js";
import { ask, badge, el, field, select } from "../dom.js";
import { ago, exactly } from "../format.js";
import { pages, table } from "../table.js";
import { tellSecret } from "./webhooks.js";

const SCOPES = { send: "send messages", read: "read own inboxes, acks, topics, queues", presence: "see who is there", "read-all": "read the log", "on-behalf-of": "say for whom it sends", admin: "everything" };
const LIVES = [["", "until it is revoked"], ["86400", "a day"], ["2592000", "30 days"], ["7776000", "90 days"], ["31536000", "a year"]];
const TONES = { active: "good", expired: "", revoked: "bad" };
const names = (text) => text.split(",").map((name) => name.trim()).filter(Boolean);

export default {
  title: () => "Keys",
  scope: "admin",

  async render(context) {
    const shown = table({
      caption: "API keys", key: (one) => one.id, empty: [el("b", "No keys"), "With auth on, each program has a key of its own."],
      columns: [
        { label: "Key", title: true, cell: (one) => el("span", one.label || "without a label", " ", el("span.mono.soft", one.id)) },
        { label: "State", class: "tight", cell: (one) => badge(one.state, TONES[one.state], true) },
        { label: "Scopes", cell: (one) => one.scopes.join(", ") },
        { label: "Clients", cell: (one) => one.clients.join(", ") || "–" },
        { label: "Sends to", cell: (one) => (one.send_to.join() === "*" ? "anybody" : one.send_to.join(", ")) },
        { label: "Last used", class: "tight", cell: (one) => el("span", { title: exactly(one.last_used_at) }, ago(one.last_used_at)) },
        { label: "Ends", class: "tight", cell: (one) => (one.expires_at ? el("span", { title: exactly(one.expires_at) }, ago(one.expires_at)) : "never") },
        { label: "", class: "actions", cell: (one) => (one.state === "active" ? [
          one.successor ? null : el("button.small", { type: "button", onclick: () => rotate(one) }, "Rotate"),
          el("button.small.danger", { type: "button", onclick: () => revoke(one) }, "Revoke")] : el("button.small.danger", { type: "button", onclick: () => forget(one) }, "Forget")) },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/keys", { cursor }, context.signal);
      return { rows: page.keys, cursor: page.cursor, more: page.more };
    });
    const again = () => list.refresh().catch(context.fail);

    async function create() {
      const label = el("input", { placeholder: "alice's laptop" }), clients = el("input", { placeholder: "alice, ci-*", spellcheck: "false" });
      const sendTo = el("input", { placeholder: "anybody", spellcheck: "false" }), lives = select(LIVES, "7776000");
      const scopes = Object.entries(SCOPES).map(([name, what]) => [name, el("input", { type: "checkbox", checked: ["send", "read", "presence"].includes(name) }), what]);
      const made = await ask({
        title: "A new key",
        fields: [field("What it is for", label), field("Clients that it may act as", clients, "Names parted by commas; ci-* for all that begin so."), field("It sends to", sendTo, "Names, all, topic:…, queue:…"),
          el("fieldset.field", el("legend", "Scopes"), scopes.map(([name, box, what]) => el("label.check", box, el("span", name, " ", el("span.soft", what))))), field("It lives", lives)],
        action: "Make it",
        act: () => post("/api/keys", {
          label: label.value.trim(), clients: names(clients.value), scopes: scopes.filter(([, box]) => box.checked).map(([name]) => name),
          ...(sendTo.value.trim() ? { send_to: names(sendTo.value) } : {}), ...(lives.value ? { expires_in: Number(lives.value) } : {}) }),
      });
      if (made) await tellSecret("The key", made.key);
      again();
    }

    async function rotate(key) {
      const grace = select([["0", "end at once"], ["3600", "an hour more"], ["86400", "a day more"], ["604800", "a week more"]], "86400");
      const made = await ask({ title: `Rotate ${key.label || key.id}?`, text: "It gets a successor with the same rights.", fields: [field("The old key lives", grace)], action: "Rotate",
        act: () => post(`/api/keys/${key.id}/rotate`, { grace: Number(grace.value) }) });
      if (made) await tellSecret("The successor", made.key);
      again();
    }

    async function revoke(key) {
      await ask({ title: `Revoke ${key.label || key.id}?`, text: "It ends within seconds, on every worker, and so do its sockets, streams and sessions.", action: "Revoke", danger: true, act: () => post(`/api/keys/${key.id}/revoke`) });
      again();
    }

    async function forget(key) {
      await ask({ title: `Forget ${key.label || key.id}?`, text: "It leaves the list.", action: "Forget", danger: true, act: () => call("DELETE", `/api/keys/${key.id}`) });
      again();
    }

    context.tools(el("button.main-action", { type: "button", onclick: create }, "New key"));
    context.add(el("section.card", list));
    await context.every(10, () => list.refresh());
  },
};
