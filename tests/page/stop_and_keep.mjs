// The template pocket_demo in a real page: Run, wait for the chart to grow, "Stop and keep".
//
//   node stop_and_keep.mjs ADDRESS CHROMIUM nodes2|classic PICTURES
//
// Prints what the node says at the end as JSON; pictures of the page go into the folder PICTURES.
import { loadTemplate, opened, queue } from "./page.mjs";

const [address, chromium, renderer, pictures] = process.argv.slice(2);
const { browser, page, errors } = await opened(address, chromium, renderer, { width: 1400, height: 1200 });

try {
  await loadTemplate(page, "pocket_demo");
  await makeSmall();
  await queue(page);
  const few = await pointsOnceAbove(1);
  await shoot("running");
  const more = await pointsOnceAbove(few);
  await page.getByRole("button", { name: "Stop and keep" }).click();
  await page.waitForFunction(() => document.querySelector(".esd-live .words")?.textContent.includes(".safetensors"));
  await page.waitForFunction(() => document.querySelector(".esd-live .buttons").hidden);
  await shoot("ended");
  await page.evaluate(() => app.extensionManager.setting.set("Comfy.ColorPalette", "light"));
  await page.waitForTimeout(1000);
  await shoot("ended-light");
  await page.evaluate(() => app.extensionManager.setting.set("Comfy.ColorPalette", "dark"));
  const said = await page.locator(".esd-live").innerText();
  const inside = await isInside();
  const stays = await staysOnTheNode();
  const tabs = await tabsShow();
  await undo();
  const unmeasured = await runAnother();
  console.log(JSON.stringify({ few, more, said, inside, stays, tabs, unmeasured, errors }));
} finally {
  await browser.close();
}

/** With small settings, and nothing after the training: it takes seconds then. */
async function makeSmall() {
  await page.evaluate((prefix) => {
    const nodes = app.graph.nodes;
    const set = (kind, values) => {
      const node = app.graph.nodes.find((one) => one.type === kind);
      for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
      return node;
    };
    const needed = ["ESDLoadPocket", "ESDTrain"];
    for (const node of nodes) if (!needed.includes(node.type)) node.mode = 2;
    const train = set("ESDTrain", { steps: "4000", width: "64", height: "64", filename_prefix: prefix });
    const options = LiteGraph.createNode("ESDTrainOptions");
    app.graph.add(options);
    options.pos = [train.pos[0], train.pos[1] - options.size[1] - 60];
    options.connect(0, train, train.inputs.findIndex((input) => input.name === "options"));
    set("ESDTrainOptions", {
      trajectory_count: "2", trajectory_steps: "4", batch_size: "4", preview_every: 4, probe_every: 2,
    });
    app.canvas.ds.scale = 0.9;
    app.canvas.ds.offset = [200 - train.pos[0], 120 - train.pos[1]];
    app.canvas.setDirty(true, true);
  }, `page/${renderer}`);
}

/** Whether the node has room for the run in another tab of the same template, and shows it in its own again. */
async function tabsShow() {
  const isShown = () => page.evaluate(() => !document.querySelector(".esd-live").hidden);
  const height = () => page.evaluate(() => app.graph.nodes.find((one) => one.type === "ESDTrain").size[1]);
  const grown = await height();
  const own = await page.evaluate(() => app.extensionManager.workflow.activeWorkflow.filename);
  await loadTemplate(page, "pocket_demo");
  const other = (await isShown()) || (await height()) >= grown;
  await page.locator(".workflow-tab, .workflow-label").getByText(own, { exact: true }).last().click();
  await page.waitForTimeout(2000);
  return { other, own: await isShown() };
}

/** Makes all nodes anew, as they are: what comes next is to be seen all the same. */
async function undo() {
  await page.evaluate(async () => {
    const { changeTracker } = app.extensionManager.workflow.activeWorkflow;
    changeTracker.checkState();
    app.graph.nodes[0].pos[0] -= 10;
    changeTracker.checkState();
    await changeTracker.undo();
  });
  await page.waitForTimeout(2000);
}

/** A second run begins with nothing of the first. What its chart says of the run that goes on with it. */
async function runAnother() {
  await page.evaluate(() => {
    const widget = (kind, name) =>
      app.graph.nodes.find((one) => one.type === kind).widgets.find((one) => one.name === name);
    widget("ESDTrain", "seed").value = 1;
    widget("ESDTrainOptions", "probe_every").value = 0; // seldom, that is
  });
  await queue(page);
  await page.waitForFunction(() => document.querySelector(".esd-live .pair").hidden);
  await drawn();
  await interrupt();
  await page.waitForFunction(() => document.querySelector(".esd-live .buttons").hidden);
  await queue(page);
  await drawn();
  const said = await page.evaluate(() =>
    [".verdict", ".legend"].map((part) => document.querySelector(`.esd-live ${part}`).textContent),
  );
  await interrupt();
  return said;
}

/** Until a run draws its chart. */
async function drawn() {
  await page.waitForFunction(() => {
    const part = (name) => document.querySelector(`.esd-live ${name}`);
    return !part(".plot").hidden && !part(".buttons").hidden && /^step/.test(part(".words").textContent);
  });
}

async function interrupt() {
  await fetch(`${address}/interrupt`, { method: "POST", body: "{}" });
}

/** How many points the longest line of the chart has, once they are more than `least`. */
async function pointsOnceAbove(least) {
  const handle = await page.waitForFunction((least) => {
    const lines = [...document.querySelectorAll(".esd-live svg path")].map((path) => path.getAttribute("d"));
    const points = Math.max(0, ...lines.map((line) => line.split(/[ML]/).length - 1));
    return points > least && points;
  }, least);
  return handle.jsonValue();
}

/** Whether all that the node shows of its run lies within the part of the node that is its own. */
async function isInside() {
  return page.evaluate(() => {
    const box = document.querySelector(".esd-live").getBoundingClientRect();
    const parts = [...document.querySelectorAll(".esd-live > *")].filter((part) => part.offsetHeight);
    return parts.every((part) => part.getBoundingClientRect().bottom <= box.bottom + 1);
  });
}

/** Whether the chart is on the node still once the page's own panel shows what the node has. */
async function staysOnTheNode() {
  await page.evaluate(() => {
    app.canvas.selectNode(app.graph.nodes.find((one) => one.type === "ESDTrain"));
    return app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", true);
  });
  await page.waitForTimeout(2000);
  await shoot("panel");
  const stays = await page.evaluate(() => Boolean(document.querySelector(".esd-live")?.closest(".dom-widget, .lg-node")));
  await page.evaluate(() => app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false));
  return stays;
}

async function shoot(name) {
  await page.screenshot({ path: `${pictures}/${renderer}-${name}.png` });
}
