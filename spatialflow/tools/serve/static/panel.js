// The classes of the picture, to be switched on and off, and their segments.

/** [category id, its segments with their numbers], the largest class first. */
function segmentsByClass() {
  const classes = new Map();
  shown.answer.segments.forEach((segment, number) => {
    const own = classes.get(segment.category_id) ?? [];
    classes.set(segment.category_id, [...own, { ...segment, number }]);
  });
  const area = (segments) => segments.reduce((sum, s) => sum + s.area, 0);
  for (const own of classes.values()) own.sort((a, b) => b.area - a.area);
  return [...classes].sort((a, b) => area(b[1]) - area(a[1]));
}

const rgb = (color) => `rgb(${color.join(" ")})`;

/** A button that lights up its segment. alone: the only one of its class, whose name it has. */
function segmentButton(segment, alone) {
  const [title, area] = describe(segment);
  const score = segment.score == null ? "" : `score ${segment.score.toFixed(2)}`;
  const button = el(
    "button",
    { type: "button", className: "segment" },
    chip(rgb(segment.color)),
    ...(alone ? [el("b", {}, segment.category)] : []),
    el("span", {}, alone || score ? score : "region"),
    el("span", {}, area.split(", ").at(-1)),
  );
  button.ariaLabel = `${title}, ${area}`;
  button.dataset.number = segment.number;
  for (const type of ["pointerenter", "focus", "click"]) {
    button.addEventListener(type, () => pointOut(segment.number));
  }
  for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => pointOut(null));
  return button;
}

/** Chip, name and number of the segments of a class that has several. */
function classLabel(id, segments) {
  const first = [...segments].sort((a, b) => a.number - b.number)[0]; // has the class's colour
  return el(
    "label",
    { htmlFor: `class-${id}` },
    chip(rgb(first.color)),
    el("b", {}, first.category),
    el("span", { className: "muted small" }, `${segments.length}×`),
  );
}

function classItem([id, segments]) {
  const alone = segments.length === 1;
  const box = el("input", { type: "checkbox", checked: true, id: `class-${id}` });
  box.ariaLabel = segments[0].category;
  const row = el("div", { className: "class" }, box);
  row.append(alone ? segmentButton(segments[0], true) : classLabel(id, segments));
  const rest = alone ? [] : segments.map((s) => el("li", {}, segmentButton(s, false)));
  const item = el("li", {}, row, ...(alone ? [] : [el("ul", {}, ...rest)]));
  box.addEventListener("change", () => {
    shown.hidden[box.checked ? "delete" : "add"](id);
    item.classList.toggle("off", !box.checked);
    repaint();
  });
  return item;
}

function showPanel() {
  const classes = segmentsByClass();
  const nothing = el("li", { className: "muted" }, "Nothing was found.");
  byId("classes").replaceChildren(...(classes.length ? classes.map(classItem) : [nothing]));
  byId("panel").hidden = false;
}

function switchAll(on) {
  for (const box of document.querySelectorAll("#classes input")) if (box.checked !== on) box.click();
}

byId("all").addEventListener("click", () => switchAll(true));
byId("none").addEventListener("click", () => switchAll(false));
