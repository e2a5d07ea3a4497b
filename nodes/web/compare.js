// The slider of ESD Compare: original and erased, one picture under the other, in either renderer.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { place, takePlace } from "./place.js";

const HEIGHT = 240;
const STYLE = {
  box: "position:relative;width:100%;height:100%;min-height:200px;overflow:hidden;background:#0003;" +
    "border-radius:4px;font:12px sans-serif;color:#ccc;touch-action:none;user-select:none",
  picture: "position:absolute;inset:0;width:100%;height:100%;object-fit:contain;display:none",
  line: "position:absolute;top:0;bottom:0;width:2px;background:#fff;pointer-events:none;display:none",
  hint: "position:absolute;inset:0;display:grid;place-items:center;text-align:center;padding:8px",
  label: "position:absolute;top:4px;padding:1px 5px;border-radius:3px;background:#000a;display:none",
  next: "position:absolute;bottom:4px;right:4px;border:0;padding:3px 8px;border-radius:3px;" +
    "background:#000a;color:#fff;cursor:pointer;display:none",
};

const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`);

function part(parent, tag, style, text = "") {
  const made = document.createElement(tag);
  made.style.cssText = style;
  made.textContent = text;
  parent.append(made);
  return made;
}

class Slider {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "esd-compare-slider";
    this.element.style.cssText = STYLE.box;
    this.hint = part(this.element, "div", STYLE.hint, "Original and erased, after a run: move over the picture");
    this.erased = part(this.element, "img", STYLE.picture);
    this.original = part(this.element, "img", STYLE.picture);
    this.line = part(this.element, "div", STYLE.line);
    part(this.element, "span", `${STYLE.label};left:4px`, "original");
    part(this.element, "span", `${STYLE.label};right:4px`, "erased");
    this.next = part(this.element, "button", STYLE.next);
    this.next.title = "next prompt";
    this.next.addEventListener("click", () => this.show(this.index + 1));
    this.element.addEventListener("pointermove", (event) => this.move(event));
    this.pairs = [];
  }

  fill(originals, erased) {
    if (!originals || originals === this.filled) return;
    this.filled = originals;
    this.pairs = originals.map((image, index) => [image, erased?.[index]]).filter(([, other]) => other);
    if (!this.pairs.length) return;
    this.hint.style.display = "none";
    for (const shown of this.element.children) if (shown !== this.hint) shown.style.display = "block";
    this.next.style.display = this.pairs.length > 1 ? "block" : "none";
    this.show(0);
    this.split(0.5);
  }

  show(index) {
    this.index = index % this.pairs.length;
    const [original, erased] = this.pairs[this.index];
    this.original.src = address(original);
    this.erased.src = address(erased);
    this.next.textContent = `${this.index + 1} / ${this.pairs.length} >`;
  }

  move(event) {
    const { left, width } = this.element.getBoundingClientRect();
    if (this.pairs.length) this.split(Math.min(1, Math.max(0, (event.clientX - left) / width)));
  }

  split(share) {
    this.original.style.clipPath = `inset(0 ${100 - 100 * share}% 0 0)`;
    this.line.style.left = `${100 * share}%`;
  }
}

const sliders = new Map(); // by node

/** The page keeps what a node has given when an undo or another tab makes the node anew. */
function refill() {
  for (const [node, slider] of sliders) {
    takePlace(node, slider.element);
    const output = node.graph?.isRootGraph === false ? undefined : app.nodeOutputs?.[node.id];
    slider.fill(output?.a_images, output?.b_images);
  }
}

app.registerExtension({
  name: "ESD.Compare",
  setup: () => app.extensionManager?.workflow?.$subscribe(() => requestAnimationFrame(refill)),
  nodeCreated(node) {
    if (node.constructor.comfyClass !== "ESDCompare") return;
    const slider = new Slider();
    place(node, "compare", slider.element, { getMinHeight: () => HEIGHT }, () => sliders.delete(node));
    sliders.set(node, slider);
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      slider.fill(output.a_images, output.b_images);
    };
  },
});
