// A small chart of a run: the share of each concept and the drift of what is preserved, in percent,
// and the smoothed loss on a scale of its own, over the steps.
const SVG = "http://www.w3.org/2000/svg";
// Legible on a dark and on a light page, and apart for eyes that do not tell red from green.
export const COLORS = ["#3b82f6", "#c026d3", "#0d9488", "#7c6ff0", "#db2777", "#0284c7"];
export const DRIFT = "#d97706";
export const LOSS = "#8a8a8a";
const HEIGHT = 112;
const EDGE = { left: 38, right: 8, top: 6, bottom: 16 };
const SMOOTH = 0.9;

/** Draws anew; `run` is what live.js keeps of a run. */
export function draw(svg, run, width) {
  const frame = { right: width - EDGE.right, bottom: HEIGHT - EDGE.bottom };
  const [low, high] = range(run);
  // A run that was ended early fills the chart all the same.
  const total = Math.max((run.running ? run.total : run.step) ?? 1, 1);
  const x = (step) => EDGE.left + (step / total) * (frame.right - EDGE.left);
  const y = (part) => frame.bottom - ((part - low) / (high - low)) * (frame.bottom - EDGE.top);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("height", HEIGHT);
  svg.replaceChildren(
    ...axes(frame, x, y, low, high, total),
    path(scaled(smoothed(run.losses), frame), x, LOSS, 1),
    path(run.probes.map((probe) => [probe.step, y(worst(probe.drift).part)]), x, DRIFT, 2, "5 3"),
    ...names(run).map((name, i) =>
      path(run.probes.map((probe) => [probe.step, y(probe.share[name])]), x, COLORS[i % COLORS.length], 2),
    ),
  );
}

/** Of several prompts, the one that has drifted most. */
export function worst(drift) {
  const [prompt, part] = Object.entries(drift).reduce((a, b) => (b[1] > a[1] ? b : a), ["", 0]);
  return { prompt, part };
}

export const names = (run) => Object.keys(run.probes.at(-1)?.share ?? {});

/** Losses of single steps jump about: the running mean that starts at the first of them. */
export function smoothed(losses) {
  let mean = losses[0]?.[1];
  return losses.map(([step, loss]) => [step, (mean = SMOOTH * mean + (1 - SMOOTH) * loss)]);
}

function range(run) {
  const seen = run.probes.flatMap((probe) => [...Object.values(probe.share), worst(probe.drift).part]);
  return [Math.min(0, ...seen), Math.max(1, ...seen)];
}

/** On a scale of its own, from its least to its most. */
function scaled(points, frame) {
  const values = points.map(([, value]) => value);
  const least = Math.min(...values);
  const span = Math.max(...values) - least || 1;
  const height = frame.bottom - EDGE.top;
  return points.map(([step, value]) => [step, frame.bottom - ((value - least) / span) * height]);
}

function axes(frame, x, y, low, high, total) {
  const marks = [0, high, ...(low < -0.15 ? [low] : [])];
  return [
    ...marks.map((part) =>
      element("line", { x1: EDGE.left, x2: frame.right, y1: y(part), y2: y(part), class: part ? "rule" : "gone" }),
    ),
    ...marks.map((part) =>
      text(part ? `${Math.round(100 * part)} %` : "gone", EDGE.left - 4, y(part) + 3.5, "end"),
    ),
    text("0", x(0), HEIGHT - 4, "middle"),
    text(`${total} ${total === 1 ? "step" : "steps"}`, frame.right, HEIGHT - 4, "end"),
  ];
}

function path(points, x, color, width, dashes = "none") {
  const d = points.map(([step, height], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${height.toFixed(1)}`).join("");
  return element("path", {
    d, fill: "none", stroke: color, "stroke-width": width, "stroke-dasharray": dashes, "stroke-linejoin": "round",
  });
}

function text(content, x, y, anchor) {
  const made = element("text", { x, y, "text-anchor": anchor });
  made.textContent = content;
  return made;
}

function element(kind, attributes) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
