/** A ZIP of files as they are, not compressed: made of pieces, so that a browser need not hold them in memory. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const MOST = 2 ** 32 - 1; // bytes that a plain ZIP can name
const MOST_FILES = 65_535;

async function checksum(blob) {
  let sum = -1;
  const reader = blob.stream().getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return ~sum >>> 0;
    for (const byte of value) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  }
}

/** Little-endian numbers of two bytes, or four where they are given as [number]. */
function packed(...numbers) {
  const view = new DataView(new ArrayBuffer(numbers.reduce((sum, n) => sum + (Array.isArray(n) ? 4 : 2), 0)));
  let at = 0;
  for (const number of numbers) {
    if (Array.isArray(number)) view.setUint32(at, number[0], true);
    else view.setUint16(at, number, true);
    at += Array.isArray(number) ? 4 : 2;
  }
  return view.buffer;
}

/**
 * One file of many (APPNOTE.TXT 4.3): a head before each, and the list of them at the end.
 * @param {{path: string, blob: Blob}[]} files with paths of their own
 * @returns {Promise<Blob | null>} null where they are too many or too large for a ZIP
 */
export async function zipped(files) {
  const pieces = [], list = [];
  let at = 0, length = 0;
  for (const { path, blob } of files) {
    const name = new TextEncoder().encode(path);
    const about = [20, 0x800, 0, 0, 0x21, [await checksum(blob)], [blob.size], [blob.size], name.length, 0]; // 1980-01-01
    const head = packed([0x04034b50], ...about);
    pieces.push(head, name, blob);
    list.push(packed([0x02014b50], 20, ...about, 0, 0, 0, [0], [at]), name);
    at += head.byteLength + name.length + blob.size;
    length += 46 + name.length;
    if (at + length > MOST) return null;
  }
  if (files.length > MOST_FILES) return null;
  const end = packed([0x06054b50], 0, 0, files.length, files.length, [length], [at], 0);
  return new Blob([...pieces, ...list, end], { type: "application/zip" });
}
