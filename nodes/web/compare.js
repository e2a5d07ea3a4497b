// Fills the compare slider of ESD Compare, as the page does for its own node of that kind.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const addresses = (images) => (images ?? []).map((image) => api.apiURL(`/view?${new URLSearchParams(image)}`));

app.registerExtension({
  name: "ESD.Compare",
  nodeCreated(node) {
    if (node.constructor.comfyClass !== "ESDCompare") return;
    const slider = node.widgets?.find((widget) => widget.type === "imagecompare");
    if (!slider) return;
    // What it shows is no input: with it, the same prompt would never be the same to the cache.
    slider.options = { ...slider.options, serialize: false };
    const inherited = node.onExecuted;
    node.onExecuted = function (output) {
      inherited?.call(this, output);
      slider.value = {
        beforeImages: addresses(output.a_images),
        afterImages: addresses(output.b_images),
      };
      slider.callback?.(slider.value);
    };
  },
});
