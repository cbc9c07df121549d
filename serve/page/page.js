/* The page: a prompt with pictures goes out, an answer grows, one turn under another. Nothing is kept when it closes. */

import { button, byId, following, say } from "./dom.js";
import { Pictures } from "./pictures.js";
import { isIndex, request } from "./request.js";
import { save } from "./saving.js";
import { events, models, Trouble, useKey } from "./stream.js";
import { Turn } from "./turn.js";

const EXAMPLES = 4; // at most
const turns = [];
const pictures = new Pictures(notice);
let names = []; // of the models that are served
let running = null; // an AbortController while an answer grows

/* A line above the prompt; without words it goes. */
function notice(words = "") {
  byId("notice").textContent = words;
  byId("notice").hidden = !words;
}

async function start() {
  try {
    const served = await models();
    names = served.map((model) => model.id);
    notice();
    introduce(served[0].limner);
    byId("title").textContent = document.title = names[0];
    byId("model").replaceChildren(...names.map((name) => new Option(name)));
    byId("model-row").hidden = names.length < 2;
  } catch (error) {
    refused(error);
  }
}

/* What the model knows, by its own checkpoint, and prompts to begin with; of most nothing is known. */
function introduce({ knows, examples }) {
  if (knows) byId("knows").textContent = knows;
  byId("examples").replaceChildren(...examples.slice(0, EXAMPLES).map((text) => button(text, () => {
    if (!running) ask({ text, pictures: [], model: byId("model").value });
  })));
  byId("examples").hidden = !examples.length;
}

function refused(error) {
  if (!(error instanceof Trouble)) throw error;
  notice(error.message);
  if (error.status !== 401) return;
  byId("key-row").hidden = false;
  byId("key").focus();
}

/* ---- one answer ---- */

async function send() {
  const text = byId("prompt").value.trim();
  const given = pictures.given();
  if (running || (!text && !given.length)) return;
  if (!names.length) await start();
  if (running || !names.length) return;
  const model = byId("model").value;
  if (given.length && isIndex(model, names)) return notice("An index is asked in words; take the pictures away.");
  let candidates = 0;
  for (const one of given) if (one.offered) one.candidate = candidates += 1;
  byId("prompt").value = "";
  pictures.clear();
  notice();
  await ask({ text, pictures: given, model });
}

async function ask(asked) {
  running = new AbortController();
  const { signal } = running;
  working(true);
  const before = [...turns];
  const turn = new Turn(turns.length + 1, asked, { again, edit });
  turns.push(turn);
  say("The answer is being written");
  try {
    const body = await request(asked, before, isIndex(asked.model, names));
    for await (const event of events(body, signal)) turn.answer.take(event);
    turn.answer.close();
    turn.end();
  } catch (error) {
    const stopped = signal.aborted, known = error instanceof Trouble;
    running.abort(); // whatever went wrong, the server need not go on
    turn.end(stopped ? "" : known ? error.message : "The page is at fault; load it anew.", stopped);
    if (known && error.status === 401) refused(error);
    if (!stopped && !known) throw error;
  } finally {
    running = null;
    working(false);
  }
}

/* The same once more; what came to nothing makes room. */
function again(turn) {
  if (running) return;
  if (!turn.answer.ended && turn === turns.at(-1)) {
    turns.pop();
    turn.element.remove();
  }
  ask(turn.asked);
}

/* Back into the prompt, to be put in other words. */
function edit({ asked }) {
  byId("prompt").value = asked.text;
  pictures.replace(asked.pictures);
  byId("prompt").focus();
}

function working(on) {
  const held = [byId("send"), byId("stop")].includes(document.activeElement) || document.activeElement === document.body;
  byId("send").hidden = on;
  byId("stop").hidden = !on;
  byId("saving").hidden = on || !turns.length;
  if (held) (on ? byId("stop") : byId("prompt")).focus();
}

/* ---- hands on ---- */

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("composer").addEventListener("invalid", () => openSettings(true), true); // a setting that is wrong must be seen
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("show-settings").addEventListener("click", () => openSettings(byId("settings").hidden));
byId("key").addEventListener("change", () => {
  useKey(byId("key").value);
  start();
});
for (const kind of ["html", "md", "json"]) {
  byId(`save-${kind}`).addEventListener("click", () => save(kind, turns, document.title));
}

function openSettings(open) {
  following(() => {
    byId("settings").hidden = !open;
  });
  byId("show-settings").setAttribute("aria-expanded", String(open));
}

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", () => {
  taken(byId("files").files);
  byId("files").value = "";
});
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData; // office programs add a picture of the words
  if (!files.length || types.includes("text/plain")) return;
  event.preventDefault();
  taken(files);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const left = kind === "drop" || (kind === "dragleave" && !event.relatedTarget);
    document.body.classList.toggle("dropping", !left);
    if (kind === "drop") taken(event.dataTransfer.files);
  });
}

function taken(files) {
  notice();
  pictures.add(files);
}

start();
