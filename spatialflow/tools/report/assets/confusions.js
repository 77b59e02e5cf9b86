
// What was taken for what: a table of the most frequent confusions, and a matrix of all.

const NOTHING = -1;
const MAX_CONFUSIONS = 200;
const LABEL_FONT = "12px system-ui, sans-serif";
const rowTotals = new Map();
for (const [truth, , n] of data.confusions) rowTotals.set(truth, (rowTotals.get(truth) ?? 0) + n);

function namedClass(number, nothing) {
  return number === NOTHING
    ? el("td", { className: "muted" }, nothing)
    : el("td", {}, chip(classColor(number)), data.classes[number].name);
}

function showConfusions() {
  const withNothing = byId("confusion-nothing").checked;
  const filter = byId("confusion-filter").value;
  const wanted = data.confusions
    .filter(([truth, predicted]) => truth !== predicted)
    .filter(([truth, predicted]) => withNothing || (truth !== NOTHING && predicted !== NOTHING))
    .filter(([truth, predicted]) =>
      [truth, predicted].some((c) => contains(className(c, ""), filter)),
    )
    .sort((a, b) => b[2] - a[2]);
  const rows = wanted.slice(0, MAX_CONFUSIONS).map(([truth, predicted, n]) =>
    el(
      "tr",
      {},
      namedClass(truth, "nothing: false positive"),
      namedClass(predicted, "nothing: missed"),
      el("td", { className: "number" }, n.toLocaleString("en")),
      el("td", { className: "wide" }, truth === NOTHING ? "" : bar(n / rowTotals.get(truth), "confused")),
    ),
  );
  const nothing = el("tr", { className: "empty" }, el("td", { colSpan: 4 }, "No such confusion."));
  byId("confusion-table").tBodies[0].replaceChildren(...(rows.length ? rows : [nothing]));
  byId("confusion-count").textContent = `${rows.length} of ${count(wanted.length, "pair")}`;
}

// Only classes that occur; things, then stuff, then nothing.
const seen = new Set(data.confusions.flatMap(([truth, predicted]) => [truth, predicted]));
seen.delete(NOTHING);
const axis = [...[...seen].sort((a, b) => a - b), NOTHING];
const cells = new Map(data.confusions.map(([truth, predicted, n]) => [`${truth},${predicted}`, n]));
const matrix = { row: -1, column: -1, cell: 0, left: 0, top: 0 };

function layOutMatrix() {
  const canvas = byId("matrix");
  const context = canvas.getContext("2d");
  const available = canvas.parentElement.clientWidth;
  context.font = LABEL_FONT;
  const widths = axis.map((c) => context.measureText(className(c, "nothing")).width);
  const labels = axis.length <= 45 ? Math.min(160, Math.max(...widths) + 12) : 28;
  matrix.cell = Math.max(4, Math.min(34, (available - labels - 2) / axis.length));
  [matrix.left, matrix.top] = [labels, labels];
  const side = Math.ceil(labels + matrix.cell * axis.length + 2);
  const scale = window.devicePixelRatio || 1;
  [canvas.style.width, canvas.style.height] = [`${side}px`, `${side}px`];
  canvas.width = canvas.height = Math.round(side * scale);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

function drawMatrix() {
  const context = layOutMatrix();
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const { cell, left, top } = matrix;
  const gap = cell > 8 ? 1 : 0;
  const side = cell * axis.length;
  context.fillStyle = color("--track");
  context.fillRect(left, top, side, side);
  axis.forEach((truth, i) =>
    axis.forEach((predicted, j) => {
      const n = cells.get(`${truth},${predicted}`);
      if (!n) return;
      // The root lets rare confusions be seen beside frequent ones.
      const strength = 0.12 + 0.88 * Math.sqrt(n / rowTotals.get(truth));
      context.fillStyle = `rgb(${color(truth === predicted ? "--diagonal" : "--error")} / ${strength})`;
      context.fillRect(left + j * cell, top + i * cell, cell - gap, cell - gap);
    }),
  );
  drawMatrixLabels(context, color);
}

function drawMatrixLabels(context, color) {
  const { cell, left, top, row, column } = matrix;
  const end = cell * axis.length;
  context.font = LABEL_FONT;
  context.textBaseline = "middle";
  if (cell >= 12) {
    axis.forEach((c, i) => {
      const label = (nothing) => shorten(context, className(c, nothing), left - 8);
      context.fillStyle = color(i === row ? "--ink" : "--muted");
      context.textAlign = "right";
      context.fillText(label("false positive"), left - 6, top + (i + 0.5) * cell);
      context.save();
      context.fillStyle = color(i === column ? "--ink" : "--muted");
      context.translate(left + (i + 0.5) * cell, top - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(label("missed"), 0, 0);
      context.restore();
    });
  } else {
    const things = axis.filter((c) => c !== NOTHING && data.classes[c].isthing).length;
    context.fillStyle = color("--muted");
    context.textAlign = "left";
    context.fillText("things", left, top - 10);
    context.fillText("stuff", left + things * cell, top - 10);
    context.fillRect(left + things * cell - 0.5, top - 16, 1, end + 16);
    context.fillRect(left - 16, top + things * cell - 0.5, end + 16, 1);
  }
  if (row >= 0) {
    context.strokeStyle = color("--ink");
    context.lineWidth = 1;
    context.strokeRect(left + column * cell - 0.5, top + row * cell - 0.5, cell, cell);
    context.globalAlpha = 0.25;
    context.strokeRect(left - 0.5, top + row * cell - 0.5, end, cell);
    context.strokeRect(left + column * cell - 0.5, top - 0.5, cell, end);
    context.globalAlpha = 1;
  }
}

function shorten(context, text, width) {
  let short = text;
  while (short && context.measureText(short).width > width) short = short.slice(0, -2);
  return short === text ? text : `${short}…`;
}

/** Mark a cell and say what it holds: the pair of classes, how many segments. */
function pointAt(row, column) {
  if (row !== matrix.row || column !== matrix.column) {
    [matrix.row, matrix.column] = [row, column];
    drawMatrix();
  }
  const [truth, predicted] = [axis[row], axis[column]];
  const n = cells.get(`${truth},${predicted}`) ?? 0;
  const total = rowTotals.get(truth) ?? 0;
  const share = truth === NOTHING || !total ? "" : ` of ${total.toLocaleString("en")} (${percent(n / total)} %)`;
  const pair = `${className(truth, "false positive")} → ${className(predicted, "missed")}`;
  const text = `${n.toLocaleString("en")}${share}`;
  byId("matrix-cell").textContent = `${pair}: ${text}`;
  return [pair, text];
}

function cellUnder(event) {
  const column = Math.floor((event.offsetX - matrix.left) / matrix.cell);
  const row = Math.floor((event.offsetY - matrix.top) / matrix.cell);
  const inside = [row, column].every((i) => i >= 0 && i < axis.length);
  return inside ? [row, column] : null;
}

function filterBy(row, column) {
  const number = axis[row] === NOTHING ? axis[column] : axis[row];
  if (number === NOTHING) return;
  byId("confusion-filter").value = className(number);
  byId("confusion-nothing").checked = true;
  showConfusions();
}

function onMatrixKey(event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key === "Enter" && matrix.row >= 0) filterBy(matrix.row, matrix.column);
  if (!(event.key in steps)) return;
  event.preventDefault();
  const clamp = (i) => Math.max(0, Math.min(axis.length - 1, i));
  const [down, right] = matrix.row < 0 ? [1, 1] : steps[event.key];
  pointAt(clamp(matrix.row + down), clamp(matrix.column + right));
}

byId("matrix").addEventListener("pointermove", (event) => {
  const cell = cellUnder(event);
  if (cell) showTip(event, pointAt(...cell));
  else hideTip();
});
byId("matrix").addEventListener("pointerleave", hideTip);
byId("matrix").addEventListener("click", (event) => {
  const cell = cellUnder(event);
  if (cell) filterBy(...cell);
});
byId("matrix").addEventListener("keydown", onMatrixKey);
byId("confusion-nothing").addEventListener("change", showConfusions);
byId("confusion-filter").addEventListener("input", showConfusions);
window.addEventListener("resize", drawMatrix);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMatrix);
showConfusions();
drawMatrix();
