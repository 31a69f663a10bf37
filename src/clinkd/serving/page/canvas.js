/** The view of a picture: zoom, pan, and boxes that mouse, touch and keys draw, move, resize and delete.
 *
 * Boxes are [x1, y1, x2, y2] in fractions of the picture, as exact as pointers are, and snap to nothing.
 * Pixels lie on a canvas that is moved and scaled; boxes on an SVG over the whole stage, in its own CSS pixels.
 */

import { draw } from "./dom.js";

/** How each kind of box is drawn: told apart by dashes and by the corner and text of its label, not by colour alone. */
export const KINDS = {
  asked: { colour: "#F0E442", dash: "", corner: "sw" },
  person: { colour: "#F0E442", dash: "", corner: "sw" },
  model: { colour: "#E69F00", dash: "9 6", corner: "nw" },
  candidate: { colour: "#FFFFFF", dash: "3 4", corner: "se" },
  truth: { colour: "#56B4E9", dash: "", corner: "ne" },
  rewrite: { colour: "#FFFFFF", dash: "3 4", corner: "se" },
};

const DRAG = 4; // CSS pixels below which a press is a click
const NOTCH = 50; // CSS pixels of the wheel from which it goes to another frame
const SCALE = 40; // CSS pixels of one pixel, at most
const GRIPS = [["w", "n"], ["e", "n"], ["w", "s"], ["e", "s"], ["", "n"], ["", "s"], ["w", ""], ["e", ""]];
const ALONG = { w: 0, n: 0, "": 0.5, e: 1, s: 1 };
const CLEAR = 64; // CSS pixels of a side from which it has a grip in its middle

const clip = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** @typedef {{key: string, kind: string, box: number[], name: string, label?: string, says?: string, editable?: boolean}} Mark
 * `label`: what a person says that the box shows */

/**
 * Events: "marks" (an editable mark was made, changed or deleted), "select", "point" (detail: keys under the pointer or
 * with the focus), "press" (detail: key of a mark that was clicked), "zoom", "level" (detail: how far a drag went in
 * CSS pixels since its start, and whether it starts), "frame" (detail: how many frames on), "mode" (detail: its name).
 * Where `scrolls` is set, the wheel alone goes through frames and zooms with Ctrl.
 */
export class View extends EventTarget {
  /** @param {HTMLElement} stage an element with a height of its own, focusable */
  constructor(stage) {
    super();
    this.stage = stage;
    this.mode = "draw";
    this.makes = /** @type {string | null} */ ("person"); // the kind of new boxes; null: none are drawn
    this.scrolls = false;
    this.rolled = 0; // CSS pixels of the wheel that made no frame yet
    this.size = null;
    this.selected = null;
    this.marks = /** @type {Map<string, Mark>} */ (new Map());
    this.nodes = new Map();
    this.pointers = new Map();
    this.gesture = null;
    Object.assign(this, { scale: 1, x: 0, y: 0, fitted: true });
    this.sheet = document.createElement("div");
    this.sheet.className = "sheet";
    this.over = draw("svg", { class: "over" });
    this.ghost = draw("rect", { class: "ghost", visibility: "hidden" });
    this.over.append(this.ghost);
    stage.append(this.sheet, this.over);
    const on = (name, act, how) => stage.addEventListener(name, act.bind(this), how);
    on("pointerdown", this.#down);
    on("pointermove", this.#move);
    on("pointerup", this.#up);
    on("pointercancel", this.#up);
    on("wheel", this.#wheel, { passive: false });
    on("keydown", this.#key);
    for (const name of ["pointerover", "focusin"]) on(name, this.#point);
    for (const name of ["pointerleave", "focusout"]) on(name, () => this.#tell("point", []));
    new ResizeObserver(() => (this.fitted ? this.fit() : this.render())).observe(stage);
  }

  #tell(name, detail = null) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  // ---- what is shown --------------------------------------------------------------------------------------------

  /** Show a picture; another size is fitted anew. */
  show(canvas, label) {
    const same = this.size && this.size.width === canvas.width && this.size.height === canvas.height;
    this.size = { width: canvas.width, height: canvas.height };
    this.sheet.replaceChildren(canvas);
    this.stage.setAttribute("aria-label", label);
    if (same) this.render();
    else this.fit();
  }

  /** Take the picture away; until the next one nothing can be drawn. */
  clear() {
    this.size = null;
    this.sheet.replaceChildren();
    this.stage.setAttribute("aria-label", "Image, not there yet");
  }

  /** The whole picture, as large as it can be. */
  fit() {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.stage;
    this.fitted = true;
    this.scale = Math.min(clientWidth / this.size.width, clientHeight / this.size.height) || 1;
    this.x = (clientWidth - this.scale * this.size.width) / 2;
    this.y = (clientHeight - this.scale * this.size.height) / 2;
    this.render();
    this.#tell("zoom");
  }

  /** Zoom by a factor; what is at (x, y) of the stage, or in its middle, stays there. */
  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.size) return;
    const least = 32 / Math.max(this.size.width, this.size.height);
    const scale = clip(this.scale * factor, least, SCALE);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.pan(0, 0);
    this.#tell("zoom");
  }

  /** Move the picture by CSS pixels; a bit of it always stays in sight. */
  pan(dx, dy) {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.stage;
    this.x = clip(this.x + dx, 24 - this.scale * this.size.width, clientWidth - 24);
    this.y = clip(this.y + dy, 24 - this.scale * this.size.height, clientHeight - 24);
    this.fitted = false;
    this.render();
  }

  render() {
    if (!this.size) return;
    this.sheet.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.sheet.classList.toggle("coarse", this.scale >= 2);
    for (const mark of this.marks.values()) this.#place(mark);
    if (this.gesture?.ghost) outline(this.ghost, this.#inside(this.gesture.ghost));
    this.ghost.setAttribute("visibility", this.gesture?.ghost ? "visible" : "hidden");
  }

  /** A box in the stage's CSS pixels: left, top, width, height. */
  #inside([x1, y1, x2, y2]) {
    const wide = this.scale * this.size.width, high = this.scale * this.size.height;
    return [this.x + x1 * wide, this.y + y1 * high, (x2 - x1) * wide, (y2 - y1) * high];
  }

  // ---- boxes ----------------------------------------------------------------------------------------------------

  /** Those of a kind, in the order they were made. */
  of(kind) { return [...this.marks.values()].filter((mark) => mark.kind === kind); }

  /** Exactly these marks of a kind, and no others. */
  replace(kind, marks) {
    for (const mark of this.of(kind)) if (!marks.some((m) => m.key === mark.key)) this.#drop(mark.key);
    for (const mark of marks) this.marks.set(mark.key, mark);
    if (!this.marks.has(this.selected)) this.select(null);
    this.render();
  }

  /** A new box of a person's, by the first letter that is free. */
  add(box) {
    const taken = new Set([...this.marks.values()].filter((m) => m.editable).map((m) => m.name));
    let name = "A";
    for (let n = 0; taken.has(name); n++) name = letters(n);
    const mark = { key: `${this.makes}-${name}`, kind: this.makes, box, name, editable: true };
    this.marks.set(mark.key, mark);
    this.render();
    this.select(mark.key);
    this.#tell("marks");
    return mark;
  }

  /** Another place for a mark. */
  put(key, box) {
    this.marks.set(key, { ...this.marks.get(key), box });
    this.render();
    this.#tell("marks");
  }

  /** What a box shows, in a person's words. */
  label(key, label) {
    this.marks.set(key, { ...this.marks.get(key), label });
    this.render();
    this.#tell("marks");
  }

  remove(key) {
    const focused = this.nodes.get(key)?.group.contains(document.activeElement);
    this.#drop(key);
    if (this.selected === key) this.select(null);
    if (focused) this.stage.focus();
    this.#tell("marks");
  }

  #drop(key) {
    this.marks.delete(key);
    this.nodes.get(key)?.group.remove();
    this.nodes.delete(key);
  }

  select(key) {
    if (this.selected === key) return;
    this.selected = key;
    this.render();
    this.#tell("select");
  }

  /** Light marks up, as those that are spoken of. */
  light(keys) {
    for (const [key, { group }] of this.nodes) group.classList.toggle("lit", keys.includes(key));
  }

  /** Bring a mark into sight and give it the focus. */
  visit(key) {
    const mark = this.marks.get(key);
    if (!mark) return;
    const [left, top, width, height] = this.#inside(mark.box);
    const { clientWidth, clientHeight } = this.stage;
    const away = (at, size, room) => (at < 0 || at + size > room ? room / 2 - at - size / 2 : 0);
    const [dx, dy] = [away(left, width, clientWidth), away(top, height, clientHeight)];
    if (dx || dy) this.pan(dx, dy);
    this.nodes.get(key).group.focus({ preventScroll: true });
  }

  #node(mark) {
    const { colour, dash } = KINDS[mark.kind];
    const edge = draw("rect", { class: "edge" });
    const line = draw("rect", { class: "line", stroke: colour, "stroke-dasharray": dash });
    const hit = draw("rect", { class: "hit" });
    const plate = draw("rect", { class: "plate", fill: colour, rx: 2 });
    const text = draw("text", { class: "name" });
    const grips = mark.editable ? GRIPS.map(([h, v]) => new Grip(h, v)) : [];
    const group = draw("g", {
      class: `mark ${mark.kind}`, "data-key": mark.key, tabindex: 0, role: mark.editable ? "group" : "button",
    }, edge, line, hit, plate, text, ...grips.map((one) => one.element));
    this.over.insertBefore(group, mark.editable ? this.ghost : this.over.querySelector(".mark.editable") ?? this.ghost);
    if (mark.editable) group.classList.add("editable");
    const made = { group, edge, line, hit, plate, text, grips, width: 0 };
    this.nodes.set(mark.key, made);
    return made;
  }

  #place(mark) {
    const node = this.nodes.get(mark.key) ?? this.#node(mark);
    const [left, top, width, height] = this.#inside(mark.box);
    for (const rect of [node.edge, node.line, node.hit]) outline(rect, [left, top, width, height]);
    const caption = mark.label ? `${mark.name} ${mark.label}` : mark.name;
    if (node.text.textContent !== caption) {
      node.text.textContent = caption;
      node.width = 0; // to be measured
    }
    const wide = (node.width ||= node.text.getBBox().width) + 8, high = 18;
    const [vertical, side] = KINDS[mark.kind].corner;
    const above = vertical === "n" ? top - high - 2 : top + height + 2;
    const within = vertical === "n" ? top + 2 : top + height - high - 2;
    const y = above < 0 || above + high > this.stage.clientHeight ? within : above;
    const x = side === "w" ? left - 1 : left + width - wide + 1;
    outline(node.plate, [x, y, wide, high]);
    node.text.setAttribute("x", x + 4);
    node.text.setAttribute("y", y + 13.5);
    const chosen = this.selected === mark.key;
    node.group.classList.toggle("selected", chosen);
    for (const one of node.grips) {
      const roomy = (one.h || width >= CLEAR) && (one.v || height >= CLEAR);
      one.place(left + width * one.along[0], top + height * one.along[1], chosen && roomy && this.mode === "draw");
    }
    const [x1, y1, x2, y2] = mark.box;
    const place = `from ${percent(x1)} left, ${percent(y1)} top, to ${percent(x2)} left, ${percent(y2)} top`;
    node.group.setAttribute("aria-label", `${mark.says ?? `Your box ${caption}`}, ${place}`);
  }

  // ---- pointers -------------------------------------------------------------------------------------------------

  #at(event) {
    const frame = this.over.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }

  /** Where a point of the stage is in the picture, in fractions. */
  #fraction([x, y]) {
    return [
      clip((x - this.x) / (this.scale * this.size.width)), clip((y - this.y) / (this.scale * this.size.height)),
    ];
  }

  #down(event) {
    if (!this.size || (event.pointerType === "mouse" && event.button > 1)) return;
    const at = this.#at(event);
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size > 1) {
      this.gesture = { kind: "pinch" };
      this.render();
      return;
    }
    event.preventDefault(); // the focus goes where the gesture says
    this.gesture = { ...this.#meant(event, at), from: at, last: at, moved: false };
    if (!this.stage.contains(document.activeElement)) this.stage.focus({ preventScroll: true });
  }

  #meant(event, at) {
    if (event.button === 1 || this.mode === "pan") return { kind: "pan" };
    if (this.mode === "level") return { kind: "level" };
    const chosen = this.marks.get(this.selected);
    if (chosen?.editable) {
      const held = this.nodes.get(chosen.key).grips.find((one) => one.held(at));
      const before = chosen.box, [x, y] = this.#fraction(at);
      if (held) return { kind: "resize", h: held.h, v: held.v, before, start: [x, y] };
      if (holds(before, x, y)) return { kind: "move", before, start: [x, y] };
    }
    return { kind: this.makes ? "draw" : "pan", start: this.#fraction(at) };
  }

  #move(event) {
    const gesture = this.gesture;
    if (!gesture || !this.pointers.has(event.pointerId)) return;
    const at = this.#at(event);
    if (gesture.kind === "pinch") {
      this.#pinch(event.pointerId, at);
      return;
    }
    this.pointers.set(event.pointerId, at);
    const starts = !gesture.moved;
    if (starts && Math.hypot(at[0] - gesture.from[0], at[1] - gesture.from[1]) < DRAG) return;
    gesture.moved = true;
    const point = this.#fraction(at);
    if (gesture.kind === "pan") this.pan(at[0] - gesture.last[0], at[1] - gesture.last[1]);
    else if (gesture.kind === "level") {
      this.#tell("level", { starts, dx: at[0] - gesture.from[0], dy: at[1] - gesture.from[1] });
    } else if (gesture.kind === "draw") {
      gesture.ghost = spanned(gesture.start, point);
      this.render();
    } else {
      const [dx, dy] = [point[0] - gesture.start[0], point[1] - gesture.start[1]];
      this.put(this.selected, gesture.kind === "move" ? moved(gesture.before, dx, dy)
        : this.#resized(gesture.before, gesture.h, gesture.v, dx, dy));
    }
    gesture.last = at;
  }

  #pinch(id, at) {
    const [one, two] = [...this.pointers.keys()];
    const [a, b] = [this.pointers.get(one), this.pointers.get(two)];
    this.pointers.set(id, at);
    const [c, d] = [this.pointers.get(one), this.pointers.get(two)];
    if (!b) return;
    const far = (p, q) => Math.max(1, Math.hypot(p[0] - q[0], p[1] - q[1]));
    const middle = (p, q) => [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2];
    const [before, after] = [middle(a, b), middle(c, d)];
    this.pan(after[0] - before[0], after[1] - before[1]);
    this.zoom(far(c, d) / far(a, b), ...after);
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const gesture = this.gesture;
    if (this.pointers.size) return; // the second finger of a pinch
    this.gesture = null;
    this.render();
    if (!gesture || gesture.kind === "pinch" || event.type === "pointercancel") return;
    if (!gesture.moved) this.#click(gesture.from);
    else if (gesture.ghost) this.#drawn(gesture.ghost);
    else if (gesture.before) this.#tell("marks");
  }

  #drawn(box) {
    const [, , width, height] = this.#inside(box);
    if (width < DRAG || height < DRAG) return;
    this.nodes.get(this.add(box).key).group.focus({ preventScroll: true });
  }

  /** The smallest box around a click is taken. */
  #click(at) {
    if (!this.size) return;
    const [x, y] = this.#fraction(at);
    const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
    const [hit] = [...this.marks.values()].filter((m) => holds(m.box, x, y) && this.#seen(m.key))
      .sort((a, b) => area(a) - area(b));
    this.select(hit?.editable ? hit.key : null);
    if (hit) {
      this.nodes.get(hit.key).group.focus({ preventScroll: true });
      this.#tell("press", hit.key);
    } else this.stage.focus({ preventScroll: true });
  }

  #seen(key) { return getComputedStyle(this.nodes.get(key).group).display !== "none"; }

  #resized(box, h, v, dx, dy) {
    const [x1, y1, x2, y2] = box;
    const least = [1 / this.size.width, 1 / this.size.height];
    return [
      h === "w" ? clip(x1 + dx, 0, Math.max(0, x2 - least[0])) : x1,
      v === "n" ? clip(y1 + dy, 0, Math.max(0, y2 - least[1])) : y1,
      h === "e" ? clip(x2 + dx, Math.min(1, x1 + least[0]), 1) : x2,
      v === "s" ? clip(y2 + dy, Math.min(1, y1 + least[1]), 1) : y2,
    ];
  }

  #wheel(event) {
    if (!this.size) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    if (this.scrolls && !event.ctrlKey) {
      this.#roll(pixels);
      return;
    }
    this.zoom(Math.exp(-clip(pixels, -200, 200) / (event.ctrlKey ? 100 : 400)), ...this.#at(event));
  }

  /** A notch of a mouse is a frame; a touchpad gives many small pieces of one. */
  #roll(pixels) {
    this.rolled = Math.sign(pixels) === Math.sign(this.rolled) ? this.rolled + pixels : pixels;
    const frames = Math.abs(pixels) >= NOTCH ? Math.sign(pixels) : Math.trunc(this.rolled / NOTCH);
    if (!frames) return;
    this.rolled = 0;
    this.#tell("frame", frames);
  }

  #point(event) {
    const over = event.target.closest(".mark");
    this.#tell("point", over ? [over.dataset.key] : []);
    if (event.type === "focusin" && over && this.marks.get(over.dataset.key)?.editable) this.select(over.dataset.key);
  }

  // ---- keys -----------------------------------------------------------------------------------------------------

  #key(event) {
    if (!this.size || event.altKey || event.metaKey) return;
    const mark = this.marks.get(event.target.closest(".mark")?.dataset.key);
    const done = (mark?.editable && this.#keyOnMark(event, mark)) || this.#keyOnStage(event, mark);
    if (done) event.preventDefault();
  }

  #keyOnMark(event, mark) {
    const step = event.ctrlKey ? 0.001 : 0.01;
    const way = ARROWS[event.key];
    if (way) {
      const [dx, dy] = way.map((n) => n * step);
      this.put(mark.key, event.shiftKey ? this.#resized(mark.box, dx && "e", dy && "s", dx, dy)
        : moved(mark.box, dx, dy));
    } else if (event.key === "Delete" || event.key === "Backspace") this.remove(mark.key);
    else if (event.key === "Escape") {
      this.select(null);
      this.stage.focus();
    } else return false;
    return true;
  }

  #keyOnStage(event, mark) {
    const way = ARROWS[event.key];
    const mode = { b: "draw", h: "pan", w: "level" }[event.key.toLowerCase()];
    if (event.ctrlKey) return false;
    if (way) this.pan(-40 * way[0], -40 * way[1]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else if (event.key in FRAMES) this.#tell("frame", FRAMES[event.key]);
    else if (mode) this.#tell("mode", mode);
    else if (event.key === "Enter" && mark) this.#tell("press", mark.key);
    else if (event.key === "Enter" && this.makes) this.#drawn(this.#middle());
    else return false;
    return true;
  }

  /** The middle third of what is in sight of the picture. */
  #middle() {
    const [x1, y1] = this.#fraction([0, 0]);
    const [x2, y2] = this.#fraction([this.stage.clientWidth, this.stage.clientHeight]);
    return [(2 * x1 + x2) / 3, (2 * y1 + y2) / 3, (x1 + 2 * x2) / 3, (y1 + 2 * y2) / 3];
  }
}

const FRAMES = { PageUp: -1, PageDown: 1, Home: -Infinity, End: Infinity };

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const holds = ([x1, y1, x2, y2], x, y) => x >= x1 && x <= x2 && y >= y1 && y <= y2;

const spanned = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];

const moved = ([x1, y1, x2, y2], dx, dy) => {
  const [a, b] = [clip(dx, -x1, 1 - x2), clip(dy, -y1, 1 - y2)];
  return [x1 + a, y1 + b, x2 + a, y2 + b].map((v) => clip(v));
};

/** B, C, ..., Z, AA, AB, ... */
const letters = (n) => {
  const code = n + 1;
  const last = String.fromCharCode(65 + (code % 26));
  return code < 26 ? last : String.fromCharCode(64 + Math.floor(code / 26)) + last;
};

const outline = (rect, [x, y, width, height]) => {
  for (const [name, value] of Object.entries({ x, y, width, height })) rect.setAttribute(name, Math.max(value, -1e5));
};

/** What a side or corner is held by: large to the finger, small to the eye, and more outside of the box than inside.
 * It is found by its place and not by what lies on top, so that boxes over each other do not cover it. */
class Grip {
  /** @param {string} h "w", "e" or "" @param {string} v "n", "s" or "" */
  constructor(h, v) {
    Object.assign(this, { h, v, along: [ALONG[h], ALONG[v]], seen: false, middle: [0, 0] });
    this.element = draw("g", { class: `grip ${v}${h}` },
      draw("rect", { class: "wide", x: this.#out(0) - 12, y: this.#out(1) - 12, width: 24, height: 24 }),
      draw("rect", { class: "knob", x: -4.5, y: -4.5, width: 9, height: 9, rx: 2 }));
  }

  #out(axis) { return 12 * (this.along[axis] - 0.5); }

  place(x, y, seen) {
    this.seen = seen;
    this.middle = [x + this.#out(0), y + this.#out(1)];
    this.element.setAttribute("visibility", seen ? "visible" : "hidden");
    this.element.setAttribute("transform", `translate(${x} ${y})`);
  }

  held([x, y]) { return this.seen && Math.abs(x - this.middle[0]) <= 12 && Math.abs(y - this.middle[1]) <= 12; }
}
