// Try it: a history, candidates, and how two models rank them, side by side.

import { get, post } from "../api.js";
import { count, h, percent, setText } from "../dom.js";

const BASE = { name: "base", title: "the base, untrained", aliases: [] };

export async function showTry(context) {
  const { main, signal } = context;
  const place = h("div", {}, h("p", { class: "muted" },
    "Starting the process that ranks, which takes some seconds…"));
  main.append(h("div", { class: "title" }, h("h1", {}, "Try it")), place);
  let choices;
  try {
    choices = await get("/api/try");
  } catch (error) {
    place.replaceChildren(h("p", { class: "problem", role: "alert" }, error.message));
    return;
  }
  if (signal.aborted) return;
  if (!choices.models.length) {
    place.replaceChildren(h("section", { class: "empty" },
      h("h2", {}, "No versions yet"),
      h("p", {}, "Train a run, and its last checkpoint can be tried here.")));
    return;
  }
  place.replaceChildren(buildForm(context, choices));
}

/** The champion, or else the newest version; and beside it the newest other one. */
function chooseModels(models) {
  const first = models.find(({ aliases }) => aliases.includes("champion")) ?? models[0];
  return [first, models.find((model) => model !== first) ?? BASE];
}

function buildForm(context, { domains, models }) {
  const ask = (question) => post("/api/try", question, context.name);
  const offered = [...models, BASE];
  const chosen = chooseModels(models);
  const domain = h("select", { id: "try-domain" },
    domains.map((name) => h("option", { value: name }, name)));
  const pickers = chosen.map((model, i) => h("select", { id: `try-model-${i}` },
    offered.map(({ name, title, aliases }) => h("option",
      { value: name, selected: name === model.name },
      aliases.length ? `${title} (${aliases.join(", ")})` : title))));
  const history = h("textarea", { id: "try-history", rows: 8, spellcheck: "false" });
  const candidates = h("textarea", { id: "try-candidates", rows: 8, spellcheck: "false" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const results = h("div", { class: "rankings", role: "status" });
  const button = h("button", { type: "submit", class: "primary" }, "Rank");
  const note = h("p", { class: "muted" });
  let taken = null;

  const users = search("A user of the corpus", "user id", async (find) => {
    const answer = await ask({ ask: "users", domain: domain.value, find });
    return answer.users.map(({ user_id: user, length }) => ({
      text: user, hint: `${count(length)} items`, pick: () => pickUser(user),
    }));
  }, tell);
  const titles = search("A title to add to the history", "part of a title", async (find) => {
    const answer = await ask({ ask: "titles", domain: domain.value, find });
    return answer.titles.map((title) => ({
      text: title, hint: "", pick: () => { addLine(history, title); forgetTaken(); },
    }));
  }, tell);

  async function pickUser(user) {
    try {
      const sample = await ask({ ask: "sample", domain: domain.value, user });
      history.value = sample.history.join("\n");
      candidates.value = sample.candidates.join("\n");
      taken = sample.taken;
      setText(note, `What ${user} took before the last choice, and what that choice was among.`);
      tell("");
    } catch (error) {
      tell(error.message);
    }
  }

  function forgetTaken() {
    taken = null;
    setText(note, "");
  }

  function tell(text) {
    problem.hidden = !text;
    setText(problem, text);
  }

  history.addEventListener("input", forgetTaken);
  domain.addEventListener("change", () => {
    history.value = candidates.value = "";
    forgetTaken();
    users.clear();
    titles.clear();
    results.replaceChildren();
  });
  const form = h("form", { class: "try" },
    h("section", { class: "card fields" },
      field("Domain", domain), field("Model", pickers[0]), field("Beside it", pickers[1]),
      users.element, titles.element),
    h("section", { class: "card fields" },
      field("History, one title a line, the oldest first", history),
      field("Candidates, one title a line; without any, 20 are drawn", candidates),
      note, problem, h("div", { class: "buttons" }, button)),
    results);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    tell("");
    results.replaceChildren(h("p", { class: "muted" },
      "Ranking; a model that was not asked before is loaded first…"));
    try {
      const names = [...new Set(pickers.map((picker) => picker.value))];
      const answer = await ask({
        ask: "rank", domain: domain.value, models: names,
        history: lines(history), candidates: lines(candidates),
      });
      if (!lines(candidates).length) {
        candidates.value = answer.rankings.find(({ items }) => items.length)?.items
          .map(({ title }) => title).sort().join("\n") ?? "";
      }
      results.replaceChildren(...answer.rankings.map((ranking) =>
        showRanking(ranking, offered.find(({ name }) => name === ranking.model), taken)),
      h("p", { class: "muted wide-note" },
        "Fractions of the likelihood of these candidates alone, and no calibrated confidence."));
    } catch (error) {
      results.replaceChildren();
      tell(error.message);
    }
    button.disabled = false;
  });
  return form;
}

function field(label, control) {
  return h("div", {}, h("label", { for: control.id }, label), control);
}

const lines = (area) => area.value.split("\n").map((line) => line.trim()).filter(Boolean);

function addLine(area, line) {
  area.value = [...lines(area), line].join("\n");
}

/** A search box with what was found below it; find(text) returns {text, hint, pick} each. */
function search(label, placeholder, find, tell) {
  const id = `search-${label.split(" ")[1]}`;
  const input = h("input", { id, type: "search", placeholder, autocomplete: "off" });
  const found = h("ul", { class: "found" });
  let last = 0;
  async function look() {
    const mine = ++last;
    try {
      const entries = await find(input.value.trim());
      if (mine !== last) return;  // something newer was typed
      found.replaceChildren(...(entries.length ? entries.map(({ text, hint, pick }) =>
        h("li", {}, h("button", { type: "button", class: "plain", onclick: pick }, text,
          hint ? h("span", { class: "muted" }, ` ${hint}`) : null)))
        : [h("li", { class: "muted" }, "Nothing found.")]));
    } catch (error) {
      tell(error.message);
    }
  }
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 250);
  });
  input.addEventListener("focus", () => { if (!found.childElementCount) look(); });
  return {
    element: h("div", {}, h("label", { for: id }, label), input, found),
    clear() { input.value = ""; found.replaceChildren(); },
  };
}

function showRanking({ model, error, items }, known, taken) {
  const largest = items[0]?.share || 1;
  return h("section", { class: "card ranking" },
    h("h2", {}, known?.title ?? model,
      (known?.aliases ?? []).map((alias) =>
        h("span", { class: "alias", "data-alias": alias }, alias))),
    error ? h("p", { class: "problem", role: "alert" }, error) : null,
    h("ol", {}, items.map(({ title, share }) => {
      const meter = h("i", {});
      meter.style.width = `${(100 * share) / largest}%`;
      return h("li", { "data-taken": title === taken ? "yes" : null },
        h("span", { class: "share" }, percent(share)),
        h("span", { class: "name" }, title,
          title === taken ? h("strong", {}, " taken next") : null),
        h("span", { class: "meter", "aria-hidden": "true" }, meter));
    })));
}
