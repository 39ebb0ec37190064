// @ts-check
/** Events: who listens to what, and that a handler which throws harms nobody else. */

/** @typedef {(value: any) => any} Handler */

export const EVENTS = ["message", "open", "close", "gap", "dropped", "failed", "error"];

export class Events {
  /** @type {Map<string, Set<Handler>>} */ #handlers = new Map(EVENTS.map((name) => [name, new Set()]));

  /** The handlers of an event, in the order in which they came. @param {string} name @returns {Set<Handler>} */
  of(name) {
    const handlers = this.#handlers.get(name);
    if (handlers === undefined) throw new TypeError(`There is no event ${name}; there are ${EVENTS.join(", ")}.`);
    return handlers;
  }

  /** Call the handlers. What one of them throws is an `error`; an `error` that nobody hears goes to the console. @param {string} name @param {any} value */
  emit(name, value) {
    const handlers = [...this.of(name)];
    if (name === "error" && handlers.length === 0) console.error("multi-agent-bridge:", value);
    for (const handler of handlers) {
      try {
        handler(value);
      } catch (error) {
        if (name === "error") console.error("multi-agent-bridge:", error);
        else this.emit("error", error);
      }
    }
  }
}
