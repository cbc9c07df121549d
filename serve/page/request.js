/* What is asked of the server: the prompt with its pictures, the settings, and the turns before. */

import { byId } from "./dom.js";
import { dataUri } from "./pictures.js";

const NUMBERS = ["temperature", "guidance", "seed", "max_output_tokens", "max_images"];

/* An index is asked in words alone: `NAME-index` beside `NAME`. */
export const isIndex = (model, models) => model.endsWith("-index") && models.includes(model.slice(0, -"-index".length));

export async function request(asked, before, indexed) {
  const turns = byId("go-on").checked && !indexed ? before : [];
  const input = [];
  for (const turn of turns) {
    await turn.answer.whole();
    input.push(await question(turn.asked.text, turn.asked.pictures, false), ...(await said(turn.answer.items)));
  }
  input.push(await question(asked.text, asked.pictures, true));
  const body = { model: asked.model, input, stream: true, picture_format: "url" };
  for (const name of NUMBERS) {
    const { valueAsNumber } = byId(name);
    if (!Number.isNaN(valueAsNumber)) body[name] = valueAsNumber;
  }
  if (byId("log-probs").checked) body.include = ["message.output_text.logprobs"];
  return body;
}

/* Candidates of an earlier turn are no candidates any more, only pictures that were shown. */
async function question(text, pictures, current) {
  const content = [];
  for (const { blob, caption, candidate } of pictures) {
    const part = { type: "input_image", image_url: await dataUri(blob), caption };
    content.push(current && candidate ? { ...part, candidate } : part);
  }
  return { role: "user", content: [...content, { type: "input_text", text }] };
}

async function said(items) {
  const output = [];
  for (const item of items) {
    if (item.type === "text") {
      output.push({ role: "assistant", content: [{ type: "output_text", text: item.text }] });
    } else if (item.blob) {
      const result = (await dataUri(item.blob)).split(",")[1];
      output.push({ type: "image_generation_call", status: "completed", result });
    }
  }
  return output;
}
