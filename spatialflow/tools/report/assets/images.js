
// The best and worst images: photograph, ground truth and prediction side by side.

const SIDES = { truth: "Ground truth", predicted: "Prediction" };
const other = (side) => (side === "truth" ? "predicted" : "truth");
const repaints = { best: [], worst: [] };

/** Numbers of an index map (0 void, i + 1 segment i), row by row, from base64 of 16-bit runs. */
function decodeRuns(text, size) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const map = new Uint16Array(size);
  for (let at = 0, pixel = 0; at < bytes.length; at += 4) {
    const length = view.getUint16(at + 2, true);
    map.fill(view.getUint16(at, true), pixel, pixel + length);
    pixel += length;
  }
  return map;
}

function stateColor(state) {
  const probe = el("span", { className: state });
  document.body.append(probe);
  const color = getComputedStyle(probe).backgroundColor;
  probe.remove();
  return color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

/** RGB of each segment: a shade of its class's colour, or that of what became of it. */
function segmentColors(segments) {
  if (chosen("paint") === "class") return segments.map((s) => s.color);
  const colors = Object.fromEntries(Object.keys(STATES).map((s) => [s, stateColor(s)]));
  return segments.map((s) => colors[s.state]);
}

/** Paint a map over the photograph; with a segment to point out, the others fade. */
function paint({ canvas, map, segments }, pointed) {
  const colors = segmentColors(segments);
  paintMap(canvas, map, colors, { alpha: (i) => (pointed == null || i === pointed ? 255 : 50) });
}

/** What there is to say about a segment, in two lines. */
function describe(segment, side, image) {
  const partner = segment.partner == null ? null : image[other(side)].segments[segment.partner];
  const name = partner && className(partner.class);
  const iou = `IoU ${segment.iou.toFixed(2)}`;
  const whose = side === "truth" ? "taken for" : "is really";
  const outcomes = {
    match: `matched, ${iou}`,
    confused: `wrong class: ${whose} ${name}, ${iou}`,
    missed: partner ? `missed; best overlap ${name}, ${iou}` : "missed; nothing overlaps it",
    false_positive: partner ? `false positive; best overlap ${name}, ${iou}` : "false positive; overlaps nothing",
    crowd: STATES.crowd,
    ignored: STATES.ignored,
  };
  const score = segment.score == null ? "" : `, score ${segment.score.toFixed(2)}`;
  return [`${className(segment.class)}${score}`, outcomes[segment.state]];
}

/** Point out a segment and, on the other side, what it belongs to; null: nothing. */
function pointOut(panels, side, number) {
  const segment = number == null ? null : panels[side].segments[number];
  const paired = segment && (segment.state === "match" || segment.state === "confused");
  paint(panels[side], number);
  paint(panels[other(side)], paired ? segment.partner : null);
}

function watchPointer(image, panels, side) {
  const { canvas, map, segments } = panels[side];
  let last = null;
  const leave = () => {
    if (last != null) pointOut(panels, side, null);
    last = null;
    hideTip();
  };
  canvas.addEventListener("pointermove", (event) => {
    const value = map[pixelUnder(event, canvas)];
    if (!value) return leave();
    if (value - 1 !== last) pointOut(panels, side, (last = value - 1));
    showTip(event, describe(segments[last], side, image));
  });
  canvas.addEventListener("pointerleave", leave);
}

function photograph(image) {
  const stack = el("div", { className: "stack" });
  stack.style.aspectRatio = `${image.width} / ${image.height}`;
  stack.append(
    image.photo
      ? el("img", { src: image.photo, alt: `Photograph ${image.name}`, width: image.width, height: image.height })
      : el("span", { className: "missing" }, "The image file could not be read."),
  );
  return stack;
}

function mapPanel(image, side) {
  const stack = photograph(image);
  const canvas = el("canvas", { width: image.width, height: image.height, role: "img" });
  canvas.ariaLabel = `${SIDES[side]} of ${image.name}; its segments are listed below the pictures`;
  stack.append(canvas);
  const { runs, segments } = image[side];
  return { stack, canvas, segments, map: decodeRuns(runs, image.width * image.height) };
}

function segmentList(image, panels, side) {
  const buttons = panels[side].segments
    .map((segment, number) => ({ segment, number }))
    .sort((a, b) => b.segment.area - a.segment.area)
    .map(({ segment, number }) => {
      const [title, outcome] = describe(segment, side, image);
      const button = el(
        "button",
        { type: "button", className: "segment" },
        chip(`rgb(${segment.color.join(" ")})`),
        el("span", { className: "label" }, title),
        el("span", { className: "outcome" }, outcome, " ", el("span", { className: `chip ${segment.state}` })),
      );
      for (const type of ["pointerenter", "focus", "click"]) {
        button.addEventListener(type, () => pointOut(panels, side, number));
      }
      for (const type of ["pointerleave", "blur"]) {
        button.addEventListener(type, () => pointOut(panels, side, null));
      }
      return el("li", {}, button);
    });
  return el("div", {}, el("h4", {}, SIDES[side]), el("ul", {}, ...buttons));
}

function figure(image, rank, kind) {
  const panels = { truth: mapPanel(image, "truth"), predicted: mapPanel(image, "predicted") };
  repaints[kind].push(() => pointOut(panels, "truth", null));
  const panel = (stack, title) =>
    el("figure", { className: "panel" }, stack, el("figcaption", {}, title));
  const numbers = [
    `PQ ${percent(image.pq)}`,
    `SQ ${percent(image.sq)}`,
    `RQ ${percent(image.rq)}`,
    `TP ${image.tp}`,
    `FP ${image.fp}`,
    `FN ${image.fn}`,
  ];
  const details = el("details", {}, el("summary", {}, "All segments"));
  // Long lists for many images: each is made when it is asked for.
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const lists = Object.keys(SIDES).map((side) => segmentList(image, panels, side));
    details.append(el("div", { className: "lists" }, ...lists));
  });
  for (const side of Object.keys(SIDES)) watchPointer(image, panels, side);
  return el(
    "article",
    { className: "figure" },
    el(
      "h3",
      {},
      el("span", { className: "name" }, `${rank}. ${image.name}`),
      el("small", {}, numbers.join(" · ")),
    ),
    el(
      "div",
      { className: "panels" },
      panel(photograph(image), "Image"),
      ...Object.entries(SIDES).map(([side, title]) => panel(panels[side].stack, title)),
    ),
    details,
  );
}

function showHistogram() {
  const most = Math.max(...data.histogram, 1);
  const step = 100 / data.histogram.length;
  data.histogram.forEach((n, i) => {
    const title = `PQ ${i * step} to ${(i + 1) * step}: ${count(n, "image")}`;
    const bin = el("div", { className: "bin", title });
    bin.style.height = `${(100 * n) / most}%`;
    byId("histogram").append(bin);
  });
  for (const value of [0, 25, 50, 75, 100]) {
    const label = el("span", { className: "axis" }, value === 0 ? "PQ 0" : String(value));
    label.style.left = `${value}%`;
    byId("histogram").append(label);
  }
  byId("histogram").role = "img";
  byId("histogram").ariaLabel = `Images by PQ, in steps of ${step}: ${data.histogram.join(", ")}`;
}

function showLegend() {
  const named = { ...STATES, ignored: "not counted: void or crowd" };
  delete named.crowd; // of the same colour
  const keys = Object.entries(named).map(([state, name]) =>
    el("span", { className: "key" }, el("span", { className: `chip ${state}` }), name),
  );
  byId("legend").replaceChildren(...(chosen("paint") === "state" ? keys : []));
}

function showGallery() {
  const kind = chosen("rank");
  for (const gallery of byId("gallery").children) gallery.hidden = gallery.dataset.kind !== kind;
  repaints[kind].forEach((repaint) => repaint());
  showLegend();
}

for (const kind of ["worst", "best"]) {
  const gallery = el("div", { id: `gallery-${kind}`, className: "gallery" });
  gallery.dataset.kind = kind;
  gallery.append(...data.images[kind].map((image, i) => figure(image, i + 1, kind)));
  if (!data.images[kind].length) {
    gallery.append(el("p", { className: "muted" }, "There are no such images on this page."));
  }
  byId("gallery").append(gallery);
}
byId("opacity").addEventListener("input", (event) =>
  byId("gallery").style.setProperty("--opacity", event.target.value),
);
onChoice("rank", showGallery);
onChoice("paint", showGallery);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showGallery);
showHistogram();
showGallery();
