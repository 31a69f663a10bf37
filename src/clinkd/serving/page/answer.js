/** An answer in words: phrases linked to their boxes, candidates beside it, and doubt said plainly. */

import { brief, make, percent } from "./dom.js";

/** @typedef {{text: string, boxes: {box: number[], phrase: string, span: number[] | null}[]}} Answer */

/** The boxes of an answer as marks of a view. */
export const marksOf = (answer) =>
  answer.boxes.map(({ box, phrase }, i) => (
    { key: `model-${i + 1}`, kind: "model", box, name: String(i + 1), says: `The model’s box ${i + 1}, ${phrase}` }));

/** Words with a chip at the place of each box, by the names given. */
export function chipped(text, kind, names) {
  const parts = text.split("[box]");
  const chip = (name = "box") => make("span", { class: `chip ${kind}` }, name);
  return parts.flatMap((part, i) => (i ? [chip(names[i - 1]), part] : [part]));
}

/** Words whose phrases and chips are linked to the marks of `marksOf`. @param {Answer} answer */
function linked(answer) {
  const letters = [...answer.text]; // spans count characters, not UTF-16 units
  const pieces = [];
  const phrases = new Map();
  answer.boxes.forEach(({ span }, i) => {
    if (span) phrases.set(`${span}`, { span, keys: [...(phrases.get(`${span}`)?.keys ?? []), `model-${i + 1}`] });
  });
  for (const { span: [from, to], keys } of phrases.values()) pieces.push({ from, to, keys });
  let at = -1;
  for (let i = 0; i < answer.boxes.length; i++) {
    at = letters.findIndex((_, n) => n > at && letters.slice(n, n + 5).join("") === "[box]");
    if (at >= 0) pieces.push({ from: at, to: at + 5, keys: [`model-${i + 1}`], chip: String(i + 1) });
  }
  pieces.sort((a, b) => a.from - b.from);
  const made = [];
  let done = 0;
  for (const { from, to, keys, chip } of pieces) {
    if (from < done) continue; // within a phrase already
    made.push(letters.slice(done, from).join(""));
    const about = chip ? { class: "chip model", "aria-label": `Box ${chip}` } : { class: "phrase" };
    const words = chip ?? letters.slice(from, to).join("");
    made.push(make("button", { type: "button", "data-keys": keys.join(" "), ...about }, words));
    done = to;
  }
  return [...made, letters.slice(done).join("")];
}

/** The scores of candidates in plain words. */
const SCORES = {
  clip: "fit of text and image", "clip text": "fit of the words to the image",
  "clip crop": "fit of the words to what is in the box", agreement: "likeness to the other candidates",
  "crop classifier": "fit of name and box by the crop classifier, with the model's own log-probability",
  "crop alone": "fit of name and box by the crop classifier alone",
};

/**
 * Shows answers in an element, and what goes with them. Events: "point" (detail: keys of marks that are spoken of),
 * "visit" (detail: key of a mark to go to), "candidate" (detail: boxes and number of the one looked at, or null).
 */
export class Panel extends EventTarget {
  /** @param {HTMLElement} words @param {HTMLElement} candidates */
  constructor(words, candidates) {
    super();
    Object.assign(this, { words, candidates });
    const keys = (event) => event.target.closest?.("[data-keys]")?.dataset.keys.split(" ") ?? [];
    const tell = (name, detail) => this.dispatchEvent(new CustomEvent(name, { detail }));
    for (const name of ["pointerover", "focusin"]) words.addEventListener(name, (e) => tell("point", keys(e)));
    for (const name of ["pointerleave", "focusout"]) words.addEventListener(name, () => tell("point", []));
    words.addEventListener("click", (e) => keys(e).length && tell("visit", keys(e)[0]));
    const of = (event) => event.target.closest?.("[data-candidate]")?.drawn ?? null;
    const looked = (e) => tell("candidate", of(e));
    for (const name of ["pointerover", "focusin"]) candidates.addEventListener(name, looked);
    for (const name of ["pointerleave", "focusout"]) candidates.addEventListener(name, () => tell("candidate", null));
  }

  clear() {
    this.words.replaceChildren();
    this.candidates.replaceChildren();
    this.words.setAttribute("aria-busy", "false");
  }

  wait() {
    this.candidates.replaceChildren();
    this.words.setAttribute("aria-busy", "true");
    this.words.replaceChildren(make("p", { class: "draft" }, "Waiting for the model …"));
  }

  /** What leads while it is written. */
  draft({ text }) {
    const names = text.split("[box]").map((_, i) => String(i + 1));
    this.words.replaceChildren(make("p", { class: "draft" }, ...chipped(text, "model", names)),
      make("p", { class: "soft small" }, "Being written; it may still change."));
  }

  show(answer) {
    const said = make("p", { class: "words" }, ...linked(answer));
    if (!answer.text.trim()) said.append(make("span", { class: "soft" }, "The answer is empty."));
    const remark = (name, words) => make("p", { class: "doubt" }, make("b", { class: "badge" }, name), ` ${words}`);
    const remarks = [
      ...answer.warnings.map(({ message }) => remark("Warning", message)),
      ...(answer.uncertain ? [remark("Uncertain", answer.why ?? "")] : []),
    ];
    const chosen = answer.candidates.find((c) => c.chosen);
    const sure = answer.confidence;
    const notes = [
      ...(sure == null ? [] : [`Confidence ${percent(sure)}: the probability that it is right, fitted to validation answers.`]),
      ...(chosen?.truncated ? ["It was cut at its greatest length."] : []),
      ...(chosen?.unread.length ? [`Meant as a box, but not to be read: ${chosen.unread.join(", ")}`] : []),
      `${brief(answer.seconds)} s`,
    ];
    this.words.replaceChildren(said, ...remarks, ...notes.map((note) => make("p", { class: "soft small" }, note)));
    this.words.setAttribute("aria-busy", "false");
    this.candidates.replaceChildren(...(answer.candidates.length > 1 ? [this.#candidates(answer)] : []));
  }

  /** Light up the phrases of marks. */
  light(keys) {
    for (const link of this.words.querySelectorAll("[data-keys]")) {
      link.classList.toggle("lit", link.dataset.keys.split(" ").some((key) => keys.includes(key)));
    }
  }

  #candidates(answer) {
    const rows = answer.candidates.map((candidate, index) => {
      const number = index + 1;
      const names = candidate.boxes.map((_, i) => `${number}.${i + 1}`); // the second candidate's first box is 2.1
      const figures = [
        `weight ${percent(candidate.weight)}`,
        ...Object.entries(candidate.scores).map(([name, value]) => `${SCORES[name] ?? name} ${brief(value, 3)}`),
        ...(candidate.logprob == null ? [] : [`how likely the model finds it ${brief(candidate.logprob)} (0 is best)`]),
        ...(candidate.truncated ? ["cut"] : []), ...(candidate.unread.length ? ["with a box that cannot be read"] : []),
      ];
      const made = make("li", { "data-candidate": true, tabindex: 0, class: candidate.chosen ? "chosen" : "" },
        make("p", {}, ...(candidate.chosen ? [make("b", { class: "mark-chosen" }, "✓ chosen"), " "] : []),
          ...chipped(candidate.text || "(empty)", "candidate", names)),
        make("meter", { min: 0, max: 1, value: candidate.weight, "aria-label": "weight" }),
        make("p", { class: "figures" }, figures.join(" · ")));
      made.drawn = { boxes: candidate.boxes, number };
      return made;
    });
    const by = answer.reordered ? "A scorer chose among them." : "The first is the answer; scores are only shown.";
    const weight = "Weight: how likely the model finds one beside the others.";
    return make("details", { open: true }, make("summary", {}, `${rows.length} candidates`),
      make("p", { class: "soft small" }, `${by} ${weight}`), make("ol", { class: "candidates" }, ...rows));
  }
}
