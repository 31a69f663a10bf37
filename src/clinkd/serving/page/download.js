/** Files to keep: the picture with its boxes, the answer as JSON, and a DICOM structured report. */

import { call } from "./ask.js";
import { KINDS } from "./canvas.js";

/** Hand a file to the browser; what it was made of is let go. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const stamped = (time, ending) => `clinkd-${time.replace(/[-:]/g, "").replace(/\.\d+/, "")}.${ending}`;

/** Lines of text no wider than `width`. */
function lines(context, text, width) {
  const found = [];
  for (const word of text.split(" ")) {
    const longer = found.length ? `${found.at(-1)} ${word}` : word;
    if (found.length && context.measureText(longer).width <= width) found[found.length - 1] = longer;
    else found.push(word);
  }
  return found;
}

/**
 * The picture at its own resolution with boxes and labels on it, and `notice` in a strip below.
 * @param {HTMLCanvasElement} picture
 * @param {{kind: string, box: number[], name: string}[]} marks
 */
export async function savePicture(picture, marks, notice, time) {
  const { width, height } = picture;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const size = Math.max(9, Math.round(Math.max(width, height) / 45));
  const font = `${size}px system-ui, sans-serif`;
  context.font = font;
  const told = lines(context, notice, width - size);
  canvas.width = width;
  canvas.height = height + Math.ceil((told.length + 0.6) * size * 1.25);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0);
  context.font = font;
  context.textBaseline = "top";
  context.fillStyle = "#fff";
  told.forEach((line, n) => context.fillText(line, size / 2, height + (n + 0.4) * size * 1.25));
  for (const mark of marks) burn(context, mark, width, height, size);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  save(blob, stamped(time, "png"));
}

function burn(context, { kind, box: [x1, y1, x2, y2], name }, width, height, size) {
  const { colour, dash, corner } = KINDS[kind];
  const unit = Math.max(1, size / 9);
  const at = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height];
  context.setLineDash([]);
  context.strokeStyle = "#000";
  context.lineWidth = 3 * unit;
  context.strokeRect(...at);
  context.setLineDash(dash ? dash.split(" ").map((d) => (Number(d) * unit) / 1.5) : []);
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * unit;
  context.strokeRect(...at);
  const wide = context.measureText(name).width + 0.6 * size, high = 1.25 * size;
  const [left, top] = [at[0], at[1]];
  const end = y2 * height; // the label is outside, or else inside
  const y = corner[0] === "n" ? Math.max(top - high, top < high ? top : 0) : end + high <= height ? end : end - high;
  const x = corner[1] === "w" ? left : Math.max(0, x2 * width - wide);
  context.fillStyle = colour;
  context.fillRect(x, y, wide, high);
  context.fillStyle = "#000";
  context.fillText(name, x + 0.3 * size, y + 0.15 * size);
}

/** The answer and what it is about; neither the picture nor the name of its file, which may name a patient. */
export function saveAnswer(entry, about) {
  const { about: { width, height, frame, frames }, plane, at, reformatted } = entry.picture;
  const placed = (box) => ({ fractions: box, pixels: box.map((v, i) => v * (i % 2 ? height : width)) });
  const made = {
    notice: about.notice,
    model: about.name,
    version: about.version,
    time: entry.time,
    image: { width, height, frame, frames, window: entry.shown.window, plane, slice: at + 1, reformatted },
    question: { text: entry.question.text, boxes: entry.question.boxes.map(placed) },
    answer: {
      text: entry.answer.text,
      boxes: entry.answer.boxes.map(({ box, phrase, span }) => ({ ...placed(box), phrase, span })),
      uncertain: entry.answer.uncertain,
      why: entry.answer.why,
      support: entry.answer.support,
      warnings: entry.answer.warnings,
      confidence: entry.answer.confidence,
    },
    asked: entry.answer.asked,
    candidates: entry.answer.candidates,
    drawn: entry.marks.map(({ name, label = "", box }) => ({ name, label, ...placed(box) })),
  };
  save(new Blob([JSON.stringify(made, null, 2)], { type: "application/json" }), stamped(entry.time, "json"));
}

/** A structured report, made by the server. Throws Failure. */
export async function saveReport(entry) {
  const regions = [
    ...entry.answer.boxes.map(({ box, phrase }) => ({ box, label: phrase.slice(0, 64), by: "model" })),
    ...entry.marks.map(({ box, name, label }) => ({ box, label: label?.slice(0, 64) || `box ${name}`, by: "person" })),
  ];
  const { uri: image, frame } = await entry.picture.sent();
  const body = {
    image, frame, question: { text: entry.question.text },
    answer: { text: entry.answer.text }, regions, confidence: entry.answer.confidence,
    warnings: entry.answer.warnings,
  };
  const reply = await call("/v1/sr", { method: "POST", body });
  save(await reply.blob(), stamped(entry.time, "dcm"));
}
