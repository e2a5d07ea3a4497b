// Fills the compare slider of ESD Compare, as the page does for its own node of that kind.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const addresses = (images) => (images ?? []).map((image) => api.apiURL(`/view?${new URLSearchParams(image)}`));

app.registerExtension({
  name: "ESD.Compare",
  nodeCreated(node) {
    if (node.constructor.comfyClass !== "ESDCompare") return;
    const inherited = node.onExecuted;
    node.onExecuted = function (output) {
      inherited?.call(this, output);
      const slider = this.widgets?.find((widget) => widget.type === "imagecompare");
      if (!slider) return;
      slider.value = {
        beforeImages: addresses(output.a_images),
        afterImages: addresses(output.b_images),
      };
      slider.callback?.(slider.value);
    };
  },
});
