// The picture with its segments: painting, pointing, opacity, before and after.

const MAX_SIDE = 1600; // of the canvas on the page; downloads have the picture's own size

const shown = {
  answer: null, // what the server sent
  map: null, // numbers of segments at the size of the canvas
  hidden: new Set(), // ids of categories
  pointed: null, // number of a segment
};

const fraction = (id) => Number(byId(id).value);
const isHidden = (i) => i >= 0 && shown.hidden.has(shown.answer.segments[i].category_id);

/** Opacity, 0 to 255, of a segment on the page; -1 is void. */
function alphaOnPage(i) {
  if (isHidden(i)) return 0;
  const faded = shown.pointed != null && shown.pointed !== i;
  return Math.round(255 * fraction("opacity") * (faded ? 0.25 : 1));
}

function repaint() {
  if (!shown.answer) return;
  const colors = shown.answer.segments.map((s) => s.color);
  const lines = fraction("opacity") > 0 ? 255 : 0;
  paintMap(byId("map"), shown.map, colors, { alpha: alphaOnPage, lines });
  byId("map").style.clipPath = `inset(0 0 0 ${fraction("wipe")}%)`;
}

/** Put an answer over the picture. */
function showAnswer(answer) {
  const scale = Math.min(1, MAX_SIDE / Math.max(answer.width, answer.height));
  const canvas = byId("map");
  canvas.width = Math.max(1, Math.round(answer.width * scale));
  canvas.height = Math.max(1, Math.round(answer.height * scale));
  Object.assign(shown, { answer, hidden: new Set(), pointed: null });
  shown.map = mapOfMasks(answer, canvas.width, canvas.height);
  canvas.hidden = false;
  byId("controls").hidden = false;
  repaint();
}

function forgetAnswer() {
  Object.assign(shown, { answer: null, map: null, pointed: null });
  byId("map").hidden = byId("controls").hidden = true;
  byId("pointed").textContent = "";
  hideTip();
}

/** Class and score, and the area, of a segment. */
function describe(segment) {
  const { width, height } = shown.answer;
  const score = segment.score == null ? "" : `, score ${segment.score.toFixed(2)}`;
  const share = (100 * segment.area) / (width * height);
  const area = `${segment.area.toLocaleString("en")} pixels, ${share.toFixed(share < 1 ? 2 : 1)} %`;
  return [`${segment.category}${score}`, area];
}

/** Light up a segment; null: none. */
function pointOut(number) {
  if (number === shown.pointed) return;
  shown.pointed = number;
  repaint();
  byId("pointed").textContent =
    number == null ? "" : describe(shown.answer.segments[number]).join(" · ");
  for (const button of document.querySelectorAll(".segment")) {
    button.classList.toggle("pointed", Number(button.dataset.number) === number);
  }
}

function pointerMoved(event) {
  const value = shown.map?.[pixelUnder(event, event.target)];
  if (!value || isHidden(value - 1)) return pointerLeft();
  pointOut(value - 1);
  showTip(event, describe(shown.answer.segments[value - 1]));
}

function pointerLeft() {
  hideTip();
  pointOut(null);
}

/** Arrow keys go through the segments, the largest first; Enter and space switch the class. */
function mapKey(event) {
  if (!shown.answer?.segments.length) return;
  const order = shown.answer.segments
    .map((s, i) => i)
    .filter((i) => !isHidden(i))
    .sort((a, b) => shown.answer.segments[b].area - shown.answer.segments[a].area);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (step && order.length) {
    const at = order.indexOf(shown.pointed);
    const next = at < 0 ? (step > 0 ? 0 : order.length - 1) : (at + step + order.length) % order.length;
    pointOut(order[next]);
  } else if ((event.key === "Enter" || event.key === " ") && shown.pointed != null) {
    const { category_id } = shown.answer.segments[shown.pointed];
    byId(`class-${category_id}`).click();
  } else if (event.key === "Escape") pointOut(null);
  else return;
  event.preventDefault();
}

byId("map").addEventListener("pointermove", pointerMoved);
byId("map").addEventListener("pointerdown", pointerMoved);
byId("map").addEventListener("pointerleave", (event) => {
  if (event.pointerType !== "touch") pointerLeft(); // a finger that is lifted has pointed
});
byId("map").addEventListener("keydown", mapKey);
byId("map").addEventListener("blur", pointerLeft);
byId("opacity").addEventListener("input", repaint);
byId("wipe").addEventListener("input", repaint);
