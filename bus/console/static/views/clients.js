/* Who is there, how much waits for each; one client: its inbox as it stands, and what it sends and gets, live. */

import { call, get, may, part } from "../api.js";
import { ask, badge, card, el, facts, field, link, put, select } from "../dom.js";
import { ago, exactly, moment, number } from "../format.js";
import { pages, table } from "../table.js";
import { compose } from "./compose.js";
import { liveTable } from "./feed.js";

export const presence = (one) => (one.online ? badge(one.over ?? "online", "good", true) : badge("away", "", true));

export const clients = {
  title: () => "Clients",
  scope: "presence",

  async render(context) {
    const filter = el("input", { placeholder: "Name begins with …", "aria-label": "Name begins with", value: context.query.get("name") ?? "", spellcheck: "false", autocapitalize: "none" });
    const online = el("input", { type: "checkbox", checked: context.query.get("online") === "1" });
    const shown = table({
      caption: "Clients", key: (one) => one.client, empty: [el("b", "No clients"), "A client is known once it has connected or sent."],
      columns: [
        { label: "Client", title: true, cell: (one) => link(`#/clients/${part(one.client)}`, one.client) },
        { label: "Presence", class: "tight", cell: presence },
        { label: "Connections", class: "number", cell: (one) => (one.connections ? number(one.connections) : "–") },
        { label: "Waiting", class: "number", cell: (one) => number(one.waiting) },
        { label: "Last seen", class: "tight", cell: (one) => el("span", { title: exactly(one.last_seen) }, ago(one.last_seen)) },
        { label: "", class: "actions", cell: (one) => el("button.small", { type: "button", onclick: () => compose({ to: one.client }) }, "Send") },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const name = filter.value.trim();
      const page = await get("/api/clients", { limit: 100, cursor: cursor || before(name) }, context.signal);
      const fits = page.clients.filter((one) => one.client.startsWith(name));
      const isOver = page.clients.some((one) => name && one.client > name && !one.client.startsWith(name));
      return { rows: fits.filter((one) => one.online || !online.checked), cursor: page.cursor, more: page.more && !isOver };
    });
    const again = () => {
      context.remember({ name: filter.value.trim(), online: online.checked ? "1" : "" });
      list.refresh({ again: true }).catch(context.fail);
    };
    filter.addEventListener("input", again);
    online.addEventListener("change", again);
    context.add(el("div.bar", filter, el("label.check", online, "Online only")), el("section.card", list));
    await context.every(5, () => list.refresh());
  },
};

/** A cursor right before all names that begin so: lists are in the order of names. */
function before(name) {
  return name && `${name.slice(0, -1)}${String.fromCharCode(name.charCodeAt(name.length - 1) - 1)}\uffff`;
}

export const client = {
  title: ([, name]) => name,
  scope: "presence",

  async render(context) {
    const name = context.parts[1];
    const about = el("div.card-body.first"), state = el("span");
    const send = el("button", { type: "button", onclick: () => compose({ to: name }) }, "Send to it");
    const cap = may("admin") ? el("button", { type: "button", onclick: setCap }, "Cap") : null;

    async function setCap() {
      const limit = el("input", { type: "number", min: 1, placeholder: "as the settings say" });
      const onFull = select([["refuse", "refuse the new"], ["dead_letter", "set the oldest aside"]], "refuse");
      await ask({
        title: `Cap the inbox of ${name}`, text: "How many messages may wait, and what happens beyond.",
        fields: [field("Messages", limit), field("When it is full", onFull)], action: "Set the cap",
        act: () => context.act(() => call("PUT", `/api/clients/${part(name)}`, { body: { limit: limit.value ? Number(limit.value) : null, on_full: onFull.value } }),
          (inbox) => `${name} may have ${number(inbox.limit)} waiting.`),
      });
    }

    async function look() {
      const one = await get(`/api/clients/${part(name)}`, {}, context.signal);
      put(state, presence(one));
      put(about, facts([
        ["Waiting", number(one.waiting)],
        ["Connections", number(one.connections)],
        ["Connected since", one.connected_since && `${moment(one.connected_since)} (${ago(one.connected_since)})`],
        ["First seen", `${moment(one.first_seen)} (${ago(one.first_seen)})`],
        ["Last seen", `${moment(one.last_seen)} (${ago(one.last_seen)})`],
      ]));
    }

    context.tools(state, cap, send);
    const inbox = el("div");
    context.add(el("section.card", about), card("Inbox", inbox));
    if (may("read-all")) {
      const live = liveTable({ client: name }, context.signal);
      context.add(card("What it sends and gets", live, live.state, live.count));
    }
    await Promise.all([context.every(5, look), showInbox(context, name, inbox)]);
  },
};

/** What is not acked and what is behind the kept cursor: looked at, not fetched. */
async function showInbox(context, name, place) {
  const shown = table({
    caption: `Inbox of ${name}`, key: (one) => `${one.id}/${one.attempt ?? 1}`,
    empty: [el("b", "Nothing waits"), "It has confirmed all that was sent to it."],
    columns: [
      { label: "Message", title: true, class: "mono tight", cell: (one) => link(`#/messages/${one.id}`, one.id) },
      { label: "From", cell: (one) => one.from },
      { label: "Type", cell: (one) => one.type },
      { label: "Sent", class: "tight", cell: (one) => el("span", { title: exactly(one.timestamp) }, moment(one.timestamp)) },
      { label: "Ack", class: "tight", cell: (one) => (one.requires_ack ? badge(`attempt ${one.attempt ?? 1}`, "warn", true) : "–") },
      { label: "Payload", class: "clip mono soft", cell: (one) => JSON.stringify(one.payload).slice(0, 400) },
    ],
  });
  put(place, shown);
  await context.every(5, async () => {
    try {
      const page = await get("/api/messages", { to: name, limit: 50, peek: true }, context.signal);
      shown.update(page.messages);
    } catch (error) {
      if (error.status !== 403) throw error;
      put(place, el("p.empty", error.message));
    }
  });
}
