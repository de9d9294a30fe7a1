// Registered models: versions with lineage, metrics, decisions of the gate.

import { openPromote, openRollback } from "../acts.js";
import { get } from "../api.js";
import { NONE, count, h, moment } from "../dom.js";
import { lineageChart } from "../lineage.js";

export async function showModels(context) {
  const { main, info } = context;
  const again = () => load(true);
  const refresh = h("button", { type: "button", onclick: again }, "Read again");
  const place = h("div", { class: "page" }, h("p", { class: "muted" }, "Reading the registry…"));
  main.append(h("div", { class: "title" }, h("h1", {}, "Models"), refresh), place);
  await load();

  async function load() {
    try {
      const { graph, models } = await get("/api/models");
      place.replaceChildren(...(models.length
        ? [lineage(graph),
          ...models.map((model) => showModel(context, model, model.model === info.model, again))]
        : [empty(info)]));
    } catch (error) {
      place.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
    }
  }
}

function lineage(graph) {
  const show = ({ model, number }) => document.getElementById(cardId(model, number))
    ?.scrollIntoView({ behavior: "smooth", block: "center" });
  return h("section", { class: "card" }, h("h2", {}, "Lineage"), lineageChart(graph, show));
}

const cardId = (model, number) => `version-${model}-${number}`;

function empty(info) {
  return h("section", { class: "empty" },
    h("h2", {}, "No versions yet"),
    h("p", {}, "A finished run registers its last checkpoint as a version of ",
      h("code", {}, info.model), "."));
}

function showModel(context, { model, versions }, isOwn, onDone) {
  const hasPrevious = versions.some((version) => version.aliases.includes("previous"));
  return h("section", { class: "model" },
    h("div", { class: "title" }, h("h2", {}, model),
      isOwn ? h("button", {
        type: "button", disabled: !hasPrevious, "data-act": "rollback",
        title: hasPrevious ? "" : "There is no champion before the present one",
        onclick: () => openRollback(context, onDone),
      }, "Roll back") : null),
    h("ol", { class: "versions" }, versions.map((version) =>
      showVersion(context, model, version, onDone))));
}

function showVersion(context, model, version, onDone) {
  const isChampion = version.aliases.includes("champion");
  const origin = version.parent !== null ? `from version ${version.parent}`
    : version.parent_run ? `from run ${version.parent_run}` : "from the base";
  const item = h("li", { class: "card version", id: cardId(model, version.number) },
    h("div", { class: "version-head" },
      h("h3", {}, `Version ${version.number}`),
      version.aliases.map((alias) => h("span", { class: "alias", "data-alias": alias }, alias)),
      h("span", { class: "muted" }, `${version.kind} ${version.run}, ${origin}`),
      h("button", {
        type: "button", disabled: isChampion, "data-act": "promote",
        title: isChampion ? "It is the champion already" : "",
        onclick: () => openPromote(context, model, version.number, onDone),
      }, "Promote")),
    h("p", { class: "facts" },
      `base ${version.base || NONE} · corpus version ${version.corpus_version || NONE} · `,
      version.trained_on.map(({ source, samples }) => `${source} ${count(samples)}`).join(", ")
        || "trained on: not recorded"),
    version.evaluations.length ? evaluations(version.evaluations)
      : h("p", { class: "muted" }, "Not evaluated yet."),
    version.decisions.map(decision));
  item.style.setProperty("--depth", Math.min(version.depth, 6));
  return item;
}

function evaluations(entries) {
  const head = ["Domain", "Split", "n", "HR@1", "95 % interval", "HR@5", "NDCG@5", "Chance"];
  const rate = (value) => (value === null ? NONE : value.toFixed(4));
  return h("div", { class: "scroll" }, h("table", { class: "plain-table" },
    h("thead", {}, h("tr", {}, head.map((name, i) =>
      h("th", { scope: "col", class: i > 1 ? "number" : "" }, name)))),
    h("tbody", {}, entries.map((entry) => h("tr", {},
      h("th", { scope: "row" }, entry.domain), h("td", {}, entry.split),
      [count(entry.n), rate(entry.hr1),
        entry.low === null ? NONE : `${rate(entry.low)} – ${rate(entry.high)}`,
        rate(entry.hr5), rate(entry.ndcg5), rate(entry.chance)].map((text) =>
        h("td", { class: "number" }, text)))))));
}

function decision({ time, promoted, reason, by, lines }) {
  return h("details", { class: "decision" },
    h("summary", { "data-tone": promoted ? "good" : "warning" },
      promoted ? "Promoted" : "Not promoted", h("span", { class: "muted" }, ` ${reason}`)),
    h("p", { class: "muted" }, time === null ? null : moment(time), by ? ` · ${by}` : null),
    lines.length ? h("ul", { class: "gate" }, lines.map((line) =>
      h("li", { "data-tone": line.passed ? "good" : "bad" },
        h("strong", {}, line.passed ? "passed" : "refused"), ` ${line.key}: wanted `,
        `${line.wanted}; seen ${line.seen}`))) : null);
}
