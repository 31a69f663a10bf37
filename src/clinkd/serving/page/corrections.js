/** Corrections: what the run found wrong, what it made of it, and what a person makes of that. */

import { chipped } from "./answer.js";
import { boxed, Failure, fetched, lettered, spelled } from "./ask.js";
import { View } from "./canvas.js";
import { listenToKeys, offerActions, pressed } from "./deciding.js";
import { button, complain, find, insert, make, say } from "./dom.js";

const PAGE = 20;
const VERDICTS = { accept: "accepted", edit: "edited", reject: "rejected" };
const NONE = { open: "Nothing is open here.", decided: "Nothing is decided here yet.", all: "There is nothing here." };
const KINDS = [["asked", "Question"], ["model", "Model’s answer"], ["truth", "Truth"], ["rewrite", "Rewrite"]];

const named = (prefix, boxes) => boxes.map((_, i) => (boxes.length > 1 ? `${prefix} ${i + 1}` : prefix));

export class Corrections {
  /** @param {HTMLElement} root @param {number[]} rounds @param {(act: () => any) => Promise<any>} attempt */
  constructor(root, rounds, attempt) {
    Object.assign(this, { root, attempt, items: [], at: 0, offset: 0, editing: false, busy: false, pictured: null });
    this.view = new View(find("c-stage"));
    this.view.makes = null;
    this.#wire(rounds);
    this.load();
  }

  // ---- the server ---------------------------------------------------------------------------------------------------

  async load() {
    await this.attempt(async () => {
      const words = new URLSearchParams({
        round: find("c-round").value, state: find("c-state").value, offset: String(this.offset), limit: String(PAGE),
      });
      const told = await fetched(`/v1/corrections?${words}`);
      Object.assign(this, { items: told.items, total: told.total, counts: { open: told.open, decided: told.decided } });
      find("c-command").textContent = told.command;
      find("c-file").textContent = told.file;
      this.at = 0;
      this.#list();
      this.#progress();
      this.show();
    });
  }

  /** Send a verdict; what comes back is how the item stands now. */
  async decide(verdict, more = {}) {
    const item = this.items[this.at];
    if (!item || this.busy) return;
    this.busy = true;
    await this.attempt(async () => {
      try {
        if (verdict === "accept" && !item.after) throw new Failure("There is no rewrite to accept. Edit or reject it.");
        const body = { id: item.id, round: item.round, verdict, seen: item.decision, ...more };
        const now = await fetched("/v1/corrections", { method: "PUT", body });
        const change = Number(Boolean(now.decision)) - Number(Boolean(item.decision));
        this.counts.decided += change;
        this.counts.open -= change;
        this.items[this.items.indexOf(item)] = now;
        this.#list();
        this.#progress();
        say(`${now.decision ? VERDICTS[now.decision.verdict] : "open again"}. ${find("c-progress").textContent}`);
        const next = verdict === "undo" ? -1 : this.items.findIndex((other, n) => n > this.at && !other.decision);
        if (next >= 0) this.at = next;
        this.show();
      } catch (error) {
        if (error.status === 409) { // show what was decided elsewhere
          await this.load();
          this.at = Math.max(0, this.items.findIndex((other) => other.id === item.id && other.round === item.round));
          this.show();
        }
        throw error;
      } finally {
        this.busy = false;
      }
    });
  }

  // ---- what is there all the time -----------------------------------------------------------------------------------

  #wire(rounds) {
    const again = () => { this.offset = 0; this.load(); };
    const on = (id, act, name = "click") => find(id).addEventListener(name, act);
    find("c-round").append(...rounds.map((n) => make("option", { value: n }, `round ${n}`)));
    find("c-round").value = rounds.at(-1);
    on("c-round", again, "change");
    on("c-state", again, "change");
    on("c-earlier", () => this.#page(false));
    on("c-later", () => this.#page(true));
    on("c-kinds", ({ target }) => find("c-stage").classList.toggle(`no-${target.value}`, !target.checked), "change");
    on("c-out", () => this.view.zoom(0.8));
    on("c-in", () => this.view.zoom(1.25));
    on("c-fit", () => this.view.fit());
    on("c-copy", () => this.attempt(() => this.#copy()));
    this.view.addEventListener("marks", () => this.#tidy());
    const steps = { j: () => this.go(this.at + 1), k: () => this.go(this.at - 1) };
    listenToKeys("c", () => this.root.hidden || this.editing,
      (letter) => steps[letter] ?? pressed(find("c-actions"), letter));
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(find("c-command").textContent);
      say("The command is copied.");
    } catch {
      getSelection().selectAllChildren(find("c-command"));
      throw new Failure("The browser does not let this page copy. The command is selected: copy it by hand.");
    }
  }

  /** Those after, or those before; what was decided here is no longer among the open ones, nor the other way round. */
  #page(forward) {
    const state = find("c-state").value;
    const stay = this.items.filter((item) => state === "all" || Boolean(item.decision) === (state === "decided"));
    this.offset = Math.max(0, this.offset + (forward ? stay.length : -PAGE));
    this.load();
  }

  #progress() {
    const { open, decided } = this.counts;
    find("c-progress").textContent = `${decided} of ${open + decided} decided`;
    Object.assign(find("c-bar"), { max: open + decided || 1, value: decided });
    find("c-earlier").disabled = this.offset === 0;
    find("c-later").disabled = this.offset + this.items.length >= this.total;
    const last = this.offset + this.items.length;
    find("c-pages").textContent = this.items.length ? `${this.offset + 1} to ${last} of ${this.total}` : "";
  }

  #list() {
    const rows = this.items.map((item, n) => {
      const verdict = item.decision?.verdict;
      const mark = verdict ? VERDICTS[verdict] : item.after ? "open" : "open, no rewrite";
      return make("li", {}, make("button", { type: "button", "data-number": n, click: () => this.go(n) },
        make("span", { class: `verdict ${verdict ?? ""}` }, mark), " ",
        make("span", {}, `${item.task} · ${item.modality} · ${boxed(item.question.text)}`)));
    });
    const held = find("c-list").contains(document.activeElement);
    find("c-list").replaceChildren(...rows);
    if (held) find("c-list").querySelectorAll("button")[this.at]?.focus();
  }

  go(n) {
    if (n < 0 && !find("c-earlier").disabled) this.#page(false);
    if (n >= this.items.length && !find("c-later").disabled) this.#page(true);
    if (!this.items[n]) return;
    this.at = n;
    this.show();
    find("c-detail").focus({ preventScroll: true });
  }

  // ---- one correction -----------------------------------------------------------------------------------------------

  show() {
    const item = this.items[this.at];
    this.editing = false;
    this.view.makes = null;
    this.view.select(null);
    for (const button of find("c-list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.number) === this.at));
    }
    if (!item) {
      find("c-detail").replaceChildren(make("p", {}, NONE[find("c-state").value]));
      find("c-actions").replaceChildren();
      for (const [kind] of KINDS) this.view.replace(kind, []);
      this.view.stage.hidden = true;
      return;
    }
    this.view.stage.hidden = false;
    this.#picture(item);
    const after = item.decision?.verdict === "edit" ? item.decision.after : item.after;
    const parts = { asked: item.question, model: item.before, truth: item.truth, rewrite: after };
    for (const [kind, text] of KINDS) {
      const boxes = parts[kind]?.boxes ?? [], names = named(kind === "model" ? "answer" : kind, boxes);
      this.view.replace(kind, boxes.map((box, i) => (
        { key: `${kind}-${i}`, kind, box, name: names[i], says: `${text}, box ${i + 1}` })));
    }
    const none = make("span", { class: "soft" }, item.rejected ? `none: ${item.rejected}` : "none");
    const words = (kind) => chipped(parts[kind].text, kind, named("box", parts[kind].boxes));
    const row = (kind, title) => [make("dt", {}, title), make("dd", {}, ...(parts[kind] ? words(kind) : [none]))];
    const verdict = item.decision?.verdict;
    this.words = make("dl", {},
      ...row("asked", "Question"), ...row("model", "The model answered"), ...row("truth", "Truth"),
      make("dt", {}, "Why it was wrong"), make("dd", {}, item.reasons.join(", ") || "–"),
      ...row("rewrite", verdict === "edit" ? "Your rewrite" : `Rewrite${item.by ? ` (${item.by})` : ""}`));
    find("c-detail").replaceChildren(
      make("h3", {}, `${item.task} · ${item.modality} `,
        make("span", { class: `verdict ${verdict ?? ""}` }, verdict ? VERDICTS[verdict] : "open")),
      this.words);
    this.#act([
      ["accept", "Accept", () => this.decide("accept"), { disabled: !item.after }],
      ["edit", "Edit", () => this.edit()],
      ["reject", "Reject", () => this.decide("reject")],
      ["undo", "Undo", () => this.decide("undo"), { disabled: !item.decision }],
    ]);
  }

  #act(all) { offerActions(find("c-actions"), find("c-detail"), all); }

  async #picture(item) {
    const address = `/v1/corrections/image?${new URLSearchParams({ id: item.id, round: String(item.round) })}`;
    if (this.pictured === address) return;
    this.pictured = null;
    this.view.clear(); // a box of this correction is never drawn on the picture of another
    const image = new Image();
    image.src = address;
    await this.attempt(async () => {
      await image.decode().catch(() => { throw new Failure("The image of this correction could not be shown."); });
      if (this.items[this.at]?.id !== item.id) return;
      const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d").drawImage(image, 0, 0);
      this.view.show(canvas, `${item.modality} image of ${canvas.width} by ${canvas.height} pixels`);
      this.view.fit();
      this.pictured = address;
    });
  }

  /** The rewrite, or else the truth, to change in words and boxes. */
  edit() {
    const item = this.items[this.at];
    if (!item || this.editing) return;
    this.editing = true;
    const from = item.decision?.after ?? item.after ?? item.truth;
    this.view.makes = "rewrite";
    this.view.replace("rewrite", []);
    const marks = from.boxes.map((box) => this.view.add(box));
    this.view.select(marks[0]?.key ?? null);
    this.text = make("textarea", { rows: 4, maxlength: 4000, "aria-describedby": "edit-help" });
    this.text.value = lettered(from.text, marks);
    this.hint = make("p", { class: "soft small", id: "edit-help" });
    find("c-detail").replaceChildren(find("c-detail").firstElementChild, this.words,
      make("label", { class: "rewriting" }, "Your rewrite", this.text), this.hint,
      make("div", { class: "bar" }, button("Mention box", () => this.#insert())));
    this.#act([["save", "Save", () => this.#save()], ["cancel", "Cancel", () => { complain(""); this.show(); }]]);
    this.#tidy();
    this.text.focus();
  }

  #tidy() {
    if (!this.editing || !this.hint) return;
    const names = this.view.of("rewrite").map((m) => `[box ${m.name}]`);
    this.hint.textContent = names.length
      ? `Boxes on the image, to move, resize and delete: ${names.join(", ")}. Draw one for more.`
      : "No box yet: draw one on the image, and insert its mark.";
  }

  #insert() {
    const marks = this.view.of("rewrite");
    const box = marks.find((m) => m.key === this.view.selected) ?? marks.at(-1);
    this.attempt(() => {
      if (!box) throw new Failure("Draw a box first.");
      insert(this.text, `[box ${box.name}]`);
    });
  }

  #save() {
    this.attempt(async () => {
      const made = spelled(this.text.value.trim(), this.view.of("rewrite"));
      if (!made.text) throw new Failure("The rewrite is empty. Write one, or reject this correction.");
      await this.decide("edit", made);
    });
  }
}
