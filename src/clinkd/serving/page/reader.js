/** What is read of a stack: the slice that is shown and its neighbours, or the whole volume for another plane. */

import { Failure } from "./ask.js";
import { NiftiVolume, sliceFile } from "./nifti.js";
import { open, opened, Picture, read } from "./picture.js";
import { cut, rangeOf } from "./planes.js";

const KEPT_PIXELS = 8e6; // of slices, about 12 bytes each
const AHEAD = 8; // slices on each side
const TOGETHER = 3; // slices of a volume that are under way at once

export class Reader {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object, presets: object}} about the server */
  constructor(stack, about) {
    Object.assign(this, { stack, about, plane: stack.plane, volume: null, source: null, nifti: null, ahead: null, wish: null });
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
    const onward = at < this.latest ? -1 : 1; // the way that was gone last comes first
    this.latest = at;
    for (const step of Array.from({ length: 2 * AHEAD }, (_, n) => onward * (n % 2 ? -1 : 1) * ((n >> 1) + 1))) {
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
    if (slice.file.voxels) return this.#cutFrame(at, window);
    const picture = await open(await this.#sourceOf(file), slice.frame, window, signal);
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
    this.wish = this.volume = this.source = this.nifti = null;
    this.kept.clear();
  }

  async #readVolume(signal, tell = () => {}) {
    const { width, height } = this.stack.first;
    const { slices } = this.stack, count = slices.length, values = new Float32Array(width * height * count);
    const nifti = await this.nifti;
    if (nifti) {
      slices.forEach(({ frame }, at) => values.set(nifti.values(frame - 1), at * width * height));
      return { values, inverted: false, modality: this.stack.first.modality, ...nifti.measure(0) };
    }
    const middle = this.kept.get(count >> 1) ?? await this.#read(count >> 1, null, signal), missing = [...slices.keys()];
    const work = async () => {
      while (missing.length) {
        const at = missing.shift(), { grey } = this.kept.get(at)?.about ?? await this.#values(slices[at], signal);
        if (!grey) throw new Failure("Other planes cannot be shown: the slices are in colour.");
        values.set(grey.values, at * width * height);
        tell(count - missing.length, count);
      }
    };
    await Promise.all(Array.from({ length: TOGETHER }, work));
    const { grey: { inverted }, hounsfield, modality } = middle.about;
    return { values, inverted, hounsfield, modality, level: middle.first.level };
  }

  async #values({ file: { file }, frame }, signal) {
    return opened(await this.#sourceOf(file), frame, null, signal, false);
  }

  /** A file as it is sent; the last one is kept, for its other frames. */
  async #sourceOf(file) {
    if (this.source?.file === file) return this.source;
    this.source = { ...await read(file, this.about.limits.body_bytes), name: file.name, file };
    return this.source;
  }

  /** A frame of a NIfTI, which is read whole, once, and stays on this page. Throws Failure. */
  async #cutFrame(at, window) {
    const slice = this.stack.slices[at], { file, width, height, modality } = slice.file;
    this.nifti ??= NiftiVolume.read(slice.file);
    const nifti = await this.nifti, frame = (slice.frame ?? 1) - 1, values = nifti.values(frame);
    const source = { name: file.name, cut: () => sliceFile(values, width, height) };
    const made = { values, width, height, ...rangeOf(values), inverted: false, modality, ...nifti.measure(frame) };
    const picture = this.#made(made, window, source);
    return Object.assign(picture, { slice, at, key: slice.key, plane: this.stack.plane, reformatted: false });
  }

  #cut(at, window) {
    const { values, ...more } = this.volume;
    const made = { ...more, ...cut(this.stack.space, values, this.plane, at) };
    const picture = this.#made(made, window, { name: this.stack.first.file.name });
    const key = [this.stack.slices[0].key, this.plane, at].join("|");
    return Object.assign(picture, { slice: null, at, key, plane: this.plane, reformatted: true });
  }

  /** A picture of values that this page made, through a window that was wished for, or else as the volume is shown. */
  #made({ width, height, values, low, high, inverted, hounsfield, modality, level }, window, source) {
    const stated = this.about.presets[window] ?? window?.split("/").map(Number) ?? [];
    const own = stated.length === 2 && stated.every(Number.isFinite);
    const shown = own ? stated : window === "full" ? [(low + high) / 2, Math.max(high - low, 1e-6)] : level;
    const about = {
      width, height, frames: 1, frame: 1, dicom: false, modality, burned_in: "", windows: [], hounsfield,
      window: shown, grey: { values, inverted, low, high },
    };
    return new Picture(source, about, null, own || window === "full" ? window : null);
  }
}
