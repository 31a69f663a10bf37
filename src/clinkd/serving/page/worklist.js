/** The worklist: what arrived and was answered, and what a person makes of it before anything is sent. */

import { chipped } from "./answer.js";
import { boxed, call, Failure, fetched, lettered, spelled } from "./ask.js";
import { View } from "./canvas.js";
import { listenToKeys, offerActions, pressed } from "./deciding.js";
import { button, complain, find, insert, make, percent, say } from "./dom.js";
import { open, Source } from "./picture.js";
import { Tools } from "./tools.js";

const PAGE = 20;
const SECONDS = 5; // from one look at the server to the next
const STATES = { // in the order of the list to choose from
  answered: "to decide", waiting: "waiting for the model", failed: "without an answer",
  accepted: "accepted, waits to be sent", unsent: "on its way to the archive", sent: "sent",
  rejected: "rejected, never sent",
};
const SENDS = { // by what the server says of itself
  accepted: "What you accept goes to the archive, marked for research only; what you reject is never sent.",
  all: "Every answer goes to the archive as soon as it is given, seen by a person or not (--send all).",
  nothing: "Nothing goes to an archive: the server was started without one.",
};
const CHANGED = "Another person decided this meanwhile";

const badge = ({ state }) => make("span", { class: `verdict ${state}` }, STATES[state]);

const titled = ({ modality, body_part: part, question }) =>
  [modality, part, boxed(question)].filter(Boolean).join(" · ");

const moment = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

const row = (title, ...inside) => [make("dt", {}, title), make("dd", {}, ...inside)];

/** What is known of an entry, in words. */
function told({ answer, decision, state, why, arrived, rule, study, series, instance, frame }) {
  const kinds = { accepted: "Accepted as the model answered.", edited: "", rejected: decision?.text ? "Rejected; right is: " : "Rejected." };
  const words = ({ text, boxes }, kind, names) => chipped(text, kind, boxes.map((_, i) => names(i)));
  const remark = (name, text) => make("p", { class: "doubt" }, make("b", { class: "badge" }, name), ` ${text}`);
  const found = answer?.boxes.map(({ name }, i) => `${i + 1} ${name || "(no name)"}`).join(", ");
  const sure = answer?.confidence;
  return [
    ...(state === "failed" ? [remark("No answer", why)] : []),
    ...(state === "unsent" && why ? [remark("Not sent", `${why}. It is tried again.`)] : []),
    ...(answer?.warnings.map(({ message }) => remark("Warning", message)) ?? []),
    make("dl", {},
      ...(answer ? row("The model answered", ...words(answer, "model", (i) => String(i + 1))) : []),
      ...(found ? row("Boxes", found) : []),
      ...(answer ? row("Confidence", sure == null ? "none is known" : `${percent(sure)}: the probability that it is right, fitted to validation answers`) : []),
      ...(decision ? row("Decision", kinds[decision.kind],
        ...(decision.kind !== "accepted" && decision.text ? words(decision, "rewrite", (i) => decision.boxes[i].name || "box") : []),
        ...(decision.note ? [` Note: ${decision.note}`] : [])) : []),
      ...row("Arrived", `${moment(arrived)}, by the rule ${rule}`)),
    make("details", { class: "keys" }, make("summary", {}, "Identifiers"),
      make("dl", {}, ...row("Study", make("code", {}, study)), ...row("Series", make("code", {}, series)),
        ...row("Image", make("code", {}, instance), `, frame ${frame}`))),
  ];
}

/** An edited answer as the server reads it: each box with its name, in the order of the marks. */
function spelledOut(text, marks) {
  const { text: plain, boxes } = spelled(text, marks.map((mark) => ({ name: mark.name, box: mark })));
  const left = marks.find((mark) => !boxes.includes(mark));
  if (left) throw new Failure(`Box ${left.name} is not in the answer. Mention it there, or delete it.`);
  return { text: plain, boxes: boxes.map(({ box, label }) => ({ box, name: label ?? "" })) };
}

export class Worklist {
  /** @param {HTMLElement} root @param {object} about @param {(act: () => any) => Promise<any>} attempt */
  constructor(root, about, attempt) {
    Object.assign(this, {
      root, about, attempt, items: [], counts: {}, left: {}, afters: [null], more: null, entry: undefined, doing: null,
      busy: false, pictured: null, picture: null, opening: null,
    });
    this.view = new View(find("w-stage"));
    this.view.makes = null;
    this.tools = new Tools(this.view, find("w-bar"), find("w-levels"), about.presets, (window) => this.#window(window));
    find("w-sends").textContent = SENDS[about.worklist];
    find("w-sends").className = about.worklist === "all" ? "caution" : "soft";
    this.#wire();
    this.#watch();
  }

  // ---- the server ---------------------------------------------------------------------------------------------------

  async #watch() {
    await this.refresh();
    setTimeout(() => this.#watch(), 1000 * SECONDS);
  }

  /** The list and the entry that is open as they are now; neither the place nor what is being done is lost. */
  async refresh() {
    if (this.root.hidden || document.hidden || this.busy) return;
    try {
      await this.load();
      find("w-stale").textContent = "";
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      find("w-stale").textContent = `The list is not up to date. ${error.message}`;
    }
  }

  async load() {
    const words = new URLSearchParams({ limit: String(PAGE + 1) }), after = this.afters.at(-1);
    if (find("w-state").value) words.set("state", find("w-state").value);
    if (after) words.set("after", after);
    const mine = (this.loading = words), told = await fetched(`/v1/worklist?${words}`);
    if (this.loading !== mine) return; // a later look is under way
    const open = this.counts.answered ?? 0;
    const items = told.entries.slice(0, PAGE), more = told.entries.length > PAGE ? items.at(-1).id : null;
    Object.assign(this, { items, counts: told.counts, left: told.left_out, more });
    this.#list();
    if (this.counts.answered > open) say(`${this.counts.answered} to decide`);
    if (this.entry) this.#renew(items.find(({ id }) => id === this.entry.id) ?? await this.#fetch(this.entry.id));
    else if (items.length || this.entry === undefined) this.show(items[0] ?? null);
  }

  #fetch(id) { return fetched(`/v1/worklist/${encodeURIComponent(id)}`); }

  /** Send a decision; what comes back is how the entry stands now. */
  async decide(kind, more = {}) {
    const { entry } = this;
    if (!entry || this.busy) return;
    this.busy = true;
    await this.attempt(async () => {
      try {
        if (kind === "accepted") this.#look();
        const body = { kind, revision: entry.revision, ...more };
        this.show(await fetched(`/v1/worklist/${encodeURIComponent(entry.id)}/decision`, { method: "POST", body }));
        say(`${kind === "undo" ? "Taken back, " : ""}${STATES[this.entry.state]}`);
      } catch (error) {
        if (error.status === 409) this.#meet(await this.#fetch(entry.id)); // show what was decided elsewhere
        throw error;
      } finally {
        this.busy = false;
      }
      await this.load();
    });
  }

  /** Nobody accepts what was not seen. */
  #look() {
    if (!this.picture) throw new Failure("The image is not shown yet. Look at it before you accept its answer.");
  }

  /** The entry as it stands now, unless nothing changed or a person is at work on it. */
  #renew(now) {
    const { entry } = this;
    if (now.id !== entry?.id || now.revision <= entry.revision) return;
    if (this.doing) find("w-changed").textContent = `${CHANGED}: ${STATES[now.state]}. Cancel to see it.`;
    else {
      this.show(now);
      say(`This entry is now ${STATES[now.state]}.`);
    }
  }

  /** Another decision came first: it is shown, and what a person is at work on stays, to be saved once more or not. */
  #meet(now) {
    if (!this.doing) this.show(now);
    else {
      this.entry = now;
      find("w-changed").textContent = `${CHANGED}: ${STATES[now.state]}. Do it once more to replace that, or cancel.`;
    }
  }

  // ---- what is there all the time -----------------------------------------------------------------------------------

  #wire() {
    const on = (id, act, name = "click") => find(id).addEventListener(name, act);
    const states = [...Object.keys(STATES), ""].map((value) => make("option", { value }));
    find("w-state").append(...states);
    on("w-state", () => this.#turn([null]), "change");
    on("w-earlier", () => this.#turn(this.afters.slice(0, -1)));
    on("w-later", () => this.#turn([...this.afters, this.more]));
    this.view.addEventListener("marks", () => this.#tidy());
    for (const name of ["focus", "visibilitychange", "hashchange"]) addEventListener(name, () => this.refresh());
    listenToKeys("w", () => this.root.hidden || this.doing, (letter) => pressed(find("w-actions"), letter));
  }

  /** Another page of the list: the entries after which pages begin. */
  #turn(afters) {
    this.afters = afters;
    return this.attempt(() => this.load());
  }

  #list() {
    const { counts, items, afters, more } = this;
    const total = Object.values(counts).reduce((sum, n) => sum + n, 0);
    for (const option of find("w-state").options) {
      option.textContent = `${STATES[option.value] ?? "all"} (${option.value ? counts[option.value] ?? 0 : total})`;
    }
    const left = Object.entries(this.left).map(([modality, number]) => `${number} ${modality}`).join(", ");
    find("w-counts").textContent = (Object.entries(STATES).filter(([state]) => counts[state])
      .map(([state, words]) => `${counts[state]} ${words}`).join(" · ") || "Nothing has arrived yet.")
      + (left && ` · not kept, as no rule asks about them: ${left}`);
    find("w-earlier").disabled = afters.length < 2;
    find("w-later").disabled = !more;
    find("w-none").hidden = items.length > 0;
    const listed = JSON.stringify(items.map(({ id, revision, state }) => [id, revision, state]));
    if (listed !== this.listed) this.#rows();
    this.listed = listed;
    this.#point();
  }

  #rows() {
    const held = document.activeElement?.closest?.("#w-list [data-id]")?.dataset.id;
    find("w-list").replaceChildren(...this.items.map((entry) => make("li", {}, make("button", {
      type: "button", "data-id": entry.id, click: () => this.#open(entry),
    }, badge(entry), " ", make("span", {}, titled(entry), make("br"), make("span", { class: "soft small" },
      `${moment(entry.arrived)}${entry.answer?.warnings.length ? " · with a warning" : ""}`))))));
    if (held) find("w-list").querySelector(`[data-id="${CSS.escape(held)}"]`)?.focus();
  }

  #point() {
    for (const link of find("w-list").querySelectorAll("[data-id]")) {
      link.setAttribute("aria-current", String(link.dataset.id === this.entry?.id));
    }
  }

  #open(entry) {
    this.attempt(() => {
      if (this.doing) throw new Failure("Save or cancel first what you are doing.");
      this.show(entry);
      find("w-detail").focus({ preventScroll: true });
    });
  }

  /** The next one to decide after the one that is open, or else the first. */
  async next() {
    await this.attempt(async () => {
      const after = this.entry ? { after: this.entry.id } : {};
      for (const from of [after, {}]) {
        const words = new URLSearchParams({ state: "answered", limit: "2", ...from });
        const found = (await fetched(`/v1/worklist?${words}`)).entries.find(({ id }) => id !== this.entry?.id);
        if (!found) continue;
        this.#open(found);
        if (!this.items.some(({ id }) => id === found.id)) { // on another page of the list
          this.afters = from === after && this.more ? [...this.afters, this.more] : [null];
          await this.load();
        }
        return;
      }
      throw new Failure("Nothing else is to be decided.");
    });
  }

  // ---- one entry ----------------------------------------------------------------------------------------------------

  show(entry) {
    this.entry = entry;
    this.doing = null;
    this.view.makes = null;
    this.view.select(null);
    this.#point();
    this.view.stage.hidden = find("w-bar").hidden = !entry;
    find("w-changed").textContent = "";
    if (!entry) {
      this.#clear();
      find("w-detail").replaceChildren(make("p", {}, "No entry is open."));
      find("w-actions").replaceChildren();
      return;
    }
    this.#picture(entry);
    this.#marks();
    find("w-detail").replaceChildren(make("h3", {}, titled(entry), " ", badge(entry)), ...told(entry));
    const open = { answered: ["accept", "edit", "reject"], accepted: ["edit", "undo"], rejected: ["undo"] };
    const all = {
      accept: ["Accept", () => this.decide("accepted")], reject: ["Reject", () => this.reject()],
      edit: ["Edit and accept", () => this.attempt(() => this.edit())],
      undo: ["Undo", () => this.decide("undo")], next: ["Next", () => this.next()],
    };
    this.#act([...(open[entry.state] ?? []), "next"].map((name) => [name, ...all[name]]));
  }

  #act(all) { offerActions(find("w-actions"), find("w-detail"), all); }

  /** The boxes of the model, and those that a person made of them. */
  #marks() {
    const { answer, decision } = this.entry;
    const edited = decision && decision.kind !== "accepted" ? decision.boxes : [];
    this.view.replace("rewrite", edited.map(({ box, name }, i) => (
      { key: `rewrite-${i}`, kind: "rewrite", box, name, says: `Your box ${i + 1}, ${name}` })));
    this.view.replace("model", (answer?.boxes ?? []).map(({ box, name }, i) => ({
      key: `model-${i}`, kind: "model", box, name: String(i + 1), label: name,
      says: `The model’s box ${i + 1}, ${name}`,
    })));
  }

  #clear() {
    this.opening?.abort();
    this.pictured = this.picture = null;
    this.view.replace("model", []);
    this.view.replace("rewrite", []);
    this.view.clear(); // a box of this entry is never drawn on the picture of another
    this.tools.show(null);
  }

  async #picture({ id, frame }) {
    if (this.pictured === id) return;
    this.#clear();
    this.pictured = id;
    const mine = (this.opening = new AbortController());
    await this.attempt(async () => {
      try {
        const reply = await call(`/v1/worklist/${encodeURIComponent(id)}/image`, { signal: mine.signal });
        const blob = await reply.blob(), source = new Source("", this.about.limits.body_bytes, () => blob);
        this.#display(await open(source, frame, null, mine.signal));
        this.view.fit();
      } catch (error) {
        if (this.pictured === id) this.pictured = null; // tried again when it is opened again
        throw error;
      }
    });
  }

  #display(picture) {
    const { width, height, frame, frames } = picture.about;
    const facts = [`${this.entry.modality} image of ${width} by ${height} pixels`];
    if (frames > 1) facts.push(`frame ${frame} of ${frames}`);
    this.picture = picture;
    this.view.show(picture.canvas, facts.join(", "));
    this.tools.show(picture);
    find("w-facts").textContent = facts.join(" · ");
  }

  #window(window) {
    const { source, frame } = this.picture;
    this.opening?.abort();
    const mine = (this.opening = new AbortController());
    return this.attempt(async () => this.#display(await open(source, frame, window, mine.signal)));
  }

  // ---- editing and rejecting ----------------------------------------------------------------------------------------

  /** The answer, to change in words, boxes and their names: to be sent, or as the right one of a rejection. */
  edit(kind = "edited", note = "") {
    const { decision, answer } = this.entry, { text, boxes } = decision ?? answer;
    const save = () => this.#save(kind, note);
    this.#look();
    this.doing = "edit";
    this.view.makes = "rewrite";
    this.view.replace("rewrite", []);
    this.view.replace("model", []); // only what will be sent is seen while it is made
    const marks = boxes.map(({ box, name }) => {
      const { key } = this.view.add(box);
      this.view.label(key, name);
      return this.view.marks.get(key);
    });
    this.view.select(marks[0]?.key ?? null);
    this.tools.choose("draw");
    this.text = make("textarea", { rows: 4, maxlength: 4000, "aria-describedby": "w-help" });
    this.text.value = lettered(text, marks);
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    this.list = make("ul", { class: "boxes", "aria-label": "Your boxes" });
    this.help = make("p", { class: "soft small", id: "w-help" });
    find("w-detail").append(make("label", { class: "rewriting" }, "Your answer", this.text), this.list, this.help);
    const ends = kind === "edited" ? "Save and accept" : "Save and reject";
    this.#act([["save", ends, save], ["cancel", "Cancel", () => this.#cancel()]]);
    this.#tidy();
    this.text.focus();
  }

  #tidy() {
    if (this.doing !== "edit" || !this.list) return;
    const marks = this.view.of("rewrite");
    const rows = new Map([...this.list.children].map((line) => [line.dataset.key, line]));
    for (const [key, line] of rows) if (!marks.some((mark) => mark.key === key)) line.remove();
    for (const mark of marks) if (!rows.has(mark.key)) this.list.append(this.#named(mark));
    this.help.textContent = "Move and resize the boxes on the image, or draw another. Each has its mark in the answer, "
      + "such as [box A].";
  }

  #named({ key, name, label }) {
    const input = make("input", {
      type: "text", list: "names", maxlength: 64, autocomplete: "off", "aria-label": `Name of box ${name}`,
      input: () => this.view.label(key, input.value.trim()),
    });
    input.value = label ?? "";
    const go = button(name, () => this.view.visit(key), { class: "chip rewrite", "aria-label": `Go to box ${name}` });
    return make("li", { "data-key": key }, go, input,
      button("Mention", () => insert(this.text, `[box ${name}]`), { "aria-label": `Mention box ${name}` }),
      button("×", () => { this.view.remove(key); this.text.focus(); }, { "aria-label": `Delete box ${name}` }));
  }

  #save(kind, note) {
    this.attempt(async () => {
      const marks = this.view.of("rewrite"), text = this.text.value.trim();
      if (!text) throw new Failure("The answer is empty. Write one, or reject this entry.");
      await this.decide(kind, { ...spelledOut(text, marks), note });
    });
  }

  /** Rejecting takes a second key, with room for a note in between, and for the right answer, which is never sent. */
  reject() {
    this.doing = "reject";
    const note = make("input", { type: "text", maxlength: 1000, autocomplete: "off" });
    const form = make("form", {
      class: "bar grow",
      submit: (event) => { event.preventDefault(); this.decide("rejected", { note: note.value.trim() }); },
      keydown: (event) => { if (event.key === "Escape") this.#cancel(); },
    }, make("label", { class: "grow" }, "Why it is rejected (may be left empty)", note),
    make("button", { class: "strong", "data-act": "rejected" }, "Reject"),
    button("Give the right answer", () => this.attempt(() => this.edit("rejected", note.value.trim())),
      { "data-act": "right", title: "It is kept to learn from, and never sent" }),
    button("Cancel", () => this.#cancel(), { "data-act": "cancel" }));
    find("w-actions").replaceChildren(form);
    note.focus();
  }

  #cancel() {
    complain("");
    this.show(this.entry);
    find("w-detail").focus({ preventScroll: true });
    this.refresh();
  }
}
