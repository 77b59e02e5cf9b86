"use strict";

const byId = (id) => document.getElementById(id);

/** An element with properties and children. Strings become text, never markup. */
function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function chip(color) {
  const element = el("span", { className: "chip" });
  element.style.background = color;
  return element;
}

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
