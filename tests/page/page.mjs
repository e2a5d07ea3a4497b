// What all that drives the page shares: a browser, and the page in one of its renderers.
import { chromium } from "playwright-core";

const MINUTES = 60_000;

/** The page, opened; what our scripts throw goes into `errors`. */
export async function opened(address, executablePath, renderer, viewport) {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport });
  page.setDefaultTimeout(8 * MINUTES);
  const errors = [];
  page.on("pageerror", ({ stack }) => stack.includes("/extensions/esd") && errors.push(stack));
  await set(address, "Comfy.TutorialCompleted", true); // else a dialog of templates lies over the page
  await set(address, "Comfy.VueNodes.Enabled", renderer === "nodes2");
  await page.goto(address);
  await page.waitForFunction(() => window.app?.graph && window.app?.extensionManager?.setting);
  return { browser, page, errors };
}

async function set(address, name, value) {
  await fetch(`${address}/settings/${name}`, { method: "POST", body: JSON.stringify(value) });
}

/** Opens one of our templates. */
export async function loadTemplate(page, name) {
  await page.evaluate(async (name) => {
    const answer = await fetch(`/api/workflow_templates/esd-concept-erasure/${name}.json`);
    await app.loadGraphData(await answer.json());
  }, name);
  await page.waitForTimeout(2000);
}

export const queue = (page) => page.locator('[data-testid="queue-button"]').first().click();
