const data = JSON.parse(document.getElementById("data").textContent);
const STATES = {
  match: "matched",
  confused: "wrong class",
  missed: "missed",
  false_positive: "false positive",
  crowd: "not counted: crowd",
  ignored: "not counted: on void or crowd",
};

/** 0.4567 as "45.7"; a dash for what could not be measured. */
const percent = (value, digits = 1) => (value == null ? "–" : (100 * value).toFixed(digits));

const count = (number, one, many = `${one}s`) =>
  `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const classColor = (number) => `rgb(${data.classes[number].color.join(" ")})`;
const className = (number, nothing) => (number < 0 ? nothing : data.classes[number].name);

/** A horizontal bar for a share from 0 to 1, and its number. */
function bar(value, kind) {
  const fill = el("span", { className: `fill ${kind}` });
  fill.style.width = `${100 * (value ?? 0)}%`;
  if (!value) fill.style.visibility = "hidden";
  return el(
    "div",
    { className: "bar" },
    el("span", { className: "track" }, fill),
    el("span", {}, percent(value)),
  );
}

/** Call a function with the value of the chosen radio button at each change. */
function onChoice(name, choose) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
    input.addEventListener("change", () => choose(input.value));
  }
}

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const contains = (text, part) => text.toLowerCase().includes(part.trim().toLowerCase());
