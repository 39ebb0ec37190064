/* Who administered the bus, and who was refused. */

import { get } from "../api.js";
import { badge, el, link, select } from "../dom.js";
import { exactly, moment } from "../format.js";
import { pages, table } from "../table.js";

const TONES = { done: "good", refused: "warn", failed: "bad" };

export default {
  title: () => "Audit",
  scope: "admin",

  async render(context) {
    const actor = el("input", { placeholder: "actor, such as key:…", "aria-label": "Actor", value: context.query.get("actor") ?? "", spellcheck: "false", autocapitalize: "none" });
    const action = el("input", { placeholder: "action, such as key.*", "aria-label": "Action", value: context.query.get("action") ?? "", spellcheck: "false", autocapitalize: "none" });
    const outcome = select([["", "any outcome"], "done", "refused", "failed"], context.query.get("outcome") ?? "", { "aria-label": "Outcome" });
    const choice = () => ({ actor: actor.value.trim(), action: action.value.trim(), outcome: outcome.value });
    const shown = table({
      caption: "Audit records, the youngest first", key: (one) => one.number, empty: [el("b", "No records"), "What is administered, and who is refused, stands here."],
      columns: [
        { label: "When", class: "tight", cell: (one) => el("span", { title: exactly(one.timestamp) }, moment(one.timestamp)) },
        { label: "Action", title: true, cell: (one) => one.operation },
        { label: "By", cell: (one) => one.user_id },
        { label: "Target", cell: (one) => (one.table_name ? `${one.table_name} ${one.record_id}` : one.record_id) },
        { label: "Outcome", class: "tight", cell: (one) => badge(one.outcome, TONES[one.outcome], true) },
        { label: "Address", class: "tight soft", cell: (one) => one.address ?? "" },
        { label: "Detail", class: "clip soft mono", cell: (one) => JSON.stringify(one.new_values ?? one.old_values ?? "").replace(/^""$/, "") },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/audit", { ...choice(), limit: 50, cursor }, context.signal);
      return { rows: page.records, cursor: page.cursor, more: page.more };
    });
    const changed = () => {
      context.remember(choice());
      list.refresh({ again: true }).catch(context.fail);
    };
    for (const input of [actor, action, outcome]) input.addEventListener("change", changed);
    context.add(el("div.bar", actor, action, outcome, el("span.spring"), link("/api/audit/export", "Export as JSON lines")), el("section.card", list));
    await context.every(10, () => list.refresh());
  },
};
