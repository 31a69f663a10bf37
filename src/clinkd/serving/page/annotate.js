/** Boxes with names and questions with answers that a person gives slices: kept in this page until they are saved. */

import { Failure } from "./ask.js";
import { find, make } from "./dom.js";
import { save, stamped } from "./download.js";
import { zipped } from "./zip.js";

/** @typedef {{slice: object, about: object, marks: object[], question: string, answer: string}} Note of one slice */

export class Annotations {
  /** @param {(act: () => any) => any} attempt does what may fail */
  constructor(attempt) {
    this.notes = /** @type {Map<string, Note>} */ (new Map()); // by the key of a slice
    this.unsaved = false;
    this.picture = null;
    for (const id of ["note-question", "note-answer"]) find(id).addEventListener("input", () => this.#write());
    find("save-data").addEventListener("click", () => attempt(() => this.#save(true)));
    find("save-boxes").addEventListener("click", () => attempt(() => this.#save(false)));
    addEventListener("beforeunload", (event) => this.unsaved && event.preventDefault());
  }

  /** What is chosen from, told by the server. */
  offer({ modalities, questions }) {
    const chosen = find("note-modality").value;
    const options = modalities.map((value) => make("option", { value }, value));
    find("note-modality").replaceChildren(make("option", { value: "" }, "as the files say"), ...options);
    find("note-modality").value = chosen;
    find("note-question").placeholder = questions.overall;
    this.question = questions.overall;
  }

  /** A person's boxes of a slice. */
  marks(key) { return this.notes.get(key)?.marks ?? []; }

  /** Whether a slice has a box with a name. */
  named(key) { return this.marks(key).some(({ label }) => label); }

  /** Another picture is shown. */
  look(picture) {
    this.picture = picture;
    const { question = "", answer = "" } = this.notes.get(picture.key) ?? {};
    Object.assign(find("note-question"), { value: question, disabled: picture.reformatted });
    Object.assign(find("note-answer"), { value: answer, disabled: picture.reformatted });
    find("data-card").hidden = false;
    this.#count();
  }

  /** The boxes of the picture that is shown, as they are now. */
  keep(marks) {
    const before = this.marks(this.picture.key);
    this.#put({ marks });
    const named = (list) => JSON.stringify(list.filter(({ label }) => label).map(({ label, box }) => [label, box]));
    this.unsaved ||= named(before) !== named(marks);
    this.#count();
  }

  #write() {
    this.#put({ question: find("note-question").value.trim(), answer: find("note-answer").value.trim() });
    this.unsaved = true;
    this.#count();
  }

  #put(news) {
    const { key, slice, about } = this.picture;
    const { width, height, modality } = about; // not the pixels
    this.notes.set(key, {
      marks: [], question: "", answer: "", ...this.notes.get(key), slice, about: { width, height, modality }, ...news,
    });
  }

  /** Those that are data: of a frame of a file, with a name or an answer. */
  get #filled() {
    return [...this.notes.values()].filter(({ slice, marks, answer }) => slice && (answer || marks.some((m) => m.label)));
  }

  #count() {
    const filled = this.#filled, boxes = filled.flatMap(({ marks }) => marks.filter(({ label }) => label));
    const some = (count, word) => `${count} ${word}${count === 1 ? "" : word === "box" ? "es" : "s"}`;
    const names = new Set(boxes.map(({ label }) => label)).size;
    const parts = [`${some(boxes.length, "box")} with ${some(names, "name")}`,
      `${some(filled.filter(({ answer }) => answer).length, "answer")}`];
    find("noted").textContent = `${parts.join(" and ")} on ${some(filled.length, "image")}.`
      + (this.picture?.reformatted ? " This slice is of no file, so that nothing of it is saved." : "");
    for (const id of ["save-data", "save-boxes"]) find(id).disabled = !filled.length;
  }

  async #save(whole) {
    const filled = this.#filled, files = this.#files(filled, whole);
    const lines = filled.map((note) => JSON.stringify(this.#record(note, files.get(note.slice.source).path)));
    const list = new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" });
    const time = new Date().toISOString();
    if (whole) {
      const zip = await zipped([{ path: "annotations.jsonl", blob: list }, ...files.values()]);
      if (!zip) throw new Failure("The files have more than 4 GB: save the boxes alone.");
      save(zip, stamped(time, "zip"));
    } else save(list, "annotations.jsonl");
    this.unsaved = false;
  }

  /** Each file with its path, by what slices call it. Throws Failure where two have one path that has to stay. */
  #files(filled, whole) {
    const files = new Map(), taken = new Set();
    for (const { slice: { source, file: { file, path } } } of filled) {
      if (files.has(source)) continue;
      if (!whole && taken.has(path)) throw new Failure(`Two files are called ${path}: save them with the boxes.`);
      const own = whole ? free(`images/${path}`, taken) : path;
      taken.add(own);
      files.set(source, { path: own, blob: file });
    }
    return files;
  }

  /** A line of `records.jsonl`, in pixels of the upright frame. Throws Failure. */
  #record({ slice, about: { width, height, modality }, marks, question, answer }, path) {
    const image = slice.frame == null ? path : `${path}#${slice.frame}`;
    const chosen = find("note-modality").value;
    if (modality === "other" && !chosen) throw new Failure(`${path} does not say how it was made: choose the modality.`);
    const pixels = (box) => box.map((v, i) => Number((v * (i % 2 ? height : width)).toFixed(3)));
    const objects = marks.filter(({ label }) => label).map(({ label, box }) => ({ name: label, box: pixels(box) }));
    const told = {
      id: `page_${image}`, image, modality: modality === "other" ? chosen : modality, width, height, objects,
    };
    if (slice.file.kind === "picture" && slice.frame != null) told.group = path; // frames of one file stay together
    if (answer) told.qa = [{ question: question || this.question, answer }];
    return told;
  }
}

/** A path that none of the others is. */
function free(path, taken) {
  const [, stem, ending = ""] = /^(.*?)(\.[^/]*)?$/.exec(path);
  let one = path;
  for (let n = 2; taken.has(one); n++) one = `${stem}-${n}${ending}`;
  return one;
}
