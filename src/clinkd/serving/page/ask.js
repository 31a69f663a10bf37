/** Calls to the server: one way to make them, one way to fail, and the stream of an answer. */

/** What went wrong, in a line for people. */
export class Failure extends Error {
  /** @param {string} message @param {number} [status] */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const UNKNOWN = "The token is wrong or gone. Open the address that clinkd serve printed.";
const SILENT = "The server does not answer. Is clinkd serve still running?";

/**
 * A call to the server of this page. Throws Failure, and AbortError where `signal` says so.
 * @param {string} path
 * @param {{method?: string, body?: object | Blob, signal?: AbortSignal}} [how]
 * @returns {Promise<Response>}
 */
export async function call(path, { method = "GET", body, signal } = {}) {
  const json = () => ({ headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const more = !body ? {} : body instanceof Blob ? { body } : json();
  const reply = await received(fetch(path, { method, signal, ...more }));
  if (!reply.ok) throw new Failure(await why(reply), reply.status);
  return reply;
}

/** A reply or its body, which may break off. Throws Failure and AbortError. */
export async function received(reading) {
  try {
    return await reading;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure(SILENT);
  }
}

/** A call for JSON. Throws as `call`. */
export const fetched = async (path, how) => received((await call(path, how)).json());

async function why(reply) {
  if (reply.status === 401) return UNKNOWN;
  const message = await reply.json().then((told) => told.error?.message, () => null);
  const seconds = reply.headers.get("Retry-After");
  if (reply.status === 429) return `Too many questions wait. Try again in ${seconds ?? "a few"} s.`;
  if (reply.status === 503 && seconds) return `${message ?? "The server is busy"}. Try again in ${seconds} s.`;
  return message ?? `The server failed (${reply.status}).`;
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  try {
    for (;;) {
      const { value, done } = await received(reader.read());
      if (done) return;
      const parts = (kept + value).split("\n\n");
      kept = parts.pop();
      for (const part of parts) if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {}); // an aborted stream is over already
  }
}

/**
 * Drafts, each of which may still change, then the answer. Throws Failure.
 * @param {string} model its name
 * @param {string} image a data URI
 * @param {{text: string, boxes: number[][]}} question with a [box] mark for each box
 * @param {object} how what the server's record of a request takes beside boxes: frame, window, and options
 * @param {AbortSignal} signal
 */
export async function* ask(model, image, question, how, signal) {
  const content = [{ type: "text", text: question.text }, { type: "image_url", image_url: { url: image } }];
  const body = {
    model, stream: true, messages: [{ role: "user", content }], clinkd: { boxes: question.boxes, ...how },
  };
  let answer = null;
  for await (const event of events(await call("/v1/chat/completions", { method: "POST", body, signal }))) {
    if (event.error) throw new Failure(event.error.message);
    if (event.clinkd?.draft) yield { draft: event.clinkd.draft };
    else if (event.clinkd) answer = event.clinkd;
  }
  if (!answer) throw new Failure("The answer broke off. Ask again.");
  yield { answer };
}

const MARK = /\[box(?: ([A-Z]+))?\]/g;

/**
 * A question as people write it, to one as the server reads it: "[box B]" is the box of that name, and a bare "[box]"
 * the next box in order. Throws Failure where there is no such box.
 * @param {string} text
 * @param {{name: string, box: number[]}[]} marks
 */
export function spelled(text, marks) {
  let bare = 0;
  const boxes = [];
  const plain = text.replace(MARK, (mark, name) => {
    const found = name ? marks.find((m) => m.name === name) : marks[bare++];
    if (!found) throw new Failure(`There is no box for ${mark}. Draw one, or take the mark out.`);
    boxes.push(found.box);
    return "[box]";
  });
  return { text: plain, boxes };
}

/** The other way round: "[box]" marks by the names of their boxes, to be read and edited. */
export function lettered(text, marks) {
  let n = 0;
  return text.replaceAll("[box]", () => `[box ${marks[n++]?.name ?? "A"}]`);
}

/** A text in which each box is an empty one, for a line of a list. */
export const boxed = (text) => text.replaceAll("[box]", "▢");
