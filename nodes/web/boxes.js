// Names the big boxes of the nodes in the classic renderer, which shows neither name nor tooltip.
import { app } from "../../scripts/app.js";

const tag = (text) => {
  const width = 7 * text.length + 8;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="14">
    <text x="${width - 4}" y="11" text-anchor="end" font-family="sans-serif" font-size="11" fill="#9a9a9a"></text></svg>`;
  const drawn = new DOMParser().parseFromString(svg, "image/svg+xml").documentElement;
  drawn.querySelector("text").textContent = text;
  return `url("data:image/svg+xml,${encodeURIComponent(drawn.outerHTML)}")`;
};

app.registerExtension({
  name: "ESD.Boxes",
  nodeCreated(node) {
    if (!node.constructor.comfyClass?.startsWith("ESD")) return;
    for (const widget of node.widgets ?? []) {
      const box = widget.element;
      if (!(box instanceof HTMLTextAreaElement)) continue;
      box.title = widget.tooltip ?? "";
      box.style.backgroundImage = tag(widget.label ?? widget.name);
      box.style.backgroundRepeat = "no-repeat";
      box.style.backgroundPosition = "right 2px top 1px";
    }
  },
});
