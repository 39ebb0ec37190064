/* Search over what is kept. It is an extension: where it is off, the menu does not show it. */

import { get, has } from "../api.js";
import { el, link, put, select } from "../dom.js";
import { address, exactly, moment } from "../format.js";
import { pages, table } from "../table.js";

const FIELDS = [["from", "sender"], ["to", "recipient, topic:…, queue:…"], ["type", "type"]];

export default {
  title: () => "Search",
  scope: "read",

  async render(context) {
    if (!(await has()).search) {
      context.add(el("p.notice", "Search is not part of this server: it is an extension, which DISABLED_EXTENSIONS may name."));
      return;
    }
    const words = el("input", { type: "search", placeholder: "words, or a \"phrase\"", "aria-label": "Words", value: context.query.get("q") ?? "", size: 34 });
    const inputs = FIELDS.map(([name, placeholder]) =>
      [name, el("input", { placeholder, "aria-label": placeholder, value: context.query.get(name) ?? "", spellcheck: "false", autocapitalize: "none" })]);
    const order = select([["newest", "newest first"], ["rank", "best first"]], context.query.get("order") ?? "newest", { "aria-label": "Order" });
    const told = el("p.soft", { role: "status" });
    const choice = () => ({ q: words.value.trim(), ...Object.fromEntries(inputs.map(([name, input]) => [name, input.value.trim()])), order: order.value === "rank" ? "rank" : "" });
    const shown = table({
      caption: "Messages that match", key: (one) => one.message.id, empty: [el("b", "Nothing found"), "Every word has to be in the message; word* stands for all that begin so."],
      columns: [
        { label: "Message", title: true, class: "mono tight", cell: (one) => link(`#/messages/${one.message.id}`, one.message.id) },
        { label: "From", cell: (one) => one.message.from },
        { label: "To", cell: (one) => address(one.message.to) },
        { label: "Type", cell: (one) => one.message.type },
        { label: "Sent", class: "tight", cell: (one) => el("span", { title: exactly(one.message.timestamp) }, moment(one.message.timestamp)) },
        { label: "Found", class: "wide", cell: (one) => marked(one.snippet) },
      ],
    });
    const list = pages(shown, async (cursor) => {
      const page = await get("/api/search", { ...choice(), limit: 50, cursor }, context.signal);
      told.textContent = page.complete ? "" : "The newest messages are not in the index yet; it follows the log.";
      return { rows: page.results, cursor: page.cursor, more: page.more };
    });
    const box = el("section.card", { hidden: true }, list);

    async function find() {
      context.remember(choice());
      const { order: _, ...asked } = choice();
      box.hidden = !Object.values(asked).some(Boolean);
      if (box.hidden) {
        put(told, "Say what to look for: words, a sender, a recipient or a type.");
        return;
      }
      try {
        await list.refresh({ again: true });
      } catch (error) {
        box.hidden = true;
        put(told, error.message);
      }
    }

    order.addEventListener("change", find);
    context.add(el("form.bar", { role: "search", onsubmit: (event) => (event.preventDefault(), find()) },
      words, inputs.map(([, input]) => input), order, el("button.main-action", { type: "submit" }, "Search")), told, box);
    await find();
  },
};

/** A snippet with its matches marked. Its offsets count code points. */
function marked({ text, matches }) {
  const points = Array.from(text);
  const parts = [];
  let at = 0;
  for (const [begin, length] of matches) {
    parts.push(points.slice(at, begin).join(""), el("mark", points.slice(begin, begin + length).join("")));
    at = begin + length;
  }
  return el("span", parts, points.slice(at).join(""));
}
