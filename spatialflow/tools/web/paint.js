
// Segments over a picture, as spatialflow.visualization.draw paints them.

/**
 * Paint a map of segments into its canvas.
 * map: numbers row by row, 0 for void, i + 1 for segment i. colors: RGB of each segment.
 * alpha: opacity of a segment, 0 to 255; 0 leaves it out. lines: opacity of the borders; without it,
 * that of the segment. thickness: of the borders, in pixels.
 */
function paintMap(canvas, map, colors, { alpha, lines = null, thickness = 1 }) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  // One number a pixel, many times faster than four; browsers run on little-endian machines only.
  const packed = new Uint32Array(pixels.data.buffer);
  const opacity = [alpha(-1), ...colors.map((_, i) => alpha(i))];
  const shown = Uint16Array.from(opacity, (a, value) => (a ? value : 0));
  const filled = Uint32Array.from(opacity, (a, value) => pack(value ? colors[value - 1] : [0, 0, 0], value ? a : 0));
  const border = Uint32Array.from(opacity, (a) => pack([255, 255, 255], lines ?? a));
  const borders = [];
  for (let i = 0; i < map.length; i++) {
    const value = shown[map[i]];
    const right = (i + 1) % width ? shown[map[i + 1]] : value;
    const below = i + width < map.length ? shown[map[i + width]] : value;
    if (value === right && value === below) packed[i] = filled[value];
    else if (thickness > 1) borders.push(i);
    else packed[i] = border[value];
  }
  const [before, after] = [thickness - 1 - (thickness >> 1), thickness >> 1];
  for (const i of borders) {
    const [x, y] = [i % width, Math.floor(i / width)];
    for (let row = Math.max(0, y - before); row <= Math.min(height - 1, y + after); row++) {
      const start = row * width;
      packed.fill(border[0], start + Math.max(0, x - before), start + Math.min(width, x + after + 1));
    }
  }
  context.putImageData(pixels, 0, 0);
}

const pack = ([red, green, blue], alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

/** The number of the pixel of a canvas that a pointer is over, row by row. */
function pixelUnder(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  return y * canvas.width + x;
}
