/** Files as people give them, and what the server tells of them by their first bytes. */

import { fetched } from "./ask.js";
import { encode, fits } from "./picture.js";

const HEAD = 131_072; // bytes, before which the header of most DICOM files ends
const TOGETHER = 64; // files of one request

/** @typedef {{file: File, path: string}} Given a file, and its path in the folder that was given */

/** @param {FileList} files @returns {Given[]} */
export const chosen = (files) => [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/** The files of a drop, those in its folders too. To be called before the event is over. */
export function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.some((entry) => entry.isDirectory) ? walked(entries, "") : chosen(transfer.files);
}

async function walked(entries, folder) {
  const found = [];
  for (const entry of entries) {
    const path = folder + entry.name;
    if (entry.isFile) found.push({ file: await new Promise((done, failed) => entry.file(done, failed)), path });
    else {
      const reader = entry.createReader();
      for (let some = null; some?.length !== 0;) { // a hundred at a time
        some = await new Promise((done, failed) => reader.readEntries(done, failed));
        found.push(...await walked(some, `${path}/`));
      }
    }
  }
  return found;
}

/**
 * What each file is: the server's record of it, or `why` it is none. Throws Failure.
 * @param {Given[]} given
 * @param {number} most bytes that a request may have
 * @param {AbortSignal} signal
 * @param {(count: number) => void} tell how many are done
 */
export async function describe(given, most, signal, tell) {
  const described = [];
  const together = Math.max(1, Math.min(TOGETHER, Math.floor(most / (1.5 * HEAD))));
  for (let at = 0; at < given.length; at += together) {
    const some = given.slice(at, at + together);
    const records = await recordsOf(some, HEAD, signal);
    for (const [n, one] of some.entries()) { // where the head is not enough, the whole file is
      const again = records[n].why && one.file.size > HEAD && fits(one.file, most);
      const [record] = again ? await recordsOf([one], one.file.size, signal) : [records[n]];
      described.push({ ...one, ...record });
    }
    tell(described.length);
  }
  return described;
}

async function recordsOf(given, bytes, signal) {
  const files = await Promise.all(given.map(async ({ file }) => (
    { head: await encode(file.slice(0, bytes)), size: Math.max(1, file.size) })));
  return (await fetched("/v1/series", { method: "POST", body: { files }, signal })).files;
}
