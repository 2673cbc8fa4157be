// Encode ids by their runs, in order: the number of runs in 4 bytes, the ids, and the lengths with 7
// bits in a byte, lowest first, each byte but the last one of a length above 127. A request of a page
// that is being closed may have 64 kB only, and CompressionStream is asynchronous.

export function runsOf(labels) {
  let count = 0;
  for (let i = 0; i < labels.length; i++) if (i === 0 || labels[i] !== labels[i - 1]) count++;
  const head = new Uint8Array(4 + count);
  new DataView(head.buffer).setUint32(0, count, true);
  const lengths = [];
  for (let i = 0, run = 4; i < labels.length; run++) {
    const id = labels[i];
    const start = i;
    while (i < labels.length && labels[i] === id) i++;
    head[run] = id;
    let rest = i - start;
    for (; rest > 127; rest >>>= 7) lengths.push((rest & 127) | 128);
    lengths.push(rest);
  }
  const body = new Uint8Array(head.length + lengths.length);
  body.set(head);
  body.set(lengths, head.length);
  return body;
}
