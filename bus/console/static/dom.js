/* Making elements. What is given as a child or a value is text: nothing here, or anywhere in the console, parses markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An element: `el("a.soft", {href, onclick, class, …}, ...children)`. Children: nodes, texts, numbers, lists; null is none. */
export function el(what, ...rest) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  fill(node, rest);
  return node;
}

function fill(node, rest) {
  const given = rest[0];
  const isProps = given && typeof given === "object" && !(given instanceof Node) && !Array.isArray(given);
  if (isProps) for (const [name, value] of Object.entries(given)) set(node, name, value);
  add(node, isProps ? rest.slice(1) : rest);
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "class") node.classList.add(...String(value).split(" ").filter(Boolean));
  else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") node[name] = value;
  else node.setAttribute(name, value === true ? "" : String(value));
}

function add(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(node, child);
    else if (child !== null && child !== undefined && child !== false) node.append(child instanceof Node ? child : String(child));
  }
}

/** Put children in the place of those that are there. */
export function put(node, ...children) {
  node.replaceChildren();
  add(node, children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const STROKES = {
  overview: "M3 13h3l2-8 4 12 2-7h3", feed: "M3 5h14M3 10h14M3 15h9", clients: "M10 9a3 3 0 1 0 0-6 3 3 0 0 0 0 6M4 17c0-3.300 2.700-5 6-5s6 1.700 6 5",
  queues: "M4 4h12v4H4zM4 12h12v4H4z", dead: "M10 3 2.500 16.500h15zM10 8v4M10 14.200v.1", webhooks: "M11 3 6 11h4l-1 6 5-8h-4z",
  search: "M9 15A6 6 0 1 0 9 3a6 6 0 0 0 0 12M13.500 13.500 17 17", retention: "M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14M10 6v4l3 2",
  keys: "M12.500 11a4 4 0 1 0-3.400-1.900L3 15v2h3v-2h2v-2l1.800-1.800c.8.500 1.700.800 2.700.800", audit: "M5 3h7l3 3v11H5zM8 9h4M8 12h4",
  settings: "M4 6h6M14 6h2M4 14h2M10 14h6M12 4v4M8 12v4", menu: "M3 5h14M3 10h14M3 15h14", send: "M3 10 17 3l-4 14-3-6z",
  sun: "M10 13a3 3 0 1 0 0-6 3 3 0 0 0 0 6M10 2v2M10 16v2M2 10h2M16 10h2M4.300 4.300l1.400 1.400M14.300 14.300l1.400 1.400M4.300 15.700l1.400-1.400M14.300 5.700l1.400-1.400",
  moon: "M16 11.500A6.500 6.500 0 0 1 8.500 4 6.500 6.500 0 1 0 16 11.500", system: "M3 4h14v9H3zM7 17h6M10 13v4",
};

/** A small picture beside words; it says nothing by itself. */
export function icon(name) {
  const path = svg("path", { d: STROKES[name], fill: "none", stroke: "currentColor", "stroke-width": "1.5",
    "stroke-linecap": "round", "stroke-linejoin": "round" });
  return svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, path);
}

/** A word with a dot whose colour repeats what it says. */
export function badge(text, tone = "", bare = false) {
  return el("span.badge", { class: `${tone} ${bare ? "bare" : ""}` }, text);
}

export function link(href, ...children) {
  return el("a", { href }, ...children);
}

export const mono = (text) => el("span.mono", text);

/** Names of things with values: a <dl>. Values that are null, undefined or "" are left out. */
export function facts(pairs) {
  const list = el("dl.facts");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    list.append(el("dt", name), el("dd", value));
  }
  return list;
}

/** A box with a heading. */
export function card(title, body, ...tools) {
  return el("section.card", title ? el("div.card-head", el("h2", title), el("span.spring"), tools) : null, body);
}

/** A word in the corner, which screen readers say once. */
export function toast(text, tone = "") {
  const node = el("div.toast", { class: tone }, text);
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), tone === "bad" ? 9000 : 4500);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    toast("The browser does not let this page copy; select the text instead.", "bad");
  }
}

let opened = 0;

/**
 * Ask in a dialog. `fields`: elements; `act()` is called at the main button, and the dialog closes when it has done; what it
 * throws is shown in the dialog. Resolves to what `act` returned, or to undefined when the person thought better of it.
 */
export function ask({ title, text, fields = [], action, danger = false, act, cancel = "Cancel" }) {
  return new Promise((resolve) => {
    const id = `dialog-${++opened}`;
    const refusal = el("p.refusal", { role: "alert", hidden: true });
    const main = action && el("button.main-action", { type: "submit", class: danger ? "danger" : "" }, action);
    const form = el("form", { method: "dialog", novalidate: true, onsubmit: submit },
      el("h2", { id }, title), text ? el("p.soft", text) : null, fields, refusal,
      el("div.bar", el("button", { type: "button", onclick: () => dialog.close() }, cancel), main));
    const dialog = el("dialog", { "aria-labelledby": id, onclose: () => (dialog.remove(), resolve(result)) }, form);
    let result;

    async function submit(event) {
      event.preventDefault();
      if (!main || main.disabled) return;
      main.disabled = true;
      refusal.hidden = true;
      try {
        result = await act();
        dialog.close();
      } catch (error) {
        refusal.hidden = false;
        refusal.textContent = error.message;
      } finally {
        main.disabled = false;
      }
    }

    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A labelled input; `.value` of what is returned's `input` is what was typed. */
export function field(label, input, hint) {
  const id = `field-${++opened}`;
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  const node = el("div.field", el("label", { for: id }, label), input, hint ? el("small", { id: `${id}-hint` }, hint) : null);
  node.input = input;
  return node;
}

export function select(options, value, props = {}) {
  return el("select", props, options.map((option) => {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    return el("option", { value: key, selected: key === value }, text);
  }));
}
