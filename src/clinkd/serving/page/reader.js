/** What is read of a stack: the slice that is shown and its neighbours, or the whole volume for another plane. */

import { Failure } from "./ask.js";
import { Film } from "./film.js";
import { NiftiVolume, sliceFile } from "./nifti.js";
import { open, Picture, Source, valuesOf } from "./picture.js";
import { cut, rangeOf, Space } from "./planes.js";

const KEPT_PIXELS = 8e6; // of slices, about 10 bytes each
const AHEAD = 8; // slices on each side
const TOGETHER = 3; // requests for slices of a volume that are under way at once
const PIXEL_BYTES = 16; // of a request for a volume: far more than they have, as a header is sent along
const REQUESTED_FRAMES = 64; // at most, of one file: its header is read once for all of them

export class Reader {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object, presets: object}} about the server */
  constructor(stack, about) {
    Object.assign(this, { stack, about, plane: stack.plane, volume: null, nifti: null, ahead: null, wish: null });
    this.films = new Map(stack.files.map((told) => [told.file, told.pixels && told.frames > 1 ? new Film(told) : null]));
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
    if (kept?.through(window, this.about.presets)) return this.keep(at, kept);
    return this.keep(at, await this.#read(at, window, signal));
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
      this.keep(next, picture);
    }
  }

  /** Whether reading ahead leaves room for what was read before. */
  get #roomy() {
    const { width, height } = this.stack.first;
    return 5 * width * height <= KEPT_PIXELS;
  }

  async #read(at, window, signal) {
    const slice = this.stack.slices[at];
    if (slice.file.voxels) return this.#cutFrame(at, window);
    return open(this.#sourceOf([slice]), slice.frame, window, signal);
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

  /** Keep no pixels. */
  forget() {
    this.wish = this.volume = this.nifti = null;
    this.kept.clear();
  }

  async #readVolume(signal, tell = () => {}) {
    const { slices, first: { width, height, modality } } = this.stack;
    const nifti = await this.nifti;
    if (nifti) {
      const { stored, slope, intercept, right, down, through } = nifti;
      const space = new Space(this.stack, [right, down, through]);
      return { space, stored, slope, intercept, inverted: false, modality, ...nifti.measure(0) };
    }
    const middle = this.kept.get(slices.length >> 1) ?? await this.#read(slices.length >> 1, null, signal);
    if (!middle.about.grey) throw new Failure("Other planes cannot be shown: the slices are in colour.");
    const { grey: { values: { constructor }, inverted }, hounsfield } = middle.about;
    const each = width * height, missing = this.#requests();
    let stored = new constructor(each * slices.length), done = 0;
    const work = async () => {
      for (let some = missing.shift(); some; some = missing.shift()) {
        const frames = some.map(({ frame }) => frame ?? 1);
        const more = await valuesOf(this.#sourceOf(some), frames, signal);
        if (![more.constructor, Float32Array].includes(stored.constructor)) stored = Float32Array.from(stored);
        some.forEach(({ at }, n) => stored.set(more.subarray(n * each, (n + 1) * each), at * each));
        tell(done += some.length, slices.length);
      }
    };
    await Promise.all(Array.from({ length: TOGETHER }, work));
    return { space: this.stack.space, stored, inverted, hounsfield, modality, level: middle.first.level };
  }

  /** All slices as they are requested together: a file, or frames of one that follow each other. */
  #requests() {
    const { slices, first: { width, height } } = this.stack, requests = [];
    const fit = Math.floor(this.about.limits.body_bytes / (PIXEL_BYTES * width * height));
    const most = Math.min(REQUESTED_FRAMES, Math.max(1, fit));
    const numbered = slices.map(({ file, frame }, at) => ({ file, frame, at }));
    for (const one of numbered.sort((a, b) => (a.file === b.file ? a.frame - b.frame : a.at - b.at))) {
      const some = requests.at(-1), follows = some?.[0].file === one.file && one.frame === some.at(-1).frame + 1;
      if (follows && some.length < most) some.push(one);
      else requests.push([one]);
    }
    return requests;
  }

  /** What is sent of slices: their file, or an excerpt with their frames. */
  #sourceOf(slices) {
    const { file } = slices[0].file, film = this.films.get(file);
    const make = film ? () => film.excerpt(slices.map(({ frame }) => frame)) : () => file;
    return new Source(file.name, this.about.limits.body_bytes, make);
  }

  /** A frame of a NIfTI, which is read whole, once, and stays on this page. Throws Failure. */
  async #cutFrame(at, window) {
    const slice = this.stack.slices[at], { file, width, height, modality } = slice.file;
    this.nifti ??= NiftiVolume.read(slice.file);
    const nifti = await this.nifti, frame = (slice.frame ?? 1) - 1, values = nifti.values(frame);
    const source = new Source(file.name, this.about.limits.body_bytes, () => sliceFile(values, width, height));
    const made = { values, width, height, ...rangeOf(values), inverted: false, modality, ...nifti.measure(frame) };
    return this.#made(made, window, source);
  }

  #cut(at, window) {
    const { inverted, hounsfield, modality, level } = this.volume, { files, first } = this.stack;
    const made = { inverted, hounsfield, modality, level, ...cut(this.volume, this.plane, at) };
    const name = `${this.plane} plane of ${files.length > 1 ? `${files.length} files` : first.file.name}`;
    const picture = this.#made(made, window, { name: name.replace(/^./, (c) => c.toUpperCase()) });
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
