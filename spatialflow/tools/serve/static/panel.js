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

function segmentButton(segment) {
  const [title, area] = describe(segment);
  const label = title.replace(segment.category, "").replace(/^, /, "") || "region";
  const button = el(
    "button",
    { type: "button", className: "segment" },
    chip(rgb(segment.color)),
    el("span", {}, label),
    el("span", {}, area.split(", ").at(-1)),
  );
  button.ariaLabel = `${title}, ${area}`;
  button.dataset.number = segment.number;
  for (const type of ["pointerenter", "focus", "click"]) {
    button.addEventListener(type, () => pointOut(segment.number));
  }
  for (const type of ["pointerleave", "blur"]) button.addEventListener(type, () => pointOut(null));
  return el("li", {}, button);
}

function classItem([id, segments]) {
  const box = el("input", { type: "checkbox", checked: true, id: `class-${id}` });
  const count = segments.length > 1 ? `${segments.length}×` : "";
  const name = segments[0].category;
  const first = [...segments].sort((a, b) => a.number - b.number)[0]; // has the class's colour
  const label = el(
    "label",
    { className: "class" },
    box,
    chip(rgb(first.color)),
    el("b", {}, name),
    el("span", { className: "muted small" }, count),
  );
  const item = el("li", {}, label, el("ul", {}, ...segments.map(segmentButton)));
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
