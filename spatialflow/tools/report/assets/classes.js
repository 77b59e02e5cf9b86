
// The table of classes: sorted by a click on a column, filtered by kind and name.

const COLUMNS = [
  { key: "name", title: "Class" },
  { key: "isthing", title: "Kind" },
  { key: "pq", title: "PQ" },
  { key: "sq", title: "SQ" },
  { key: "rq", title: "RQ" },
  { key: "tp", title: "TP", help: "matched segments" },
  { key: "fp", title: "FP", help: "predicted segments without a match" },
  { key: "fn", title: "FN", help: "ground-truth segments without a match" },
];
const occurs = (c) => c.tp + c.fp + c.fn > 0;
const sorting = { key: "pq", descending: true };

function compareClasses(a, b) {
  if (occurs(a) !== occurs(b)) return occurs(a) ? -1 : 1;
  const [x, y] = [a[sorting.key], b[sorting.key]];
  const order = typeof x === "string" ? x.localeCompare(y) : x - y;
  return (sorting.descending ? -order : order) || a.name.localeCompare(b.name);
}

function classRow(c) {
  const kind = c.isthing ? "things" : "stuff";
  const numbers = occurs(c)
    ? [percent(c.sq), percent(c.rq), c.tp, c.fp, c.fn].map((v) => v.toLocaleString("en"))
    : ["–", "–", "–", "–", "–"];
  return el(
    "tr",
    { className: occurs(c) ? "" : "absent" },
    el("th", { scope: "row" }, chip(`rgb(${c.color.join(" ")})`), c.name),
    el("td", {}, c.isthing ? "thing" : "stuff"),
    el("td", { className: "wide" }, occurs(c) ? bar(c.pq, kind) : "does not occur"),
    ...numbers.map((text) => el("td", { className: "number" }, text)),
  );
}

function showClasses() {
  const kind = chosen("kind");
  const wanted = data.classes.filter(
    (c) =>
      (kind === "all" || (kind === "things") === c.isthing) &&
      contains(c.name, byId("class-filter").value),
  );
  const rows = wanted.sort(compareClasses).map(classRow);
  const nothing = el("tr", { className: "empty" }, el("td", { colSpan: 8 }, "No such class."));
  byId("class-table").tBodies[0].replaceChildren(...(rows.length ? rows : [nothing]));
  byId("class-count").textContent = `${rows.length} of ${count(data.classes.length, "class", "classes")}`;
  COLUMNS.forEach(({ key }, i) => {
    const header = byId("class-table").tHead.rows[0].cells[i];
    if (key !== sorting.key) header.removeAttribute("aria-sort");
    else header.ariaSort = sorting.descending ? "descending" : "ascending";
  });
}

function sortBy(key) {
  // Numbers start with the largest, names with A.
  sorting.descending = sorting.key === key ? !sorting.descending : key !== "name";
  sorting.key = key;
  showClasses();
}

function classHeader({ key, title, help }, i) {
  const button = el("button", { type: "button", title: help ?? "" }, title);
  button.addEventListener("click", () => sortBy(key));
  return el("th", { scope: "col", className: i > 2 ? "number" : "" }, button);
}

byId("class-table").tHead.append(el("tr", {}, ...COLUMNS.map(classHeader)));
byId("class-filter").addEventListener("input", showClasses);
onChoice("kind", showClasses);
showClasses();
