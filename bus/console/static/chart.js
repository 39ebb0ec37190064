/* Small charts of lines, drawn as SVG: one path a series, drawn anew when new points come. */

import { el, svg } from "./dom.js";
import { moment } from "./format.js";

const WIDTH = 600;

/**
 * `series`: [{name, class}]; `format(value)` makes its texts. `update({begins, step_seconds}, [points, …])`; a point is a
 * number, or null where nothing is known. With `bare` it is a sparkline: no scale, no times, hidden from screen readers,
 * since the number stands beside it.
 */
export function chart({ label, series, format, height = 120, bare = false }) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, height, preserveAspectRatio: "none" });
  if (bare) picture.setAttribute("aria-hidden", "true");
  else for (const [name, value] of [["role", "img"], ["aria-label", `${label}: nothing is known yet.`]]) picture.setAttribute(name, value);
  const grid = bare ? [] : [0, 0.5, 1].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: part * height, y2: part * height }));
  const fills = series.map((one) => svg("path", { class: `fill ${one.class ?? ""}` }));
  const lines = series.map((one) => svg("path", { class: `line ${one.class ?? ""}` }));
  const cross = svg("line", { class: "cross", y1: 0, y2: height, visibility: "hidden" });
  picture.append(...grid, ...fills, ...lines, cross);
  const scale = el("div.scale"), from = el("span"), to = el("span");
  const values = series.map(() => el("b"));
  const legend = el("div.legend", series.map((one, at) => el("span", el("i", { class: one.class }), `${one.name} `, values[at])));
  const box = el("div.chart", bare ? picture : [picture, scale, el("div.times", from, to)]);
  box.legend = legend;
  let data = [], when = { begins: 0, step: 1 };

  function path(points, top) {
    const across = WIDTH / Math.max(points.length - 1, 1);
    let line = "", fill = "", first = null;
    points.forEach((value, at) => {
      if (value === null) {
        if (first !== null) fill += `L${((at - 1) * across).toFixed(1)} ${height}Z`;
        first = null;
        return;
      }
      const y = height - (value / top) * (height - 2) - 1;
      const spot = `${(at * across).toFixed(1)} ${y.toFixed(1)}`;
      line += `${first === null ? "M" : "L"}${spot}`;
      fill += first === null ? `M${spot.split(" ")[0]} ${height}L${spot}` : `L${spot}`;
      first ??= at;
    });
    if (first !== null) fill += `L${WIDTH} ${height}Z`;
    return [line, fill];
  }

  function tell(at) {
    series.forEach((_, number) => {
      const points = data[number] ?? [];
      let place = at ?? points.length - 1;
      if (at === null && points[place] === null) place -= 1;
      values[number].textContent = points.length ? format(points[place] ?? null) : "–";
    });
  }

  if (!bare) {
    picture.addEventListener("pointermove", (event) => {
      const count = data[0]?.length ?? 0;
      if (count < 2) return;
      const box = picture.getBoundingClientRect();
      const at = Math.min(count - 1, Math.max(0, Math.round(((event.clientX - box.left) / box.width) * (count - 1))));
      const x = (at / (count - 1)) * WIDTH;
      for (const name of ["x1", "x2"]) cross.setAttribute(name, x);
      cross.setAttribute("visibility", "visible");
      to.textContent = moment(new Date(when.begins + at * when.step * 1000).toISOString());
      tell(at);
    });
    picture.addEventListener("pointerleave", () => {
      cross.setAttribute("visibility", "hidden");
      to.textContent = "now";
      tell(null);
    });
  }

  box.update = ({ begins, step_seconds: step }, points) => {
    data = bare ? points.map(known) : points;
    when = { begins: new Date(begins).getTime(), step };
    const most = nice(Math.max(...points.flat().map((value) => value ?? 0), 0));
    data.forEach((one, at) => {
      const [line, fill] = path(one, most);
      lines[at].setAttribute("d", line);
      fills[at].setAttribute("d", fill);
    });
    if (bare) return;
    scale.textContent = format(most);
    from.textContent = moment(new Date(when.begins).toISOString());
    if (cross.getAttribute("visibility") === "hidden") {
      to.textContent = "now";
      tell(null);
    }
    const said = series.map((one, at) => `${one.name} ${values[at].textContent}`).join(", ");
    picture.setAttribute("aria-label", `${label}: now ${said}; the scale ends at ${format(most)}.`);
  };
  return box;
}

/** From the first point that is known, if that is not the only one. */
function known(points) {
  const first = points.findIndex((value) => value !== null);
  return first > 0 && first < points.length - 1 ? points.slice(first) : points;
}

/** The next round number, so that a scale does not move with each point. */
function nice(value) {
  if (value <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * size >= value) * size;
}
