/** The page of `clinkd serve`: what is open, what was asked, and who is told of it. Nothing is kept in the browser. */

import { Annotations } from "./annotate.js";
import { Panel, marksOf } from "./answer.js";
import { ask, boxed, Failure, fetched, spelled } from "./ask.js";
import { View } from "./canvas.js";
import { Corrections } from "./corrections.js";
import { brief, button, complain, find, insert, make, paused, say } from "./dom.js";
import { saveAnswer, savePicture, saveReport } from "./download.js";
import { chosen, describe, dropped } from "./files.js";
import { PLANE_NAMES } from "./planes.js";
import { Reader } from "./reader.js";
import { Stack, stacksOf } from "./stack.js";
import { Tools } from "./tools.js";
import { Worklist } from "./worklist.js";

const FEW = 32; // files that are looked at before one is shown
const MOST_ENTRIES = 50; // questions that can be come back to
const view = new View(find("stage"));
const panel = new Panel(find("answer"), find("candidates"));
const tools = new Tools(view, find("tools"), find("levels"), {}, (window) => reload(picture.at, window));

let about = null; // what the server tells of itself
let reader = null; // of the stack that is open
let picture = null; // the slice of it that is shown
let entry = null; // the answer that is shown, with its question and picture
let taking = null, opening = null, asking = null; // what can be aborted
let wish = null, going = false; // the slice to go to, and whether one is on its way
const entries = [];

/** Do what may fail; what went wrong becomes one line. */
async function attempt(act) {
  complain("");
  try {
    return await act();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    complain(error instanceof Failure ? error.message : "This page met a fault of its own. Reload it.");
    if (!(error instanceof Failure)) throw error;
    return undefined;
  }
}

const annotations = new Annotations(attempt);

// ---- the server -----------------------------------------------------------------------------------------------------

const STATES = { loading: "model is loading", ready: "model is ready", failed: "model failed" };

async function acquaint() {
  about = await fetched("/v1/about");
  find("model").textContent = about.name;
  find("notice").textContent = about.notice;
  document.title = `${about.name} · ClinKD`;
  find("options").querySelector("[data-option=beams]").placeholder = about.candidates || "";
  find("names").replaceChildren(...about.names.map((name) => make("option", { value: name })));
  annotations.offer(about);
  tools.presets = about.presets;
  find("to-report").hidden = !about.run?.report;
  find("to-corrections").hidden = !about.run?.rounds.length;
  find("to-worklist").hidden = !about.worklist;
  route();
}

async function watch() {
  let status;
  try {
    ({ status } = await fetched("/healthz"));
    if (!about || about.state !== status) await acquaint();
    find("state").textContent = status === "failed" && about.why ? `${STATES.failed}: ${about.why}` : STATES[status];
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    status = "gone";
    find("state").textContent = error.message;
  }
  find("state").dataset.state = status;
  setTimeout(watch, status === "loading" ? 1000 : 15_000);
}

// ---- stacks and their slices ----------------------------------------------------------------------------------------

/** @param {import("./files.js").Given[]} given files that were opened together */
async function take(given) {
  if (!given.length) return;
  await attempt(async () => {
    asking?.abort();
    taking?.abort();
    const mine = (taking = new AbortController());
    const what = given.length > 1 ? `${given.length} files` : given[0].file.name;
    say(`Opening ${what}`);
    if (!about) await acquaint();
    const glimpsed = given.length > FEW ? await glimpse(given) : null;
    mine.signal.throwIfAborted();
    const told = await describe(given, about.limits.body_bytes, mine.signal, (count) => {
      if (given.length > 1) progress(`Looking at ${what}: ${count}`);
    }).finally(() => progress(""));
    mine.signal.throwIfAborted();
    let { stacks, left } = stacksOf(told);
    if (given.length === 1 && left.length) { // opening it tells what is wrong
      if (left[0].packed) throw new Failure(left[0].why);
      stacks = [new Stack([{ ...told[0], ...NOTHING_TOLD }])];
      left = [];
    }
    if (!stacks.length) throw new Failure(`None of the ${what} is an image. ${left[0].path}: ${left[0].why}`);
    await unfold(stacks[0], glimpsed);
    offer(stacks, left);
  });
}

const NOTHING_TOLD = { kind: "file", frames: 1, orientation: [], positions: [], spacing: [], modality: "other" };

/** The file in the middle, by name, is shown while the others are looked at; its key, where it is an image. */
async function glimpse(given) {
  const sorted = given.toSorted((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
  const middle = [sorted[given.length >> 1]];
  const [told] = await waiting((signal) => describe(middle, about.limits.body_bytes, signal, () => {}));
  if (told.why || told.frames > 1) return null;
  await unfold(new Stack([told]));
  return picture.key;
}

/**
 * Show a stack from its middle slice, or a film from its first frame. Where the slice of that key is on the page already,
 * it stays, as it was windowed and asked about meanwhile.
 */
async function unfold(stack, key) {
  wish = null;
  const next = new Reader(stack, about);
  const there = stack.slices.findIndex((slice) => slice.key === key), stays = there >= 0 && key === picture?.key;
  if (stays) {
    for (const made of entries) if (made.picture === picture) made.reader = next;
    next.keep(there, picture);
  }
  const at = there >= 0 ? there : stack.placed ? next.count >> 1 : 0;
  const opened = await waiting((signal) => next.slice(at, stays ? picture.shown.window : null, signal));
  reader?.forget();
  reader = next;
  display(opened, opened === picture ? null : annotations.marks(opened.key));
}

/** Do what the newest wish is; what was wished before is given up. */
async function waiting(act) {
  opening?.abort();
  const mine = (opening = new AbortController());
  find("stage").setAttribute("aria-busy", "true");
  try {
    const made = await act(mine.signal);
    mine.signal.throwIfAborted();
    return made;
  } finally {
    if (opening === mine) {
      find("stage").setAttribute("aria-busy", "false");
      progress("");
    }
  }
}

/** The stacks to choose from, and the files that are in none, each with its reason. */
function offer(stacks, left) {
  find("stacks").hidden = stacks.length < 2;
  find("stack").replaceChildren(...stacks.map((stack, n) => make("option", { value: n }, stack.title)));
  find("stack").onchange = ({ target }) => attempt(() => unfold(stacks[target.value]));
  find("left-out").hidden = !left.length;
  find("left-out").open = left.length > 0 && left.length < 6;
  const [summary, list] = find("left-out").children;
  summary.textContent = `${left.length} ${left.length > 1 ? "files are" : "file is"} left out`;
  list.replaceChildren(...left.map(({ path, why }) => make("li", {}, `${path}: ${why.replace(/^the file: /, "")}`)));
}

const progress = (text) => {
  find("progress").textContent = text;
  find("progress").hidden = !text;
};

const snapshot = () => view.of("person");

/** Another slice (from 0), or another window of the one that is shown. */
async function reload(at, window) {
  await attempt(async () => {
    const opened = await waiting((signal) => reader.slice(at, window, signal));
    if (opened.key !== picture.key) {
      asking?.abort();
      display(opened, annotations.marks(opened.key));
    } else {
      picture = opened;
      view.show(picture.canvas, described());
      tools.show(picture);
    }
  });
}

async function turn(plane) {
  wish = null;
  await attempt(async () => {
    try {
      await waiting((signal) => reader.turn(plane, signal, (n, count) => progress(`Reading slice ${n} of ${count}`)));
    } finally {
      find("plane").value = reader.plane;
    }
    await reload(reader.seen[plane] ?? reader.count >> 1, picture.shown.window);
  });
}

/** Show a slice with these boxes, and no answer yet; without any, boxes and answer stay. */
function display(opened, marks) {
  picture = opened;
  reader.seen[picture.plane] = picture.at;
  view.show(picture.canvas, described());
  if (marks) {
    entry = null;
    panel.clear();
    find("answer-card").hidden = true;
    find("hint").hidden = true;
    view.replace("model", []);
    view.replace("candidate", []);
    view.replace("person", marks);
  }
  const { width, height, dicom, modality, burned_in: burned } = picture.about;
  const { count } = reader;
  const parts = [
    `${width} × ${height} pixels`,
    ...(dicom ? [`DICOM ${modality}`] : []), ...(count > 1 ? [`${count} ${word()}s`] : []),
  ];
  find("facts").textContent = [picture.source.name, ...parts].join(" · ");
  find("burned").hidden = burned !== "YES";
  find("reformatted").hidden = !picture.reformatted;
  annotations.look(picture);
  slices();
  tools.show(picture);
  boxes();
  say(`Opened: ${parts.join(", ")}`);
  if (count > 1) readAhead();
}

const readAhead = paused(120, () => reader.readAhead(picture.at, picture.shown.window));

const word = () => (reader.stack.placed ? "slice" : "frame");

/** The slider, and the planes. */
function slices() {
  const { stack, count, plane } = reader;
  view.scrolls = count > 1;
  find("frames").hidden = stack.slices.length < 2;
  Object.assign(find("frame"), { max: count, value: picture.at + 1 });
  find("frame-word").textContent = [plane, word()].filter(Boolean).join(" ").replace(/^./, (c) => c.toUpperCase());
  find("frame-said").textContent = `${picture.at + 1} of ${count}`;
  find("planes").hidden = !stack.isVolume;
  find("plane").replaceChildren(...PLANE_NAMES.map((name) => (
    make("option", { value: name }, name === stack.plane ? `${name} (as acquired)` : name))));
  find("plane").value = plane;
  find("flat").hidden = !stack.why;
  find("flat").textContent = `Other planes cannot be shown: ${stack.why}.`;
}

const described = () => {
  const { width, height } = picture.about;
  const which = [picture.plane, word(), picture.at + 1, "of", reader.count].filter(Boolean).join(" ");
  return `Image of ${width} by ${height} pixels${reader.count > 1 ? `, ${which}` : ""}`;
};

/** The slice that is wished for (from 0), and on the way there as many as can be opened. */
async function toSlice(at) {
  wish = at;
  if (going) return;
  going = true;
  while (wish != null) {
    const next = wish;
    wish = null;
    await reload(next, picture.shown.window).catch(() => {}); // told already
  }
  going = false;
  slices(); // also where that slice could not be opened
}

function step(count) {
  const slider = find("frame");
  if (!picture || slider.closest("[hidden]")) return;
  slider.value = Math.min(Math.max(Number(slider.value) + count, 1), reader.count);
  slide();
}

function slide() {
  const at = Number(find("frame").value) - 1;
  find("frame-said").textContent = `${at + 1} of ${reader.count}`;
  toSlice(at);
}

// ---- boxes ----------------------------------------------------------------------------------------------------------

const SIDES = ["left", "top", "right", "bottom"];

/** Numbers of a person's boxes, to read and to type. */
function boxes() {
  const marks = snapshot(), list = find("boxes");
  find("boxes-part").hidden = !marks.length;
  const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
  for (const [key, row] of rows) if (!marks.some((m) => m.key === key)) row.remove();
  for (const mark of marks) {
    const row = rows.get(mark.key) ?? list.appendChild(rowOf(mark));
    row.classList.toggle("selected", mark.key === view.selected);
    row.querySelectorAll("input[type=number]").forEach((input, i) => {
      if (input !== document.activeElement) input.value = brief(mark.box[i] * measure(i), 2);
    });
    const label = row.querySelector("[data-label]");
    if (label !== document.activeElement) label.value = mark.label ?? "";
    label.hidden = picture.reformatted;
  }
  const chosen = subject();
  find("insert").textContent = chosen ? `Mention box ${chosen.name}` : "Mention box";
  find("about-box").textContent = `“This” is ${chosen ? `your box ${chosen.name}` : "the box that you draw"}.`;
}

const measure = (i) => (i % 2 ? picture.about.height : picture.about.width);

function rowOf({ key, name }) {
  const numbers = SIDES.map((side, i) => make("input", {
    type: "number", step: "any", min: 0, max: measure(i), inputmode: "decimal",
    "aria-label": `Box ${name}, ${side} in pixels`, change: ({ target }) => type(key, i, target),
  }));
  const go = button(name, () => view.visit(key), { class: "chip person", "aria-label": `Go to box ${name}` });
  const drop = () => { view.remove(key); find("stage").focus(); };
  const label = make("input", {
    type: "text", list: "names", maxlength: 200, autocomplete: "off", placeholder: "what it shows", "data-label": true,
    "aria-label": `What box ${name} shows`, input: ({ target }) => view.label(key, target.value.trim()),
  });
  return make("li", { "data-key": key }, go, ...numbers, label, button("×", drop, { "aria-label": `Delete box ${name}` }));
}

function type(key, i, input) {
  const box = [...view.marks.get(key).box];
  box[i] = input.valueAsNumber / measure(i);
  const fits = box[0] >= 0 && box[1] >= 0 && box[2] <= 1 && box[3] <= 1 && box[0] < box[2] && box[1] < box[3];
  input.setAttribute("aria-invalid", String(!fits));
  const { width, height } = picture.about;
  complain(fits ? "" : `No such box: left < right <= ${width} and top < bottom <= ${height} are wanted.`);
  if (fits) view.put(key, box);
}

/** The box that is meant by "this": the one that is selected, or else the newest. */
const subject = () => {
  const marks = snapshot();
  return marks.find((m) => m.key === view.selected) ?? marks.at(-1) ?? null;
};

view.addEventListener("marks", () => {
  annotations.keep(snapshot());
  boxes();
});
view.addEventListener("select", () => picture && boxes());
view.addEventListener("zoom", () => { find("zoom").textContent = `${Math.round(100 * view.scale)} %`; });
view.addEventListener("frame", ({ detail }) => step(detail));
view.addEventListener("point", ({ detail }) => light(detail));
view.addEventListener("press", ({ detail }) => {
  const link = find("answer").querySelector(`[data-keys~="${detail}"]`);
  link?.scrollIntoView({ block: "nearest" });
});
panel.addEventListener("point", ({ detail }) => light(detail));
panel.addEventListener("visit", ({ detail }) => view.visit(detail));
panel.addEventListener("candidate", ({ detail }) => {
  find("stage").classList.toggle("trying", Boolean(detail));
  const { boxes: of, number } = detail ?? { boxes: [], number: 0 };
  view.replace("candidate", numbered("candidate", of, `Candidate ${number}, box`, `${number}.`));
});

const numbered = (kind, boxes, says, before = "") =>
  boxes.map((box, i) => ({ key: `${kind}-${i + 1}`, kind, box, name: `${before}${i + 1}`, says: `${says} ${i + 1}` }));

function light(keys) {
  view.light(keys);
  panel.light(keys);
}

// ---- questions ------------------------------------------------------------------------------------------------------

const wide = matchMedia("(min-width: 58rem)"); // two columns, as in style.css

/** The answer stands beside the image, under the question; or right under the image, where there is one column. */
function placeAnswer() {
  find(wide.matches ? "ask-card" : "stage").after(find("answer-card"));
}

/** How the answer is wanted: the fields that are filled in, by their names in the server's record. */
const options = () => Object.fromEntries([...find("options").querySelectorAll("[data-option]")]
  .filter((input) => input.value).map((input) => [input.dataset.option, input.valueAsNumber]));

/** Ask about what is shown; `text` may have marks. */
async function put(text) {
  if (!picture) throw new Failure("Open an image first.");
  const marks = snapshot(), { shown } = picture;
  const question = spelled(text, marks);
  const made = { picture, reader, shown, marks, text, question, answer: null, time: new Date().toISOString() };
  asking?.abort();
  const mine = (asking = new AbortController());
  entry = null;
  find("answer-card").hidden = false;
  find("asked").textContent = text;
  find("saving").hidden = find("stop").hidden = false;
  saving(null);
  view.replace("model", []);
  view.replace("candidate", []);
  panel.wait();
  for (const id of ["answer-card", "stage"]) find(id).scrollIntoView({ block: "nearest" }); // both, or else the image
  try {
    const { uri, ...which } = await made.picture.sent();
    for await (const news of ask(about.name, uri, question, { ...which, ...options() }, mine.signal)) {
      if (asking !== mine) return;
      if (news.draft) {
        panel.draft(news.draft);
        view.replace("model", numbered("model", news.draft.boxes, "Draft of the model’s box"));
      } else made.answer = news.answer;
    }
  } catch (error) {
    if (asking === mine) {
      view.replace("model", []);
      panel.clear();
      if (error.name === "AbortError") find("answer").append(make("p", { class: "soft" }, "Stopped."));
      else find("answer-card").hidden = true;
    }
    throw error;
  } finally {
    if (asking === mine) {
      asking = null;
      find("stop").hidden = true;
    }
  }
  remember(made);
  present(made);
}

function present(made) {
  entry = made;
  find("answer-card").hidden = false;
  find("asked").textContent = made.text;
  panel.show(made.answer);
  view.replace("candidate", []);
  view.replace("model", marksOf(made.answer));
  saving(made);
  for (const item of find("history").querySelectorAll("button")) {
    item.setAttribute("aria-current", String(entries[Number(item.dataset.number)] === made));
  }
}

function saving(made) {
  const dicom = made?.picture.about.dicom;
  find("saving").hidden = !made;
  find("save-sr").disabled = !dicom;
  const none = made?.picture.reformatted ? "a frame of the file; this slice was made of many"
    : "a DICOM image; this one is none";
  find("sr-why").textContent = made && !dicom ? `A DICOM SR needs ${none}.` : "";
}

function remember(made) {
  if (entries.length === MOST_ENTRIES) {
    entries.shift();
    find("history").lastElementChild.remove();
    for (const item of find("history").querySelectorAll("button")) item.dataset.number -= 1;
  }
  const { width, height } = made.picture.about;
  const thumb = make("canvas", { width: 48, height: 48, "aria-hidden": "true" });
  const scale = Math.min(48 / width, 48 / height);
  const [wide, high] = [scale * width, scale * height];
  thumb.getContext("2d").drawImage(made.picture.canvas, 24 - wide / 2, 24 - high / 2, wide, high);
  const said = make("span", { class: "soft" }, boxed(made.answer.text));
  const link = button(thumb, () => back(entries[Number(link.dataset.number)]), { "data-number": entries.length });
  link.append(make("span", {}, make("b", {}, made.text), make("br"), said));
  find("history").prepend(make("li", {}, link));
  entries.push(made);
  find("history-card").hidden = false;
}

/** An earlier question with its image, boxes and answer. */
function back(made) {
  complain("");
  for (const one of [asking, taking, opening]) one?.abort();
  made.picture.show(made.shown);
  if (reader !== made.reader) {
    reader.forget();
    offer([], []);
  }
  reader = made.reader;
  reader.plane = made.picture.plane;
  const { key } = made.picture; // what has names is kept as it is now
  display(made.picture, annotations.named(key) ? annotations.marks(key) : made.marks);
  present(made);
  say("An earlier question is shown again.");
}

const phrased = (task, name = "") => {
  const marked = (text) => {
    const box = subject();
    if (!box) throw new Failure("Draw a box first: this question is about one.");
    return text.replace("[box]", `[box ${box.name}]`);
  };
  const text = about.questions[task].replace("{name}", () => name);
  return text.includes("[box]") ? marked(text) : text;
};

find("where-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => {
    const name = find("name").value.trim();
    if (!picture) throw new Failure("Open an image first.");
    if (!name) throw new Failure("Say what to look for.");
    return put(phrased("where", name));
  });
});
find("tasks").addEventListener("click", ({ target }) => {
  const { task } = target.dataset;
  if (!task) return;
  attempt(() => {
    if (!picture) throw new Failure("Open an image first.");
    return put(phrased(task));
  });
});
find("free-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => {
    const text = find("question").value.trim();
    if (!text) throw new Failure("The question is empty. Write one.");
    return put(text);
  });
});
find("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  find("free-form").requestSubmit();
});
find("insert").addEventListener("click", () => attempt(() => {
  const box = subject(), field = find("question");
  if (!box) throw new Failure("Draw a box first.");
  insert(field, `[box ${box.name}]`);
}));
find("stop").addEventListener("click", () => asking?.abort());

find("save-png").addEventListener("click", () => attempt(() => {
  const { shown } = entry.picture;
  entry.picture.show(entry.shown); // as it was asked about
  const saved = savePicture(entry.picture.canvas, [...entry.marks, ...marksOf(entry.answer)], about.notice, entry.time);
  entry.picture.show(shown);
  return saved;
}));
find("save-json").addEventListener("click", () => attempt(() => saveAnswer(entry, about)));
find("save-sr").addEventListener("click", () => attempt(() => saveReport(entry)));

// ---- opening, dropping, switching -----------------------------------------------------------------------------------

for (const id of ["file", "folder"]) {
  find(id).addEventListener("change", ({ target }) => {
    const given = chosen(target.files);
    target.value = ""; // the same file may be opened again
    take(given);
  });
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  find("stage").classList.add("dropping");
});
addEventListener("dragleave", () => find("stage").classList.remove("dropping"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  find("stage").classList.remove("dropping");
  take(await dropped(event.dataTransfer));
});
find("plane").addEventListener("change", ({ target }) => turn(target.value));
find("frame").addEventListener("input", slide);

let corrections = null, worklist = null;

function route() {
  const views = { ask: true, corrections: about?.run?.rounds.length, worklist: about?.worklist };
  const wanted = location.hash.slice(1) || "ask";
  if (!Object.hasOwn(views, wanted)) return; // a jump within the view
  const shown = views[wanted] ? wanted : "ask";
  for (const name of Object.keys(views)) {
    find(name).hidden = name !== shown;
    if (name === shown) find(`to-${name}`).setAttribute("aria-current", "page");
    else find(`to-${name}`).removeAttribute("aria-current");
  }
  complain("");
  if (shown === "corrections") corrections ??= new Corrections(find("corrections"), about.run.rounds, attempt);
  if (shown === "worklist") worklist ??= new Worklist(find("worklist"), about, attempt);
}

addEventListener("hashchange", route);
wide.addEventListener("change", placeAnswer);
placeAnswer();
watch();
