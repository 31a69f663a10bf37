/** Slices that the server shows: it is sent their file, or of a film its header and the frames that are wanted. */

import { Film } from "./film.js";
import { open, Source, valuesOf } from "./picture.js";

const TOGETHER = 3; // requests for slices of a volume that are under way at once
const PIXEL_BYTES = 16; // of a request for a volume: far more than they have, as a header is sent along
const REQUESTED_FRAMES = 64; // at most, of one file: its header is read once for all of them

/** The slices of a stack of files: `Frames` of reader.js. */
export class ServedFrames {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object}} about the server */
  constructor(stack, { limits }) {
    Object.assign(this, { stack, most: limits.body_bytes });
    this.films = new Map(stack.files.map((told) => [told, told.pixels && told.frames > 1 ? new Film(told) : null]));
  }

  /** Throws Failure. */
  async picture(at, window, signal) {
    const slice = this.stack.slices[at];
    return open(this.#sourceOf([slice]), slice.frame, window, signal);
  }

  /** Throws Failure. */
  async volume(signal, tell) {
    const { space, slices, first: { width, height } } = this.stack;
    const each = width * height, missing = this.#requests();
    let stored = null, done = 0;
    const work = async () => {
      for (let some = missing.shift(); some; some = missing.shift()) {
        const more = await valuesOf(this.#sourceOf(some), some.map(({ frame }) => frame ?? 1), signal);
        stored ??= new more.constructor(each * slices.length);
        if (![more.constructor, Float32Array].includes(stored.constructor)) stored = Float32Array.from(stored);
        some.forEach(({ at }, n) => stored.set(more.subarray(n * each, (n + 1) * each), at * each));
        tell(done += some.length, slices.length);
      }
    };
    await Promise.all(Array.from({ length: TOGETHER }, work));
    return { space, stored };
  }

  /** All slices as they are requested together: a file, or frames of one that follow each other. */
  #requests() {
    const { slices, first: { width, height } } = this.stack, requests = [];
    const fit = Math.floor(this.most / (PIXEL_BYTES * width * height));
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
    const [{ file: told }] = slices, film = this.films.get(told);
    const make = film ? () => film.excerpt(slices.map(({ frame }) => frame)) : () => told.file;
    return new Source(told.file.name, this.most, make);
  }
}
