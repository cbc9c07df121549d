/* Pictures of a prompt: dropped, pasted or chosen; numbered where the answer may insert them. */

import { button, byId, counted, following, make, say } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"];
export const SMALL = 64; // pictures of so many pixels a side are enlarged, with their pixels left sharp

/* `given` pictures have a `blob`, a `caption`, and are `offered` as candidates, or only shown to the model. */
export class Pictures {
  constructor(refuse) {
    this.refuse = refuse;
    this.cards = [];
  }

  add(files) {
    const odd = [...files].filter((file) => !KINDS.includes(file.type));
    if (odd.length) this.refuse(`No picture that the server reads: ${odd.map((file) => file.name).join(", ")}`);
    const pictures = [...files].filter((file) => KINDS.includes(file.type));
    for (const file of pictures) this.#card({ blob: file, caption: "", offered: true });
    if (pictures.length) say(`${counted(pictures.length, "picture")} added, ${this.cards.length} in all`);
  }

  given() {
    return this.cards.map(({ blob, caption, offered }) => ({
      blob, caption: caption.value.trim(), offered: offered.checked,
    }));
  }

  clear() {
    for (const card of [...this.cards]) this.#remove(card);
  }

  replace(given) {
    this.clear();
    for (const one of given) this.#card(one);
  }

  #card({ blob, caption, offered }) {
    const card = { blob, image: make("img"), number: make("span", "number"), caption: make("input") };
    card.offered = make("input");
    card.offered.type = "checkbox";
    card.offered.checked = offered;
    card.offered.addEventListener("change", () => this.#number());
    card.caption.value = caption;
    card.caption.placeholder = "Caption";
    card.remove = button("\u00d7", () => {
      const place = this.cards.indexOf(card);
      this.#remove(card);
      (this.cards[Math.min(place, this.cards.length - 1)]?.remove ?? byId("prompt")).focus();
    }, "remove");
    card.image.alt = "";
    card.image.addEventListener("error", () => {
      this.#remove(card);
      this.refuse(`This picture does not open: ${blob.name ?? "it"} is damaged, or of another kind than its name says`);
    });
    card.image.src = URL.createObjectURL(blob);
    const may = make("label", "may", card.offered, "may stand in the answer");
    card.element = make("li", "card", make("div", "thumb", card.image, card.number), card.remove, card.caption, may);
    this.cards.push(card);
    following(() => byId("pictures").append(card.element));
    this.#number();
  }

  #remove(card) {
    this.cards = this.cards.filter((other) => other !== card);
    card.element.remove();
    URL.revokeObjectURL(card.image.src);
    this.#number();
  }

  #number() {
    let candidates = 0;
    this.cards.forEach((card, place) => {
      card.number.textContent = card.offered.checked ? String((candidates += 1)) : "";
      card.caption.setAttribute("aria-label", `Caption of picture ${place + 1}`);
      card.remove.setAttribute("aria-label", `Remove picture ${place + 1}`);
    });
  }
}

/* Puts a blob into an `<img>`, at the size at which it is seen well. Resolves when it is there. */
export async function shown(image, blob) {
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } catch {
    throw new Error("It is no picture.");
  }
  const small = Math.max(image.naturalWidth, image.naturalHeight) <= SMALL;
  image.width = image.naturalWidth * (small ? 4 : 1);
  image.classList.toggle("pixelated", small);
}

export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}
