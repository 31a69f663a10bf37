/** What is read of a stack: the slice that is shown and its neighbours, or the whole volume for another plane. */

import { Failure } from "./ask.js";
import { open, Picture, read } from "./picture.js";
import { cut } from "./planes.js";

const KEPT_PIXELS = 8e6; // of slices, about 12 bytes each
const NEIGHBOURS = [1, -1, 2];

export class Reader {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object, presets: object}} about the server */
  constructor(stack, about) {
    Object.assign(this, { stack, about, plane: stack.plane, volume: null, source: null, ahead: null, wish: null });
    this.seen = {}; // the slice shown last, by plane
    this.kept = /** @type {Map<number, Picture>} */ (new Map()); // the least lately shown first
  }

  get reformatted() { return this.plane !== this.stack.plane; }

  get count() {
    return this.reformatted ? this.stack.space.of(this.plane).through.count : this.stack.slices.length;
  }

  /** A slice (from 0), by a window of its own where it was read so before. Throws Failure. */
  async slice(at, window, signal) {
    if (this.reformatted) {
      this.volume ??= await this.#readVolume(signal);
      return this.#cut(at, window);
    }
    if (this.ahead?.at === at) await this.ahead.reading.catch(() => {});
    const kept = this.kept.get(at);
    if (kept?.through(window, this.about.presets)) return this.#keep(at, kept);
    return this.#keep(at, await this.#read(at, window, signal));
  }

  /** Read the slices beside one, one after another, until another one is wished. */
  async readAhead(at, window) {
    const mine = (this.wish = {});
    await this.ahead?.reading.catch(() => {});
    for (const step of NEIGHBOURS) {
      const next = at + step;
      if (this.wish !== mine || this.reformatted) return;
      if (next < 0 || next >= this.count || this.kept.has(next) || !this.#roomy) continue;
      this.ahead = { at: next, reading: this.#read(next, window) };
      const picture = await this.ahead.reading.catch(() => null); // who comes there is told why
      this.ahead = null;
      if (!picture) return;
      this.#keep(next, picture);
    }
  }

  /** Whether reading ahead costs little: a file is sent whole for each of its frames. */
  get #roomy() {
    const { width, height, file } = this.stack.first;
    return 5 * width * height <= KEPT_PIXELS && file.size <= KEPT_PIXELS;
  }

  async #read(at, window, signal) {
    const slice = this.stack.slices[at];
    const { file } = slice.file;
    const source = this.source?.file === file ? this.source
      : { ...await read(file, this.about.limits.body_bytes), name: file.name, file };
    this.source = source; // of the last file alone
    const picture = await open(source, slice.frame, window, signal);
    return Object.assign(picture, { slice, at, key: slice.key, plane: this.stack.plane, reformatted: false });
  }

  #keep(at, picture) {
    this.kept.delete(at);
    this.kept.set(at, picture);
    let pixels = 0;
    for (const [key, { about }] of [...this.kept].reverse()) {
      pixels += about.width * about.height;
      if (pixels > KEPT_PIXELS && key !== at) this.kept.delete(key);
    }
    return picture;
  }

  /** Show another plane from now on; for the first one the whole volume is read. Throws Failure. */
  async turn(plane, signal, tell) {
    if (plane !== this.stack.plane) this.volume ??= await this.#readVolume(signal, tell);
    else this.volume = null; // its memory is wanted back
    this.plane = plane;
  }

  /** Keep no pixels. */
  forget() {
    this.wish = this.volume = this.source = null;
    this.kept.clear();
  }

  async #readVolume(signal, tell = () => {}) {
    const { width, height } = this.stack.first;
    const count = this.stack.slices.length, values = new Float32Array(width * height * count);
    let middle = null;
    for (let at = 0; at < count; at++) {
      const picture = this.kept.get(at) ?? await this.#read(at, null, signal);
      if (!picture.about.grey) throw new Failure("Other planes cannot be shown: the slices are in colour.");
      values.set(picture.about.grey.values, at * width * height);
      if (at === count >> 1) middle = picture;
      tell(at + 1, count);
    }
    const { grey: { inverted }, hounsfield, modality } = middle.about;
    return { values, inverted, hounsfield, modality, level: middle.first.level };
  }

  #cut(at, window) {
    const { values, inverted, hounsfield, modality, level } = this.volume;
    const { width, height, values: part, low, high } = cut(this.stack.space, values, this.plane, at);
    const stated = this.about.presets[window] ?? window?.split("/").map(Number) ?? [];
    const own = stated.length === 2 && stated.every(Number.isFinite);
    const shown = own ? stated : window === "full" ? [(low + high) / 2, Math.max(high - low, 1e-6)] : level;
    const about = {
      width, height, frames: 1, frame: 1, dicom: false, modality, burned_in: "", windows: [], hounsfield,
      window: shown, grey: { values: part, inverted, low, high },
    };
    const picture = new Picture({ name: this.stack.first.file.name }, about, null, own || window === "full" ? window : null);
    const key = [this.stack.slices[0].key, this.plane, at].join("|");
    return Object.assign(picture, { slice: null, at, key, plane: this.plane, reformatted: true });
  }
}
