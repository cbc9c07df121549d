/* What every part needs of the document. Words, whoever wrote them, only ever become text nodes. */

export const byId = (id) => document.getElementById(id);

/* An element with a class and content: elements, and strings, which become text nodes. */
export function make(tag, style = "", ...content) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  element.append(...content);
  return element;
}

export function button(label, action, style = "") {
  const element = make("button", style, label);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

/* To a screen reader, when it has nothing else to say. */
export function say(words) {
  byId("status").textContent = words;
}

/* Makes a change; who was at the end of the page stays there. */
export function following(change) {
  const page = document.scrollingElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}

export const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
