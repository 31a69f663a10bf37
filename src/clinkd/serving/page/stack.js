/** Stacks: the slices of a series in the order of the patient, and whether they make a volume. */

import { brief } from "./dom.js";
import { Space } from "./planes.js";

export const MOST_VOXELS = 1e8; // of a volume that this page holds
const EVEN = 0.02; // of the distance of slices: how far one may differ
const ROUNDED = 0.02; // mm, to which some writers round places

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/**
 * The stacks that files make, the largest first, and the files that make none.
 * @param {object[]} described of files.js
 */
export function stacksOf(described) {
  const groups = new Map();
  for (const file of described.filter(({ why }) => !why)) {
    const key = keyOf(file);
    groups.set(key, [...(groups.get(key) ?? []), file]);
  }
  const stacks = [...groups.values()].map((files) => new Stack(files));
  return {
    stacks: stacks.sort((a, b) => b.slices.length - a.slices.length),
    left: described.filter((file) => file.why),
  };
}

/** What the files of a stack have in common. */
function keyOf({ kind, frames, series, width, height, orientation, path }) {
  if (frames > 1 || kind === "NIfTI") return `file ${path}`;
  if (kind === "picture") return "pictures";
  return series ? [series, width, height, ...orientation.map((v) => v.toFixed(2))].join() : `file ${path}`;
}

export class Stack {
  /** @param {object[]} files of one key */
  constructor(files) {
    const [first] = files;
    Object.assign(this, { files, first });
    this.slices = files.flatMap((file) => {
      const source = [file.path, file.file.size, file.file.lastModified].join("|"); // the same where it is opened again
      return Array.from({ length: file.frames }, (_, n) => ({
        file, source, key: `${source}|${n}`, frame: file.frames > 1 ? n + 1 : null, position: file.positions[n] ?? null,
      }));
    });
    this.placed = first.orientation.length === 6 && this.slices.every((slice) => slice.position);
    this.normal = this.placed ? cross(first.orientation.slice(0, 3), first.orientation.slice(3)) : null;
    for (const slice of this.slices) slice.depth = this.placed ? dot(this.normal, slice.position) : 0;
    this.repeated = new Set(this.slices.map(({ depth }) => depth.toFixed(2))).size < this.slices.length;
    if (files.length > 1 || !this.repeated) this.slices.sort(inOrder);
    this.space = this.placed ? new Space(this) : null;
    this.plane = this.space?.plane ?? "";
    this.why = this.slices.length > 1 ? this.#whyFlat() : "";
  }

  /** Millimetres from slice to slice, on average. */
  get gap() { return (this.slices.at(-1).depth - this.slices[0].depth) / (this.slices.length - 1); }

  get isVolume() { return this.slices.length > 1 && !this.why; }

  /** In words, to choose by. */
  get title() {
    const { kind, series_number: number, modality, width, height, path } = this.first;
    const count = this.slices.length;
    if (kind === "picture" && this.files.length > 1) return `${count} pictures, by name`;
    const name = this.files.length > 1 || number != null ? `Series ${number ?? "without number"}` : path;
    const parts = [modality === "other" ? "" : modality.toUpperCase(), this.plane,
      `${count} ${this.placed ? "slice" : "frame"}${count > 1 ? "s" : ""} of ${width} × ${height}`];
    return `${name}: ${parts.filter(Boolean).join(", ")}`;
  }

  /** Why other planes cannot be shown; nothing where they can. */
  #whyFlat() {
    const { slices, files, first } = this;
    if (!this.placed) return "the files do not say where each slice lies";
    if (slices.length < 3) return "two slices make no volume";
    if (first.spacing.length !== 2) return "the files do not say how large a pixel is";
    if (files.some(({ spacing }) => spacing.length !== 2 || spacing.some((v, i) => Math.abs(v - first.spacing[i]) > 1e-3))) {
      return "the pixels of the slices differ in size";
    }
    if (this.repeated) return "several slices lie at one place";
    const steps = slices.slice(1).map(({ depth }, n) => depth - slices[n].depth);
    const slack = Math.max(EVEN * this.gap, ROUNDED);
    if (steps.some((step) => Math.abs(step - this.gap) > slack)) {
      return `the slices are not equally far apart (${brief(Math.min(...steps))} to ${brief(Math.max(...steps))} mm)`;
    }
    const shifted = slices.some(({ position, depth }) => {
      const along = position.map((v, i) => v - slices[0].position[i] - (depth - slices[0].depth) * this.normal[i]);
      return Math.hypot(...along) > Math.max(EVEN * (depth - slices[0].depth), ROUNDED);
    });
    if (shifted) return "the slices are shifted against each other, as by a tilted gantry";
    const voxels = slices.length * first.width * first.height;
    if (voxels <= MOST_VOXELS) return "";
    return `it has ${Math.ceil(voxels / 1e6)} million voxels, and this page holds ${MOST_VOXELS / 1e6} million`;
  }
}

const cross = ([a, b, c], [d, e, f]) => [b * f - c * e, c * d - a * f, a * e - b * d];

/** By place, then by the number in the series, then by name. */
const inOrder = (a, b) => Math.round(100 * (a.depth - b.depth))
  || (a.file.instance_number ?? 0) - (b.file.instance_number ?? 0)
  || a.file.path.localeCompare(b.file.path, "en", { numeric: true }) || (a.frame ?? 0) - (b.frame ?? 0);
