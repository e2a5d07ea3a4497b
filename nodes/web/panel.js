// What a node shows of its run.
import { api } from "../../scripts/api.js";
import { COLORS, DRIFT, LOSS, draw, names, smoothed, worst } from "./chart.js";
import { grow, place, takePlace } from "./place.js";

const NARROWEST = 260;
export const THUMBS = 8;
/** So much of a concept can seem left by chance, in four pictures that show none. */
const GONE = 0.2;

const style = document.createElement("style");
style.textContent = `
.esd-live { display: flex; flex-direction: column; gap: 6px; padding: 2px; box-sizing: border-box; overflow: hidden;
  font: 11px/1.35 Inter, Arial, sans-serif; color: var(--input-text, #ddd); }
.esd-live > * { flex: none; }
.esd-live[hidden], .esd-live [hidden] { display: none !important; }
.esd-live svg { width: 100%; display: block; background: var(--comfy-input-bg, #222); border-radius: 4px; }
.esd-live svg text { font-size: 10px; fill: var(--input-text, #ddd); }
.esd-live svg .rule { stroke: var(--border-color, #4e4e4e); }
.esd-live svg .gone { stroke: var(--input-text, #ddd); stroke-dasharray: 1 3; }
.esd-live .legend { display: flex; flex-wrap: wrap; gap: 2px 12px; }
.esd-live .legend i { display: inline-block; width: 14px; margin-right: 4px; vertical-align: middle;
  border-top: 3px solid; }
.esd-live .verdict { font-weight: 600; }
.esd-live .words { white-space: pre-line; overflow-wrap: anywhere; user-select: text; cursor: text; }
.esd-live .buttons { display: flex; gap: 6px; }
.esd-live button { flex: 1; padding: 5px; font: inherit; color: var(--input-text, #ddd); cursor: pointer;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; }
.esd-live button:hover:enabled { border-color: var(--input-text, #ddd); }
.esd-live button:disabled { opacity: 0.5; cursor: default; }
.esd-live figure { margin: 0; flex: 1; min-width: 0; max-width: 50%; }
.esd-live .pair, .esd-live .strip { display: flex; gap: 4px; }
.esd-live img { display: block; width: 100%; border-radius: 4px; }
.esd-live .pair figure { max-width: 38%; }
.esd-live .strip figure { flex: 0 0 calc((100% - 28px) / 8); }
`;
document.head.append(style);

const percent = (part) => `${Math.round(100 * part)} %`;

export class Panel {
  /** `leave` is called once the node is removed. */
  constructor(node, leave) {
    this.node = node;
    this.parts = parts();
    this.box = this.parts.box;
    const height = () => this.height;
    place(node, "live", this.box, { getMinHeight: height, getMaxHeight: height }, leave);
    this.height = 0;
    this.parts.keep.onclick = () => this.post("/esd/stop", { prompt: this.run.prompt, node: this.run.node });
    this.parts.cancel.onclick = () => this.post("/interrupt", { prompt_id: this.run.prompt });
    new ResizeObserver(() => this.redraw()).observe(this.box);
    this.show(undefined);
  }

  async post(route, asked) {
    this.run.asked = true;
    this.redraw();
    const answer = await api.fetchApi(route, { method: "POST", body: JSON.stringify(asked) });
    if (!answer.ok) this.run.text = await answer.text();
    this.redraw();
  }

  /** Draws at most once a frame. */
  show(run) {
    this.run = run;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = undefined;
      this.redraw();
    });
  }

  redraw() {
    const { run } = this;
    takePlace(this.node, this.box);
    this.box.hidden = !run;
    if (run) fill(this.parts, run, Math.max(this.box.clientWidth, NARROWEST));
    this.fit();
  }

  /** Makes room on the node for what there is, and never takes any away. */
  fit() {
    // A next run keeps the room of this one: the boxes above would take it, and push all else down.
    const height = this.box.hidden ? 0 : Math.max(wanted(this.box) + 24, this.height);
    if (Math.abs(height - this.height) < 2) return;
    this.height = height;
    grow(this.node);
  }
}

/** The height of all parts with the gaps between them, which the box itself may be stretched beyond. */
function wanted(box) {
  const heights = [...box.children].map((part) => part.offsetHeight).filter(Boolean);
  return heights.reduce((a, b) => a + b, 0) + 6 * Math.max(0, heights.length - 1) + 4;
}

function fill(parts, run, width) {
  const hasChart = run.losses.length + run.probes.length > 1;
  for (const part of ["plot", "legend", "verdict"]) parts[part].toggleAttribute("hidden", !hasChart);
  if (hasChart) {
    draw(parts.chart, run, width - 4);
    parts.legend.replaceChildren(...legend(run));
    parts.verdict.textContent = verdict(run);
  }
  parts.words.textContent = run.text;
  parts.buttons.hidden = !run.running;
  parts.keep.disabled = run.asked || !run.step;
  parts.cancel.disabled = Boolean(run.asked);
  pictures(parts, run.pictures);
}

/** What the lines are, and where they stand now. */
function legend(run) {
  const last = newest(run);
  const loss = smoothed(run.losses).at(-1)?.[1];
  const { prompt, part } = worst(last?.drift ?? {});
  return [
    ...names(run).map((name, i) =>
      entry(COLORS[i % COLORS.length], "solid", last ? `${name}: ${percent(last.share[name])}` : name),
    ),
    entry(DRIFT, "dashed", last ? `drift: ${percent(part)}` : "drift", prompt && `most: ${prompt}`),
    ...(loss === undefined ? [] : [entry(LOSS, "solid", `loss: ${loss.toPrecision(2)}`, "smoothed, on a scale of its own")]),
  ];
}

/** The newest probe, unless the run has gone on from a later step and has taken none yet. */
function newest(run) {
  const last = run.probes.at(-1);
  return last?.step >= run.began ? last : undefined;
}

function entry(color, dashes, said, tip) {
  const made = document.createElement("span");
  const line = document.createElement("i");
  line.style.borderTopColor = color;
  line.style.borderTopStyle = dashes;
  made.append(line, said);
  if (tip) made.title = tip;
  return made;
}

/** How it goes, at a glance. */
function verdict(run) {
  const last = newest(run);
  if (!last) return "";
  const left = names(run).filter((name) => last.share[name] > GONE);
  if (last.ruined) return "Too much else has drifted: a lower learning rate keeps it";
  // Steps that are left carry it to prompts that no probe asks: a run stopped here leaves more.
  if (!left.length) return run.running ? "Gone where it is measured: let it run on" : "Gone where it is measured";
  return `Still there: ${left.join(", ")}`;
}

/** Before and after side by side, and below them how it went. */
function pictures(parts, all) {
  parts.pair.toggleAttribute("hidden", !all.length);
  parts.strip.toggleAttribute("hidden", all.length < 3);
  if (parts.drawn === all.at(-1)) return;
  parts.drawn = all.at(-1);
  const ends = [...new Set([...all.slice(0, 1), ...all.slice(-1)])];
  parts.pair.replaceChildren(...ends.map((one) => figure(one)));
  parts.strip.replaceChildren(...all.slice(1, -1).slice(-THUMBS).map((one) => figure(one)));
}

function figure({ step, image }) {
  const made = document.createElement("figure");
  const picture = document.createElement("img");
  const said = step ? `step ${step}` : "before";
  Object.assign(picture, { src: image, alt: said, title: said });
  made.append(picture, said);
  return made;
}

function parts() {
  const make = (kind, name) => Object.assign(document.createElement(kind), { className: name });
  const box = make("div", "esd-live");
  const chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const made = { box, chart, plot: make("div", "plot") };
  made.plot.append(chart);
  for (const name of ["legend", "verdict", "words", "buttons", "pair", "strip"]) made[name] = make("div", name);
  made.keep = Object.assign(make("button"), {
    textContent: "Stop and keep", title: "Ends the run now and writes what is trained by then",
  });
  made.cancel = Object.assign(make("button"), {
    textContent: "Cancel", title: "Breaks off; the state is saved, to go on from",
  });
  made.buttons.append(made.keep, made.cancel);
  box.append(made.verdict, made.plot, made.legend, made.words, made.buttons, made.pair, made.strip);
  return made;
}
