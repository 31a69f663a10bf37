/** Pictures: a file opened by the server, frame by frame, and its grey values through a window. */

import { fetched, Failure } from "./ask.js";
import { decimal } from "./dom.js";

/**
 * A file as it is sent: nothing of it is kept anywhere but in this page.
 * @param {File} file
 * @param {number} most bytes that a request may have
 * @returns {Promise<{uri: string}>}
 */
export async function read(file, most) {
  if (!fits(file, most)) {
    throw new Failure(`The file has ${Math.ceil(file.size / 1e6)} MB, more than the server takes. Shrink it first.`);
  }
  return { uri: await encode(file) };
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

/** One frame of a file, as the server shows it. Throws Failure. */
export async function open(source, frame, window, signal) {
  const { picture, ...about } = await opened(source, frame, window, signal);
  const image = new Image();
  image.src = picture;
  await image.decode();
  return new Picture(source, about, image, window);
}

/** What the server tells of a frame, with its grey values; `picture`: whether these are not enough. Throws Failure. */
export async function opened(source, frame, window, signal, picture = true) {
  const body = { image: source.uri, frame, window, picture };
  const about = await fetched("/v1/open", { method: "POST", body, signal });
  return { ...about, grey: about.grey && { ...about.grey, values: floats(about.grey.values) } };
}

function floats(base64) {
  const bytes = Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return values;
}

/** A frame with its pixels on `canvas`. */
export class Picture {
  /** @param {{uri?: string, cut?: () => Blob}} source @param {HTMLImageElement | null} image by the server; null: made of grey values */
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
      const level = presets[window] ?? window?.split("/").map(Number) ?? [];
      if (!this.about.grey || level.length !== 2 || !level.every(Number.isFinite)) return false;
      this.level(...level, window in presets ? window : null);
    }
    return true;
  }

  /** The image that a question is asked about: the file, one slice of it, or what is seen where no frame is like it. */
  async sent() {
    const { uri, cut } = this.source, { window, level } = this.shown;
    if (uri) return { uri, frame: this.frame, window };
    if (cut) return { uri: await encode(cut()), frame: null, window: level.map(decimal).join("/") };
    return { uri: this.canvas.toDataURL("image/png"), frame: null, window: null };
  }

  /** A window of one's own; `name` where it is a preset. */
  level(centre, width, name = null) {
    const level = [Number(centre.toPrecision(6)), Math.max(this.leastWidth, Number(width.toPrecision(6)))];
    this.show({ window: name ?? level.map(decimal).join("/"), level, own: true });
  }
}
