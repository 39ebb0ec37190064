// @ts-check
/** Pauses between connections: they grow, are drawn by chance, and obey the server. */

/** @import { Ending } from "./transports.js" */

const FIRST_SECONDS = 0.5;
const LONGEST_SECONDS = 20;
const RESTART_SPREAD_SECONDS = 3;
const OVERLOAD_SECONDS = [5, 20];
const STEADY_SECONDS = 10; // a connection that lasted this long was a good one: the next pause starts small again

/** Counts the attempts in a row and draws the pauses: full jitter below a limit that doubles. */
export class Backoff {
  #attempts = 0;

  /** @param {() => number} [chance] */
  constructor(chance = Math.random) {
    this.chance = chance;
  }

  /** Seconds to wait before the next attempt. @param {Ending} ending */
  pause(ending) {
    if ((ending.lastedSeconds ?? 0) >= STEADY_SECONDS) this.#attempts = 0;
    const limit = Math.min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** Math.min(this.#attempts, 16));
    const isFirst = this.#attempts === 0;
    this.#attempts += 1;
    if (ending.afterSeconds !== undefined) {
      return ending.afterSeconds + this.chance() * Math.max(limit, RESTART_SPREAD_SECONDS);
    }
    if (ending.code === 1013) return OVERLOAD_SECONDS[0] + this.chance() * (OVERLOAD_SECONDS[1] - OVERLOAD_SECONDS[0]);
    return this.chance() * (ending.code === 1012 && isFirst ? RESTART_SPREAD_SECONDS : limit);
  }
}
