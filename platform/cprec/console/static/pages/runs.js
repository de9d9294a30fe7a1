// All runs below the storage.

import { follow } from "../api.js";
import { NONE, STATES, ago, count, digits, duration, h, setAttribute, setText, stateChip }
  from "../dom.js";
import { phaseBar } from "../phase_bar.js";

const ORDER = ["training", "waiting", "starting", "finishing", "unknown",
  "failed", "lost", "stopped", "done"];
const ARRANGE_MS = 20;
const AGE_MS = 20_000;
const names = new Intl.Collator();
const COLUMNS = [
  ["Run", ""], ["Schedule", ""], ["Samples", "number"], ["Learning rate", "number"],
  ["Loss", "number"], ["Tokens/s", "number"], ["Left", "number"], ["Workers", "number"],
  ["Checkpoint", "number"], ["Seen", "number"],
];

export function showRuns({ main, signal, onLink, info }) {
  const rows = new Map();
  const summary = h("p", { class: "summary", role: "status" }, "Reading the storage…");
  const filter = h("input", {
    type: "search", placeholder: "Filter by name or state", "aria-label": "Filter runs",
  });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const body = h("tbody");
  const table = h("table", { class: "runs", hidden: true },
    h("thead", {}, h("tr", {}, COLUMNS.map(([name, kind]) =>
      h("th", { scope: "col", class: kind }, name)))),
    body);
  const empty = h("section", { class: "empty", hidden: true },
    h("h2", {}, "No runs yet"),
    h("p", {}, "Nothing below ", h("code", {}, info.storage),
      " is a run. Start one, and it appears here by itself:"),
    h("p", {}, h("code", {}, "python jobs/cpt.py RECIPE.yaml --run first")));
  main.append(
    h("div", { class: "title" }, h("h1", {}, "Runs"), summary, filter), problem, table, empty);

  function arrange() {
    const wanted = filter.value.trim().toLowerCase();
    const sorted = [...rows.values()].sort((a, b) => compare(a.row, b.row));
    for (const { element, row } of sorted) {
      const text = `${row.run} ${STATES[row.state]}`.toLowerCase();
      element.hidden = wanted !== "" && !text.includes(wanted);
    }
    const order = sorted.map((entry) => entry.element);
    if (order.length !== body.children.length
        || order.some((element, i) => body.children[i] !== element)) {
      const focused = document.activeElement;
      body.replaceChildren(...order);
      if (focused !== document.activeElement) focused?.focus?.();
    }
    table.hidden = rows.size === 0;
    empty.hidden = rows.size > 0 || !problem.hidden;
    setText(summary, summarise(sorted.map((entry) => entry.row)));
  }

  // A thousand runs arrive in many pieces; the table is arranged once for those that are there.
  let timer = null;
  function arrangeSoon() {
    timer ??= setTimeout(() => {
      timer = null;
      arrange();
    }, ARRANGE_MS);
  }

  const aging = setInterval(() => rows.forEach((entry) => entry.showAge()), AGE_MS);
  signal.addEventListener("abort", () => clearInterval(aging));
  filter.addEventListener("input", arrange);
  follow("/api/runs", (parts) => {
    for (const { name, content } of parts) {
      if (name === "problem") {
        problem.hidden = !content;
        setText(problem, content ?? "");
        continue;
      }
      if (name === "names") {  // complete, also after a connection that broke off
        const known = new Set(content);
        for (const run of rows.keys()) if (!known.has(run)) rows.delete(run);
        continue;
      }
      if (content === null) continue;
      const run = name.slice(4);
      if (!rows.has(run)) rows.set(run, buildRow(run));
      rows.get(run).update(content);
    }
    arrangeSoon();
  }, onLink, signal);
}

function compare(a, b) {
  return ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || isResting(a) * (b.time - a.time)
    || names.compare(a.run, b.run);
}

function isResting(row) {
  return ORDER.indexOf(row.state) > 4 ? 1 : 0;
}

function summarise(rows) {
  const parts = ORDER.map((state) => [state, rows.filter((row) => row.state === state).length])
    .filter(([, number]) => number > 0)
    .map(([state, number]) => `${count(number)} ${STATES[state]}`);
  return parts.length ? parts.join(" · ") : "none";
}

function buildRow(run) {
  const chip = stateChip();
  const note = h("span", { class: "note" });
  const bar = phaseBar();
  const cells = COLUMNS.slice(2).map(([name]) =>
    h("td", { class: "number", "data-label": name }));
  const element = h("tr", {},
    h("th", { scope: "row" },
      h("a", { href: `#/runs/${encodeURIComponent(run)}` }, run), chip.element, note),
    h("td", { class: "bar-cell" }, bar.element),
    cells);
  const entry = {
    element,
    row: null,
    update(row) {
      entry.row = row;
      chip.update(row.state);
      setText(note, row.waits_for);
      setAttribute(note, "title", row.waits_for || null);
      bar.update(row);
      const isLive = !isResting(row);
      const values = [
        row.annealing_end ? `${count(row.samples)} / ${count(row.annealing_end)}` : NONE,
        digits(row.lr, 3), digits(row.loss, 4), isLive ? count(row.tokens_per_s) : NONE,
        duration(row.seconds_left), count(row.workers), count(row.checkpoint_samples),
      ];
      values.forEach((value, i) => setText(cells[i], value));
      entry.showAge();
    },
    showAge() {
      setText(cells.at(-1), isResting(entry.row) ? ago(entry.row.time) : "now");
    },
  };
  return entry;
}
