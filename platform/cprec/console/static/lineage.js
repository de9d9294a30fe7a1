// The lineage of versions as a picture. Columns and rows come from the console.

import { h, s } from "./dom.js";

const NODE = { width: 156, height: 46 };
const STEP = { x: 206, y: 68 };
const MARGIN = 4;
const MAX_TEXT = 20;

const shorten = (text) => (text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT - 1)}…` : text);

/** Draws a graph; show(node) is called for a version that is clicked. */
export function lineageChart({ nodes, edges, columns, rows }, show) {
  const width = columns * STEP.x - (STEP.x - NODE.width) + 2 * MARGIN;
  const height = rows * STEP.y - (STEP.y - NODE.height) + 2 * MARGIN;
  const places = new Map(nodes.map((node) => [node.key,
    { x: MARGIN + node.column * STEP.x, y: MARGIN + node.row * STEP.y }]));
  return h("div", { class: "lineage", tabindex: 0 },
    s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": "Lineage of the versions" },
    edges.map((edge) => drawEdge(edge, places)),
    nodes.map((node) => drawNode(node, places.get(node.key), show))));
}

function drawEdge({ start, end, is_corpus: isCorpus }, places) {
  const a = places.get(start);
  const b = places.get(end);
  if (isCorpus) {  // from below a corpus version to above the version
    const [x0, y0, x1] = [a.x + NODE.width / 2, a.y + NODE.height, b.x + NODE.width / 2];
    const middle = (y0 + b.y) / 2;
    const bend = `${x0} ${middle} ${x1} ${middle}`;
    return s("path", { class: "corpus", d: `M${x0} ${y0} C${bend} ${x1} ${b.y}` });
  }
  const [x0, y0, y1] = [a.x + NODE.width, a.y + NODE.height / 2, b.y + NODE.height / 2];
  const middle = (x0 + b.x) / 2;
  return s("path", { d: `M${x0} ${y0} C${middle} ${y0} ${middle} ${y1} ${b.x} ${y1}` });
}

function drawNode(node, { x, y }, show) {
  const aliases = node.aliases.join(", ");
  const isVersion = node.number !== null;
  const act = isVersion ? {
    role: "button", tabindex: 0, onclick: () => show(node),
    onkeydown: (event) => { if (event.key === "Enter") show(node); },
  } : {};
  return s("g", { "data-kind": node.kind, ...act,
    "data-champion": node.aliases.includes("champion") ? "yes" : null },
  s("title", {}, [node.title, node.kind, node.subtitle, aliases].filter(Boolean).join(", ")),
  s("rect", { x, y, width: NODE.width, height: NODE.height, rx: 8 }),
  s("text", { class: "name", x: x + 11, y: y + 19 }, shorten(node.title)),
  s("text", { x: x + 11, y: y + 36 }, shorten(aliases || node.subtitle || node.kind)));
}
