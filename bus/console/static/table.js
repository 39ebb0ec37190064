/* Tables that are brought up to date in place: a row that says the same stays as it is, with its focus. */

import { el, put } from "./dom.js";

/**
 * columns: [{label, cell(row) → node or text, class?, title?}]; `title: true` marks what names the row on a phone.
 * `key(row)` tells rows apart. `update(rows)` shows them; `empty`: what is said when there is none.
 */
export function table({ caption, columns, key, empty, wraps = true }) {
  const body = el("tbody", { role: "rowgroup" });
  const heads = columns.map((column) => el("th", { scope: "col", role: "columnheader", class: column.class }, column.label || el("span.silent", column.spoken ?? "Actions")));
  const whole = el("table", { class: wraps ? "wraps" : "", role: "table" }, el("caption.silent", caption), // roles: on a phone its parts are blocks
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)), body);
  const none = el("div.empty", { hidden: true });
  const box = el("div", el("div.table-box", { tabindex: "0", role: "region", "aria-label": caption }, whole), none);
  const known = new Map();

  function row(item) {
    return el("tr", { role: "row" }, columns.map((column) => {
      const shown = column.cell(item);
      const isBlank = shown === null || shown === undefined || shown === "" || shown === "–";
      return el("td", { role: "cell", class: `${column.class ?? ""} ${column.title ? "title" : ""} ${isBlank ? "blank" : ""}`, "data-label": column.label }, shown);
    }));
  }

  box.update = (rows) => {
    const seen = new Set();
    let place = body.firstChild;
    for (const item of rows) {
      const id = key(item);
      const said = JSON.stringify(item);
      let entry = known.get(id);
      seen.add(id);
      if (!entry || entry.said !== said) {
        const made = row(item);
        if (entry) {
          if (place === entry.node) place = made;
          keepFocus(entry.node, made);
        }
        entry = { node: made, said };
        known.set(id, entry);
      }
      if (place === entry.node) place = place.nextSibling;
      else body.insertBefore(entry.node, place);
    }
    for (const [id, entry] of known) {
      if (!seen.has(id)) {
        entry.node.remove();
        known.delete(id);
      }
    }
    none.hidden = rows.length > 0;
    whole.hidden = rows.length === 0;
    if (!rows.length) put(none, empty);
  };
  box.refresh = () => known.forEach((entry) => (entry.said = ""));
  return box;
}

/** Replace a row; the control that had the focus has it again. */
function keepFocus(old, made) {
  const controls = (node) => [...node.querySelectorAll("a, button, input")];
  const at = controls(old).indexOf(document.activeElement);
  old.replaceWith(made);
  if (at >= 0) controls(made)[at]?.focus();
}

/**
 * A list of the API, page by page: `load(cursor)` → {rows, cursor, more}. What is shown is read anew by `refresh()`, as far
 * as it was opened.
 */
export function pages(shown, load) {
  const more = el("button.small", { type: "button", onclick: () => next() }, "Show more");
  const foot = el("div.more", { hidden: true }, more);
  const box = el("div", shown, foot);
  let rows = [], cursor = "", opened = 1;

  async function next() {
    more.disabled = true;
    try {
      const page = await load(cursor);
      opened += 1;
      show([...rows, ...page.rows], page);
    } finally {
      more.disabled = false;
    }
  }

  function show(all, page) {
    rows = all;
    cursor = page.cursor;
    foot.hidden = !page.more;
    shown.update(rows);
  }

  box.refresh = async ({ again = false } = {}) => {
    if (again) opened = 1;
    let all = [], page = { cursor: "", more: true };
    for (let count = 0; count < opened && page.more; count += 1) {
      page = await load(page.cursor);
      all = [...all, ...page.rows];
    }
    show(all, page);
    return all;
  };
  return box;
}
