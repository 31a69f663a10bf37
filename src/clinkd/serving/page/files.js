/** Files as people give them, and what the server tells of them by their first bytes. */

import { Failure, fetched } from "./ask.js";
import { isPacked, unpacked } from "./nifti.js";
import { encode, fits } from "./picture.js";

// bytes, before which the header of most DICOM files ends, of nearly all, and of any that the server takes
const HEADS = [32_768, 131_072, 1 << 22];
const TOGETHER = 64; // files of one request
const ONLY_NIFTI = "the file: packed by gzip, which is taken of a NIfTI alone; unpack it first (gunzip)";

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
  const together = Math.max(1, Math.min(TOGETHER, Math.floor(most / (1.5 * HEADS[1]))));
  for (let at = 0; at < given.length; at += together) {
    const some = given.slice(at, at + together);
    let records = await recordsOf(some, HEADS[0], signal);
    const renew = async (files, bytes) => {
      const more = await recordsOf(files, bytes, signal);
      records = records.map((record, n) => more[files.indexOf(some[n])] ?? record);
    };
    const untold = (bytes) => some.filter(({ file }, n) => records[n].why && !records[n].packed && file.size > bytes);
    await renew(untold(HEADS[0]), HEADS[1]);
    const largest = Math.min(HEADS[2], Math.floor(most / 2));
    for (const one of untold(HEADS[1])) await renew([one], largest); // one by one
    for (const one of untold(largest)) if (fits(one.file, most)) await renew([one], one.file.size);
    described.push(...some.map((one, n) => ({ ...one, ...records[n] })));
    tell(described.length);
  }
  return described;
}

async function recordsOf(given, bytes, signal) {
  const heads = await Promise.all(given.map(({ file }) => headOf(file, bytes)));
  const files = heads.filter(({ head }) => head).map(({ head, size }) => ({ head, size }));
  const told = files.length ? (await fetched("/v1/series", { method: "POST", body: { files }, signal })).files : [];
  return heads.map(({ head, packed, why }) => {
    const record = head ? told.shift() : { why };
    return packed && !record.why && record.kind !== "NIfTI" ? { why: ONLY_NIFTI, packed } : { ...record, packed };
  });
}

/** What the server is told of a file: where it is packed, the first bytes of what is in it. */
async function headOf(file, bytes) {
  let packed = false;
  try {
    if (!file.size) throw new Failure("the file: it is empty, or gone");
    packed = await isPacked(file);
    const head = packed ? new Blob([await unpacked(file, HEADS[1])]) : file.slice(0, bytes);
    return { head: await encode(head), size: Math.max(1, packed ? head.size : file.size), packed };
  } catch (error) {
    return { why: error instanceof Failure ? error.message : "the file: it could not be read", packed };
  }
}
