// Dialogs of what can be done: first what will happen, then the confirmation, then the answer.

import { get, post } from "./api.js";
import { command, h, setText } from "./dom.js";

const dialog = document.getElementById("dialog");

function open(title, content, buttons) {
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  dialog.replaceChildren(
    h("h2", { id: "dialog-title" }, title), content,
    h("div", { class: "buttons" }, close, buttons));
  if (!dialog.open) dialog.showModal();
  return close;
}

/** Shows what an act does to a run, and asks for it once that is confirmed. */
export function openAct(context, run, act) {
  const answer = h("p", { class: "answer", role: "status" });
  const confirm = h("button", {
    type: "button", class: act.is_final ? "danger" : "primary", "data-confirm": act.action,
  }, act.label);
  const close = open(`${act.label}: ${run}`, h("div", {},
    h("p", {}, act.effect), h("p", { class: "muted" }, "The same as:"), command(act.command),
    answer), confirm);
  confirm.addEventListener("click", async () => {
    confirm.disabled = true;
    setText(answer, "Asked; a run answers within a few seconds…");
    try {
      const path = `/api/runs/${encodeURIComponent(run)}/requests`;
      const { answer: text } = await post(path, { action: act.action }, context.name);
      answer.dataset.tone = "good";
      setText(answer, text);
    } catch (error) {
      answer.dataset.tone = "bad";
      setText(answer, error.message);
    }
    setText(close, "Close");
    close.focus();
  });
}

/** Shows lines of a job as they come; resolves with how it ended, or null if nobody wants it. */
async function watchJob(job, output, isWanted) {
  for (let now = job; ; now = await get(`/api/jobs/${job.number}`)) {
    setText(output, now.lines.join("\n") || "starting…");
    output.scrollTop = output.scrollHeight;
    if (now.state !== "running") return now.state;
    if (!isWanted()) return null;
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}

/**
 * A dialog in two steps: a dry run that says what would happen, then the same in earnest.
 * start(commit) returns the job.
 */
function openTwoSteps({ title, content, preview, commit, start, onDone }) {
  const output = h("pre", { class: "output", tabindex: 0, hidden: true });
  const shown = h("div", {});
  const verdict = h("p", { class: "answer", role: "status" });
  const tryButton = h("button", { type: "button", "data-step": "preview" }, preview);
  const doButton = h("button", {
    type: "button", class: "primary", "data-step": "commit", disabled: true,
  }, commit);
  const close = open(title, h("div", {}, content, shown, output, verdict), [tryButton, doButton]);

  async function run(isCommit) {
    tryButton.disabled = doButton.disabled = true;
    output.hidden = false;
    delete verdict.dataset.tone;
    setText(verdict, "");
    try {
      const job = await start(isCommit);
      shown.replaceChildren(command(job.command));
      // What is done in earnest goes on when the dialog is closed, and the page shows its result.
      const state = await watchJob(job, output, () => isCommit || dialog.open);
      const isDone = state === "done";
      verdict.dataset.tone = isDone ? "good" : "bad";
      if (isCommit && isDone) {
        setText(verdict, "Done.");
        setText(close, "Close");
        if (dialog.open) close.focus();
        onDone?.();
        return;
      }
      setText(verdict, isDone ? "Checked: nothing was written yet." : "Refused; see above.");
      tryButton.disabled = false;
      doButton.disabled = !isDone;
      if (isDone) doButton.focus();
    } catch (error) {
      verdict.dataset.tone = "bad";
      setText(verdict, error.message);
      tryButton.disabled = false;
    }
  }

  tryButton.addEventListener("click", () => run(false));
  doButton.addEventListener("click", () => run(true));
  return { reset() { doButton.disabled = true; } };
}

export async function openAppend(context) {
  open("Append a domain", h("p", {}, "Reading the data root…"), []);
  let view;
  try {
    view = await get("/api/domains");
  } catch (error) {
    open("Append a domain", h("p", { class: "problem", role: "alert" }, error.message), []);
    return;
  }
  const usable = view.domains.filter((domain) => !domain.held_out);
  if (!usable.length) {
    open("Append a domain", h("p", {},
      `The data root ${context.info.data_root} has no domain that can be appended.`), []);
    return;
  }
  const choice = h("select", { id: "domain" }, usable.map(({ name, in_corpus: isKnown }) =>
    h("option", { value: name }, isKnown ? `${name} (in the corpus; newer rows)` : name)));
  const fresh = usable.find((domain) => !domain.in_corpus);
  if (fresh) choice.value = fresh.name;
  const steps = openTwoSteps({
    title: "Append a domain",
    content: h("div", {},
      h("label", { for: "domain" }, "Domain of the data root"), choice,
      h("p", {}, `It becomes version ${view.version + 1} of the corpus. `
        + "Earlier rows stay as they are; a version is never taken back."),
      h("ul", { class: "joins" }, view.joins.map((line) => h("li", {}, line)))),
    preview: "Check and count rows",
    commit: "Append",
    start: (commit) => post("/api/appends", { domain: choice.value, commit }, context.name),
  });
  choice.addEventListener("change", () => steps.reset());
}

export function openPromote(context, model, version, onDone) {
  openTwoSteps({
    title: `Promote version ${version}`,
    content: h("p", {}, "The gate compares it with the champion; what nobody has measured yet is "
      + "measured first, which takes minutes. If it passes every line, it is the champion, and "
      + "what serves the champion takes it up."),
    preview: "Check",
    commit: "Put before the gate",
    start: (commit) => post("/api/promotions", { model, version, commit }, context.name),
    onDone,
  });
}

export function openRollback(context, onDone) {
  openTwoSteps({
    title: "Roll back",
    content: h("p", {}, "The champion before the present one becomes the champion again, and what "
      + "serves the champion takes it up. Nothing is deleted."),
    preview: "Check",
    commit: "Roll back",
    start: (commit) => post("/api/rollbacks", { commit }, context.name),
    onDone,
  });
}
