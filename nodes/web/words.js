// Makes room for all that a node says: the classic renderer shows two lines of the host's text.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { grow } from "./place.js";

const NAME = "$$node-text-preview";
const BESIDE = 44;
const ABOVE = 30;

const ruler = document.createElement("div");
ruler.style.cssText =
  "position:absolute;top:0;visibility:hidden;white-space:pre-line;overflow-wrap:anywhere;font:12px/17px Inter,Arial,sans-serif";

function fit(node) {
  const widget = node.widgets?.find((one) => one.name === NAME);
  if (!widget?.options) return;
  ruler.style.width = `${node.size[0] - BESIDE}px`;
  ruler.textContent = widget.value;
  document.body.append(ruler);
  const height = ruler.offsetHeight + ABOVE;
  ruler.remove();
  widget.options.getMinHeight = () => height;
  grow(node);
}

app.registerExtension({
  name: "ESD.Words",
  setup: () =>
    api.addEventListener("progress_text", ({ detail }) => {
      const node = app.graph.getNodeById(detail.nodeId);
      // Nodes 2.0 make the room themselves; the widget is there once the page has had its turn.
      if (node?.constructor.comfyClass?.startsWith("ESD") && !LiteGraph.vueNodesMode) setTimeout(() => fit(node));
    }),
});
