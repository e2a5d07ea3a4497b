// Draws the pictures of README and of the help pages: of the nodes, after pocket_demo was run as it is.
//
//   node pictures.mjs ADDRESS CHROMIUM FOLDER
import { writeFile } from "node:fs/promises";
import { loadTemplate, opened, queue } from "./page.mjs";

const [address, chromium, folder] = process.argv.slice(2);
const TOP = 100; // below the page's own bars
const LEFT = 60;
const { browser, page } = await opened(address, chromium, "classic", { width: 1800, height: 1500 });

try {
  await loadTemplate(page, "pocket_demo");
  page.setDefaultTimeout(30 * 60_000); // the whole demo, on a machine that may be busy
  await queue(page);
  await page.waitForFunction(() => document.querySelector(".esd-live .words")?.textContent.includes(".safetensors"));
  await page.waitForFunction(() =>
    app.graph.nodes.find((node) => node.type === "PreviewAny").widgets.some((one) => one.value),
  );
  await page.waitForTimeout(8000); // for the note of the end to go away
  await shoot("train", boundsOf(await nodes("ESDTrain")), 1.125);
  await shoot("compare", boundsOf(await nodes("ESDCompare")), 1.125);
  await shoot("workflow", boundsOf(await nodes()), 0.91);
  await saveGrid();
  await showAlone("ESDTrainOptions");
  await shoot("train_options", boundsOf(await nodes("ESDTrainOptions")), 1.125);
} finally {
  await browser.close();
}

async function showAlone(kind) {
  await page.evaluate((kind) => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    node.setSize([400, node.computeSize()[1]]);
  }, kind);
}

/** The grid of ESD Compare, as it came out. */
async function saveGrid() {
  const made = await page.evaluate(() => {
    const [grid] = app.graph.nodes.find((node) => node.type === "ESDCompare").imgs;
    const size = { width: grid.naturalWidth, height: grid.naturalHeight };
    const canvas = Object.assign(document.createElement("canvas"), size);
    canvas.getContext("2d").drawImage(grid, 0, 0);
    return canvas.toDataURL("image/jpeg", 0.9);
  });
  await writeFile(`${folder}/compare_grid.jpg`, Buffer.from(made.split(",")[1], "base64"));
}

/** [left, top, width, height] of all nodes, or of those of a kind; titles and badges are above their top. */
function nodes(kind) {
  return page.evaluate((kind) => {
    const chosen = app.graph.nodes.filter((node) => !kind || node.type === kind);
    return chosen.map((node) => [node.pos[0], node.pos[1] - 54, node.size[0], node.size[1] + 54]);
  }, kind);
}

function boundsOf(boxes) {
  const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
  return { left, top, width: right - left, height: bottom - top };
}

/** What lies within the bounds, and a little around them. */
async function shoot(name, { left, top, width, height }, scale) {
  const edge = 14;
  await page.evaluate(([offset, scale]) => {
    app.canvas.deselectAllNodes();
    Object.assign(app.canvas.ds, { offset, scale });
    app.canvas.setDirty(true, true);
  }, [[(LEFT + edge) / scale - left, (TOP + edge) / scale - top], scale]);
  await page.waitForTimeout(1000);
  const clip = { x: LEFT, y: TOP, width: width * scale + 2 * edge, height: height * scale + 2 * edge };
  await page.screenshot({ path: `${folder}/${name}.jpg`, type: "jpeg", quality: 85, clip });
}
