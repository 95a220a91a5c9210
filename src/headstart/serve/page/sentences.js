// Texts: a box for each class with an example a line, pasting from a spreadsheet, and what is tried.

import { shownAnswer, spoken } from "./answers.js";
import { classList } from "./classes.js";
import { decoded, rows } from "./csv.js";
import { announce, field, icon, make, takesDrops } from "./elements.js";
import { tell } from "./service.js";
import { word } from "./texts.js";

/** So long after the last key a text is asked about, in milliseconds. */
const PAUSE = 350;

const lines = (text) =>
  text
    .split(/[\r\n\u2028\u2029]+/)
    .map((line) => line.trim())
    .filter(Boolean);

export function sentences(host) {
  const sheet = spreadsheet((pairs) => {
    for (const [label, some] of Map.groupBy(pairs, ([name]) => name)) {
      list.named(label).body.append(some.map(([, text]) => text));
    }
    announce("sheet_added", { count: pairs.length });
  });
  const list = classList(host, (card) => textsOfClass(card, sheet));
  const examples = make("div", {}, list.element, sheet.element);
  takesDrops(examples, async (transfer) => {
    for (const file of transfer.files) sheet.show(decoded(new Uint8Array(await file.arrayBuffer())));
  });

  const error = make("div", { class: "error", role: "alert" });
  const result = make("div");
  const box = make("textarea", { rows: "3", dir: "auto", placeholder: "try_text_placeholder" });
  let timer = null;
  let asked = 0;
  let running = null;

  async function ask(aloud = true) {
    clearTimeout(timer);
    const text = box.value.trim();
    const own = ++asked;
    running?.abort();
    if (!text || !host.learned()) return result.replaceChildren();
    running = new AbortController();
    try {
      const [answer] = await host.predict([{ text }], { signal: running.signal });
      if (own !== asked) return;
      result.replaceChildren(shownAnswer(answer));
      tell(error, null);
      if (aloud) announce(...spoken(answer));
    } catch (reason) {
      if (own === asked) tell(error, reason, () => ask());
    }
  }

  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  });
  const trial = make("div", { class: "trial" }, field("try_text", box), error, result);

  return {
    examples,
    trial,
    shown: list.shown,
    obstacle: list.obstacle,
    body: async ({ body: { label, text } }) => ({ label, text }),
    open: list.open,
    settle: list.settle,
    clear() {
      list.clear();
      sheet.clear();
      box.value = "";
      ask();
      tell(error, null);
    },
    learned: () => ask(false),
    translate() {
      list.translate();
      sheet.translate();
    },
    paste: null,
  };
}

/** The texts of one class. */
function textsOfClass(card, sheet) {
  const box = make("textarea", {
    rows: "5",
    dir: "auto",
    placeholder: "texts_placeholder",
    label: ["texts_of", { name: "" }],
  });
  box.addEventListener("input", () => card.changed());
  box.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text/plain");
    // cells of a spreadsheet: one column is examples of this class, more are looked at first
    if (!text.includes("\t") && !text.startsWith('"')) return;
    const cells = rows(text, "\t");
    event.preventDefault();
    if (cells.some((row) => row.length > 1)) sheet.show(text);
    else append(cells.map(([cell]) => cell));
  });

  function append(more) {
    const added = more.map((text) => text.replace(/\s+/g, " ").trim()).filter(Boolean);
    box.value = [...lines(box.value), ...added].join("\n");
    card.changed();
  }

  return {
    element: box,
    append,
    examples() {
      const seen = new Map();
      return lines(box.value).map((text) => {
        const times = (seen.get(text) ?? 0) + 1;
        seen.set(text, times);
        return { key: `${card.key} ${times} ${text}`, body: { text } };
      });
    },
    clear() {
      box.value = "";
    },
    relabel: () => word(box, "texts_of", { name: card.name() }, "label"),
  };
}

/** Where cells are pasted that have texts beside their classes. */
function spreadsheet(take) {
  const cells = make("textarea", { rows: "4", dir: "auto" });
  const error = make("div", { class: "error", role: "alert" });
  const ofText = make("select");
  const ofClass = make("select");
  const heading = make("input", { type: "checkbox", id: "sheet-heading" });
  const add = make("button", { class: "primary" });
  const choice = make(
    "div",
    { hidden: true },
    field("sheet_text", ofText),
    field("sheet_class", ofClass),
    make("div", { class: "check" }, heading, make("label", { for: "sheet-heading", say: "sheet_header" })),
    add,
  );
  const element = make(
    "details",
    { class: "sheet" },
    make("summary", {}, icon("sheet"), make("span", { say: "sheet" })),
    make("p", { class: "note", say: "sheet_hint" }),
    field("sheet_cells", cells),
    error,
    choice,
  );
  let table = [];

  const pairs = () =>
    table
      .slice(heading.checked ? 1 : 0)
      .map((row) => [(row[ofClass.value] ?? "").trim(), (row[ofText.value] ?? "").replace(/\s+/g, " ").trim()])
      .filter(([label, text]) => label && text);
  const counted = () => word(add, "sheet_add", { count: pairs().length });

  function read() {
    table = rows(cells.value);
    const wide = Math.max(0, ...table.map((row) => row.length));
    choice.hidden = wide < 2;
    tell(error, table.length && wide < 2 ? { key: "sheet_two" } : null);
    if (wide < 2) return;
    const different = [...Array(wide).keys()].map((column) => new Set(table.map((row) => row[column])).size);
    const fill = (select, chosen) => {
      select.replaceChildren(
        ...different.map((_, column) => {
          const example = (table[0][column] ?? "").slice(0, 30);
          return make("option", { value: String(column), say: ["sheet_column", { number: column + 1, example }] });
        }),
      );
      select.value = String(chosen);
    };
    // classes come again and again, texts do not; of names, those that say so
    const named = (words) => table[0].findIndex((cell) => words.includes(cell.trim().toLowerCase()));
    const label = named(["label", "class", "klasse", "intent", "category", "kategorie", "类别", "标签"]);
    const text = named(["text", "sentence", "utterance", "query", "satz", "文本"]);
    heading.checked = label >= 0 || text >= 0;
    const fewest = label >= 0 ? label : different.indexOf(Math.min(...different));
    const others = different.map((count, column) => (column === fewest ? -1 : count));
    fill(ofClass, fewest);
    fill(ofText, text >= 0 && text !== fewest ? text : others.indexOf(Math.max(...others)));
    counted();
  }

  function clear() {
    cells.value = "";
    element.open = false;
    read();
  }

  cells.addEventListener("input", read);
  for (const control of [ofText, ofClass, heading]) control.addEventListener("change", counted);
  add.addEventListener("click", () => {
    take(pairs());
    clear();
    element.querySelector("summary").focus();
  });
  return {
    element,
    clear,
    translate: counted,
    show(text) {
      element.open = true;
      cells.value = text;
      read();
      (choice.hidden ? cells : ofText).focus();
    },
  };
}
