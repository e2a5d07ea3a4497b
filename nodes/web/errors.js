// Shows what a node says of a wrong value, where the page itself says only that there is one.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const LIFE = 15000;
const WAITS = 20;

/** Pairs of a widget's name and what is wrong with it: the host joins them. */
function sentences(errors) {
  const ours = Object.values(errors ?? {}).filter((node) => node.class_type?.startsWith("ESD"));
  const told = ours.flatMap((node) => node.errors.filter((error) => error.type === "custom_validation_failed"));
  return told.map((error) => error.details.split(/^(\w+) - /).slice(1));
}

function show(before, waits) {
  const errors = app.lastNodeErrors;
  if (errors === before) {
    if (waits) setTimeout(() => show(before, waits - 1), 250);
    return;
  }
  for (const [summary, detail] of sentences(errors))
    app.extensionManager.toast.add({ severity: "error", summary, detail, life: LIFE });
}

// The page that has this event is the one that keeps the sentence behind "View details".
app.registerExtension({
  name: "ESD.Errors",
  setup: () => api.addEventListener("promptQueueing", () => show(app.lastNodeErrors, WAITS)),
});
