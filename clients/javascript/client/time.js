// @ts-check
/** Time, in seconds: a clock that only goes forward, and pauses. */

export const now = () => performance.now() / 1000;

/** @param {number} seconds */
export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Wait for a promise, so long at most; no timer outlives it. @param {Promise<unknown>} promise @param {number} seconds @returns {Promise<void>} */
export function within(promise, seconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    promise.finally(() => (clearTimeout(timer), resolve()));
  });
}
