/** Axial, coronal and sagittal slices of a volume, turned as radiologists look at them.
 *
 * Places are in mm to the patient's left (0), back (1) and head (2). Frames count from the feet up (axial), from the
 * back to the front (coronal), from the patient's left to the right (sagittal), as in a NIfTI file.
 */

const PLANES = { // the direction of each: of the body, and its sign
  axial: { right: [0, 1], down: [1, 1], through: [2, 1] },
  coronal: { right: [0, 1], down: [2, -1], through: [1, -1] },
  sagittal: { right: [1, 1], down: [2, -1], through: [0, -1] },
};
export const PLANE_NAMES = Object.keys(PLANES);
const LONGEST = 4096; // pixels of a side
export const NONE = -1e38; // values below stand for none
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/** How the columns, rows and slices of a stack lie in the body. */
export class Space {
  /**
   * @param {import("./stack.js").Stack} stack
   * @param {{start: number, stride: number}[]} [layout] where the columns, rows and slices of its values lie
   */
  constructor(stack, layout) {
    const { orientation, spacing, width, height } = stack.first;
    const directions = [orientation.slice(0, 3), orientation.slice(3), stack.normal];
    const along = (order) => order.reduce((sum, body, axis) => sum + Math.abs(directions[axis][body]), 0);
    const order = ORDERS.reduce((best, one) => (along(one) > along(best) ? one : best));
    const counts = [width, height, stack.slices.length], steps = [spacing[1], spacing[0], stack.gap];
    const places = layout ?? [1, width, width * height].map((stride) => ({ start: 0, stride }));
    this.axes = order.map((body, axis) => ({
      body, count: counts[axis], step: steps[axis], ...places[axis], sign: Math.sign(directions[axis][body]) || 1,
    }));
    this.plane = Object.keys(PLANES).find((name) => PLANES[name].through[0] === order[2]);
  }

  /** The axes of a plane: each with the offset of its first value, and the one from a value to the next. */
  of(plane) {
    return Object.fromEntries(Object.entries(PLANES[plane]).map(([name, [body, sign]]) => {
      const axis = this.axes.find((one) => one.body === body);
      const forward = axis.sign === sign;
      return [name, { ...axis, start: axis.start + (forward ? 0 : (axis.count - 1) * axis.stride),
        stride: forward ? axis.stride : -axis.stride }];
    }));
  }
}

/** Where the pixels of a line lie between values: offsets of the two beside each, and the share of the second. */
function line({ count, step, start, stride }, pixel) {
  const length = Math.min(LONGEST, Math.round(((count - 1) * step) / pixel) + 1);
  return Array.from({ length }, (_, n) => {
    const at = length > 1 ? (n * (count - 1)) / (length - 1) : 0;
    const low = Math.min(Math.floor(at), Math.max(0, count - 2));
    const first = start + low * stride;
    return { first, second: count > 1 ? first + stride : first, share: at - low };
  });
}

/**
 * One slice of a volume, with pixels as wide as they are high. Its values are slope * stored + intercept.
 * @param {{space: Space, stored: ArrayLike<number>, slope?: number, intercept?: number}} volume
 * @param {string} plane @param {number} index from 0
 */
export function cut({ space, stored, slope = 1, intercept = 0 }, plane, index) {
  const { right, down, through } = space.of(plane);
  const longest = Math.max(right.count * right.step, down.count * down.step);
  const pixel = Math.max(Math.min(right.step, down.step), longest / LONGEST);
  const columns = line(right, pixel), rows = line(down, pixel);
  const made = new Float32Array(columns.length * rows.length);
  const base = through.start + index * through.stride;
  let at = 0;
  for (const row of rows) {
    const above = base + row.first, below = base + row.second;
    for (const { first, second, share } of columns) {
      const top = share ? stored[above + first] * (1 - share) + stored[above + second] * share : stored[above + first];
      const between = !row.share ? top : top * (1 - row.share) + row.share
        * (share ? stored[below + first] * (1 - share) + stored[below + second] * share : stored[below + first]);
      const value = between * slope + intercept;
      made[at++] = Number.isFinite(value) ? value : 2 * NONE;
    }
  }
  return { width: columns.length, height: rows.length, values: made, ...rangeOf(made) };
}

/** The least and the greatest of values, without those that stand for none. */
export function rangeOf(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low && value > NONE) low = value;
    if (value > high) high = value;
  }
  return { low: Math.min(low, high), high };
}
