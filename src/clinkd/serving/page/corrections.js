/** Corrections: what the run found wrong, what it made of it, and what a person makes of that. */

import { chipped } from "./answer.js";
import { Failure, fetched, spelled } from "./ask.js";
import { View } from "./canvas.js";
import { complain, make, say } from "./dom.js";

const PAGE = 20;
const VERDICTS = { accept: "accepted", edit: "edited", reject: "rejected" };
const KEYS = [["A", "accept"], ["E", "edit"], ["R", "reject"], ["U", "undo"], ["J", "next"], ["K", "previous"]];
const KINDS = [["asked", "Question"], ["model", "Model’s answer"], ["truth", "Truth"], ["rewrite", "Rewrite"]];

/** "[box]" marks by the names of their boxes, as they are edited. */
const lettered = ({ text }, marks) => {
  let n = 0;
  return text.replaceAll("[box]", () => `[box ${marks[n++]?.name ?? "A"}]`);
};

const named = (prefix, boxes) => boxes.map((_, i) => (boxes.length > 1 ? `${prefix} ${i + 1}` : prefix));

export class Corrections {
  /** @param {HTMLElement} root @param {number[]} rounds @param {(act: () => any) => Promise<any>} attempt */
  constructor(root, rounds, attempt) {
    Object.assign(this, { root, attempt, items: [], at: 0, offset: 0, editing: false, busy: false });
    this.#build(rounds);
    addEventListener("keydown", (event) => this.#key(event));
    this.load();
  }

  // ---- the server ---------------------------------------------------------------------------------------------------

  async load() {
    await this.attempt(async () => {
      const words = new URLSearchParams({
        round: this.round.value, state: this.state.value, offset: String(this.offset), limit: String(PAGE),
      });
      const told = await fetched(`/v1/corrections?${words}`);
      Object.assign(this, { items: told.items, total: told.total, counts: { open: told.open, decided: told.decided } });
      this.command.textContent = told.command;
      this.file.textContent = told.file;
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
        if (verdict === "accept" && !item.after) throw new Failure("There is no rewrite to accept. Edit it, or reject it.");
        const body = { id: item.id, round: item.round, verdict, ...more };
        const now = await fetched("/v1/corrections", { method: "PUT", body });
        const change = Number(Boolean(now.decision)) - Number(Boolean(item.decision));
        this.counts.decided += change;
        this.counts.open -= change;
        this.items[this.items.indexOf(item)] = now;
        this.#list();
        this.#progress();
        say(`${now.decision ? VERDICTS[now.decision.verdict] : "open again"}. ${this.progress.textContent}`);
        const next = verdict === "undo" ? -1 : this.items.findIndex((other, n) => n > this.at && !other.decision);
        if (next >= 0) this.at = next;
        this.show();
      } finally {
        this.busy = false;
      }
    });
  }

  // ---- what is there all the time -----------------------------------------------------------------------------------

  #build(rounds) {
    const again = () => { this.offset = 0; this.load(); };
    const choice = (all, chosen) => make("select", { change: again },
      ...all.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
    this.round = choice(rounds.map((n) => [String(n), `round ${n}`]), String(rounds.at(-1)));
    this.state = choice([["open", "open"], ["decided", "decided"], ["all", "all"]], "open");
    this.progress = make("p", { class: "progress" });
    this.bar = make("progress", { max: 1, value: 0, "aria-label": "Decided" });
    this.list = make("ol", { class: "items", "aria-label": "Corrections" });
    this.pages = make("p", { class: "soft small" });
    this.earlier = make("button", { type: "button", click: () => this.#page(false) }, "Earlier");
    this.later = make("button", { type: "button", click: () => this.#page(true) }, "Later");
    this.command = make("code", { tabindex: 0 });
    this.file = make("code");
    this.shortcuts = make("input", { type: "checkbox", checked: true });
    const stage = make("div", { class: "stage", tabindex: 0, role: "application", "aria-label": "Image of the correction" });
    this.view = new View(stage);
    this.view.makes = null;
    this.kinds = KINDS.map(([kind, text]) => make("label", { class: "check" },
      make("input", { type: "checkbox", checked: true, change: ({ target }) => stage.classList.toggle(`no-${kind}`, !target.checked) }),
      make("span", { class: `chip ${kind}` }, text)));
    this.detail = make("div", { class: "detail", tabindex: -1 });
    this.actions = make("div", { class: "bar", role: "group", "aria-label": "Verdict" });
    this.view.addEventListener("marks", () => this.#tidy());
    const copied = async () => {
      await navigator.clipboard.writeText(this.command.textContent);
      say("The command is copied.");
    };
    const copy = make("button", { type: "button", click: () => this.attempt(() => copied().catch(() => {
      getSelection().selectAllChildren(this.command);
      throw new Failure("The browser does not let this page copy. The command is selected: copy it by hand.");
    })) }, "Copy");
    this.root.append(
      make("h2", {}, "Corrections"),
      make("p", { class: "soft" }, "Answers of the model to training questions that missed the truth, and how they were rewritten. ",
        "What you decide is saved at once; the next run can learn from it."),
      make("div", { class: "two" },
        make("section", { class: "looking", "aria-label": "Image of the correction" }, stage,
          make("div", { class: "bar" }, ...this.kinds),
          make("div", { class: "bar" },
            make("button", { type: "button", "aria-label": "Zoom out", click: () => this.view.zoom(0.8) }, "−"),
            make("button", { type: "button", "aria-label": "Zoom in", click: () => this.view.zoom(1.25) }, "+"),
            make("button", { type: "button", click: () => this.view.fit() }, "Fit"))),
        make("div", { class: "talking" },
          make("section", { class: "card", "aria-label": "This correction" }, this.detail, this.actions),
          make("section", { class: "card", "aria-label": "All corrections" },
            make("div", { class: "bar" }, make("label", {}, "Round ", this.round), make("label", {}, "Show ", this.state)),
            this.bar, this.progress, this.list,
            make("div", { class: "bar" }, this.earlier, this.later, this.pages)),
          make("section", { class: "card" },
            make("h3", {}, "Learn from it"),
            make("p", { class: "small soft" }, "Decisions are in ", this.file, ". The next run:"),
            make("div", { class: "command" }, this.command, copy)),
          make("section", { class: "card small" },
            make("h3", {}, "Keys"),
            make("p", {}, "On the image while you edit: Enter makes a box, arrows move it, Shift with arrows moves its right or ",
              "lower edge, Ctrl makes steps finer, Delete removes it."),
            make("p", {}, ...KEYS.flatMap(([key, what]) => [make("kbd", {}, key), ` ${what}  `])),
            make("label", { class: "check" }, this.shortcuts, "These keys are on")))));
  }

  /** Those after, or those before; what was decided here is no longer among the open ones, nor the other way round. */
  #page(forward) {
    const stay = this.items.filter((item) => this.state.value === "all" || Boolean(item.decision) === (this.state.value === "decided"));
    this.offset = Math.max(0, this.offset + (forward ? stay.length : -PAGE));
    this.load();
  }

  #progress() {
    const { open, decided } = this.counts;
    this.progress.textContent = `${decided} of ${open + decided} decided`;
    Object.assign(this.bar, { max: open + decided || 1, value: decided });
    this.earlier.disabled = this.offset === 0;
    this.later.disabled = this.offset + this.items.length >= this.total;
    const last = this.offset + this.items.length;
    this.pages.textContent = this.items.length ? `${this.offset + 1} to ${last} of ${this.total}` : "";
  }

  #list() {
    const rows = this.items.map((item, n) => {
      const verdict = item.decision?.verdict;
      const mark = verdict ? VERDICTS[verdict] : item.after ? "open" : "open, no rewrite";
      return make("li", {}, make("button", { type: "button", "data-number": n, click: () => this.go(n) },
        make("span", { class: `verdict ${verdict ?? ""}` }, mark), " ",
        make("span", {}, `${item.task} · ${item.modality} · ${item.question.text.replaceAll("[box]", "▢")}`)));
    });
    const held = this.list.contains(document.activeElement);
    this.list.replaceChildren(...rows);
    if (held) this.list.querySelectorAll("button")[this.at]?.focus();
  }

  go(n) {
    if (n < 0 && !this.earlier.disabled) this.#page(false);
    if (n >= this.items.length && !this.later.disabled) this.#page(true);
    if (!this.items[n]) return;
    this.at = n;
    this.show();
    this.detail.focus({ preventScroll: true });
  }

  // ---- one correction -----------------------------------------------------------------------------------------------

  show() {
    const item = this.items[this.at];
    this.editing = false;
    this.view.makes = null;
    this.view.select(null);
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.number) === this.at));
    }
    if (!item) {
      const none = { open: "Nothing is open here.", decided: "Nothing is decided here yet." }[this.state.value] ?? "There is nothing here.";
      this.detail.replaceChildren(make("p", {}, none));
      this.actions.replaceChildren();
      for (const [kind] of KINDS) this.view.replace(kind, []);
      this.view.stage.hidden = true;
      return;
    }
    this.view.stage.hidden = false;
    this.#picture(item);
    const after = item.decision?.verdict === "edit" ? item.decision.after : item.after;
    const parts = { asked: item.question, model: item.before, truth: item.truth, rewrite: after };
    for (const [kind, text] of KINDS) {
      const prefix = kind === "model" ? "answer" : kind;
      const names = named(prefix, parts[kind]?.boxes ?? []);
      this.view.replace(kind, (parts[kind]?.boxes ?? []).map((box, i) => ({ key: `${kind}-${i}`, kind, box, name: names[i], says: `${text}, box ${i + 1}` })));
    }
    const row = (kind, title) => [make("dt", {}, title), make("dd", {}, ...(parts[kind]
      ? chipped(parts[kind].text, kind, named("box", parts[kind].boxes).map((name) => name.replace("box ", "")))
      : [make("span", { class: "soft" }, item.rejected ? `none: ${item.rejected}` : "none")]))];
    const verdict = item.decision?.verdict;
    this.words = make("dl", {}, ...row("asked", "Question"), ...row("model", "The model answered"), ...row("truth", "Truth"),
      make("dt", {}, "Why it was wrong"), make("dd", {}, item.reasons.join(", ") || "–"),
      ...row("rewrite", verdict === "edit" ? "Your rewrite" : `Rewrite${item.by ? ` (${item.by})` : ""}`));
    this.detail.replaceChildren(
      make("h3", {}, `${item.task} · ${item.modality} `, make("span", { class: `verdict ${verdict ?? ""}` }, verdict ? VERDICTS[verdict] : "open")),
      this.words);
    this.#act([
      ["accept", "Accept", () => this.decide("accept"), !item.after], ["edit", "Edit", () => this.edit(), false],
      ["reject", "Reject", () => this.decide("reject"), false], ["undo", "Undo", () => this.decide("undo"), !item.decision],
    ]);
  }

  #act(all) {
    const held = this.actions.contains(document.activeElement);
    this.actions.replaceChildren(...all.map(([name, text, click, disabled]) =>
      make("button", { type: "button", click, disabled, "data-verdict": name, class: name === "accept" || name === "save" ? "strong" : "" }, text)));
    if (held) this.detail.focus({ preventScroll: true });
  }

  async #picture(item) {
    const image = new Image();
    image.src = `/v1/corrections/image?${new URLSearchParams({ id: item.id, round: String(item.round) })}`;
    await this.attempt(async () => {
      await image.decode().catch(() => { throw new Failure("The image of this correction could not be shown."); });
      if (this.items[this.at]?.id !== item.id) return;
      const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      canvas.getContext("2d").drawImage(image, 0, 0);
      this.view.show(canvas, `${item.modality} image of ${canvas.width} by ${canvas.height} pixels`);
      this.view.fit();
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
    this.text.value = lettered(from, marks);
    this.hint = make("p", { class: "soft small", id: "edit-help" });
    const insert = make("button", { type: "button", click: () => this.#insert() }, "Insert box");
    this.detail.replaceChildren(this.detail.firstElementChild, this.words, make("label", { class: "rewriting" }, "Your rewrite", this.text), this.hint, make("div", { class: "bar" }, insert));
    this.#act([["save", "Save", () => this.#save(), false], ["cancel", "Cancel", () => { complain(""); this.show(); }, false]]);
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
      this.text.setRangeText(`[box ${box.name}]`, this.text.selectionStart, this.text.selectionEnd, "end");
      this.text.focus();
    });
  }

  #save() {
    this.attempt(async () => {
      const made = spelled(this.text.value.trim(), this.view.of("rewrite"));
      if (!made.text) throw new Failure("The rewrite is empty. Write one, or reject this correction.");
      await this.decide("edit", made);
    });
  }

  #key(event) {
    const typing = event.target.closest("input:not([type=checkbox]), textarea, select");
    if (this.root.hidden || typing || event.ctrlKey || event.altKey || event.metaKey || !this.shortcuts.checked || this.editing) return;
    const act = {
      a: () => this.decide("accept"), e: () => this.edit(), r: () => this.decide("reject"), u: () => this.items[this.at]?.decision && this.decide("undo"),
      j: () => this.go(this.at + 1), k: () => this.go(this.at - 1),
    }[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
