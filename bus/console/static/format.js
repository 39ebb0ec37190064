/* Numbers, times and sizes as people read them. */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export const NOTHING = "–";

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NOTHING;
  if (value !== 0 && Math.abs(value) < 10 && !Number.isInteger(value)) return value.toFixed(1);
  return whole.format(value);
}

/** Three figures and a letter, for narrow places. */
export function short(value) {
  if (value === null || value === undefined) return NOTHING;
  for (const [least, letter] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= least) return `${(value / (letter === "k" ? 1e3 : least)).toFixed(value / least < 10 && letter !== "k" ? 1 : value < 1e5 ? 1 : 0)}${letter}`;
  }
  return number(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NOTHING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) [value, at] = [value / 1024, at + 1];
  return `${at && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

/** Seconds, in the unit that suits them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 1) return `${seconds * 1000 < 10 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${number(Math.round((seconds / size) * 10) / 10)} ${unit}`;
  }
  return NOTHING;
}

/** A moment: the clock's time, with the day if it is not today. Whole and exact in `title`. */
export function moment(text) {
  if (!text) return NOTHING;
  const at = new Date(text);
  const time = clock.format(at);
  return at.toDateString() === new Date().toDateString() ? time : `${day.format(at)} ${time}`;
}

export function exactly(text) {
  return text ? `${text.slice(0, 23).replace("T", " ")} UTC` : NOTHING;
}

export function ago(text) {
  if (!text) return NOTHING;
  const seconds = (Date.now() - new Date(text)) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** An address, or a list of them, as text. */
export function address(to, more = 0) {
  const shown = Array.isArray(to) ? to.join(", ") : String(to);
  return more ? `${shown} and ${more} more` : shown;
}

/** JSON for reading: indented, numbers as they came. A text is shown as it is. */
export function payload(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}
