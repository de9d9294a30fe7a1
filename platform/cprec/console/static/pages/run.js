// One run, live.

import { openAct, openAppend } from "../acts.js";
import { follow } from "../api.js";
import { lineChart, scheduleChart } from "../charts.js";
import { NONE, brief, command, count, digits, duration, h, moment, percent, setAttribute, setText,
  stateChip } from "../dom.js";
import { phaseBar } from "../phase_bar.js";

const FIGURES = [
  ["Samples", (row) => count(row.samples)],
  ["Learning rate", (row) => digits(row.lr, 3)],
  ["Loss", (row) => digits(row.loss, 4)],
  ["Tokens/s", (row) => count(row.tokens_per_s)],
  ["Left", (row) => duration(row.seconds_left)],
  ["Workers", (row) => count(row.workers)],
  ["Last checkpoint", (row) => count(row.checkpoint_samples)],
  ["Corpus version", (row) => count(row.corpus_version)],
];

export function showRun(context, run) {
  const { main, signal, onLink } = context;
  document.title = `${run} · cprec console`;
  signal.addEventListener("abort", () => { document.title = "cprec console"; });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const chip = stateChip();
  const detail = h("p", { class: "detail" }, " ");
  const bar = phaseBar(true);
  const figures = FIGURES.map(([name]) => ({ name, value: h("dd", {}, NONE) }));
  const acts = buildActs(context, run);
  const schedule = scheduleChart();
  const charts = {
    loss: lineChart({ title: "Loss" }),
    tokens_per_s: lineChart({ title: "Tokens/s", format: count, zero: true }),
    data_wait: lineChart({
      title: "Data wait", format: percent, zero: true,
      axis: (value, step) => `${brief(100 * value, 100 * step)} %`,
    }),
    memory_gb: lineChart({ title: "Memory (GB)", format: (v) => digits(v, 3), zero: true }),
    perplexity: lineChart({ title: "Perplexity of the plain text" }),
  };
  const timeline = h("ol", { class: "timeline" });
  const checkpoints = h("div", { class: "checkpoints" });
  const audit = h("div", { class: "audit" });
  const content = h("div", { class: "page" });
  let isKnown = false;
  main.append(
    h("div", { class: "title" },
      h("p", { class: "crumb" }, h("a", { href: "#/runs" }, "Runs"), " /"),
      h("h1", {}, run), chip.element),
    problem, content);
  content.append(
    detail, bar.element,
    h("dl", { class: "figures" }, figures.map(({ name, value }) =>
      h("div", {}, h("dt", {}, name), value))),
    acts.element,
    h("section", { class: "card" }, schedule.element),
    h("div", { class: "charts" }, Object.values(charts).map((chart) =>
      h("section", { class: "card" }, chart.element))),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "Events"), timeline),
      h("div", {},
        h("section", { class: "card" }, h("h2", {}, "Checkpoints"), checkpoints),
        h("section", { class: "card" }, h("h2", {}, "Audit"), audit))));

  let series = null;
  let perplexity = [];
  function drawSeries() {
    if (series) {
      for (const name of ["loss", "tokens_per_s", "data_wait", "memory_gb"]) {
        charts[name].update(series.samples.map((at, i) => [at, series[name][i]]));
      }
    }
    charts.perplexity.update(perplexity);
  }
  const show = {
    head({ row, acts: list }) {
      isKnown = true;
      content.hidden = false;
      chip.update(row.state);
      setText(detail, row.waits_for || row.detail);
      bar.update(row);
      FIGURES.forEach(([, format], i) => setText(figures[i].value, format(row)));
      acts.update(row, list);
      schedule.setSamples(row.samples);
    },
    schedule(view) {
      schedule.update(view);
    },
    series(view) {
      series = view;
      drawSeries();
    },
    perplexity(points) {
      perplexity = points;
      charts.perplexity.element.parentElement.hidden = points.length === 0;
      drawSeries();
    },
    timeline(entries) {
      timeline.replaceChildren(...entries.map(timelineEntry));
    },
    checkpoints(entries) {
      checkpoints.replaceChildren(...showCheckpoints(entries));
    },
    audit(view) {
      audit.replaceChildren(...showAudit(view));
    },
    problem(text) {
      problem.hidden = !text;
      setText(problem, text ?? "");
      content.hidden = Boolean(text) && !isKnown;  // there is no such run
    },
  };
  for (const [element, text] of [[timeline, "No events yet."],
    [checkpoints, "No checkpoint yet."], [audit, "No step yet."]]) {
    element.replaceChildren(h(element === timeline ? "li" : "p", { class: "muted" }, text));
  }
  follow(`/api/runs/${encodeURIComponent(run)}`, (parts) => {
    for (const { name, content } of parts) if (content !== null || name === "problem") {
      show[name]?.(content);
    }
  }, onLink, signal);
}

function buildActs(context, run) {
  const buttons = new Map();
  let row = null;
  const append = h("button", { type: "button", "data-act": "append" }, "Append a domain");
  append.addEventListener("click", () => openAppend(context));
  const element = h("div", { class: "acts", role: "group", "aria-label": "What to do" });
  return {
    element,
    update(newRow, list) {
      row = newRow;
      for (const act of list) {
        if (!buttons.has(act.action)) {
          const button = h("button", { type: "button", "data-act": act.action }, act.label);
          const ask = () => openAct(context, run, buttons.get(act.action).act);
          button.addEventListener("click", ask);
          buttons.set(act.action, { button, act });
          element.append(button);
          if (act.action === "anneal") element.append(append);
        }
        const entry = buttons.get(act.action);
        entry.act = act;
        entry.button.disabled = !act.allowed;
        setAttribute(entry.button, "title", act.effect);
      }
      append.disabled = !row.corpus;
    },
  };
}

function timelineEntry({ time, samples, title, text, tone, by }) {
  return h("li", { "data-tone": tone },
    h("div", { class: "what" }, h("strong", {}, title),
      by ? h("span", { class: "by" }, by) : null),
    text ? h("p", {}, text) : null,
    h("div", { class: "when" }, moment(time), ` · sample ${count(samples)}`));
}

function showCheckpoints(entries) {
  if (!entries.length) return [h("p", { class: "muted" }, "No checkpoint yet.")];
  return entries.map(({ checkpoint, anneal, resume }) => {
    const head = h("summary", {},
      h("span", { class: "number" }, count(checkpoint.samples)), " samples ",
      h("span", { class: "muted" }, checkpoint.is_stable ? "stable" : "annealing"));
    return h("details", { name: "checkpoint" }, head,
      h("p", { class: "uri" }, checkpoint.uri),
      anneal ? [h("p", {}, "Anneal from here, as a branch:"), command(anneal)] : null,
      resume ? [h("p", {}, "Continue from here, as a new run:"), command(resume)] : null,
      anneal ? null : h("p", { class: "muted" },
        "Taken while annealing: no run can continue from it."));
  });
}

function showAudit(view) {
  const isWhole = view.missing === 0 && view.repeated === 0;
  const verdict = view.is_final
    ? (isWhole ? "Every planned sample was trained exactly once." : "The audit failed.")
    : (isWhole ? "So far, no sample is missing or repeated." : "So far, the steps have gaps.");
  const line = (source) => h("tr", {},
    h("th", { scope: "row" }, source.source),
    ["planned", "trained", "missing", "repeated"].map((name) =>
      h("td", { class: "number" }, count(source[name]))));
  const head = ["", "Planned", "Trained", "Missing", "Repeated"].map((name, i) =>
    h("th", { scope: "col", class: i ? "number" : "" }, name));
  return [
    h("p", { "data-tone": isWhole ? "good" : "bad", class: "verdict" }, verdict),
    h("div", { class: "scroll" }, h("table", { class: "plain-table" },
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {},
        view.sources.map((source) => line({ ...source,
          source: `${source.source} v${source.version}` })),
        line({ ...view, source: "All" })))),
  ];
}
