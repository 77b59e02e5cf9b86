"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const STATES = {
  match: "matched",
  confused: "wrong class",
  missed: "missed",
  false_positive: "false positive",
  crowd: "not counted: crowd",
  ignored: "not counted: on void or crowd",
};

/** An element with properties and children. Strings become text, never markup. */
function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** 0.4567 as "45.7"; a dash for what could not be measured. */
const percent = (value, digits = 1) => (value == null ? "–" : (100 * value).toFixed(digits));

const count = (number, one, many = `${one}s`) =>
  `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

function chip(color) {
  const element = el("span", { className: "chip" });
  element.style.background = color;
  return element;
}

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

/** Show a title and a text beside the pointer. */
function showTip(event, [title, text]) {
  const tip = byId("tip");
  tip.replaceChildren(el("b", {}, title), text);
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
  const below = event.clientY + 18 + height < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? event.clientY + 18 : event.clientY - height - 12}px`;
}

const hideTip = () => (byId("tip").hidden = true);
