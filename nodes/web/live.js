// The live view of ESD Train: chart, words, pictures, and the buttons that end a run.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel, THUMBS } from "./panel.js";

const KIND = "ESDTrain";
const MOST_RUNS = 20;
const runs = new Map(); // by prompt and node, oldest first
const tabs = new Map(); // path of the workflow that a prompt was queued from
const panels = new Set();

const workflows = () => app.extensionManager?.workflow;
const isOpen = (path) => workflows()?.openWorkflows?.some((one) => one.path === path);

/** Whether a run is of the workflow that is shown. Two tabs of one template have the same id. */
function isShown(run) {
  const tab = tabs.get(run.prompt);
  if (tab && isOpen(tab)) return tab === workflows().activeWorkflow?.path;
  return run.workflow === (app.rootGraph ?? app.graph).id;
}

/** The newest run of a node; inside subgraphs the server puts the groups' ids before the node's. */
function runOf(node) {
  const own = [...runs.values()].filter((run) => run.node.split(":").at(-1) === String(node.id));
  return own.reverse().find(isShown);
}

function runAt({ prompt, node, workflow }) {
  const key = `${prompt} ${node}`;
  if (!runs.has(key)) {
    runs.set(key, { prompt, node, workflow, running: true, text: "", losses: [], probes: [], pictures: [] });
    if (runs.size > MOST_RUNS) runs.delete(runs.keys().next().value);
  }
  return runs.get(key);
}

function take(run, { step, loss, probe, picture, ...rest }) {
  Object.assign(run, rest);
  if (step !== undefined) run.step = step;
  // Before the first step, also of a run that goes on, all of every concept is there, and nothing has moved.
  if (rest.concepts) {
    run.began = step;
    run.probes.push({ step: 0, share: Object.fromEntries(rest.concepts.map((name) => [name, 1])), drift: {} });
  }
  if (loss !== undefined) run.losses.push([step, loss]);
  if (probe) run.probes.push(probe);
  if (picture) add(run, picture);
}

/** Keeps the first picture and as many of the newest as are shown; the last step may come twice. */
function add(run, picture) {
  const [first, ...later] = run.pictures.filter((one) => one.step !== picture.step);
  run.pictures = [...(first ? [first] : []), ...later.slice(-THUMBS), picture];
}

function refresh() {
  for (const panel of panels) panel.show(runOf(panel.node));
}

const announce = () =>
  api.clientId && api.fetchApi("/esd/draws", { method: "POST", body: JSON.stringify({ client: api.clientId }) });

api.addEventListener("esd.run", ({ detail }) => {
  take(runAt(detail), detail);
  refresh();
});

// Taken from the cache: the server sends only what came of it.
api.addEventListener("executed", ({ detail }) => {
  if (!detail.output?.esd_train) return;
  const run = runAt({ prompt: detail.prompt_id, node: detail.node, workflow: undefined });
  Object.assign(run, { running: false, text: detail.output.text[0] });
  refresh();
});

app.registerExtension({
  name: "ESD.Live",
  async setup() {
    const queuePrompt = api.queuePrompt;
    api.queuePrompt = async function (...given) {
      const tab = workflows()?.activeWorkflow?.path;
      const answer = await queuePrompt.apply(this, given);
      if (tab && answer?.prompt_id) tabs.set(answer.prompt_id, tab);
      refresh();
      return answer;
    };
    // Not once a node is loaded: until all are, another tab is still the active one.
    workflows()?.$subscribe(refresh);
    // The server forgets its pages when it is started anew.
    api.addEventListener("reconnected", announce);
    api.addEventListener("status", announce, { once: true });
    await announce();
  },
  nodeCreated(node) {
    if (node.constructor.comfyClass !== KIND) return;
    const panel = new Panel(node, () => panels.delete(panel));
    panels.add(panel);
  },
});
