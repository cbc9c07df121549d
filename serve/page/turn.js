/* A turn: what was asked, the answer, and what stands below it. */

import { Answer } from "./answer.js";
import { button, byId, counted, following, make, say } from "./dom.js";
import { shown } from "./pictures.js";

const MINUS = "\u2212", RETURN = "\u21b5";
const TEXT_SCALE = 5; // nats of surprise at which a word is all red, as in the viewer of trajectories

export class Turn {
  /* asked: {text, pictures, model}. again, edit: called with the turn, ask the same once more and put it back. */
  constructor(number, asked, { again, edit }) {
    Object.assign(this, { asked, again, edit, began: performance.now() });
    const prompt = make("div", "asked", make("p", "words", asked.text), ...given(asked.pictures));
    const grown = make("div", "answer");
    grown.setAttribute("role", "group");
    grown.setAttribute("aria-label", `Answer ${number}`);
    grown.setAttribute("aria-busy", "true");
    this.answer = new Answer(grown);
    this.foot = make("div", "foot");
    this.element = make("article", "turn", make("h2", "unseen", `Turn ${number}`), prompt, grown, this.foot);
    byId("lead").hidden = true;
    byId("turns").append(this.element);
    document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  }

  /* trouble: words to show, where it has not gone well. */
  end(trouble = "", stopped = false) {
    const { answer, foot } = this;
    answer.cut();
    answer.whole().then(() => answer.element.setAttribute("aria-busy", "false"));
    const note = stopped ? "Stopped." : answer.note;
    following(() => {
      if (trouble) foot.append(alarm(trouble));
      if (note) foot.append(make("p", "note", note));
      if (answer.facts.sources?.length) foot.append(...sources(answer.facts.sources));
      const buttons = make("div", "row", make("span", "facts", this.#facts()));
      if (answer.items.some((item) => item.tokens?.length)) buttons.append(this.#tokens());
      buttons.append(button("Edit", () => this.edit(this)));
      buttons.append(button(trouble ? "Try again" : "Ask again", () => this.again(this), trouble ? "main" : ""));
      foot.append(buttons);
    });
    if (stopped) say("Stopped");
  }

  #facts() {
    const { seed, usage } = this.answer.facts;
    const parts = [`${((performance.now() - this.began) / 1000).toFixed(1)} s`];
    if (usage?.output_tokens) {
      const drawn = usage.output_tokens_details?.image_tokens;
      parts.unshift(counted(usage.output_tokens, "token") + (drawn ? `, ${drawn} of pictures` : ""));
      parts.unshift(`seed ${seed}`);
    }
    return parts.join(" \u00b7 ");
  }

  /* Beside each text the same words, each with its probability; made when they are first asked for. */
  #tokens() {
    const { element, items } = this.answer;
    const toggle = button("Probabilities", () => {
      const on = element.classList.toggle("told");
      toggle.setAttribute("aria-pressed", String(on));
      if (on && !element.querySelector(".tokens")) {
        for (const item of items.filter((one) => one.tokens?.length)) {
          item.node.parentElement.after(make("p", "words tokens", ...item.tokens.map(word)));
        }
        this.foot.prepend(make("p", "note heat", "The redder a word, the less probable it was; pointed at, it says how much."));
      }
    });
    toggle.setAttribute("aria-pressed", "false");
    return toggle;
  }
}

function given(pictures) {
  if (!pictures.length) return [];
  const figures = pictures.map(({ blob, caption, candidate }, place) => {
    const image = make("img");
    image.alt = caption || `Picture ${place + 1} of the prompt`;
    const label = [candidate ? `${candidate}.` : "shown", caption].filter(Boolean).join(" ");
    shown(image, blob).catch(() => {}); // its words stand in its place
    return make("figure", "", image, make("figcaption", "", label));
  });
  return [make("div", "given", ...figures)];
}

function alarm(words) {
  const element = make("p", "trouble", words);
  element.setAttribute("role", "alert");
  return element;
}

function sources(found) {
  const entries = found.map((source) => {
    const used = [source.text && "text", ...(source.pictures ?? []).map((number) => `picture ${number}`)].filter(Boolean);
    return make("li", "", source.title || source.document, make("small", "", used.length ? ` ${used.join(", ")}` : ""));
  });
  return [make("h3", "", "Sources"), make("ol", "sources", ...entries)];
}

function word({ token, logprob }, place) {
  const said = token.replaceAll("\n", place ? `${RETURN}\n` : RETURN); // no blank line at the beginning
  const element = make("span", token ? "token" : "token part", said || "\u00b7");
  const chance = Math.exp(logprob);
  element.title = `probability ${chance.toPrecision(2)}, log ${logprob < 0 ? MINUS : ""}${Math.abs(logprob).toFixed(2)}`;
  element.style.setProperty("--heat", (0.6 * Math.min(1, Math.max(0, -logprob / TEXT_SCALE))).toFixed(3));
  return element;
}
