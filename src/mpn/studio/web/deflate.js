// Compress ids by their runs, as a zlib stream (RFC 1950, 1951): one block of fixed codes, in which a
// run is a match at distance 1.

const MOST_MATCH = 258;
const LEAST_MATCH = 3;
const ADLER_BASE = 65521;
const ADLER_BLOCK = 3800; // sums of so many bytes fit 32 bits

export function deflateRuns(data) {
  const writer = new BitWriter();
  writer.bits(0x0178, 16); // header
  writer.bits(0b011, 3); // last block, fixed codes
  for (let i = 0; i < data.length; ) {
    const value = data[i];
    let end = i + 1;
    while (end < data.length && data[end] === value) end++;
    writeLiteral(writer, value);
    let rest = end - i - 1;
    for (; rest >= LEAST_MATCH; rest -= Math.min(rest, MOST_MATCH)) writeMatch(writer, Math.min(rest, MOST_MATCH));
    for (; rest > 0; rest--) writeLiteral(writer, value);
    i = end;
  }
  writer.code(0, 7); // end of the block
  writer.align();
  const sum = adler32(data);
  for (const shift of [24, 16, 8, 0]) writer.bits((sum >>> shift) & 255, 8);
  return writer.bytes.slice(0, writer.length);
}

function writeLiteral(writer, value) {
  if (value < 144) writer.code(0x30 + value, 8);
  else writer.code(0x190 + value - 144, 9);
}

function writeMatch(writer, length) {
  const above = length - LEAST_MATCH;
  if (length === MOST_MATCH) writer.code(0xc0 + 285 - 280, 8);
  else if (above < 4) writer.code(above + 1, 7);
  else {
    const extra = Math.max(0, 29 - Math.clz32(above)); // bits below the highest three
    const symbol = 257 + 4 * (extra + 1) + ((above >> extra) & 3);
    if (symbol < 280) writer.code(symbol - 256, 7);
    else writer.code(0xc0 + symbol - 280, 8);
    writer.bits(above & ((1 << extra) - 1), extra);
  }
  writer.code(0, 5); // distance 1
}

export function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

function adler32(data) {
  let a = 1;
  let b = 0;
  for (let i = 0; i < data.length; ) {
    const end = Math.min(data.length, i + ADLER_BLOCK);
    for (; i < end; i++) {
      a += data[i];
      b += a;
    }
    a %= ADLER_BASE;
    b %= ADLER_BASE;
  }
  return ((b << 16) | a) >>> 0;
}

class BitWriter {
  constructor() {
    this.bytes = new Uint8Array(1 << 12);
    this.length = 0;
    this.held = 0;
    this.count = 0;
  }

  /** Write the low bits of a value, lowest first. */
  bits(value, count) {
    this.held |= value << this.count;
    this.count += count;
    while (this.count >= 8) this.flush();
  }

  /** Write a Huffman code, highest bit first. */
  code(value, count) {
    let reversed = 0;
    for (let i = 0; i < count; i++) reversed |= ((value >> i) & 1) << (count - 1 - i);
    this.bits(reversed, count);
  }

  align() {
    if (this.count > 0) this.flush();
    this.count = 0;
  }

  flush() {
    if (this.length === this.bytes.length) {
      const larger = new Uint8Array(2 * this.length);
      larger.set(this.bytes);
      this.bytes = larger;
    }
    this.bytes[this.length++] = this.held & 255;
    this.held >>>= 8;
    this.count -= 8;
  }
}
