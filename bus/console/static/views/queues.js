/* Queues: how much waits, how old it is, who takes. */

import { call, get, may, part } from "../api.js";
import { ask, badge, el, field, link, select } from "../dom.js";
import { duration, number } from "../format.js";
import { pages, table } from "../table.js";
import { compose } from "./compose.js";

export default {
  title: () => "Queues",
  scope: "presence",

  async render(context) {
    const shown = table({
      caption: "Queues", key: (one) => one.queue,
      empty: [el("b", "No queues"), "A queue is there while items wait or somebody takes: send to queue:<name>."],
      columns: [
        { label: "Queue", title: true, cell: (one) => one.queue },
        { label: "Waiting", class: "number", cell: (one) => number(one.depth) },
        { label: "In hands", class: "number", cell: (one) => number(one.in_flight) },
        { label: "Oldest", class: "number", cell: (one) => duration(one.oldest_seconds) },
        { label: "Takers", class: "number", cell: (one) => (one.depth && !one.consumers ? badge("none", "warn", true) : number(one.consumers)) },
        { label: "Limit", class: "number", cell: (one) => number(one.limit) },
        { label: "When full", cell: (one) => (one.on_full === "refuse" ? "refuses" : "sets the oldest aside") },
        { label: "Dead letters", class: "tight", cell: (one) => link(`#/dead-letters?owner=${part(`queue:${one.queue}`)}`, "show") },
        { label: "", class: "actions", cell: (one) => [
          may("admin") ? el("button.small", { type: "button", onclick: () => cap(one) }, "Cap") : null,
          el("button.small", { type: "button", onclick: () => compose({ to: `queue:${one.queue}`, queue: true }) }, "Send")] },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/queues", { cursor }, context.signal);
      return { rows: page.queues, cursor: page.cursor, more: page.more };
    });

    async function cap(queue) {
      const limit = el("input", { type: "number", min: 1, value: queue.limit });
      const onFull = select([["refuse", "refuse the new"], ["dead_letter", "set the oldest aside"]], queue.on_full);
      await ask({
        title: `Cap ${queue.queue}`, fields: [field("Items that may wait", limit), field("When it is full", onFull)], action: "Set the cap",
        act: () => call("PUT", `/api/queues/${part(queue.queue)}`, { body: { limit: Number(limit.value), on_full: onFull.value } }),
      });
      list.refresh().catch(context.fail);
    }

    context.add(el("section.card", list));
    await context.every(3, () => list.refresh());
  },
};
