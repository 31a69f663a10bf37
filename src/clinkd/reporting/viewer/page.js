"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const [form, count, cards, more] = ["filter", "count", "cards", "more"].map(find);
  const STEP = 24; // cards, whenever somebody asks for some
  const FIRST = innerWidth < 640 ? 3 : 6; // on a page that was just opened
  let found = [], shown = 0, only = null;

  // The cards of the opening and those that stand here without a script hold pictures that are not in the data, too.
  for (const img of document.querySelectorAll("img[data-picture]")) data.pictures[img.dataset.picture][0] = img.src;

  // ---- elements -----------------------------------------------------------------------------------------------------

  const fill = (made, attributes, inside) => {
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...inside);
    return made;
  };
  const make = (name, attributes = {}, ...inside) => fill(document.createElement(name), attributes, inside);
  const draw = (name, attributes = {}, ...inside) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, inside);

  const words = (text, kind) => {
    const parts = text.split("[box]");
    return parts.flatMap((part, i) => (i ? [make("span", { class: `chip ${kind}` }, "box"), part] : [part]));
  };

  const outlines = (kind, boxes) =>
    boxes.flatMap(([x1, y1, x2, y2]) =>
      ["edge", "line"].map((layer) =>
        draw("rect", { class: `${layer} ${kind}`, x: x1, y: y1, width: x2 - x1, height: y2 - y1 })));

  const over = (sample, candidate) =>
    draw("svg", { class: "over", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" },
      ...outlines("asked", sample.ask), ...outlines("truth", sample.tru), ...outlines("answer", candidate.b));

  const several = (number, one, many) => `${number} ${number === 1 ? one : many}`;

  const picture = (sample, candidate) => {
    const [uri, width, height] = data.pictures[sample.p];
    const drawn = `${several(sample.tru.length, "true box", "true boxes")} and ` +
      `${several(candidate.b.length, "box", "boxes")} of the answer`;
    const alt = `${data.modalities[sample.m]} image of question ${sample.n}, with ${drawn}`;
    const small = Math.max(width, height) < 224 ? { class: "small" } : {};
    const image = uri
      ? make("img", { ...small, width, height, alt, src: uri })
      : draw("svg", { class: "blank", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt });
    return make("div", { class: "shot" }, image, over(sample, candidate));
  };

  // ---- one answer ---------------------------------------------------------------------------------------------------

  const figures = (sample) =>
    Object.entries(sample.f).map(([name, value]) => `${name} ${(100 * value).toFixed(0)}`).join(" · ");

  const weights = (candidate) => {
    const said = candidate.l == null ? [] : [`how likely the model finds it ${candidate.l.toFixed(2)} (0 is best)`];
    said.push(...Object.entries(candidate.s).map(([name, value]) => `${name} ${value.toFixed(3)}`));
    return said.join(" · ") || "no scores";
  };

  const candidateItem = (sample, candidate, i, shot) => {
    const chosen = i === sample.k;
    const item = make("li", chosen ? { class: "chosen" } : {});
    if (candidate.a != null) item.append(make("p", {}, ...words(candidate.a || "(empty)", "answer")));
    if (candidate.r != null) item.append(make("p", { class: "raw" }, `as written: ${candidate.r}`));
    item.append(make("p", { class: "soft" }, `${chosen ? "chosen · " : ""}${weights(candidate)}`));
    if (candidate.b.length && sample.c.length > 1) {
      const press = make("button", { type: "button", "aria-pressed": String(chosen) }, "Draw its boxes");
      press.addEventListener("click", () => {
        for (const other of item.parentNode.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
        press.setAttribute("aria-pressed", "true");
        shot.replaceChild(over(sample, candidate), shot.lastChild);
      });
      item.append(press);
    }
    return item;
  };

  const VERDICTS = { true: ["good", "✓ right"], false: ["bad", "✗ wrong"] };

  const card = (sample) => {
    const answer = sample.c[sample.k];
    const shot = picture(sample, answer);
    const list = make("dl");
    const line = (heading, text, kind) => {
      if (text != null) list.append(make("dt", {}, heading), make("dd", {}, ...words(text || "(empty)", kind)));
    };
    for (const [question, said] of sample.e || []) line("Before", `${question} — ${said}`, "asked");
    line("Question", sample.q, "asked");
    line("Truth", sample.a, "truth");
    line("Answer", answer.a, "answer");
    if (sample.sure != null) line("Confidence", `${(100 * sample.sure).toFixed(0)} %`, "answer");
    if (answer.u) line("Boxes that could not be read", answer.u.join(", "), "answer");
    if (answer.x) line("Note", "cut by the length limit", "answer");
    if (sample.more) line("Images", `${sample.more + 1}, the first is shown`, "asked");
    const [kind, said] = VERDICTS[sample.v] || ["soft", "not judged"];
    const heading = make("h3", {}, make("span", {}, `${sample.t} · ${data.modalities[sample.m]}`),
      make("span", { class: kind }, said));
    const candidates = make("ol", {}, ...sample.c.map((c, i) => candidateItem(sample, c, i, shot)));
    const source = data.sources[sample.s] ? ` · ${data.sources[sample.s]}` : "";
    const link = make("p", { class: "foot soft" }, make("a", { href: `#sample=${sample.n}` }, `Question ${sample.n}`),
      source);
    const body = make("div", { class: "body" }, heading, make("p", { class: "figures" }, figures(sample)), list,
      make("details", {}, make("summary", {}, several(sample.c.length, "candidate", "candidates")), candidates), link);
    return make("article", { class: "card", tabindex: "-1", "data-sample": sample.n }, shot, body);
  };

  // ---- which answers ------------------------------------------------------------------------------------------------

  const FIELDS = ["task", "modality", "verdict", "source", "by", "order", "q"].filter((name) => form.elements[name]);
  const asked = (name) => (form.elements[name] ? form.elements[name].value : "");

  const figure = (sample, by) => {
    const name = by || data.first[sample.t].find((metric) => metric in sample.f);
    return name in sample.f ? sample.f[name] : null;
  };

  const said = (sample) => {
    const texts = [sample.q, sample.a, ...sample.c.flatMap((c) => [c.a, c.r]), ...(sample.e || []).flat()];
    return (sample.words ??= texts.filter((text) => text != null).join("\n").toLowerCase());
  };

  const matching = () => {
    if (only) return data.samples.filter((sample) => sample.n === only);
    const [task, modality, verdict, source, by] = ["task", "modality", "verdict", "source", "by"].map(asked);
    const wanted = asked("q").toLowerCase().split(/\s+/).filter(Boolean);
    const right = { right: true, wrong: false, open: null }[verdict];
    return data.samples.filter((sample) =>
      (!task || sample.t === task) && (!modality || sample.m === modality) && (!verdict || sample.v === right) &&
      (!source || String(sample.s) === source) && (!by || by in sample.f) &&
      wanted.every((word) => said(sample).includes(word)));
  };

  const sorted = (samples) => {
    const [by, order] = [asked("by"), asked("order") || "worst"];
    if (order === "given") return samples;
    const sign = order === "best" ? -1 : 1;
    const rank = (sample) => [figure(sample, by), sample.v === null ? 0.5 : Number(sample.v)];
    const ranks = new Map(samples.map((sample) => [sample, rank(sample)]));
    return samples.sort((one, two) => {
      const [[a, va], [b, vb]] = [ranks.get(one), ranks.get(two)];
      if ((a === null) !== (b === null)) return a === null ? 1 : -1; // without a figure: last
      return sign * (a - b) || sign * (va - vb) || one.n - two.n;
    });
  };

  const tell = () => {
    const all = `${several(found.length, "question", "questions")} of ${data.samples.length}`;
    const part = shown < found.length ? `, the first ${shown} are shown` : "";
    const right = found.filter((sample) => sample.v === true).length;
    const judged = found.filter((sample) => sample.v !== null).length;
    count.textContent = only ? `Question ${only}` : `${all}${part}; ${right} right of ${judged} judged`;
    more.hidden = shown >= found.length;
    more.textContent = `${Math.min(STEP, found.length - shown)} more`;
  };

  const extend = (step = STEP) => {
    const next = found.slice(shown, shown + step).map(card);
    cards.firstChild.append(...next);
    shown += next.length;
    tell();
    return next[0];
  };

  const show = (step = STEP) => {
    found = sorted(matching());
    shown = 0;
    cards.replaceChildren(make("div", { class: "gallery" }));
    extend(step);
  };

  // ---- the address --------------------------------------------------------------------------------------------------

  const address = () => {
    const told = new URLSearchParams();
    for (const name of FIELDS) if (asked(name)) told.set(name, asked(name));
    return `#${told.toString() || "answers"}`;
  };

  const read = () => {
    const fragment = location.hash.slice(1);
    if (!fragment.includes("=")) return false;
    const told = new URLSearchParams(fragment);
    only = Number(told.get("sample")) || null;
    for (const name of FIELDS) {
      const field = form.elements[name];
      field.value = told.get(name) || "";
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
    show();
    find("answers").scrollIntoView({ behavior: "instant" });
    count.focus({ preventScroll: true });
    return true;
  };

  const changed = () => {
    only = null;
    history.replaceState(null, "", address());
    show();
  };

  addEventListener("hashchange", read);
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(changed));
  more.addEventListener("click", () => extend()?.focus());
  for (const box of find("kinds").querySelectorAll("input")) {
    box.hidden = false;
    box.addEventListener("change", () => cards.classList.toggle(`no-${box.value}`, !box.checked));
  }
  form.hidden = false;
  if (!read()) show(FIRST);
  addEventListener("beforeprint", () => document.querySelectorAll(".folded").forEach((part) => { part.open = true; }));
})();
