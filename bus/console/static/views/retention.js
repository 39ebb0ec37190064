/* How long messages live, by type; what is kept, what has gone, what goes soon. */

import { call, get, may, part } from "../api.js";
import { ask, card, el, facts, field, link, put, select } from "../dom.js";
import { ago, bytes, duration, exactly, moment, number } from "../format.js";
import { table } from "../table.js";

const NAMED = [["", "seconds of its own"], "immediate", "short", "medium", "long", "permanent"];

export default {
  title: () => "Retention",
  scope: "presence",

  async render(context) {
    const mine = may("admin");
    const shown = table({
      caption: "Policies by type", key: (one) => one.type, empty: [el("b", "No policies")],
      columns: [
        { label: "Type", title: true, cell: (one) => (one.type === "$default" ? el("span", "$default ", el("span.soft", "all other types")) : one.type) },
        { label: "Policy", cell: (one) => one.policy },
        { label: "Lives", class: "number", cell: (one) => (one.ttl_seconds === null ? (one.policy === "immediate" ? "until delivered" : "for ever") : duration(one.ttl_seconds)) },
        { label: "Archived", class: "tight", cell: (one) => (one.archive_before_delete ? "before it goes" : "–") },
        { label: "Set by", cell: (one) => one.origin },
        { label: "", class: "actions", cell: (one) => (mine ? [el("button.small", { type: "button", onclick: () => change(one) }, "Change"),
          one.origin === "admin" && !one.type.startsWith("$") ? el("button.small.danger", { type: "button", onclick: () => drop(one) }, "Drop") : null] : null) },
      ],
    });
    const kept = el("div.card-body");
    const soon = table({
      caption: "What expires within the hour", key: (one) => one.message.id, empty: [el("b", "Nothing expires within the hour")],
      columns: [
        { label: "Message", title: true, class: "mono tight", cell: (one) => link(`#/messages/${one.message.id}`, one.message.id) },
        { label: "Type", cell: (one) => one.message.type },
        { label: "Expires", class: "tight", cell: (one) => el("span", { title: exactly(one.expires_at) }, ago(one.expires_at)) },
      ],
    });

    async function look() {
      const [policies, stats, expiring] = await Promise.all([get("/api/ttl/policies", {}, context.signal), get("/api/ttl/stats", {}, context.signal),
        mine ? get("/api/ttl/expiring", { within: 3600, limit: 20 }, context.signal) : null]);
      shown.update(policies.policies);
      put(kept, facts([
        ["Messages ever", number(stats.total_messages)], ["Payload kept", bytes(stats.kept_bytes)], ["Expired", number(stats.expired)],
        ["Gone with their delivery", number(stats.delivered)], ["Archived", `${number(stats.archive.messages)} in ${number(stats.archive.files)} files, ${bytes(stats.archive.bytes)}`],
        ["Last sweep", stats.swept_at && `${moment(stats.swept_at)} (${ago(stats.swept_at)})`], ["Changes", policies.applying ? "stored messages are being given a changed policy" : ""]]));
      if (expiring) soon.update(expiring.messages);
    }

    async function change(policy) {
      const type = el("input", { value: policy?.type ?? "", required: true, spellcheck: "false", disabled: !!policy });
      const name = select(NAMED, policy && policy.policy !== "custom" ? policy.policy : "");
      const seconds = el("input", { type: "number", min: 0, value: policy?.ttl_seconds ?? 86400 });
      const archive = el("input", { type: "checkbox", checked: policy?.archive_before_delete ?? false });
      const stored = el("input", { type: "checkbox", checked: true });
      const own = field("Seconds", seconds);
      const showOwn = () => (own.hidden = name.value !== "");
      name.addEventListener("change", showOwn);
      showOwn();
      await ask({
        title: policy ? `Change the policy of ${policy.type}` : "A policy for a type", fields: [field("Type", type), field("Policy", name), own,
          el("label.check", archive, "Archive before it goes"), el("label.check", stored, "Stored messages get it, too")], action: "Set it",
        act: () => call("PUT", `/api/ttl/policies/${part(type.value.trim())}`, { body: {
          ...(name.value ? { policy: name.value } : { ttl_seconds: Number(seconds.value) }), archive_before_delete: archive.checked, apply_to_stored: stored.checked } }),
      });
      look().catch(context.fail);
    }

    async function drop(policy) {
      await ask({ title: `Give ${policy.type} back to the default?`, text: "Stored messages of the type get the default policy, too.", action: "Drop it", danger: true,
        act: () => call("DELETE", `/api/ttl/policies/${part(policy.type)}`) });
      look().catch(context.fail);
    }

    if (mine) {
      context.tools(el("button", { type: "button", onclick: () => context.act(() => call("POST", "/api/ttl/sweep"), "The sweep runs.") }, "Sweep now"),
        el("button.main-action", { type: "button", onclick: () => change(null) }, "New policy"));
    }
    context.add(el("div.columns", card("Policies", shown), el("div.stack", card("What is kept", kept), mine ? card("Expires soon", soon) : null)));
    await context.every(10, look);
  },
};
