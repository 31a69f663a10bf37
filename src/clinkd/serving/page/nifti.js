/** NIfTI volumes, unpacked and cut into slices on this page; the server tells how the voxels lie in the file. */

import { Failure } from "./ask.js";
import { Picture, Source } from "./picture.js";
import { NONE, rangeOf, Space } from "./planes.js";

const SAMPLED = 1 << 20; // values of a volume for its percentiles, those that the server takes
const SHARES = [0.005, 0.995];
const FAT = -100; // Hounsfield units; a volume without lower values is no CT
const HEADER = 352; // bytes
const ARRAYS = {
  i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array,
  f8: Float64Array, i8: BigInt64Array, u8: BigUint64Array,
};

/** Whether a file is packed by gzip. */
export async function isPacked(file) {
  const [first, second] = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return first === 0x1f && second === 0x8b;
}

/** At most so many of the first bytes of a file, unpacked where it is packed: no more than these are. Throws Failure. */
export async function unpacked(file, most) {
  const packed = await isPacked(file);
  if (packed && !globalThis.DecompressionStream) {
    throw new Failure("This browser unpacks no .gz file. Unpack it first (gunzip).");
  }
  const stream = packed ? file.stream().pipeThrough(new DecompressionStream("gzip")) : file.stream();
  const bytes = new Uint8Array(most), reader = stream.getReader();
  let count = 0;
  try {
    for (;;) {
      const { value, done } = await reader.read(); // once more than is wanted, which compares the checksum
      if (done) break;
      const part = value.subarray(0, most - count);
      bytes.set(part, count);
      count += part.length;
      if (part.length < value.length) break;
    }
  } catch {
    throw new Failure("The file is damaged, or cannot be read any more. Bring back a whole copy.");
  } finally {
    reader.cancel().catch(() => {});
  }
  return bytes.subarray(0, count);
}

/** The slices of a NIfTI, which is read whole, once, and stays on this page: `Frames` of reader.js. */
export class NiftiFrames {
  /** @param {import("./stack.js").Stack} stack @param {{limits: object, presets: object}} about the server */
  constructor(stack, about) {
    Object.assign(this, { stack, about, reading: null });
  }

  /** Throws Failure. */
  async picture(at, window) {
    const { file: { file, width, height, modality }, frame } = this.stack.slices[at];
    const nifti = await this.#read(), number = (frame ?? 1) - 1, values = nifti.values(number);
    const made = { values, width, height, ...rangeOf(values), inverted: false, modality, ...nifti.measure(number) };
    const source = new Source(file.name, this.about.limits.body_bytes, () => sliceFile(values, width, height));
    return Picture.of(made, window, source, this.about.presets);
  }

  /** Throws Failure. */
  async volume() {
    const { stored, slope, intercept, right, down, through } = await this.#read();
    return { space: new Space(this.stack, [right, down, through]), stored, slope, intercept };
  }

  #read() { return (this.reading ??= NiftiVolume.read(this.stack.first)); }
}

/** Its slices are the frames of the file, as the server shows them. */
export class NiftiVolume {
  /** Throws Failure. @param {object} described of files.js */
  static async read({ file, width, height, voxels }) {
    const { offset, type, shape } = voxels;
    const size = offset + shape.reduce((product, n) => product * n, Number(type.at(-1)));
    const bytes = await unpacked(file, size);
    if (bytes.length < size) throw new Failure("The file is cut. Bring back a whole copy.");
    return new NiftiVolume(bytes, voxels, width, height);
  }

  constructor(bytes, { offset, type, shape, slope, intercept, axes }, width, height) {
    Object.assign(this, { width, height, slope, intercept, measured: new Map() });
    const size = Number(type.at(-1));
    if (type[0] === ">") flip(bytes.subarray(offset), size);
    const aligned = offset % size ? bytes.slice(offset) : bytes.subarray(offset);
    const read = new ARRAYS[type.slice(-2)](aligned.buffer, aligned.byteOffset, aligned.length / size);
    this.stored = type.endsWith("i8") || type.endsWith("u8") ? Float64Array.from(read, Number) : read;
    const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((product, n) => product * n, 1));
    [this.through, this.down, this.right] = axes.map(([axis, sign]) => (
      { start: sign > 0 ? 0 : (shape[axis] - 1) * strides[axis], stride: sign * strides[axis] }));
    this.depth = shape[axes[0][0]];
    this.each = strides[3]; // voxels of one volume
  }

  /** Values of every so many slices, rows and columns of a volume, from slice `first` to before slice `end`. */
  #values(volume, first, end, every = 1) {
    const { stored, width, height, slope, intercept, through, down, right } = this;
    const length = (count) => Math.ceil(count / every);
    const values = new Float32Array(length(end - first) * length(height) * length(width));
    const base = volume * this.each + through.start + down.start + right.start;
    let to = 0;
    for (let slice = first; slice < end; slice += every) {
      for (let row = 0; row < height; row += every) {
        let from = base + slice * through.stride + row * down.stride;
        for (let column = 0; column < width; column += every, from += every * right.stride) {
          const value = stored[from] * slope + intercept;
          values[to++] = Number.isFinite(value) ? value : 2 * NONE;
        }
      }
    }
    return values;
  }

  /** The values of a frame, from 0. */
  values(frame) {
    const volume = Math.floor(frame / this.depth), slice = frame % this.depth;
    return this.#values(volume, slice, slice + 1);
  }

  /** What goes with each slice of the volume of a frame: centre and width to show it, and whether it is a CT. */
  measure(frame) {
    const volume = Math.floor(frame / this.depth);
    if (!this.measured.has(volume)) {
      const every = Math.max(1, Math.ceil(Math.cbrt((this.depth * this.width * this.height) / SAMPLED) - 1e-9));
      const sample = this.#values(volume, 0, this.depth, every).filter((value) => value > NONE).sort();
      let [low, high] = sample.length ? SHARES.map((share) => quantile(sample, share)) : [0, 0];
      if (low === high) [low, high] = [sample[0] ?? 0, sample.at(-1) ?? 0];
      const level = [(low + high) / 2, Math.max(high - low, 1e-6)];
      this.measured.set(volume, { level, hounsfield: (sample[0] ?? 0) <= FAT });
    }
    return this.measured.get(volume);
  }
}

function flip(bytes, size) {
  for (let at = 0; at < bytes.length; at += size) bytes.subarray(at, at + size).reverse();
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** One slice as a file of its own, which the server shows as it is seen here: what a question is asked about. */
function sliceFile(values, width, height) {
  const view = new DataView(new ArrayBuffer(HEADER + 4 * values.length));
  view.setInt32(0, 348, true);
  [3, width, height, 1, 1, 1, 1, 1].forEach((n, i) => view.setInt16(40 + 2 * i, n, true));
  view.setInt16(70, 16, true); // float32
  view.setInt16(72, 32, true); // bits
  for (let i = 0; i < 4; i++) view.setFloat32(76 + 4 * i, 1, true);
  view.setFloat32(108, HEADER, true);
  view.setFloat32(112, 1, true);
  view.setInt16(254, 1, true); // the rows of the affine follow: columns count to the left, rows to the back
  for (const [at, n] of [[280, -1], [300, -1], [320, 1]]) view.setFloat32(at, n, true);
  view.setUint32(344, 0x6e2b3100); // "n+1"
  values.forEach((value, i) => view.setFloat32(HEADER + 4 * i, value > NONE ? value : NaN, true));
  return new Blob([view.buffer]);
}
