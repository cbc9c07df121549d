/* An answer that grows. Every item of it is one element, made when the item begins and in the order of the items; after
   that a text only gets longer, and a picture only gets its pixels. Nothing is ever replaced. */

import { counted, following, make, say } from "./dom.js";
import { shown } from "./pictures.js";
import { broken, picture, Trouble } from "./stream.js";

const REASONS = {
  max_output_tokens: "The answer was cut at its limit of tokens.",
  time: "The answer was cut: its time was over.",
  shutdown: "The answer was cut: the server was being stopped.",
};

export class Answer {
  constructor(element) {
    this.element = element;
    this.items = []; // {type: "text", text, tokens} and {type: "image", blob, origin, candidate, alt}
    this.ended = false;
    this.note = ""; // why it is shorter than it should be
    this.facts = {}; // seed, tokens, sources
  }

  /* Takes one event of /v1/responses; those that say nothing new are passed over. Raises Trouble. */
  take(event) {
    const item = this.items[event.output_index];
    if (event.type === "response.output_item.added") {
      following(() => this.items.push(event.item.type === "message" ? this.#text() : this.#image()));
    } else if (event.type === "response.output_text.delta" && item) {
      following(() => grow(item, event.delta));
    } else if (event.type === "response.image_generation_call.generating" && item) {
      item.progress.value = event.limner?.progress ?? 0;
    } else if (event.type === "response.output_item.done" && item?.type === "image") {
      this.#show(item, event.item);
    } else if (event.type === "response.completed" || event.type === "response.incomplete") {
      this.#end(event.response);
    } else if (event.type === "response.failed") {
      throw new Trouble(event.response.error?.message ?? "The server gave no answer.");
    } else if (event.type === "error") {
      throw new Trouble(event.message ?? event.error?.message ?? "The server gave no answer.");
    }
  }

  /* No event comes any more. Raises Trouble where the last one has not come. */
  close() {
    if (!this.ended) throw broken();
  }

  /* What was being drawn is left as it is. */
  cut() {
    for (const item of this.items) if (item.type === "image" && !item.done) missing(item, "not finished");
  }

  /* When all its pictures are here, or known to be missing. */
  async whole() {
    await Promise.all(this.items.map((item) => item.loading));
  }

  get pictures() {
    return this.items.filter((item) => item.type === "image");
  }

  #text() {
    const node = document.createTextNode("");
    this.element.append(make("p", "words", node));
    return { type: "text", text: "", held: "", node, tokens: [] };
  }

  #image() {
    const number = this.pictures.length + 1;
    const image = make("img"), progress = make("progress"), caption = make("figcaption");
    image.hidden = true;
    image.alt = "";
    progress.max = 1;
    progress.setAttribute("aria-label", `Picture ${number}`);
    const state = make("span", "", `Picture ${number} is being drawn`);
    const frame = make("div", "placeholder", state, progress);
    const element = make("figure", "", frame, image, caption);
    this.element.append(element);
    say(`Picture ${number} is being drawn`);
    return { type: "image", number, image, progress, state, frame, caption, done: false };
  }

  #show(item, told) {
    item.done = true;
    if (told.status !== "completed") return missing(item, "not finished");
    const { origin = "generated", candidate, caption = "", url } = told.limner ?? {};
    Object.assign(item, { origin, candidate, alt: caption });
    item.loading = picture(url).then((blob) => {
      item.blob = blob;
      item.image.alt = caption || `Picture ${item.number}, ${said(item)}`;
      return shown(item.image, blob);
    }).then(() => following(() => {
      item.caption.append(make("span", `origin ${origin}`, said(item)), caption && ` ${caption}`);
      item.frame.hidden = true;
      item.image.hidden = false;
    })).catch((error) => missing(item, `not loaded. ${error.message}`));
  }

  #end(response) {
    this.ended = true;
    const { seed, sources = [], ended } = response.limner ?? {};
    this.facts = { seed, sources, usage: response.usage };
    if (response.status === "incomplete") {
      const reason = response.incomplete_details?.reason ?? ended;
      this.note = REASONS[reason] ?? `The answer was cut: ${reason}.`;
    }
    response.output.forEach((told, place) => {
      if (told.type === "message" && this.items[place]) this.items[place].tokens = told.content[0]?.logprobs ?? [];
    });
    const texts = this.items.length - this.pictures.length;
    say(`The answer is there: ${counted(texts, "text")}, ${counted(this.pictures.length, "picture")}`);
  }
}

export const said = (item) => (item.candidate ? `${item.origin}, candidate ${item.candidate}` : item.origin);

/* Blank lines at either end of a text would only push things apart; those inside it come with what follows them. */
function grow(item, piece) {
  item.text += piece;
  let fresh = item.held + piece;
  if (!item.node.length) fresh = fresh.replace(/^\s*\n/, "").replace(/^ (?! )/, "");
  const end = fresh.trimEnd().length;
  item.held = fresh.slice(end);
  if (end) item.node.appendData(fresh.slice(0, end));
}

function missing(item, why) {
  item.done = true;
  item.progress.hidden = true;
  item.state.textContent = `Picture ${item.number}: ${why}`;
}
