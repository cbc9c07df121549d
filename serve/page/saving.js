/* The conversation as one file that needs no other: HTML as our reports, Markdown, or documents in limner's own JSON. */

import { said } from "./answer.js";
import { dataUri, SMALL } from "./pictures.js";

const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const KINDS = { html: "text/html", md: "text/markdown", json: "application/json" };
const MAKERS = { html: toHtml, md: toMarkdown, json: toJson };

export async function save(kind, turns, title) {
  const documents = await Promise.all(turns.map(documentOf));
  const text = await MAKERS[kind](documents, title);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${KINDS[kind]};charset=utf-8` }));
  link.download = `${title.replace(/[^\w.-]+/g, "-") || "limner"}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/* As models/documents/document.py reads it: what was given, then what was written. */
async function documentOf({ asked, answer }, place) {
  await answer.whole();
  const segments = [];
  for (const { blob, caption, candidate } of asked.pictures) {
    segments.push(picture("given", await dataUri(blob), candidate, caption, false));
  }
  segments.push({ type: "text", text: asked.text, trainable: false });
  for (const item of answer.items) {
    if (item.type === "text" && item.text) segments.push({ type: "text", text: item.text, trainable: true });
    else if (item.blob) segments.push(picture(item.origin, await dataUri(item.blob), item.candidate, item.alt, true));
  }
  const { seed, sources = [] } = answer.facts;
  const meta = { model: asked.model, ...(seed !== undefined && { seed }), ...(sources.length && { sources }) };
  return { id: `turn-${place + 1}`, meta, segments };
}

function picture(origin, image, candidate, alt, trainable) {
  return { type: "image", origin, trainable, image, ...(candidate && { candidate }), ...(alt && { alt }) };
}

const sourceNames = (document) => (document.meta.sources ?? []).map((source) => source.title || source.document);

function toJson(documents) {
  return `${JSON.stringify(documents)}\n`;
}

/* ---- Markdown: a text keeps its own, but no HTML, and no picture that is fetched from elsewhere ---- */

function toMarkdown(documents, title) {
  const blocks = [`# ${line(title)}`];
  for (const document of documents) {
    for (const segment of document.segments) {
      const quoted = segment.trainable ? "" : "> ";
      if (segment.type === "image") blocks.push(`${quoted}![${line(alt(segment, document))}](${segment.image})`);
      else blocks.push(shorn(harmless(segment.text)).replace(/^/gm, quoted));
    }
    const sources = sourceNames(document).map((name, place) => `${place + 1}. ${line(name)}`);
    if (sources.length) blocks.push("Sources:", sources.join("\n"));
  }
  return `${blocks.filter(Boolean).join("\n\n")}\n`;
}

/* Without blank lines around it; the first line keeps its spaces, for it may be code. */
const shorn = (text) => text.replace(/^\s*\n/, "").trimEnd();

const harmless = (text) => text.replace(/\r\n?/g, "\n").replace(/<(?=[A-Za-z/!?])/g, "&lt;").replaceAll("![", "!\\[");

const line = (text) => text.split(/\s+/).join(" ").trim().replace(/[\\[\]<>&`*_!#]/g, "\\$&");

function alt(segment, { segments }) {
  const number = segments.filter((one) => one.type === "image").indexOf(segment) + 1;
  return segment.alt || `Picture ${number}, ${said(segment)}`;
}

/* ---- HTML: everything that is put in is escaped, but for what this made itself ---- */

class Html {
  constructor(text) {
    this.text = text;
  }
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function html(parts, ...values) {
  const whole = (value) => {
    if (Array.isArray(value)) return value.map(whole).join("");
    return value instanceof Html ? value.text : String(value).replace(/[&<>"']/g, (letter) => ESCAPES[letter]);
  };
  return new Html(parts.reduce((made, part, place) => made + whole(values[place - 1]) + part));
}

async function toHtml(documents, title) {
  const style = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules].map((rule) => rule.cssText));
  const turns = await Promise.all(documents.map(turnHtml));
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>${title}</title>
<style>${new Html(style.join("\n"))}</style>
</head>
<body>
<header><h1>${title}</h1></header>
<main>${turns}</main>
</body>
</html>
`;
  return page.text;
}

async function turnHtml(document) {
  const parts = await Promise.all(document.segments.map((segment) => segmentHtml(segment, document)));
  const first = document.segments.findIndex((segment) => segment.trainable);
  const split = first < 0 ? parts.length : first;
  const sources = sourceNames(document).map((name) => html`<li>${name}</li>`);
  const { model, seed } = document.meta;
  return html`<article class="turn">
<div class="asked">${parts.slice(0, split)}</div>
<div class="answer">${parts.slice(split)}</div>
<div class="foot">${sources.length ? html`<h3>Sources</h3><ol class="sources">${sources}</ol>` : ""}
<span class="facts">${model}${seed === undefined ? "" : `, seed ${seed}`}</span></div>
</article>
`;
}

async function segmentHtml(segment, document) {
  if (segment.type === "text") return html`<p class="words">${shorn(segment.text)}</p>`;
  const image = new Image();
  image.src = segment.image;
  await image.decode().catch(() => {});
  const { naturalWidth: width, naturalHeight: height } = image;
  const small = Math.max(width, height) <= SMALL;
  const size = html`width="${width * (small ? 4 : 1)}" class="${small ? "pixelated" : ""}"`;
  return html`<figure><img src="${segment.image}" alt="${alt(segment, document)}" ${size}>
<figcaption><span class="origin ${segment.origin}">${said(segment)}</span> ${segment.alt ?? ""}</figcaption></figure>`;
}
