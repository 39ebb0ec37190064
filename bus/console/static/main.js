/* The console's shell: who is signed in, where one is, the keyboard, the theme. Views are modules of their own. */

import { call, figures, get, has, may, session, whoAmI } from "./api.js";
import { ask, badge, el, icon, put, toast } from "./dom.js";
import { short } from "./format.js";
import { compose } from "./views/compose.js";
import audit from "./views/audit.js";
import { clients, client } from "./views/clients.js";
import { deadLetters, deadLetter } from "./views/dead_letters.js";
import feed from "./views/feed.js";
import keys from "./views/keys.js";
import message from "./views/message.js";
import overview from "./views/overview.js";
import queues from "./views/queues.js";
import retention from "./views/retention.js";
import search from "./views/search.js";
import settings from "./views/settings.js";
import signIn from "./views/sign_in.js";
import { webhooks, webhook, delivery } from "./views/webhooks.js";

const PLACES = [
  ["Now", [
    { path: "overview", name: "Overview", key: "o", scope: "presence" },
    { path: "feed", name: "Live feed", key: "f", scope: "read-all" },
    { path: "clients", name: "Clients", key: "c", scope: "presence" },
    { path: "queues", name: "Queues", key: "q", scope: "presence" },
  ]],
  ["Deliveries", [
    { path: "dead-letters", name: "Dead letters", key: "d", scope: "admin", picture: "dead" },
    { path: "webhooks", name: "Webhooks", key: "w", scope: "admin" },
    { path: "search", name: "Search", key: "s", scope: "read" },
  ]],
  ["Rules", [
    { path: "retention", name: "Retention", key: "r", scope: "presence" },
    { path: "keys", name: "Keys", key: "k", scope: "admin" },
    { path: "audit", name: "Audit", key: "a", scope: "admin" },
    { path: "settings", name: "Settings", key: "e", scope: "admin" },
  ]],
];

/* First part of the path → the view, and the one for what lies below. */
const VIEWS = {
  overview: [overview], feed: [feed], clients: [clients, client], queues: [queues], "dead-letters": [deadLetters, deadLetter],
  webhooks: [webhooks, webhook], deliveries: [null, delivery], messages: [null, message], search: [search],
  retention: [retention], keys: [keys], audit: [audit], settings: [settings],
};

const app = document.getElementById("app");
let leaving = new AbortController();
let shell = null;

/* ---- where one is */

/** The address behind the #: path, its parts, and what stands behind the question mark. */
function here() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decode);
  return { parts: parts.length ? parts : ["overview"], query: new URLSearchParams(query ?? "") };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { parts, query } = here();
  if (!session.me) return showSignIn();
  if (parts[0] === "sign-in") {
    location.replace("#/overview");
    return undefined;
  }
  shell ??= makeShell();
  shell.mark(parts[0]);
  const view = VIEWS[parts[0]]?.[parts.length > 1 ? 1 : 0] ?? notFound;
  const root = el("div.view");
  const context = contextOf(root, parts, query, leaving.signal);
  put(shell.main, root);
  document.title = `${view.title(parts)} · multi-agent-bridge`;
  context.head = el("div.head", el("h1", { tabindex: "-1" }, view.title(parts)), el("span.spring"));
  context.add(context.head, view.hint && el("p.hint", view.hint));
  if (view.scope && !may(view.scope)) {
    root.append(lacks(view.scope));
  } else {
    try {
      await view.render(context);
    } catch (error) {
      context.fail(error);
    }
  }
  if (context.signal.aborted) return undefined;
  if (shell.moved) context.head.querySelector("h1").focus({ preventScroll: true });
  shell.moved = true;
  return undefined;
}

/** What a view gets: where to draw, what was asked for, and how to stay up to date until it is left. */
function contextOf(root, parts, query, signal) {
  const notice = el("div.notice.bad", { role: "alert", hidden: true });
  const context = {
    root, parts, query, signal,
    /** Put tools behind the heading. */
    tools(...nodes) {
      context.head.querySelector(".spring").after(...nodes);
    },
    add(...nodes) {
      root.append(...nodes.filter(Boolean));
    },
    /** Keep the address in step with filters, without a new entry in the history. */
    remember(values) {
      const kept = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
      history.replaceState(null, "", `#/${parts.map(encodeURIComponent).join("/")}${kept.size ? `?${kept}` : ""}`);
    },
    /** Say what went wrong, above all else; a 403 says what the credential lacks. */
    fail(error) {
      if (error.name === "AbortError" || signal.aborted) return;
      notice.hidden = false;
      put(notice, error.message, error.status === 403 ? el("p.soft", describeMe()) : null);
      if (!notice.isConnected) context.head.after(notice);
    },
    /** Call now and every so often, while the page is looked at; what fails is said, and tried again. */
    async every(seconds, read) {
      let timer = 0;
      const round = async () => {
        clearTimeout(timer);
        if (signal.aborted) return;
        if (!document.hidden) {
          try {
            await read();
            notice.hidden = true;
          } catch (error) {
            context.fail(error);
          }
        }
        if (!signal.aborted) timer = setTimeout(round, seconds * 1000);
      };
      document.addEventListener("visibilitychange", () => document.hidden || round(), { signal });
      signal.addEventListener("abort", () => clearTimeout(timer));
      await round();
    },
    /** Do something that changes the bus; say that it was done, or why not. */
    async act(what, done) {
      try {
        const result = await what();
        if (done) toast(typeof done === "function" ? done(result) : done);
        return result;
      } catch (error) {
        toast(error.message, "bad");
        return undefined;
      }
    },
  };
  return context;
}

function lacks(scope) {
  const what = scope === "admin" ? "the right to administer" : `the scope ${scope}`;
  return el("div.notice.warn", { role: "note" }, `This needs ${what}. `, el("span.soft", describeMe()));
}

function describeMe() {
  const { name, scopes } = session.me;
  return `You are ${name}, and may: ${scopes.join(", ")}.`;
}

const notFound = {
  title: () => "Nothing is here",
  render: ({ root }) => root.append(el("p", "The console has no such view. ", el("a", { href: "#/overview" }, "Go to the overview."))),
};

/* ---- the shell */

function makeShell() {
  const main = el("main.main", { id: "main", tabindex: "-1" });
  const links = new Map();
  const side = el("nav.side", { id: "side", "aria-label": "Console" },
    el("a.brand", { href: "#/overview" }, el("img", { src: "/console/icon.svg", alt: "" }), "multi-agent-bridge"),
    PLACES.map(([group, places]) => [el("h2", group), el("ul", places.map((place) => {
      const count = el("span.count");
      const node = el("a", { href: `#/${place.path}` }, icon(place.picture ?? place.path), place.name, count);
      links.set(place.path, { node, count, item: el("li", node) });
      return links.get(place.path).item;
    }))]));
  const menu = el("button.plain.menu-button", { type: "button", "aria-label": "Menu", "aria-expanded": "false", "aria-controls": "side",
    onclick: () => menu.setAttribute("aria-expanded", String(side.classList.toggle("open"))) }, icon("menu"));
  const state = el("a", { href: "#/overview" }, badge("…"));
  const theme = el("button.plain", { type: "button", onclick: turnTheme });
  const isIn = session.me.credential;
  const top = el("header.top", menu, state, el("span.spring"),
    el("button.wide-not", { type: "button", onclick: () => compose() }, icon("send"), "Send"),
    theme,
    el("button.plain.wide", { type: "button", onclick: showKeys, "aria-label": "Keyboard shortcuts" }, el("span.kbd", "?")),
    el("span.who", { title: describeMe() }, isIn ? session.me.name : "auth is off"),
    isIn ? el("button.plain", { type: "button", onclick: signOut }, "Sign out") : null);
  const skip = el("button.skip", { type: "button", onclick: () => main.focus() }, "Skip to the content");
  put(app, skip, el("div.shell", side, top, main));
  showTheme(theme);
  const made = {
    main, moved: false,
    mark(path) {
      const owner = { messages: "feed", deliveries: "webhooks" }[path] ?? path;
      for (const [name, { node }] of links) {
        if (name === owner) node.setAttribute("aria-current", "page");
        else node.removeAttribute("aria-current");
      }
      side.classList.remove("open");
      menu.setAttribute("aria-expanded", "false");
    },
  };
  hideSearch(links.get("search").item);
  watchHealth(state, links.get("dead-letters").count);
  return made;
}

/** Search is an extension, and may be off. */
async function hideSearch(item) {
  item.hidden = !(await has().catch(() => ({ search: true }))).search;
}

const TONES = { healthy: "good", degraded: "warn", unhealthy: "bad" };

/** The bus's health in the corner, every 10 s. */
async function watchHealth(state, count) {
  const mine = session.me;
  while (session.me === mine) {
    if (!document.hidden) {
      try {
        const health = await get("/health/status");
        put(state, badge(`${health.overall_status[0].toUpperCase()}${health.overall_status.slice(1)}`, TONES[health.overall_status] ?? "warn"));
      } catch (error) {
        put(state, badge(error.status ? "Unhealthy" : "No answer", "bad"));
      }
      const told = await figures({ names: "dead_letters", last_seconds: 5, step_seconds: 1 }).catch(() => null);
      const dead = told?.series.dead_letters.findLast((value) => value !== null) ?? 0;
      count.textContent = dead ? short(dead) : "";
    }
    await new Promise((done) => setTimeout(done, 10_000));
  }
}

/* ---- signing in and out */

function showSignIn() {
  shell = null;
  const { parts } = here();
  const back = parts[0] === "sign-in" ? "#/overview" : location.hash || "#/overview";
  document.title = "Sign in · multi-agent-bridge";
  put(app, signIn(async () => {
    await whoAmI();
    if (location.hash === back) show();
    else location.hash = back;
  }));
  app.querySelector("input")?.focus();
}

session.onUnauthenticated = () => {
  if (!session.me) return;
  session.me = null;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  toast("The session has ended; sign in again.");
  show();
};

async function signOut() {
  try {
    await call("DELETE", "/api/session");
  } catch (error) {
    if (error.status !== 404) return toast(error.message, "bad");
  }
  session.me = null;
  location.hash = "#/sign-in";
  show();
  return undefined;
}

/* ---- the theme: the system's, unless one was chosen */

const THEMES = ["system", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");

function chosen() {
  const theme = localStorage.getItem("theme");
  return THEMES.includes(theme) ? theme : "system";
}

function applyTheme() {
  const theme = chosen();
  document.documentElement.dataset.theme = theme === "system" ? (dark.matches ? "dark" : "light") : theme;
}

function showTheme(button) {
  const theme = chosen();
  put(button, icon({ system: "system", light: "sun", dark: "moon" }[theme]));
  button.setAttribute("aria-label", `Colours: ${theme}. Change`);
  button.title = `Colours: ${theme}`;
  button.dataset.role = "theme";
}

function turnTheme() {
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(chosen()) + 1) % THEMES.length]);
  applyTheme();
  showTheme(document.querySelector("[data-role=theme]"));
}

dark.addEventListener("change", applyTheme);
applyTheme();

/* ---- the keyboard */

const OTHERS = [["n", "Send a message"], ["/", "Go to the first filter"], ["p", "Pause or resume the live feed"], ["t", "Change the colours"], ["?", "This list"]];

function showKeys() {
  const places = PLACES.flatMap(([, list]) => list).map((place) => [`g ${place.key}`, place.name]);
  ask({
    title: "Keyboard shortcuts",
    fields: [el("div.keys-list", [...places, ...OTHERS].map(([keys, what]) => [
      el("span", keys.split(" ").map((key) => [el("kbd.kbd", key), " "])), el("span", what)]))],
    cancel: "Close",
  });
}

let awaiting = 0;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !session.me) return;
  if (document.querySelector("dialog[open]") || event.target.closest("input, select, textarea")) return;
  const isSecond = Date.now() - awaiting < 1500;
  awaiting = 0;
  if (isSecond) {
    const place = PLACES.flatMap(([, list]) => list).find((one) => one.key === event.key);
    if (place) {
      location.hash = `#/${place.path}`;
      return event.preventDefault();
    }
  }
  const acts = {
    g: () => (awaiting = Date.now()),
    "?": showKeys,
    n: () => compose(),
    t: turnTheme,
    "/": () => document.querySelector("main input")?.focus(),
    p: () => document.querySelector("[data-shortcut=p]")?.click(),
  };
  if (acts[event.key]) {
    event.preventDefault();
    acts[event.key]();
  }
  return undefined;
});

/* ---- begin */

addEventListener("hashchange", show);

(async function begin() {
  try {
    await whoAmI();
    await show();
  } catch (error) {
    put(app, el("div.sign-in", el("div.card", el("h1", "The bus does not answer"), el("p.soft", error.message))));
    setTimeout(begin, 3000);
  }
})();
