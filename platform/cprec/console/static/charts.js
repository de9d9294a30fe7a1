// Charts as SVG, drawn for the width that they have; the figures under the pointer are text.

import { brief, count, digits, h, s, setText } from "./dom.js";

const MARGIN = { left: 46, right: 10, top: 8, bottom: 22 };

/** Round values between two, about as many as asked for. */
export function ticks(low, high, wanted) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / wanted;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((size) => size >= raw);
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    values.push(+value.toPrecision(12));
  }
  return values;
}

function frame(title, height) {
  const reading = h("output", { class: "reading" });
  const host = h("div", { class: "plot" });
  host.style.height = `${height}px`;
  const figure = h("figure", { class: "chart" },
    h("figcaption", {}, h("span", {}, title), reading), host);
  return { figure, host, reading };
}

function onResize(host, draw) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && now !== width) {
      width = now;
      draw();
    }
  }).observe(host);
}

function axes(plot, x, y, xTicks, yTicks, format) {
  const { width, height } = plot;
  const step = (values) => (values.length > 1 ? values[1] - values[0] : 0);
  return [
    ...yTicks.map((value) => s("g", { class: "axis" },
      s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      s("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" },
        format(value, step(yTicks))))),
    ...xTicks.map((value) => s("text", {
      class: "axis-x", x: x(value), y: height - 6,
      "text-anchor": x(value) > width - 40 ? "end" : "middle",
    }, brief(value, step(xTicks)))),
  ];
}

/**
 * A line over samples seen.
 * options: title, format(value), axis(value, step), zero (whether the axis begins at 0), height
 */
export function lineChart({ title, format = digits, axis = brief, zero = false, height = 150 }) {
  const { figure, host, reading } = frame(title, height);
  let points = [];
  let hovered = null;

  function draw() {
    const width = host.clientWidth;
    const finite = points.filter(([, value]) => Number.isFinite(value));
    if (!width) return;
    if (!finite.length) {
      host.replaceChildren(h("p", { class: "nothing" }, "nothing measured yet"));
      setText(reading, "");
      return;
    }
    const values = finite.map(([, value]) => value);
    let low = zero ? 0 : Math.min(...values);
    let high = Math.max(...values);
    const isFlat = high === low;
    if (isFlat) [low, high] = zero ? [0, high || 1] : [low - 0.5, high + 0.5];
    const plot = { width, height };
    const last = points.at(-1)[0] || 1;
    const x = (samples) => MARGIN.left + (samples / last) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom
      - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const path = points.map(([samples, value], i) => {
      if (!Number.isFinite(value)) return "";
      const starts = i === 0 || !Number.isFinite(points[i - 1][1]);
      return `${starts ? "M" : "L"}${x(samples).toFixed(1)},${y(value).toFixed(1)}`;
    }).join("");
    const shown = hovered ?? finite.at(-1);
    const drawing = s("svg", { width, height, role: "img", "aria-label": describe(finite) },
      axes(plot, x, y, ticks(0, last, width / 110).filter(Number.isInteger),
        isFlat ? [values[0]] : ticks(low, high, 3), axis),
      s("path", { class: "curve", d: path }),
      s("circle", { class: "dot", cx: x(shown[0]), cy: y(shown[1]), r: 3 }));
    drawing.addEventListener("pointermove", (event) => {
      const at = event.clientX - drawing.getBoundingClientRect().left;
      hovered = finite.reduce((best, point) =>
        Math.abs(x(point[0]) - at) < Math.abs(x(best[0]) - at) ? point : best);
      draw();
    });
    drawing.addEventListener("pointerleave", () => {
      hovered = null;
      draw();
    });
    host.replaceChildren(drawing);
    const place = hovered ? ` at ${count(hovered[0])}` : "";
    setText(reading, `${format(shown[1])}${place}`);
  }

  function describe(finite) {
    return `${title}: ${format(finite[0][1])} at the start, ${format(finite.at(-1)[1])} now`;
  }

  onResize(host, draw);
  return {
    element: figure,
    update(newPoints) {
      points = newPoints;
      draw();
    },
  };
}

/** The schedule: learning rate over the plan, sources of each slice below it, and joins. */
export function scheduleChart() {
  const height = 210;
  const curveBottom = 140;
  const { figure, host, reading } = frame("Schedule", height);
  const legend = h("ul", { class: "legend" });
  figure.append(legend);
  let view = null;
  let samples = 0;

  function draw() {
    const width = host.clientWidth;
    if (!width) return;
    if (!view || !view.annealing_end) {
      host.replaceChildren(h("p", { class: "nothing" }, "no plan yet"));
      return;
    }
    const end = view.annealing_end;
    const x = (at) => MARGIN.left + (at / end) * (width - MARGIN.left - MARGIN.right);
    const y = (lr) => curveBottom - (lr / (view.lr_max * 1.05)) * (curveBottom - 22);
    const phases = [["warmup", 0, view.warmup_end], ["stable", view.warmup_end, view.stable_end],
      ["annealing", view.stable_end, end]];
    const curve = view.curve.map(([at, lr]) => `${x(at).toFixed(1)},${y(lr).toFixed(1)}`);
    const slices = view.edges.slice(0, -1).flatMap((start, i) => {
      const stop = view.edges[i + 1];
      let top = 152;
      return view.bands.map((band, number) => {
        const size = band.fractions[i] * 30;
        const rect = s("rect", {
          class: `band band-${number % 8}`, x: x(start).toFixed(2), y: top.toFixed(2),
          width: Math.max(x(stop) - x(start) + 0.3, 0).toFixed(2), height: size.toFixed(2),
        });
        top += size;
        return size > 0 ? rect : null;
      });
    });
    const joins = view.joins.map((join) => {
      const isLate = x(join.samples) > width * 0.7;
      return s("g", { class: "join" },
        s("line", { x1: x(join.samples), x2: x(join.samples), y1: 14, y2: 184 }),
        s("text", {
          x: x(join.samples) + (isLate ? -5 : 5), y: 18, "text-anchor": isLate ? "end" : "start",
        }, join.label));
    });
    host.replaceChildren(s("svg", { width, height, role: "img", "aria-label": describe() },
      phases.map(([name, start, stop]) => s("rect", {
        class: `phase ${name}`, x: x(start), y: 22, height: curveBottom - 22,
        width: Math.max(x(stop) - x(start), 0),
      })),
      axes({ width, height }, x, y, ticks(0, end, width / 110), [0, view.lr_max], brief),
      s("polyline", { class: "curve", points: curve.join(" ") }),
      slices, joins,
      s("line", { class: "now", x1: x(samples), x2: x(samples), y1: 22, y2: 186 })));
    setText(reading,
      `W ${count(view.warmup_end)} · S ${count(view.stable_end)} · A ${count(end)}`);
  }

  function describe() {
    const joined = view.joins.map((join) => `${join.label} at ${count(join.samples)}`);
    return `Learning rate up to ${digits(view.lr_max)}; W ${count(view.warmup_end)}, `
      + `S ${count(view.stable_end)}, A ${count(view.annealing_end)}; `
      + `sources ${view.bands.map((band) => band.source).join(", ")}; `
      + `${joined.join(", ") || "nothing joined yet"}`;
  }

  onResize(host, draw);
  return {
    element: figure,
    setSamples(value) {
      if (value !== samples) {
        samples = value;
        draw();
      }
    },
    update(newView) {
      view = newView;
      legend.replaceChildren(...view.bands.map((band, number) =>
        h("li", {}, h("i", { class: `swatch band-${number % 8}` }), band.source)));
      draw();
    },
  };
}
