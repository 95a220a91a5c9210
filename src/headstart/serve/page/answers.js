// An answer as people read it: the likeliest class, and a bar for each and for none of them.

import { make } from "./elements.js";

/** As many bars as are shown at once. */
const BARS = 6;

/** Return a share in hundredths, with a digit more where it is near 0 or 1. */
export function percent(share) {
  const hundred = 100 * share;
  return hundred > 1 && hundred < 99 ? Math.round(hundred) : Math.round(10 * hundred) / 10;
}

/** Return how a share is written: what is not quite 0 or 1 is not said to be. */
export function written(share) {
  const number = percent(share);
  if (number === 0 && share > 0) return ["percent_less", {}];
  if (number === 100 && share < 1) return ["percent_more", {}];
  return ["percent", { number }];
}

/** Return an answer in a sentence, as it is said to screen readers: [key, values] of texts.js. */
export function spoken({ prediction, probability }) {
  if (prediction === null) return ["answer_none", {}];
  return ["answer", { label: prediction, percent: percent(probability) }];
}

/** Return an answer as an element. */
export function shownAnswer(answer) {
  const none = answer.prediction === null;
  const ranked = Object.entries(answer.probabilities ?? {}).sort((one, other) => other[1] - one[1]);
  // the likeliest label, said in a low voice where none of them is likelier
  const doubted = answer.unknown > (ranked[0]?.[1] ?? 1);
  const head = none
    ? make("p", { class: "verdict none", say: "try_none" })
    : make("p", { class: doubted ? "verdict doubted" : "verdict", dir: "auto" }, String(answer.prediction));
  const element = make("div", { class: none ? "answer off" : "answer" }, head);
  if (answer.set?.length > 1 && !none) {
    element.append(make("p", { class: "note", say: ["answer_set", { labels: answer.set.join(", ") }] }));
  }
  const bars = (some) => make("ul", { class: "bars" }, ...some.map(([label, share]) => bar(label, share)));
  // of no label, last wherever it stands among the others, so that nobody has to look for it
  const neither = typeof answer.unknown === "number" ? [[null, answer.unknown]] : [];
  element.append(bars([...ranked.slice(0, BARS), ...neither]));
  if (ranked.length > BARS) {
    const more = make("details", {}, make("summary", { say: ["answer_more", { count: ranked.length - BARS }] }));
    more.append(bars(ranked.slice(BARS)));
    element.append(more);
  }
  return element;
}

function bar(label, share) {
  const fill = make("span", { class: "fill" });
  // by the object model, which the content security policy allows where a style attribute is refused
  fill.style.inlineSize = `${100 * share}%`;
  return make(
    "li",
    {},
    label === null
      ? make("span", { class: "label", say: "answer_none" })
      : make("span", { class: "label", title: label || null }, make("bdi", {}, label)),
    make("span", { class: "value", say: written(share) }),
    make("span", { class: "track", "aria-hidden": "true" }, fill),
  );
}

/** Return a number as a person reads it: with three digits of the width of its range, where there is one. */
export function number(value, width = 0) {
  if (typeof value !== "number") return String(value);
  const digits = width > 0 ? Math.min(12, Math.max(0, 2 - Math.floor(Math.log10(width)))) : null;
  const rounding =
    digits === null
      ? { maximumSignificantDigits: 6 }
      : { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(document.documentElement.lang, rounding).format(value);
}
