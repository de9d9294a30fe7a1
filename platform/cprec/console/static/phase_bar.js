// The bar of a run: warmup, stable and annealing to scale, and how far it is.

import { count, h, setAttribute, setText } from "./dom.js";

const PHASES = ["warmup", "stable", "annealing"];

export function phaseBar(withLabels = false) {
  const parts = PHASES.map((phase) => h("span", { class: `part ${phase}` }, h("i")));
  const before = h("span", { class: "before", hidden: true });
  const track = h("span", { class: "track" }, parts, before);
  const labels = ["W", "S", "A"].map(() => h("span", {}));
  const element = h("div", { class: "phase-bar", role: "img" },
    track, withLabels ? h("span", { class: "ends" }, labels) : null);
  return {
    element,
    update(row) {
      const end = Math.max(row.annealing_end, 1);
      const edges = [0, row.warmup_end, row.stable_end, row.annealing_end];
      PHASES.forEach((phase, i) => {
        const size = edges[i + 1] - edges[i];
        const done = Math.min(Math.max(row.samples - edges[i], 0), size);
        parts[i].style.width = `${(100 * size) / end}%`;
        parts[i].firstChild.style.width = size ? `${(100 * done) / size}%` : "0";
      });
      const moved = row.stable_end_before !== null && row.stable_end_before !== row.stable_end;
      before.hidden = !moved;
      if (moved) {
        before.style.left = `${(100 * row.stable_end_before) / end}%`;
        setAttribute(before, "title", `S was ${count(row.stable_end_before)}`);
      }
      const names = ["W", "S", "A"].map((name, i) => `${name} ${count(edges[i + 1])}`);
      names.forEach((name, i) => setText(labels[i], name));
      // Above its edge, unless the names of the ends are there.
      labels[1].style.left = `${Math.min(Math.max((100 * row.stable_end) / end, 25), 75)}%`;
      setAttribute(element, "aria-label", row.annealing_end
        ? `${row.phase ?? "not started"}, ${count(row.samples)} of ${count(row.annealing_end)} `
          + `samples; ${names.join(", ")}`
        : "no plan yet");
      setAttribute(element, "data-empty", row.annealing_end ? null : "yes");
    },
  };
}
