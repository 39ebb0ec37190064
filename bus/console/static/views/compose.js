/* Sending a message by hand. */

import { call, session } from "../api.js";
import { ask, el, field, select, toast } from "../dom.js";

/** What was typed: JSON if it is, else a text. */
export function payloadOf(text) {
  try {
    JSON.parse(text);
    return text;
  } catch {
    return JSON.stringify(text);
  }
}

export async function compose({ to = "", from = "", queue = false } = {}) {
  const clients = session.me.clients ?? [];
  const sender = el("input", { value: from || (clients.length === 1 && !clients[0].endsWith("*") ? clients[0] : "operator"), required: true, spellcheck: "false" });
  const whom = el("input", { value: to, required: true, spellcheck: "false", autocapitalize: "none" });
  const type = el("input", { value: "message", spellcheck: "false" });
  const payload = el("textarea", { spellcheck: "false", placeholder: "{\"text\": \"hello\"}" });
  const ack = el("input", { type: "checkbox" });
  const priority = select(["normal", "critical", "high", "low", "bulk"], "normal");
  const names = (text) => text.split(",").map((name) => name.trim()).filter(Boolean);
  const receipt = await ask({
    title: "Send a message",
    fields: [
      field("To", whom, "A client, several parted by commas, all, topic:…, or queue:…"),
      el("div.fields", field("From", sender), field("Type", type), field("Priority", priority)),
      field("Payload", payload, "JSON; what is not JSON goes as a text."),
      queue ? null : el("label.check", ack, "It needs an ack"),
    ],
    action: "Send",
    async act() {
      const list = names(whom.value);
      const draft = { from: sender.value.trim(), to: list.length > 1 ? list : list[0] ?? "", type: type.value.trim() || "message" };
      if (priority.value !== "normal") draft.priority = priority.value;
      if (ack.checked) draft.require_ack = true;
      const raw = payloadOf(payload.value.trim() || "null");
      return call("POST", "/api/send", { text: `${JSON.stringify(draft).slice(0, -1)},"payload":${raw}}` });
    },
  });
  if (receipt) {
    const states = receipt.recipients.map((one) => `${one.client}: ${one.state}`).slice(0, 3).join(", ");
    toast(`Sent as ${receipt.message_id}. ${states}`);
  }
  return receipt;
}
