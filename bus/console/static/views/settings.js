/* The settings in force, where each comes from, and what it means. */

import { get } from "../api.js";
import { badge, el } from "../dom.js";
import { table } from "../table.js";

const ORIGINS = { environment: "environment", file: ".env", default: "default", program: "program" };

export default {
  title: () => "Settings",
  hint: "What this server was started with. They are changed in the environment or in .env, and hold after a restart; secrets are shown as ***.",
  scope: "admin",

  async render(context) {
    const filter = el("input", { placeholder: "name or word", "aria-label": "Name or word", value: context.query.get("q") ?? "", spellcheck: "false" });
    const set = el("input", { type: "checkbox", checked: context.query.get("set") === "1" });
    const shown = table({
      caption: "Settings", key: (one) => one.name, empty: [el("b", "No setting fits")],
      columns: [
        { label: "Setting", title: true, class: "mono", cell: (one) => one.name },
        { label: "Value", class: "mono", cell: (one) => (one.value === null ? el("span.soft", "unset") : one.value === "" ? el("span.soft", "empty") : String(one.value)) },
        { label: "From", class: "tight", cell: (one) => badge(ORIGINS[one.origin], one.origin === "default" ? "" : "good", true) },
        { label: "What it is", class: "soft", cell: (one) => one.description },
      ],
    });
    const { settings } = await get("/api/settings", {}, context.signal);
    const show = () => {
      const word = filter.value.trim().toLowerCase();
      context.remember({ q: filter.value.trim(), set: set.checked ? "1" : "" });
      shown.update(settings.filter((one) => (!set.checked || one.origin !== "default") && `${one.name} ${one.description}`.toLowerCase().includes(word)));
    };
    filter.addEventListener("input", show);
    set.addEventListener("change", show);
    context.add(el("div.bar", filter, el("label.check", set, "Only what was set")), el("section.card", shown));
    show();
  },
};
