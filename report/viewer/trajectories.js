"use strict";
/* Draws the groups of the trajectory viewer, a few at a time; report/viewer/trajectories.py writes the data into the page.

   Whatever a rollout says becomes text through textContent or an attribute set by name, never markup. Pictures are made
   only for the groups on show. */
(() => {
  const PER_PAGE = 8;
  const TEXT_SCALE = 4; // nats: a probability of 2 %
  const MINUS = "\u2212", DASH = "\u2013";

  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const index = read("index");
  const groups = index.groups.map((group, number) => ({ ...group, number, ...summary(group.rewards) }));
  const several = index.labels.length > 1;
  const blocks = new Map(); // data of the groups on show
  const codesOf = new WeakMap(); // canvas -> its codes
  const codeAt = new WeakMap(); // canvas -> the number of the code that the keyboard is at
  const STOPS = ".token, .codes";
  let page = 0;

  function summary(rewards) {
    const known = rewards.filter((reward) => reward !== null);
    if (!known.length) return { mean: null, spread: 0, low: null, high: null, dead: true };
    const mean = known.reduce((sum, reward) => sum + reward, 0) / known.length;
    const spread = Math.sqrt(known.reduce((sum, reward) => sum + (reward - mean) ** 2, 0) / known.length);
    return { mean, spread, low: Math.min(...known), high: Math.max(...known), dead: spread < index.deadBelow };
  }

  /* ---- which groups, in which order ---- */

  /* An entry is one prompt with one or more lanes: groups that stand side by side, each one of several to choose. */
  function entries() {
    const step = byId("step").value;
    const wanted = groups.filter((group) => (step === "" || group.step === Number(step)) && fits(group));
    if (byId("unit").value === "group") return wanted.map((group) => entry([lane([group], group)]));
    const byPrompt = new Map();
    for (const group of wanted) {
      if (!byPrompt.has(group.prompt)) byPrompt.set(group.prompt, []);
      byPrompt.get(group.prompt).push(group);
    }
    return [...byPrompt.values()].map((own) => entry(several ? perRun(own) : firstAndLast(own)));
  }

  /* What is looked for, in any case of letters: in a prompt's id, in what it says, or in what was answered. */
  const asked = () => byId("find").value.trim().toLowerCase();
  const holds = (text) => text.toLowerCase().includes(asked());
  const fits = (group) => [index.prompts[group.prompt], index.asked[group.prompt], group.said].some(holds);

  const lane = (choices, shown, run = shown.folder) => ({ choices, shown, run });

  const perRun = (own) => index.labels.map((_, run) => {
    const choices = own.filter((group) => group.folder === run);
    return lane(choices, choices.at(-1), run);
  });

  const firstAndLast = (own) => (own.length > 1 ? [lane(own, own[0]), lane(own, own.at(-1))] : [lane(own, own[0])]);

  function entry(lanes) {
    const shown = lanes.map((one) => one.shown).filter(Boolean);
    const first = shown[0], last = shown.at(-1);
    const compared = shown.length > 1 && first.mean !== null && last.mean !== null;
    return { lanes, mean: last.mean, gain: compared ? last.mean - first.mean : null,
      spread: Math.max(...shown.map((group) => group.spread)), dead: shown.filter((group) => group.dead).length };
  }

  const KEYS = {
    step: () => 0,
    low: (one) => one.mean,
    high: (one) => (one.mean === null ? null : -one.mean),
    spread: (one) => -one.spread,
    dead: (one) => -one.dead,
    loss: (one) => one.gain,
    gain: (one) => (one.gain === null ? null : -one.gain),
  };

  function ordered(list) {
    const key = KEYS[byId("order").value];
    const value = (one) => key(one) ?? Infinity;
    return list.sort((a, b) => (value(a) === value(b) ? 0 : value(a) - value(b)));
  }

  /* ---- the parts of a page ---- */

  function make(tag, style, ...content) {
    const element = document.createElement(tag);
    if (style) element.className = style;
    element.append(...content); // strings become text nodes
    return element;
  }

  function number(value, digits = 2) {
    if (value === null) return DASH;
    return (value < 0 ? MINUS : "") + Math.abs(value).toFixed(digits);
  }

  const signed = (value) => (value > 0 ? "+" : "") + number(value);

  function chip(name, text, style, title) {
    const element = make("span", `chip ${style}`, `${name} `, make("b", "", text));
    if (title) element.title = title;
    return element;
  }

  function rewardChip(name, value, title) {
    const style = value === null ? "none" : value >= 0.9 ? "good" : value >= 0.5 ? "fair" : "poor";
    return chip(name, number(value), style, title);
  }

  const isSeen = (value) => value !== null && Math.abs(value) >= 0.005; // with two digits it is not 0.00

  function advantageChip(value) {
    const style = !isSeen(value) ? "none" : value > 0 ? "good" : "poor";
    return chip("A", value === null ? DASH : signed(value), style,
      "advantage: above 0 these tokens are made likelier, below 0 less likely, at 0 nothing is learned from them");
  }

  const surprise = (logp, scale) => Math.min(1, Math.max(0, -(logp ?? -scale) / scale));

  function spoken(logp) {
    if (logp === null) return "log-prob not finite";
    return `log-prob ${number(logp, 3)}, p ${Math.exp(logp).toPrecision(2)}`;
  }

  function word([piece, logp]) {
    const element = make("span", piece ? "token" : "token part", piece || "\u00b7");
    element.title = (piece ? "" : "part of a character, ") + spoken(logp);
    element.tabIndex = -1; // reached by arrow keys
    element.style.setProperty("--heat", (0.6 * surprise(logp, TEXT_SCALE)).toFixed(3));
    return element;
  }

  function picture(segment, name) {
    if (!segment.src || !segment.src.startsWith("data:image/")) return make("div", "placeholder", "no picture");
    const image = make("img", segment.small ? "pixelated" : "");
    [image.width, image.height] = segment.size;
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = segment.alt || name;
    image.src = segment.src;
    return image;
  }

  /* The codes of a picture as a square of cells: rows and columns as near to its shape as their number allows. */
  function codeGrid(codes, [width, height]) {
    let columns = 1;
    const wanted = Math.sqrt((codes.length * width) / height);
    for (let n = 1; n <= codes.length; n += 1) {
      if (codes.length % n === 0 && Math.abs(n - wanted) < Math.abs(columns - wanted)) columns = n;
    }
    const canvas = make("canvas", "codes");
    canvas.width = columns;
    canvas.height = codes.length / columns;
    const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--hot").trim().split(/\s+/);
    const pixels = new ImageData(canvas.width, canvas.height);
    codes.forEach(([, logp], place) => {
      pixels.data.set([red, green, blue, 255 * surprise(logp, index.chance)], 4 * place);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.setAttribute("role", "img");
    const known = codes.map(([, logp]) => logp).filter((logp) => logp !== null);
    const mean = known.length ? known.reduce((sum, logp) => sum + logp, 0) / known.length : null;
    canvas.setAttribute("aria-label", `${codes.length} image codes, mean log-prob ${number(mean)}`);
    canvas.tabIndex = -1;
    codesOf.set(canvas, codes);
    return canvas;
  }

  function segmentElement(segment, name) {
    const chips = make("div", "chips", rewardChip("r", segment.reward, "reward of this segment"));
    chips.append(advantageChip(segment.advantage));
    if (segment.kind === "text") {
      const words = segment.words.length ? segment.words.map(word) : [segment.text];
      return make("div", "segment", make("p", "words", ...words), chips);
    }
    const pair = make("div", "pair", picture(segment, name));
    if (segment.codes.length) pair.append(codeGrid(segment.codes, segment.size ?? [1, 1]));
    // What chose to begin the picture, whose end is forced; of an inserted one the whole marker.
    const begun = segment.words.slice(0, segment.codes.length ? 1 : undefined).map(word);
    chips.prepend(...begun);
    return make("div", "segment", pair, chips);
  }

  function card(rollout) {
    const head = make("h3", "", `#${rollout.number} `, rewardChip("reward", rollout.outcome, "outcome of the whole"));
    if (!rollout.ended) head.append(" ", make("span", "chip poor", "cut"));
    const parts = Object.entries(rollout.breakdown).map(([name, value]) => rewardChip(name, value));
    const element = make("article", "card", head, make("div", "chips quiet", ...parts));
    let pictures = 0;
    for (const segment of rollout.segments) {
      if (segment.kind === "image") pictures += 1;
      element.append(segmentElement(segment, `picture ${pictures} of rollout ${rollout.number}`));
    }
    const rest = make("div", "segment rest", ...rollout.rest.words.map(word));
    if (rollout.cut) rest.append(` ${rollout.rest.codes.length} codes of a picture that was cut`);
    if (rollout.rest.codes.length) rest.append(codeGrid(rollout.rest.codes, [rollout.rest.codes.length, 1]));
    if (rest.childNodes.length) element.append(rest);
    const said = rollout.segments.map((segment) => segment.text ?? "").join("\n");
    if (asked() && holds(said)) element.classList.add("found");
    const first = element.querySelector(STOPS);
    if (first) first.tabIndex = 0;
    return element;
  }

  /* An advantage compares an answer with the others of its group; here there is nothing to tell them apart by. */
  function whyDead({ low, high }, rollouts) {
    if (low === null) return "No answer of this group has a score, so no advantage A is learned from.";
    const same = number(low) === number(high) ? `the same score, ${number(low)}` : "nearly the same score";
    const segments = rollouts.flatMap((rollout) => rollout.segments);
    if (segments.some(({ advantage }) => isSeen(advantage))) {
      return `All answers of this group got ${same}; an advantage A that is not 0 is from scores of their segments.`;
    }
    const so = "none is better than the others, so every advantage A is 0 and nothing is learned from it.";
    return `All answers of this group got ${same}: ${so}`;
  }

  function laneElement(one, choose) {
    const head = make("div", "lane-head");
    const element = make("div", "lane", head);
    if (several) head.append(make("b", `run c${[1, 4, 3, 2, 5, 7][one.run % 6]}`, index.labels[one.run]));
    if (!one.shown) {
      element.append(make("p", "note", "No group of this prompt here."));
      return element;
    }
    const { shown } = one;
    if (one.choices.length > 1) head.append(stepChoice(one, choose));
    else head.append(make("span", "", `step ${shown.step}, group ${shown.group}`));
    head.append(rewardChip("mean", shown.mean, "mean reward of the group"));
    const range = shown.low === null ? "" : `, ${number(shown.low)} to ${number(shown.high)}`;
    head.append(make("small", "", `spread ${number(shown.spread)}${range}`));
    const { rollouts } = data(shown.number);
    if (shown.dead) {
      head.append(chip("dead group", "", "poor"));
      element.append(make("p", "note", whyDead(shown, rollouts)));
    }
    const cards = make("div", "cards", ...rollouts.map(card));
    cards.setAttribute("role", "group");
    cards.setAttribute("aria-label", `${shown.rewards.length} rollouts`);
    element.append(cards);
    return element;
  }

  function stepChoice(one, choose) {
    const choice = make("select", "");
    choice.setAttribute("aria-label", "step");
    one.choices.forEach((group, place) => {
      choice.append(new Option(`step ${group.step}, group ${group.group}`, place, false, group === one.shown));
    });
    choice.addEventListener("change", () => choose(one.choices[Number(choice.value)]));
    return choice;
  }

  function data(group) {
    if (!blocks.has(group)) blocks.set(group, read(`group-${group}`));
    return blocks.get(group);
  }

  function entryElement(one) {
    const { shown } = one.lanes.find((candidate) => candidate.shown);
    const prompt = make("div", "prompt");
    data(shown.number).prompt.forEach((segment, place) => {
      prompt.append(segment.kind === "text" ? make("p", "words", segment.text) : picture(segment, `prompt ${place}`));
    });
    const head = make("header", "", make("h2", "", index.prompts[shown.prompt]));
    if (one.gain !== null) {
      const style = Math.abs(one.gain) < 0.005 ? "none" : one.gain > 0 ? "good" : "poor";
      head.append(chip("change", signed(one.gain), style, "of the mean reward, from the first to the last shown"));
    }
    const lanes = make("div", "lanes");
    const element = make("article", "entry", head, prompt, lanes);
    one.lanes.forEach((own, place) => {
      lanes.append(laneElement(own, (group) => {
        const replaced = entryElement(entry(one.lanes.map((other) => (other === own ? { ...own, shown: group } : other))));
        element.replaceWith(replaced);
        replaced.querySelectorAll(".lane")[place].querySelector("select").focus();
      }));
    });
    return element;
  }

  /* ---- the page ---- */

  function draw() {
    const gathered = byId("unit").value === "prompt";
    for (const option of byId("order").options) {
      if (option.value === "loss" || option.value === "gain") option.hidden = option.disabled = !gathered;
    }
    if (byId("order").selectedOptions[0].disabled) byId("order").value = "step";
    const list = ordered(entries());
    const pages = Math.max(1, Math.ceil(list.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    blocks.clear();
    const shown = list.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    byId("groups").replaceChildren(...shown.map(entryElement));
    if (!shown.length) byId("groups").append(make("p", "note", "No group fits."));
    const unit = gathered ? "prompts" : "groups";
    byId("page").textContent = `${page + 1} / ${pages}, ${list.length.toLocaleString("en")} ${unit}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("readout").textContent = "";
  }

  function turn(pages) {
    page += pages;
    draw();
    byId("groups").scrollIntoView();
  }

  const tellCode = (codes, place) => {
    byId("readout").textContent = `code ${codes[place][0]}, number ${place}: ${spoken(codes[place][1])}`;
  };

  const tellToken = (token) => {
    byId("readout").textContent = `${JSON.stringify(token.textContent)}: ${token.title}`;
  };

  /* Tab stops once at a card; arrows go on from there, through a picture code by code. */
  function go(event) {
    const at = event.target, forward = event.key === "ArrowRight" || event.key === "Home";
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key) || !at.matches(STOPS)) return;
    event.preventDefault();
    const all = [...at.closest(".card").querySelectorAll(STOPS)], turn = forward ? 1 : -1;
    const inside = codesOf.get(at) && event.key.startsWith("Arrow") ? codeAt.get(at) + turn : -1;
    if (inside >= 0 && inside < codesOf.get(at).length) {
      codeAt.set(at, inside);
      tellCode(codesOf.get(at), inside);
      return;
    }
    const next = { Home: all[0], End: all.at(-1) }[event.key] ?? all[all.indexOf(at) + turn];
    if (!next) return;
    if (codesOf.has(next)) codeAt.set(next, forward ? 0 : codesOf.get(next).length - 1);
    at.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  /* What the keyboard is at, in words. */
  function tellFocused(event) {
    const at = event.target;
    if (codesOf.has(at)) {
      if (!codeAt.has(at)) codeAt.set(at, 0);
      tellCode(codesOf.get(at), codeAt.get(at));
    } else if (at.classList.contains("token")) tellToken(at);
  }

  /* What the pointer is at, in words. */
  function tell(event) {
    const at = event.target;
    if (codesOf.has(at)) {
      const box = at.getBoundingClientRect(), codes = codesOf.get(at);
      const column = Math.floor(((event.clientX - box.left) / box.width) * at.width);
      const row = Math.floor(((event.clientY - box.top) / box.height) * at.height);
      const place = row * at.width + column;
      if (!codes[place] || column < 0 || column >= at.width) return;
      tellCode(codes, place);
    } else if (at.classList.contains("token")) tellToken(at);
  }

  for (const step of [...new Set(groups.map((group) => group.step))].sort((a, b) => a - b)) {
    byId("step").append(new Option(String(step), step));
  }
  if (several) byId("unit").value = "prompt";
  byId("text-scale").textContent = number(-TEXT_SCALE, 1);
  byId("image-scale").textContent = number(-index.chance, 1);
  for (const id of ["unit", "step", "order", "find"]) {
    byId(id).addEventListener("input", () => {
      page = 0;
      draw();
    });
  }
  byId("heat").addEventListener("change", () => byId("groups").classList.toggle("plain", !byId("heat").checked));
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const kind of ["pointermove", "click"]) byId("groups").addEventListener(kind, tell);
  byId("groups").addEventListener("keydown", go);
  byId("groups").addEventListener("focusin", tellFocused);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
