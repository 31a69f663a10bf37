/** Frames of a DICOM that has many: sent are its header and these frames, which the server reads as the file itself. */

import { Failure } from "./ask.js";

const EXCERPT = "ClinKD excerpt\n";
const ITEM = 0xe000fffe, END = 0xe0ddfffe; // tags of a compressed piece, and behind the last one (PS3.5 A.4)
const MOST = 50_002; // pieces beside one a frame: the server refuses more
const READ = 1 << 16; // bytes that are read at once to find the pieces

export class Film {
  /** @param {object} described of files.js */
  constructor({ file, frames, pixels }) {
    Object.assign(this, { file, frames, ...pixels, items: null });
  }

  /** An excerpt of the file: all but other frames. Throws Failure. @param {number[]} frames in order, from 1 */
  async excerpt(frames) {
    const { file, offset } = this, ranges = [[0, offset]], parts = [file.slice(0, offset)];
    try {
      for (const { at, length, part } of this.frame_bits ? this.#plain(frames) : await this.#compressed(frames)) {
        ranges.push([at, length]);
        parts.push(part ?? file.slice(at, at + length));
      }
    } catch {
      throw new Failure("The file could not be read.");
    }
    return new Blob([EXCERPT, JSON.stringify({ size: file.size, ranges }), "\n", ...parts]);
  }

  /** Frames that lie one behind the other: they may begin within a byte, or within a pair that is swapped. */
  #plain(frames) {
    const { offset, frame_bits: bits, file } = this;
    const [first, last] = [frames[0] - 1, frames.at(-1)];
    const at = Math.max(offset, offset + Math.floor((first * bits) / 8) - 1);
    return [{ at, length: Math.min(file.size, offset + Math.ceil((last * bits) / 8) + 1) - at }];
  }

  /** The heads of all compressed pieces, and those of the frames whole. */
  async #compressed(frames) {
    this.items ??= await this.#find();
    const first = frames[0] - 1, end = frames.at(-1);
    return this.items.map(({ at, length, head, frame }) => (
      frame == null || (frame >= first && frame < end) ? { at, length: 8 + length } : { at, length: 8, part: head }));
  }

  /** Each piece with the frame it belongs to, from 0; null: it belongs to all, or nothing tells to which. */
  async #find() {
    const { file, frames } = this, items = [];
    let view = new DataView(new ArrayBuffer(0)), from = 0;
    for (let at = this.offset; at + 8 <= file.size && items.length < frames + MOST;) {
      if (at + 8 > from + view.byteLength) {
        view = new DataView(await file.slice(at, at + READ).arrayBuffer());
        from = at;
      }
      const tag = view.getUint32(at - from, true), length = tag === ITEM ? view.getUint32(at - from + 4, true) : 0;
      if (tag !== ITEM && tag !== END) break; // the server tells what is wrong
      items.push({ at, length, head: new Uint8Array(view.buffer.slice(at - from, at - from + 8)), frame: null });
      if (tag === END) break;
      at += 8 + length;
    }
    const [table, ...pieces] = items.filter(({ length }, n) => n === 0 || length);
    if (table?.length === 4 * frames) {
      const places = new DataView(await file.slice(table.at + 8, table.at + 8 + table.length).arrayBuffer());
      let frame = 0;
      for (const piece of pieces) {
        while (frame + 1 < frames && piece.at - pieces[0].at >= places.getUint32(4 * (frame + 1), true)) frame++;
        piece.frame = frame;
      }
    } else if (pieces.length === frames) pieces.forEach((piece, n) => { piece.frame = n; });
    return items;
  }
}
