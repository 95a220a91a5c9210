// Tables: a CSV is read here; rows whose target is known are learned from, the others are answered.

import { number, written as share } from "./answers.js";
import { undoBar } from "./classes.js";
import { answerTable, decoded, rows, separator, written } from "./csv.js";
import { announce, dropButton, field, icon, id, make, save, takesDrops } from "./elements.js";
import { tell } from "./service.js";
import { say, silence, word } from "./texts.js";

const PAGE = 10;
const ANSWERS = 50;
/** The largest file that is read, in bytes. */
const LARGEST = 50e6;

const plain = (name) => name.trim().toLowerCase();

/** Return a table of a file's text; every line has as many cells as the heading, or it is said which has not. */
function parsed(text, name) {
  const by = separator(text);
  const [header = [], ...lines] = rows(text, by);
  if (!lines.length) throw { key: "table_empty", values: { name } };
  const odd = lines.findIndex((line) => line.length !== header.length);
  if (odd >= 0) {
    const shown = by === "\t" ? "Tab" : by;
    throw {
      key: "table_ragged",
      values: { line: odd + 2, found: lines[odd].length, expected: header.length, separator: shown },
    };
  }
  return { name, header, lines: lines.map((cells) => row(cells)) };
}

const row = (cells) => ({ key: id("row"), version: 0, cells, answer: null, waits: false });

export function tables(host) {
  let table = null;
  let columns = new Map();
  let target = -1;
  let mapped = 0;
  let first = 0;
  let firstAnswer = 0;
  let kept = 0;

  const run = () => host.run();
  const wanted = () => run().columns;
  const targetName = () => run().target;
  const label = (line) => (target < 0 ? "" : (line.cells[target] ?? "").trim());
  const known = () => table?.lines.filter((line) => label(line)) ?? [];
  const asked = () => table?.lines.filter((line) => !label(line)) ?? [];

  function body(line) {
    const found = {};
    for (const [name, place] of columns) if (place >= 0) found[name] = line.cells[place].trim() || null;
    return found;
  }

  // column 1: the rows
  const error = make("div", { class: "error", role: "alert" });
  const undo = undoBar();
  const [drop, input] = dropButton({
    say: "table_add",
    accept: ".csv,.tsv,.txt,text/csv,text/tab-separated-values",
    many: false,
    mark: "sheet",
    take: ([file]) => readFile(file),
  });
  const byHand = make("button", { say: "table_by_hand", onclick: typeRows });
  const sheet = make("div", { hidden: true });
  const before = make("p", { class: "note" });
  const examples = make(
    "div",
    {},
    before,
    make("div", { class: "actions" }, drop, input, byHand),
    error,
    undo.bar,
    sheet,
  );
  takesDrops(examples, async (transfer) => {
    if (transfer.files.length) readFile(transfer.files[0]);
    else if (transfer.getData("text/plain")) take(() => parsed(transfer.getData("text/plain"), say("table_pasted")));
  });

  async function readFile(file) {
    if (file.size > LARGEST) {
      const values = { name: file.name, size: Math.ceil(file.size / 1e6), most: LARGEST / 1e6 };
      return tell(error, { key: "table_large", values });
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    take(() => {
      if (bytes[0] === 0x50 && bytes[1] === 0x4b) throw { key: "table_excel", values: { name: file.name } };
      return parsed(decoded(bytes), file.name);
    });
  }

  function take(read) {
    let found;
    try {
      found = read();
    } catch (reason) {
      if (!reason.key) throw reason;
      return tell(error, reason);
    }
    tell(error, null);
    const old = table && { table, columns, target };
    show(found);
    if (old) {
      undo.offer("table_replaced", { name: old.table.name }, () => {
        ({ table, columns, target } = old);
        mapped += 1;
        draw();
      });
    }
    announce("table_known", { count: known().length });
  }

  function show(found) {
    table = found;
    const places = new Map(table.header.map((name, place) => [plain(name), place]));
    columns = new Map(wanted().map((name) => [name, places.get(plain(name)) ?? -1]));
    target = places.get(plain(targetName())) ?? -1;
    mapped += 1;
    first = firstAnswer = 0;
    draw();
    askRows();
  }

  function typeRows() {
    const header = [...wanted(), targetName()];
    take(() => ({ name: say("table_typed"), header, lines: [1, 2, 3].map(() => row(header.map(() => ""))) }));
    sheet.querySelector("tbody input")?.focus();
  }

  const title = make("p", { class: "verdict small", dir: "auto" });
  const counts = make("ul", { class: "facts" }, make("li"), make("li"));

  const mapping = make("div", { class: "mapping" });
  const mappingMissing = make("p", { class: "error" });
  const ignored = make("p", { class: "note" });
  const mappingBox = make("details", { class: "sheet" }, make("summary", { say: "table_columns" }), mapping, ignored);
  const targetBox = make("div");
  const filter = make("select");
  for (const which of ["all", "known", "asked"])
    filter.append(make("option", { value: which, say: `table_show_${which}` }));
  filter.addEventListener("change", () => {
    first = 0;
    drawRows();
  });
  const grid = make("table");
  const scroller = make("div", { class: "scroll", role: "region", tabindex: "0", label: "table_rows" }, grid);
  const pages = pager((step) => {
    first += step * PAGE;
    drawRows();
  });
  const addRow = make("button", { onclick: newRow }, icon("plus"), make("span", { say: "table_row_add" }));
  sheet.append(
    title,
    counts,
    targetBox,
    mappingMissing,
    mappingBox,
    field("table_show", filter, { class: "field inline" }),
    scroller,
    make("div", { class: "actions" }, addRow, pages.element),
  );

  function draw() {
    sheet.hidden = !table;
    if (kept) word(before, "count_kept", { count: kept });
    else silence(before);
    word(drop.querySelector("span"), table ? "table_other" : "table_add");
    byHand.hidden = Boolean(table);
    if (table) {
      title.textContent = table.name;
      const select = (chosen, none) => {
        const own = make("select", {}, make("option", { value: "-1", say: none }));
        table.header.forEach((name, place) => own.append(make("option", { value: String(place), dir: "auto" }, name)));
        own.value = String(chosen);
        return own;
      };
      const choose = (own, put) =>
        own.addEventListener("change", () => {
          put(Number(own.value));
          mapped += 1;
          first = 0;
          drawFacts();
          drawRows();
          host.changed();
        });
      const ofTarget = select(target, "table_target_none");
      choose(ofTarget, (place) => (target = place));
      targetBox.replaceChildren(field(["table_target", { name: targetName() }], ofTarget));
      mapping.replaceChildren(
        ...[...columns].map(([name, place]) => {
          const own = select(place, "table_column_none");
          choose(own, (chosen) => columns.set(name, chosen));
          return field(["table_column", { name }], own);
        }),
      );
      mappingBox.open = [...columns.values()].includes(-1);
      drawFacts();
      drawRows();
    }
    drawAnswers();
    host.changed();
  }

  function drawFacts() {
    word(counts.children[0], "table_known", { count: known().length });
    word(counts.children[1], "table_asked", { count: asked().length });
    const missing = [...columns].filter(([, place]) => place < 0).map(([name]) => name);
    if (missing.length) word(mappingMissing, "table_missing", { names: missing.join(", ") });
    else silence(mappingMissing);
    const used = new Set([...columns.values(), target]);
    const unused = table.header.filter((_, place) => !used.has(place));
    if (unused.length) word(ignored, "table_ignored", { names: unused.join(", ") });
    else silence(ignored);
  }

  /** The places of the columns that are shown: those that are used, the target first, so that it is in sight. */
  function shownColumns() {
    const used = [...new Set(columns.values())].filter((place) => place >= 0 && place !== target);
    return target < 0 ? used : [target, ...used];
  }

  function drawRows() {
    const some = filter.value === "known" ? known() : filter.value === "asked" ? asked() : table.lines;
    first = Math.max(0, Math.min(first, some.length - 1 - ((some.length - 1) % PAGE)));
    const shown = shownColumns();
    const heads = shown.map((place) =>
      make("th", { scope: "col", class: place === target ? "target" : null, dir: "auto" }, table.header[place]),
    );
    grid.replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col", say: "table_row" }), ...heads, make("td"))),
      make("tbody", {}, ...some.slice(first, first + PAGE).map((line) => drawRow(line, shown))),
    );
    pages.draw(first, PAGE, some.length);
  }

  function drawRow(line, shown) {
    const place = table.lines.indexOf(line) + 1;
    const cells = shown.map((column) => {
      const cell = make("input", {
        dir: "auto",
        autocomplete: "off",
        spellcheck: "false",
        label: ["table_cell", { column: table.header[column], row: place }],
      });
      cell.value = line.cells[column];
      cell.addEventListener("change", () => {
        line.cells[column] = cell.value;
        line.version += 1;
        line.answer = null;
        drawFacts();
        host.changed();
        askRows();
      });
      return make("td", { class: column === target ? "target" : null }, cell);
    });
    const remove = make(
      "button",
      { class: "quiet icon-only", label: ["table_row_remove", { row: place }] },
      icon("cross"),
    );
    remove.addEventListener("click", () => {
      table.lines.splice(place - 1, 1);
      drawFacts();
      drawRows();
      drawAnswers();
      host.changed();
      undo.offer("table_row_removed", { row: place }, () => {
        table.lines.splice(place - 1, 0, line);
        draw();
        scroller.focus();
      });
      undo.button.focus();
    });
    return make("tr", {}, make("th", { scope: "row" }, String(place)), ...cells, make("td", {}, remove));
  }

  function newRow() {
    table.lines.push(row(table.header.map(() => "")));
    filter.value = "all";
    first = table.lines.length;
    drawFacts();
    drawRows();
    host.changed();
    grid.querySelector("tbody tr:last-child input")?.focus();
  }

  // column 3: the answers
  const answersError = make("div", { class: "error", role: "alert" });
  const note = make("p", { class: "note" });
  const answers = make("table");
  const answersBox = make(
    "div",
    { class: "scroll", role: "region", tabindex: "0", label: "answers_rows", hidden: true },
    answers,
  );
  const answerPages = pager((step) => {
    firstAnswer += step * ANSWERS;
    drawAnswers();
  });
  const download = make(
    "button",
    { hidden: true, onclick: saveAnswers },
    icon("down"),
    make("span", { say: "answers_download" }),
  );
  const trial = make(
    "div",
    { class: "trial" },
    answersError,
    note,
    answersBox,
    make("div", { class: "actions" }, download, answerPages.element),
  );
  let running = 0;

  /** Ask for the rows that have something in them and no answer yet. */
  async function askRows() {
    const open = asked().filter((line) => !line.answer && shownColumns().some((place) => line.cells[place].trim()));
    const own = ++running;
    for (const line of table?.lines ?? []) line.waits = false;
    if (host.learned()) for (const line of open) line.waits = true;
    drawAnswers();
    if (!open.length || !host.learned()) return;
    try {
      const found = await host.predict(open.map((line) => ({ row: body(line) })));
      if (own !== running) return;
      open.forEach((line, place) => Object.assign(line, { answer: found[place], waits: false }));
      tell(answersError, null);
      announce("answers_ready", { count: answered().length });
    } catch (reason) {
      if (own !== running) return;
      for (const line of open) line.waits = false;
      tell(answersError, reason, askRows);
    }
    drawAnswers();
  }

  const answered = () => asked().filter((line) => line.answer);

  function range({ low, high }) {
    return typeof low === "number" ? `${number(low, high - low)} – ${number(high, high - low)}` : "";
  }

  function drawAnswers() {
    const some = asked().filter((line) => line.answer || line.waits);
    download.disabled = some.some((line) => line.waits);
    answersBox.hidden = download.hidden = !some.length;
    if (answered().some(({ answer }) => typeof answer.low === "number")) word(note, "estimate_numbers");
    else if (some.length) silence(note);
    else if (host.learned()) word(note, "answers_none", { name: targetName() });
    firstAnswer = Math.max(0, Math.min(firstAnswer, some.length - 1 - ((some.length - 1) % ANSWERS)));
    answerPages.draw(firstAnswer, ANSWERS, some.length);
    if (!some.length) return;
    const numbers = answered().every(({ answer }) => !answer.probabilities);
    const heads = ["table_row", "answers_answer", numbers ? "answers_range" : "answers_chance"];
    answers.replaceChildren(
      make("thead", {}, make("tr", {}, ...heads.map((key) => make("th", { scope: "col", say: key })))),
      make(
        "tbody",
        {},
        ...some.slice(firstAnswer, firstAnswer + ANSWERS).map((line) => {
          const { answer } = line;
          const head = make("th", { scope: "row" }, String(table.lines.indexOf(line) + 1));
          if (!answer) return make("tr", {}, head, make("td", { colspan: "2", class: "note" }, "…"));
          const answered =
            answer.prediction === null
              ? make("span", { say: "try_none" })
              : make("span", {}, number(answer.prediction, answer.high - answer.low));
          // nothing was learned of such a row, however sure the answer is
          const names = answer.unseen?.join(", ");
          const said = make("td", { class: names ? "said doubted" : "said", dir: "auto" }, answered);
          if (names) said.append(make("p", { class: "note", say: ["answers_unseen", { names }] }));
          const sure = numbers ? make("td", {}, range(answer)) : make("td", { say: share(answer.probability ?? 0) });
          return make("tr", {}, head, said, sure);
        }),
      ),
    );
  }

  function saveAnswers() {
    const some = answered();
    const told = answerTable(
      some.map(({ answer }) => answer),
      say("try_none"),
    );
    // a column of the table that is called so stays what it is
    const head = told.header.map((name) => (table.header.includes(name) ? `${name} (${targetName()})` : name));
    const lines = some.map(({ cells }, place) => [...cells, ...told.lines[place]]);
    const name = `${table.name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_")}_answers.csv`;
    save(new Blob([written([[...table.header, ...head], ...lines])], { type: "text/csv" }), name);
    announce("export_done", { name });
  }

  drawAnswers();
  return {
    examples,
    trial,
    shown: () => [
      ...(kept ? [{ key: "kept:rows", label: null, body: null }] : []),
      ...known().map((line) => ({
        key: `${line.key} ${line.version} ${mapped}`,
        label: null,
        body: line,
      })),
    ],
    obstacle() {
      if (kept && !table) return null;
      if (!table) return ["learn_needs_table", {}];
      if ([...columns.values()].includes(-1)) {
        const names = [...columns].filter(([, place]) => place < 0).map(([name]) => name);
        return ["table_missing", { names: names.join(", ") }];
      }
      return known().length || kept ? null : ["learn_needs_rows", {}];
    },
    body: async ({ body: line }) => ({ row: { ...body(line), [targetName()]: label(line) } }),
    open(task) {
      this.clear();
      kept = task.counts.reduce((sum, count) => sum + count, 0);
      draw();
    },
    settle() {
      // rows stay in the table, and are known to have been sent
    },
    clear() {
      table = null;
      kept = 0;
      undo.rest();
      tell(error, null);
      tell(answersError, null);
      draw();
    },
    learned() {
      for (const line of asked()) line.answer = null;
      askRows();
    },
    translate() {
      drawAnswers();
      if (table) drawRows();
    },
    paste: null,
    pasteText(text) {
      if (!/[\t\n;,]/.test(text.trim())) return false;
      take(() => parsed(text, say("table_pasted")));
      return true;
    },
  };
}

/** Return buttons to go from page to page, and what says where one is. */
function pager(turn) {
  const before = make("button", { say: "table_before", onclick: () => turn(-1) });
  const after = make("button", { say: "table_after", onclick: () => turn(1) });
  const where = make("span", { class: "note" });
  const element = make("div", { class: "pager" }, before, where, after);
  return {
    element,
    draw(first, size, count) {
      element.hidden = count <= size;
      before.disabled = first === 0;
      after.disabled = first + size >= count;
      word(where, "table_page", { first: first + 1, last: Math.min(first + size, count), count });
    },
  };
}
