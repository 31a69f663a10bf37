/** Elements, made without markup: whatever people or models wrote becomes text and nothing else. */

/** @param {string} id @returns {any} */
export const find = (id) => document.getElementById(id);

const fill = (made, attributes, inside) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
};

/** An HTML element; functions among the attributes listen to the event of that name. */
export const make = (name, attributes = {}, ...inside) => fill(document.createElement(name), attributes, inside);

/** A button that does something. */
export const button = (text, click, more = {}) => make("button", { type: "button", click, ...more }, text);

/** Write into a field where its cursor is. */
export const insert = (field, text) => {
  field.setRangeText(text, field.selectionStart, field.selectionEnd, "end");
  field.focus();
};

/** An SVG element. */
export const draw = (name, attributes = {}, ...inside) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, inside);

/** A line that a screen reader speaks; the same line twice is spoken twice. */
export const say = (text) => {
  const line = find("said");
  line.textContent = "";
  requestAnimationFrame(() => { line.textContent = text; });
};

/** One plain line of what went wrong; an empty one takes it away. */
export const complain = (text) => {
  const line = find("error");
  line.hidden = !text;
  line.textContent = text;
};

/** A number without an exponent, as the server reads numbers. */
export const decimal = (value) => {
  const text = String(value);
  return text.includes("e") ? value.toFixed(12).replace(/\.?0+$/, "") : text;
};

/** A number as people read it. */
export const brief = (value, digits = 2) => String(Number(value.toFixed(digits)));

export const percent = (share) => `${Math.round(100 * share)} %`;

/** Calls after a pause, the last one only. */
export const paused = (milliseconds, act) => {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), milliseconds);
  };
};
