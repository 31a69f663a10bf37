/** What corrections and the worklist share: the buttons of a decision, and their keys. */

import { button, find } from "./dom.js";

const LETTERS = { accept: "A", edit: "E", reject: "R", undo: "U", next: "N" };

/** These buttons in the place of others: [name, text, what a click does, more attributes]. The focus is not lost. */
export function offerActions(bar, detail, all) {
  const held = bar.contains(document.activeElement);
  bar.replaceChildren(...all.map(([name, text, click, more = {}], n) => {
    const key = LETTERS[name];
    return button(text, click, {
      "data-act": name, class: n ? "" : "strong", "aria-keyshortcuts": key, title: key && `${text} (${key})`, ...more,
    });
  }));
  if (held) detail.focus({ preventScroll: true });
}

/**
 * Keys of one letter, which wait where a person types or `rests()`.
 * @param {string} view where the box to turn them off is called `${view}-shortcuts`
 * @param {() => boolean} rests
 * @param {(letter: string) => (() => any) | undefined} actOf what a letter does
 */
export function listenToKeys(view, rests, actOf) {
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select");
    const off = typing || rests() || !find(`${view}-shortcuts`).checked;
    const act = off || event.ctrlKey || event.altKey || event.metaKey ? null : actOf(event.key.toLowerCase());
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** The button of a letter, where it is offered now. */
export const pressed = (bar, letter) => {
  const name = Object.keys(LETTERS).find((one) => LETTERS[one].toLowerCase() === letter);
  const found = name && bar.querySelector(`[data-act=${name}]:enabled`);
  return found && (() => found.click());
};
