// The frame of the page: which page is shown, and who looks at it.

import { Refusal, get, session, takeToken } from "./api.js";
import { h, setAttribute, setText } from "./dom.js";
import { showModels } from "./pages/models.js";
import { showRun } from "./pages/run.js";
import { showRuns } from "./pages/runs.js";
import { showTry } from "./pages/try.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
let leave = new AbortController();
let info = null;

function onLink(state) {
  setAttribute(link, "data-link", state);
  setText(link, state === "live" ? "live" : state === "away" ? "connecting again" : "");
}

async function route() {
  leave.abort();
  leave = new AbortController();
  onLink("");
  if (!session.token) return showSignIn("");
  try {
    info ??= await get("/api/session");
  } catch (error) {
    if (!(error instanceof Refusal && error.status === 401)) showProblem(error);
    return undefined;
  }
  const where = document.getElementById("where");
  setText(where, info.storage);
  setAttribute(where, "title", `Runs below ${info.storage}`);
  const context = { main, signal: leave.signal, onLink, info, name: session.name || info.name };
  setText(document.getElementById("who"), context.name);
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  for (const item of document.querySelectorAll("nav a")) {
    const isHere = item.dataset.page === (page || "runs");
    setAttribute(item, "aria-current", isHere ? "page" : null);
  }
  main.replaceChildren();
  scrollTo(0, 0);
  if (page === "models") return showModels(context);
  if (page === "try") return showTry(context);
  if (rest.length) return showRun(context, decodeURIComponent(rest.join("/")));
  return showRuns(context);
}

function showProblem(error) {
  main.replaceChildren(
    h("section", { class: "empty" },
      h("h1", {}, "The console does not answer"),
      h("p", {}, error.message),
      h("button", { type: "button", onclick: route }, "Try again")),
  );
}

function showSignIn(reason) {
  info = null;
  onLink("");
  setText(document.getElementById("where"), "");
  setText(document.getElementById("who"), "");
  const token = h("input", {
    id: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false",
  });
  const name = h("input", { id: "name", type: "text", maxlength: 40, value: session.name });
  const form = h("form", { class: "sign-in" },
    h("h1", {}, "Sign in"),
    h("p", { class: "muted" },
      "The token is in the address that jobs/console.py printed, or in CPREC_CONSOLE_TOKEN."),
    reason ? h("p", { class: "problem", role: "alert" }, reason) : null,
    h("label", { for: "token" }, "Token"), token,
    h("label", { for: "name" }, "Your name, for the events of what you do"), name,
    h("button", { class: "primary", type: "submit" }, "Sign in"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    session.set(token.value.trim(), name.value.trim());
    route();
  });
  main.replaceChildren(form);
  token.focus();
}

document.addEventListener("signed-out", () => {
  leave.abort();
  session.forget();
  showSignIn("This token is not the console's.");
});
document.getElementById("who").addEventListener("click", () => {
  leave.abort();
  session.forget();
  showSignIn("");
});
addEventListener("hashchange", () => {
  takeToken();
  route();
});
takeToken();
route();
