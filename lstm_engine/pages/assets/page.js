"use strict";
/* What every page needs: its data, elements without markup from data, the theme. */
const Page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const quiet = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  /** An element; texts become text nodes, so nothing in them is markup. */
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function drawn(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function bytes(text) {
    const raw = atob(text), made = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) made[at] = raw.charCodeAt(at);
    return made.buffer;
  }

  /** Numbers of a stated number of digits: codes, and what they are. */
  function unpack(packing) {
    const codes = new { 8: Int8Array, 16: Int16Array, 32: Int32Array }[packing.b](bytes(packing.x));
    const top = 2 ** (packing.b - 1) - 1, scale = 10 ** packing.d, digits = Math.max(packing.d, 0);
    const number = (code) => (code === -top - 1 ? NaN : code === top ? Infinity : code === -top ? -Infinity : code / scale);
    const at = (index) => number(codes[index]);
    const text = (index) => written(at(index), digits);
    let greatest = 0;
    for (const code of codes) if (Math.abs(code) < top && Math.abs(code) > greatest) greatest = Math.abs(code);
    return { codes, at, text, digits, scale, top, greatest: greatest / scale };
  }

  function written(value, digits) {
    if (Number.isFinite(value)) return value.toFixed(digits).replace("-", "−");
    return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "−∞";
  }

  /** Texts, each kept once. */
  function texts(packing) {
    const places = new Int32Array(bytes(packing.x));
    return { at: (index) => packing.words[places[index]], length: places.length };
  }

  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  const button = document.getElementById("theme");
  function themed() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use the ${isDark() ? "light" : "dark"} theme`);
    for (const listener of listeners) listener();
  }
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    themed();
  });
  dark.addEventListener("change", themed);
  themed();

  return { data, el, drawn, unpack, written, texts, isDark, colour, quiet, onTheme: (listener) => listeners.push(listener) };
})();
