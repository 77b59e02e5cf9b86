
// What the run was, the averages, things against stuff.

function showHeader() {
  byId("dataset").textContent = data.dataset;
  const about = [
    count(data.evaluated, "image"),
    `evaluated ${data.date.replace("T", " ").slice(0, 16)}`,
  ];
  if (data.weights) about.push(`weights ${data.weights}`);
  byId("about").textContent = about.join(" · ");
  byId("notes").append(...data.notes.map((n) => el("p", { className: "note" }, n)));
}

function plainTable(head, rows) {
  const cells = (row, tag) =>
    el("tr", {}, ...row.map((text, i) => el(i ? tag : "th", { scope: i ? "" : "row" }, text)));
  const header = el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)));
  return el(
    "table",
    { className: "plain" },
    el("thead", {}, header),
    el("tbody", {}, ...rows.map((row) => cells(row, "td"))),
  );
}

function showHeadline() {
  const rows = Object.entries(data.groups).map(([name, g]) => [
    name,
    percent(g.pq, 2),
    percent(g.sq, 2),
    percent(g.rq, 2),
    String(g.n),
  ]);
  byId("headline").append(
    el(
      "div",
      { className: "big" },
      el("strong", { id: "pq" }, percent(data.groups.All.pq)),
      el("span", {}, "PQ, panoptic quality"),
    ),
    plainTable(["", "PQ", "SQ", "RQ", "classes"], rows),
    el(
      "p",
      { className: "muted small" },
      "PQ = SQ × RQ for each class: how well matched segments fit, and how many match. " +
        "Averaged over the classes that occur.",
    ),
  );
}

function showVersus() {
  for (const key of ["pq", "sq", "rq"]) {
    const bars = ["Things", "Stuff"].map((g) => bar(data.groups[g][key], g.toLowerCase()));
    const pair = el("div", { className: "pair" }, el("b", {}, key.toUpperCase()), ...bars);
    byId("versus").append(pair);
  }
  const keys = ["Things", "Stuff"].map((g) =>
    el(
      "span",
      { className: "key" },
      el("span", { className: `chip ${g.toLowerCase()}` }),
      `${g} (${count(data.groups[g].n, "class", "classes")})`,
    ),
  );
  byId("versus").append(el("div", { className: "legend" }, ...keys));
}

function showOutcomes() {
  for (const [group, outcomes] of Object.entries(data.outcome_counts)) {
    const total = outcomes.match + outcomes.confused + outcomes.missed;
    const strip = el("div", { className: "stacked" });
    const keys = [];
    for (const [state, number] of Object.entries(outcomes)) {
      const share = total && state !== "false_positive" ? ` (${percent(number / total, 0)} %)` : "";
      if (state !== "false_positive" && number) {
        const part = el("span", { className: state, title: `${number} ${STATES[state]}` });
        part.style.flexGrow = number;
        strip.append(part);
      }
      const text = `${number.toLocaleString("en")} ${STATES[state]}${share}`;
      keys.push(el("span", { className: "key" }, el("span", { className: `chip ${state}` }), text));
    }
    byId("outcomes").append(
      el("div", {}, el("b", {}, group), ` ${count(total, "segment")}`),
      strip,
      el("div", { className: "legend" }, ...keys),
      el("p"),
    );
  }
}

function showTasks() {
  for (const [task, metrics] of Object.entries(data.tasks)) {
    const values = Object.values(metrics).map((v) => (v == null ? "–" : v.toFixed(2)));
    byId("tasks").append(plainTable([task, ...Object.keys(metrics)], [["", ...values]]));
  }
  if (!Object.keys(data.tasks).length) {
    byId("tasks").append(el("p", { className: "muted" }, "None was recorded."));
  }
}

function showRun() {
  for (const [name, version] of Object.entries(data.versions)) {
    byId("versions").append(el("div", {}, el("dt", {}, name), el("dd", {}, version)));
  }
  byId("environment-title").textContent = data.environment_of_run
    ? "Environment of the run (log.txt)"
    : "Environment of this page (the run left no log.txt that tells its own)";
  byId("environment").textContent = data.environment;
  byId("config").textContent = data.config ?? "There is no config.yaml beside the predictions.";
}

showHeader();
showHeadline();
showVersus();
showOutcomes();
showTasks();
showRun();
