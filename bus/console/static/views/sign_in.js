/* Signing in: a key is changed into a session's cookie, which this page can't read. The key is kept nowhere. */

import { call } from "../api.js";
import { el, field } from "../dom.js";

export default function signIn(done) {
  const key = el("input", { type: "password", autocomplete: "current-password", spellcheck: "false", required: true });
  const refusal = el("p.notice.bad", { role: "alert", hidden: true });
  const button = el("button.main-action", { type: "submit" }, "Sign in");
  const form = el("form.card", { onsubmit: submit },
    el("h1", "Sign in"),
    field("API key", key, "A key of the bus, or a JWT. What it grants is what you will see."),
    refusal, button);

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    refusal.hidden = true;
    try {
      await call("POST", "/api/session", { headers: { "X-API-Key": key.value.trim() } });
      key.value = "";
      await done();
    } catch (error) {
      refusal.hidden = false;
      refusal.textContent = error.message;
      key.focus();
    } finally {
      button.disabled = false;
    }
  }

  return el("main.sign-in", el("p.brand", el("img", { src: "/console/icon.svg", alt: "" }), "multi-agent-bridge"), form);
}
