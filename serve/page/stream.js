/* The server as the page uses it: its models, its pictures, and an answer as a stream of events. */

const PICTURE = /(?:^|\/)v1\/images\/([A-Za-z0-9_-]{22})$/;

/* What went wrong, in plain words. */
export class Trouble extends Error {
  constructor(words, status = 0) {
    super(words);
    this.status = status;
  }
}

let authorization = {}; // in memory only

export function useKey(key) {
  const bytes = new TextEncoder().encode(key.trim()); // a header holds bytes, one a letter
  authorization = bytes.length ? { Authorization: `Bearer ${String.fromCharCode(...bytes)}` } : {};
}

/* [{id, limner: what the checkpoint says of itself}] */
export async function models() {
  const reply = await call("v1/models", {});
  return (await reply.json()).data;
}

/* The bytes of a picture that the server names; only pictures of this server are ones. */
export async function picture(url) {
  const found = PICTURE.exec(url ?? "");
  if (!found) throw new Trouble("The picture has no address on this server.");
  const reply = await call(`v1/images/${found[1]}`, {});
  return new Blob([await reply.arrayBuffer()], { type: "image/png" });
}

/* Events of an answer, each an object with a `type`. An aborted signal ends it with an AbortError, and the server
   sees that nobody listens any more. */
export async function* events(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const reply = await call("v1/responses", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!reply.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new Trouble("Something between this page and the server answered in its place.");
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : broken();
    });
    if (done) return;
    const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield parsed(lines.map((line) => line.slice(5)).join("\n"));
    }
  }
}

export const broken = () => new Trouble("The connection broke before the answer was complete.");

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw broken();
  }
}

async function call(path, { headers, ...options }) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { ...headers, ...authorization } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. Is it running?");
  }
  if (reply.ok) return reply;
  const said = await reply.json().then((value) => value.error?.message, () => undefined);
  throw new Trouble(inWords(reply, said ? `: ${said}` : ""), reply.status);
}

function inWords(reply, said) {
  const { status } = reply;
  const wait = Number(reply.headers.get("retry-after"));
  const later = wait > 0 ? ` Try again in ${wait} s.` : "";
  if (status === 401) return "This server asks for a key, and none or a wrong one was sent.";
  if (status === 413) return `That is too large${said}.`;
  if (status === 429) return `The server is busy${said}.${later}`;
  if (status === 408 || status === 504) return `It took too long and was given up${said}.${later}`;
  if (status === 502 || status === 503) return `The server takes no requests now${said}.${later}`;
  if (status >= 500) return `The server is at fault${said}.`;
  return `The server cannot do that${said}.`;
}
