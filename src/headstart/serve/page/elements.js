// Elements made by hand: text is always text, never markup, whatever people call their things.

import { word } from "./texts.js";

/** Return a new element; `make("button", { class: "quiet", say: "undo", onclick: back }, child, "text")`.
 *
 * `say`, `label` and `placeholder` are keys of texts.js, or [key, values]. What begins with "on" listens.
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "say" || name === "label" || name === "placeholder") {
      const [key, values] = [value].flat();
      word(element, key, values, name === "say" ? "text" : name);
    } else if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  if (tag === "button" && !properties.type) element.type = "button";
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const shapes = {
  cross: "M4 4 L12 12 M12 4 L4 12",
  plus: "M8 3 V13 M3 8 H13",
  camera: "M2.5 5 H5 L6 3.5 H10 L11 5 H13.5 V12.5 H2.5 Z M8 6.4 A2.2 2.2 0 1 0 8.01 6.4",
  picture: "M2.5 3.5 H13.5 V12.5 H2.5 Z M2.5 10.5 L6 7.5 L9 10 L11 8.5 L13.5 10.5 M10.4 5.9 h.01",
  sheet: "M2.5 3.5 H13.5 V12.5 H2.5 Z M2.5 6.5 H13.5 M2.5 9.5 H13.5 M6.5 3.5 V12.5",
  down: "M8 3 V10 M5 7.5 L8 10.5 L11 7.5 M3 13 H13",
};

/** Return a small drawing, which screen readers pass over. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  path.setAttribute("d", shapes[name]);
  svg.append(path);
  return svg;
}

let ids = 0;

/** Return a name for an element that another one refers to. */
export function id(stem) {
  return `${stem}-${++ids}`;
}

/** Return a labelled field, as `[wrapping element, control]` with the label before the control. */
export function field(label, control, more = {}) {
  control.id ||= id("field");
  return make("div", { class: "field", ...more }, make("label", { for: control.id, say: label }), control);
}

/** Say something once to screen readers, politely. */
export function announce(key, values) {
  const live = document.getElementById("live");
  live.textContent = "";
  // a change in the next turn is noticed even where the words are the same
  setTimeout(() => word(live, key, values), 50);
}

/** Let the browser save a file. */
export function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Return a button onto which files can be dropped, and which asks for them when it is pressed. */
export function dropButton({ say, label, accept, many = true, mark = "picture", take }) {
  const input = make("input", { type: "file", accept, multiple: many, hidden: true, tabindex: "-1" });
  const button = make("button", { class: "drop", label }, icon(mark), make("span", { say }));
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length) take(files);
  });
  return [button, input];
}

/** Let an element take files, or what else `read` finds in them, that are dropped on it or pasted in it. */
export function takesDrops(element, read) {
  let inside = 0;
  const over = (on) => element.classList.toggle("over", on);
  element.addEventListener("dragenter", (event) => {
    event.preventDefault();
    inside += 1;
    over(true);
  });
  element.addEventListener("dragleave", () => {
    inside -= 1;
    over(inside > 0);
  });
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    inside = 0;
    over(false);
    read(event.dataTransfer);
  });
}
