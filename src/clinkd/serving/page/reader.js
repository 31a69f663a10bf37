/** What is read of a stack: the slice that is shown and its neighbours, or the whole volume for another plane. */

import { Failure } from "./ask.js";
import { NiftiFrames } from "./nifti.js";
import { Picture } from "./picture.js";
import { cut } from "./planes.js";
import { ServedFrames } from "./served.js";

const KEPT_PIXELS = 8e6; // of slices, about 10 bytes each
const AHEAD = 8; // slices on each side

/**
 * @typedef {object} Frames where the slices of a stack come from
 * @property {(at: number, window: string | null, signal?: AbortSignal) => Promise<Picture>} picture one slice, from 0
 * @property {(signal: AbortSignal, tell: (n: number, count: number) => void) => Promise<object>} volume all, for `cut`
 */

export class Reader {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object, presets: object}} about the server */
  constructor(stack, about) {
    Object.assign(this, { stack, about, plane: stack.plane, ahead: null });
    this.seen = {}; // the slice shown last, by plane
    this.forget();
  }

  /** Keep no pixels. */
  forget() {
    const { stack, about } = this;
    this.wish = this.volume = null;
    this.kept = /** @type {Map<number, Picture>} */ (new Map()); // the least lately shown first
    this.frames = /** @type {Frames} */ (stack.first.voxels ? new NiftiFrames(stack, about) : new ServedFrames(stack, about));
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
    if (kept?.through(window, this.about.presets)) return this.keep(at, kept);
    return this.keep(at, await this.frames.picture(at, window, signal));
  }

  /** Read the slices beside one, one after another, until another one is wished. */
  async readAhead(at, window) {
    const mine = (this.wish = {});
    await this.ahead?.reading.catch(() => {});
    const onward = at < this.latest ? -1 : 1; // the way that was gone last comes first
    this.latest = at;
    for (const step of Array.from({ length: 2 * AHEAD }, (_, n) => onward * (n % 2 ? -1 : 1) * ((n >> 1) + 1))) {
      const next = at + step;
      if (this.wish !== mine || this.reformatted) return;
      if (next < 0 || next >= this.count || this.kept.has(next) || !this.#roomy) continue;
      this.ahead = { at: next, reading: this.frames.picture(next, window) };
      const picture = await this.ahead.reading.catch(() => null); // who comes there is told why
      this.ahead = null;
      if (!picture) return;
      this.keep(next, picture);
    }
  }

  /** Whether reading ahead leaves room for what was read before. */
  get #roomy() {
    const { width, height } = this.stack.first;
    return 5 * width * height <= KEPT_PIXELS;
  }

  /** Keep a slice, as the one at this place of the stack. */
  keep(at, picture) {
    const slice = this.stack.slices[at];
    Object.assign(picture, { slice, at, key: slice.key, plane: this.stack.plane, reformatted: false });
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

  /** The volume, which is shown as the file says of its middle slice. */
  async #readVolume(signal, tell = () => {}) {
    const at = this.stack.slices.length >> 1, kept = this.kept.get(at);
    const middle = [null, "auto"].includes(kept?.first.window) ? kept : await this.frames.picture(at, null, signal);
    const { grey, hounsfield, modality } = middle.about;
    if (!grey) throw new Failure("Other planes cannot be shown: the slices are in colour.");
    const shown = { inverted: grey.inverted, hounsfield, modality, level: middle.first.level };
    return { shown, ...await this.frames.volume(signal, tell) };
  }

  #cut(at, window) {
    const made = { ...this.volume.shown, ...cut(this.volume, this.plane, at) };
    const { slices: [{ key }], files, first } = this.stack;
    const name = `${this.plane} plane of ${files.length > 1 ? `${files.length} files` : first.file.name}`;
    const picture = Picture.of(made, window, { name: name.replace(/^./, (c) => c.toUpperCase()) }, this.about.presets);
    return Object.assign(picture, {
      slice: null, at, key: [key, this.plane, at].join("|"), plane: this.plane, reformatted: true,
    });
  }
}
