/** Pictures: frames that the server opened or this page made, and their grey values through a window. */

import { call, Failure, fetched, received } from "./ask.js";
import { decimal } from "./dom.js";

/** What the server is sent for a picture. It is made when it is wanted: no copy of it stays on this page. */
export class Source {
  /**
   * @param {string} name
   * @param {number} most bytes that a request may have
   * @param {() => Blob | Promise<Blob>} make
   */
  constructor(name, most, make) {
    Object.assign(this, { name, most, make });
  }

  /** As a data URI. Throws Failure. */
  async uri() { return encode(await this.#checked(fits)); }

  /** As bytes, which the browser reads while it sends them. Throws Failure. */
  async bytes() {
    const blob = await this.#checked(({ size }, most) => size <= most);
    await blob.slice(-1).arrayBuffer().catch(() => { throw new Failure("The file could not be read."); });
    return blob;
  }

  async #checked(fit) {
    const blob = await this.make();
    if (fit(blob, this.most)) return blob;
    throw new Failure(`The file has ${Math.ceil(blob.size / 1e6)} MB to send, more than the server takes. Shrink it first.`);
  }
}

/** Whether the server takes a file. */
export const fits = (file, most) => file.size * 4 <= (most - 65536) * 3; // base64, and room for the rest of a request

/** The bytes of a file as a data URI. Throws Failure. */
export async function encode(blob) {
  const uri = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Failure("The file could not be read."));
    reader.readAsDataURL(blob);
  });
  const base64 = uri.slice(uri.indexOf(",") + 1);
  return `data:${blob.type || "application/dicom"};base64,${base64}`;
}

/** One frame of a file, as the server shows it. Throws Failure. @param {Source} source */
export async function open(source, frame, window, signal) {
  const body = { image: await source.uri(), frame, window };
  const { picture, grey, ...about } = await fetched("/v1/open", { method: "POST", body, signal });
  const image = new Image();
  image.src = picture;
  await image.decode();
  return new Picture(source, { ...about, grey: grey && { ...grey, values: decoded(grey) } }, image, window);
}

/** The grey values of frames, one behind the other. Throws Failure. @param {number[]} frames from 1 */
export async function valuesOf(source, frames, signal) {
  const body = await source.bytes();
  const reply = await call(`/v1/values?${frames.map((n) => `frame=${n}`).join("&")}`, { method: "POST", body, signal });
  return numbers(await received(reply.arrayBuffer()), reply.headers.get("X-Value-Type"));
}

const decoded = ({ values, type }) =>
  numbers((Uint8Array.fromBase64?.(values) ?? Uint8Array.from(atob(values), (c) => c.charCodeAt(0))).buffer, type);

const NUMBERS = { int16: Int16Array, uint16: Uint16Array, float32: Float32Array }; // as are all browsers, little-endian
const numbers = (buffer, type) => new NUMBERS[type](buffer);

/** Centre and width that a window says; null where it is another wish. */
function levelOf(window, presets) {
  const level = presets[window] ?? window?.split("/").map(Number);
  return level?.length === 2 && level.every(Number.isFinite) ? level : null;
}

/** A frame with its pixels on `canvas`. */
export class Picture {
  /** Values that this page made, through a window that was wished for, or else by the centre and width of `level`. */
  static of({ width, height, values, low, high, inverted, hounsfield, modality, level }, window, source, presets) {
    const own = levelOf(window, presets);
    const shown = own ?? (window === "full" ? [(low + high) / 2, Math.max(high - low, 1e-6)] : level);
    const about = {
      width, height, frames: 1, frame: 1, dicom: false, modality, burned_in: "", windows: [], hounsfield,
      window: shown, grey: { values, inverted, low, high },
    };
    return new Picture(source, about, null, own || window === "full" ? window : null);
  }

  /** @param {Source | {name: string}} source @param {HTMLImageElement | null} image by the server; null: made of grey values */
  constructor(source, about, image, window) {
    Object.assign(this, { source, about, image });
    this.canvas = document.createElement("canvas");
    this.canvas.width = about.width;
    this.canvas.height = about.height;
    const { low, high } = about.grey ?? { low: 0, high: 1 };
    this.first = { window, level: about.window ?? [(low + high) / 2, Math.max(high - low, 1e-6)], own: !image };
    this.show(this.first);
  }

  get frame() { return this.about.frames > 1 ? this.about.frame : null; }

  /** How far apart the grey values are, at least. */
  get leastWidth() {
    const span = this.about.grey.high - this.about.grey.low;
    return span > 64 ? 1 : Math.max(span, 1e-3) / 1000;
  }

  /**
   * Show it as the server did, or with a window of one's own.
   * @param {{window: string | null, level: number[], own: boolean}} shown what is asked for, and its centre and width
   */
  show(shown) {
    this.shown = shown;
    const context = this.canvas.getContext("2d");
    if (!shown.own) {
      context.drawImage(this.image, 0, 0);
      return;
    }
    const { values, inverted } = this.about.grey;
    const [centre, width] = shown.level;
    const low = centre - width / 2, times = 255 / width;
    const made = (this.made ??= context.createImageData(this.about.width, this.about.height));
    const bytes = made.data; // clamped to 0..255, rounded, and NaN is 0
    for (let i = 0, at = 0; i < values.length; i++, at += 4) {
      bytes[at] = (values[i] - low) * times;
      const grey = inverted ? 255 - bytes[at] : bytes[at];
      bytes[at] = bytes[at + 1] = bytes[at + 2] = grey;
      bytes[at + 3] = 255;
    }
    context.putImageData(made, 0, 0);
  }

  /** Show it through a window that was wished for; false where the server has to. */
  through(window, presets) {
    if (window === this.shown.window) return true;
    if (window === this.first.window) this.show(this.first);
    else {
      const level = levelOf(window, presets);
      if (!this.about.grey || !level) return false;
      this.level(...level, window in presets ? window : null);
    }
    return true;
  }

  /** The image that a question is asked about: the file, one slice of it, or what is seen where no frame is like it. */
  async sent() {
    const { source, shown: { window, level } } = this;
    if (!(source instanceof Source)) return { uri: this.canvas.toDataURL("image/png"), frame: null, window: null };
    return { uri: await source.uri(), frame: this.frame, window: this.image ? window : level.map(decimal).join("/") };
  }

  /** A window of one's own; `name` where it is a preset. */
  level(centre, width, name = null) {
    const level = [Number(centre.toPrecision(6)), Math.max(this.leastWidth, Number(width.toPrecision(6)))];
    this.show({ window: name ?? level.map(decimal).join("/"), level, own: true });
  }
}
