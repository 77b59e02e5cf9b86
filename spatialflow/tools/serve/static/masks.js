// COCO's run-length masks.

/** Lengths outside and inside of a mask in turn, column by column, from COCO's text. */
function decodeCounts(text) {
  const counts = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    for (let shift = 0, more = true; more; shift += 5) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << (shift + 5);
    }
    // From the third on a count is written as the difference to the last but one.
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

/** Where each of the new pixels along a side is in the old ones: its centre. */
const centres = (size, newSize) =>
  Int32Array.from({ length: newSize }, (_, i) => Math.floor(((i + 0.5) * size) / newSize));

/**
 * Numbers of segments, row by row (0 void, i + 1 segment i), at a size of one's own.
 * answer: what the server sent.
 */
function mapOfMasks(answer, width, height) {
  const map = new Uint16Array(width * height);
  const columns = new Int32Array(answer.width).fill(-1);
  centres(answer.width, width).forEach((x, i) => (columns[x] = i));
  // The first new row at or below each old one.
  const first = new Int32Array(answer.height + 1).fill(height);
  centres(answer.height, height).forEach((y, i) => (first[y] = Math.min(first[y], i)));
  for (let y = answer.height - 1; y >= 0; y--) first[y] = Math.min(first[y], first[y + 1]);
  answer.segments.forEach(({ segmentation }, number) => {
    let at = 0;
    decodeCounts(segmentation.counts).forEach((length, i) => {
      const end = at + length;
      while (i % 2 && at < end) {
        const x = Math.floor(at / answer.height);
        const stop = Math.min(end, (x + 1) * answer.height);
        const column = columns[x];
        if (column >= 0) {
          const [top, bottom] = [first[at - x * answer.height], first[stop - x * answer.height]];
          for (let y = top; y < bottom; y++) map[y * width + column] = number + 1;
        }
        at = stop;
      }
      at = end;
    });
  });
  return map;
}
