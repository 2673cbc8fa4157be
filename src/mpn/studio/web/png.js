// A mask as a palette PNG whose values are the ids.

import { crc32, deflateRuns } from "./deflate.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const BIT_DEPTH = 8;
const PALETTE = 3;

export function pngOf({ width, height, labels }, palette) {
  const rows = new Uint8Array((width + 1) * height); // each row begins with its filter: none
  for (let y = 0; y < height; y++) {
    rows.set(labels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  }
  const header = [...bigEndian(width), ...bigEndian(height), BIT_DEPTH, PALETTE, 0, 0, 0];
  const chunks = [
    ["IHDR", Uint8Array.from(header)],
    ["PLTE", Uint8Array.from(palette.flat())],
    ["IDAT", deflateRuns(rows)],
    ["IEND", new Uint8Array()],
  ];
  const parts = chunks.flatMap(([name, data]) => {
    const named = new Uint8Array(4 + data.length);
    named.set(Array.from(name, (letter) => letter.charCodeAt(0)));
    named.set(data, 4);
    return [bigEndian(data.length), named, bigEndian(crc32(named))];
  });
  return new Blob([Uint8Array.from(SIGNATURE), ...parts], { type: "image/png" });
}

function bigEndian(value) {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}
