// Elements and figures as text. Whatever comes from data becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element with attributes, listeners (`onclick`) and children; strings become text. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Sets the text of an element, unless it has it: a selection or a focus stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export const NONE = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 9 });

export function count(value) {
  return value === null || value === undefined ? NONE : whole.format(value);
}

/** A number with so many digits that count. */
export function digits(value, significant = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) {
    return value.toExponential(Math.min(significant - 1, 2));
  }
  return significantFormat(significant).format(value);
}

const formats = new Map();  // to make one takes longer than to draw a row

function significantFormat(digitCount) {
  if (!formats.has(digitCount)) {
    formats.set(digitCount, new Intl.NumberFormat("en", {
      minimumSignificantDigits: digitCount, maximumSignificantDigits: digitCount,
    }));
  }
  return formats.get(digitCount);
}

/**
 * A number for an axis: 12k, 3.4M, 1.5e-4.
 * It has three digits that count, and more where values that differ by `step` need them.
 */
export function brief(value, step = 0) {
  const size = Math.abs(value);
  const needed = step > 0 && size > 0 ? Math.ceil(Math.log10(size / step) - 1e-9) + 1 : 0;
  const short = +value.toPrecision(Math.min(Math.max(needed, 3), 15));
  if (size >= 1e9 || (size !== 0 && size < 1e-3)) return short.toExponential();
  if (size >= 1e6) return `${scaled(short, 6)}M`;
  if (size >= 1e4) return `${scaled(short, 3)}k`;
  return size >= 1000 ? grouped.format(short) : String(short);
}

/** A number divided by a power of ten, without what a division would add to its digits. */
function scaled(value, power) {
  return String(+`${value}e-${power}`);
}

export function percent(value) {
  return value === null || value === undefined ? NONE : `${(100 * value).toFixed(1)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.max(Math.round(seconds), 0)} s`;
  if (minutes < 60) return `${minutes}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}:${String(minutes % 60).padStart(2, "0")} h`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const clock = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "short", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** A time as `27 Nov 2026, 07:13:00`, in the zone of the browser. */
export function moment(unixSeconds) {
  const time = new Date(1000 * unixSeconds);
  return h("time", { datetime: time.toISOString() }, clock.format(time));
}

export function ago(unixSeconds) {
  if (!unixSeconds) return NONE;
  return `${duration(Math.max(Date.now() / 1000 - unixSeconds, 0))} ago`;
}

/** A command with a button that copies it. */
export function command(text) {
  const button = h("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(text);
    setText(button, "Copied");
    setTimeout(() => setText(button, "Copy"), 1500);
  });
  return h("div", { class: "command" }, h("code", { tabindex: 0 }, text), button);
}

export const STATES = {
  starting: "starting", training: "training", waiting: "waiting", finishing: "finishing",
  done: "done", stopped: "stopped", failed: "failed", lost: "driver lost", unknown: "not known",
};

export function stateChip() {
  const chip = h("span", { class: "state" });
  return {
    element: chip,
    update(state) {
      setAttribute(chip, "data-state", state);
      setText(chip, STATES[state] ?? state);
    },
  };
}
