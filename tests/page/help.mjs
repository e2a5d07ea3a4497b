// The help page of every node in the page's own panel.
//
//   node help.mjs ADDRESS CHROMIUM nodes2|classic PICTURES
//
// Prints what each page shows as JSON; pictures of them go into the folder PICTURES.
import { opened } from "./page.mjs";

const [address, chromium, renderer, pictures] = process.argv.slice(2);
const { browser, page, errors } = await opened(address, chromium, renderer, { width: 1300, height: 1000 });
const HELP = ".node-help-content";

try {
  const kinds = await page.evaluate(() => Object.keys(LiteGraph.registered_node_types).filter((kind) => /^ESD/.test(kind)));
  const seen = {};
  for (const kind of kinds) {
    await select(kind);
    await page.getByTestId("info-button").first().evaluate((button) => button.click());
    await page.waitForFunction(([help, title]) => document.querySelector(`${help} h1`)?.textContent === title, [HELP, await title(kind)]);
    await page.waitForFunction((help) => [...document.querySelectorAll(`${help} img`)].every((image) => image.complete), HELP);
    seen[kind] = await page.evaluate(shown, HELP);
    await page.screenshot({ path: `${pictures}/${renderer}-help-${kind}.png` });
  }
  console.log(JSON.stringify({ seen, errors }));
} finally {
  await browser.close();
}

/** One node of that kind, alone and selected. */
async function select(kind) {
  await page.evaluate((kind) => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    node.pos = [300, 200];
    app.canvas.selectNode(node);
  }, kind);
}

const title = (kind) => page.evaluate((kind) => LiteGraph.registered_node_types[kind].title, kind);

function shown(help) {
  const box = document.querySelector(help);
  const { right } = box.getBoundingClientRect();
  const all = (what) => [...box.querySelectorAll(what)];
  return {
    pictures: all("img").map((image) => image.naturalWidth),
    wide: all("*").filter((part) => part.getBoundingClientRect().right > right + 1).map((part) => part.textContent),
    // Marks of Markdown that were not understood.
    raw: box.innerText.match(/\*\*|\]\(|^#+ |\|\s*-{3}/gm) ?? [],
    items: all("li").length,
  };
}
