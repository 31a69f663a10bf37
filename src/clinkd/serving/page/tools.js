/** The tools of a view: what dragging does, zoom, and window and level of the picture that is shown. */

import { brief, make } from "./dom.js";

export class Tools {
  /**
   * @param {import("./canvas.js").View} view
   * @param {HTMLElement} bar buttons with data-mode and data-zoom
   * @param {HTMLElement} levels a list of windows, then centre and width as numbers
   * @param {Record<string, number[]>} presets centre and width by name
   * @param {(window: string) => any} reload opens the same frame through a window that only the server can make
   */
  constructor(view, bar, levels, presets, reload) {
    Object.assign(this, { view, levels, presets, reload, picture: null, before: null });
    this.modes = [...bar.querySelectorAll("[data-mode]")];
    [this.window] = levels.getElementsByTagName("select");
    this.numbers = [...levels.getElementsByTagName("input")];
    bar.addEventListener("click", ({ target: { dataset: { mode, zoom } } }) => {
      if (mode) this.choose(mode);
      if (zoom === "fit") view.fit();
      else if (zoom) view.zoom(Number(zoom));
    });
    this.window.addEventListener("change", () => this.#pick(this.window.value));
    for (const number of this.numbers) number.addEventListener("change", () => this.#type());
    view.addEventListener("mode", ({ detail }) => this.choose(detail));
    view.addEventListener("level", ({ detail }) => this.#drag(detail));
    this.show(null);
  }

  /** The picture that the view shows, or none. */
  show(picture) {
    this.picture = picture;
    this.levels.hidden = !picture?.about.grey;
    this.modes.find((button) => button.dataset.mode === "level").hidden = this.levels.hidden;
    if (this.levels.hidden) {
      this.choose(this.view.mode === "level" ? "draw" : this.view.mode);
      return;
    }
    const { windows, hounsfield, window } = picture.about, { shown } = picture;
    const known = [
      ["auto", "as the file says"], ...windows.map((w, n) => [String(n + 1), `${n + 1} of the file: ${w}`]),
      ["full", "least to greatest value"],
      ...(hounsfield ? Object.entries(this.presets).map(([name, level]) => [name, `${name} ${level.join("/")}`]) : []),
      ...(shown.window?.includes("/") ? [[shown.window, "your own"]] : []),
    ];
    this.window.replaceChildren(...known.map(([value, text]) => make("option", { value }, text)));
    this.window.value = shown.window ?? "auto";
    this.numbers.forEach((number, i) => { number.value = shown.own || window ? brief(shown.level[i], 4) : ""; });
    this.choose(this.view.mode);
  }

  choose(mode) {
    if (this.modes.find((button) => button.dataset.mode === mode)?.hidden) return;
    this.view.mode = mode;
    for (const button of this.modes) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    this.view.stage.dataset.mode = mode;
    this.view.render();
  }

  #level(centre, width, name) {
    this.picture.level(centre, width, name);
    this.show(this.picture);
  }

  #pick(window) {
    if (this.presets[window]) this.#level(...this.presets[window], window);
    else this.reload(window);
  }

  #type() {
    const [centre, width] = this.numbers.map((number, i) => (
      Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : this.picture.shown.level[i]));
    if (width > 0) this.#level(centre, width);
    else this.show(this.picture);
  }

  #drag({ starts, dx, dy }) {
    if (!this.picture?.about.grey) return;
    if (starts) this.before = this.picture.shown.level;
    const each = Math.max(this.before[1], this.picture.leastWidth) / 256;
    this.#level(this.before[0] - dy * each, this.before[1] + dx * each);
  }
}
