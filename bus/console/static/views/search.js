/* Search over what is kept. It is an extension: where it is off, the menu does not show it. */

import { get } from "../api.js";
import { el, link, put } from "../dom.js";
import { address, exactly, moment } from "../format.js";
import { pages, table } from "../table.js";

export default {
  title: () => "Search",
  scope: "read-all",

  async render(context) {
    const words = el("input", { type: "search", placeholder: "words, or a \"phrase\"", "aria-label": "Words", value: context.query.get("q") ?? "", size: 34 });
    const from = el("input", { placeholder: "sender", "aria-label": "Sender", value: context.query.get("from") ?? "", spellcheck: "false", autocapitalize: "none" });
    const type = el("input", { placeholder: "type", "aria-label": "Type", value: context.query.get("type") ?? "", spellcheck: "false", autocapitalize: "none" });
    const told = el("p.soft", { role: "status" });
    const choice = () => ({ q: words.value.trim(), from: from.value.trim(), type: type.value.trim() });
    const shown = table({
      caption: "Messages that match", key: (one) => messageOf(one).id, empty: [el("b", "Nothing found")],
      columns: [
        { label: "Message", title: true, class: "mono tight", cell: (one) => link(`#/messages/${messageOf(one).id}`, messageOf(one).id) },
        { label: "From", cell: (one) => messageOf(one).from },
        { label: "To", cell: (one) => address(messageOf(one).to ?? "") },
        { label: "Type", cell: (one) => messageOf(one).type },
        { label: "Sent", class: "tight", cell: (one) => el("span", { title: exactly(messageOf(one).timestamp) }, moment(messageOf(one).timestamp)) },
        { label: "Found", class: "clip mono soft", cell: (one) => textOf(one) },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/search", { ...choice(), limit: 50, cursor }, context.signal);
      told.textContent = page.complete === false ? "The newest messages are not in the index yet." : "";
      return { rows: page.results ?? page.messages ?? [], cursor: page.cursor ?? "", more: page.more ?? false };
    });
    const box = el("section.card", { hidden: true }, list);

    async function find() {
      context.remember(choice());
      box.hidden = !Object.values(choice()).some(Boolean);
      if (box.hidden) return put(told, "Write what you look for.");
      try {
        await list.refresh({ again: true });
      } catch (error) {
        box.hidden = true;
        put(told, error.status === 404 || error.status === 501 ? "Search is not part of this server." : error.message);
      }
      return undefined;
    }

    const form = el("form.bar", { role: "search", onsubmit: (event) => (event.preventDefault(), find()) }, words, from, type, el("button.main-action", { type: "submit" }, "Search"));
    context.add(form, told, box);
    await find();
  },
};

const messageOf = (found) => found.message ?? found;

/** What was found, as text: the snippet if the bus gives one. */
function textOf(found) {
  const snippet = found.snippet ?? found.text ?? messageOf(found).payload;
  return typeof snippet === "string" ? snippet : JSON.stringify(snippet?.text ?? snippet ?? "").slice(0, 400);
}
