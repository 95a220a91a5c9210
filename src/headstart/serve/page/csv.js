// Tables as text: read from CSV or from a spreadsheet's clipboard, and written so that no cell becomes a formula.

/** Return the separator of a text: that which divides its first lines into the most columns of equal number. */
export function separator(text) {
  const start = text.slice(0, 20_000);
  const whole = start.length < text.length ? start.slice(0, start.lastIndexOf("\n") + 1) || start : start;
  const scored = ["\t", ";", ",", "|"].map((one) => {
    const widths = rows(whole, one)
      .slice(0, 50)
      .map((row) => row.length);
    const even = widths.filter((width) => width === widths[0]).length / widths.length;
    return { one, score: widths[0] > 1 ? even * (1 + Math.log(widths[0]) / 10) : 0 };
  });
  const best = scored.reduce((one, other) => (other.score > one.score ? other : one));
  return best.score > 0 ? best.one : ",";
}

/** Return the cells of a text, a list of rows; quotes hold separators, line ends and doubled quotes (RFC 4180). */
export function rows(text, by = separator(text)) {
  const found = [];
  let row = [];
  let cell = "";
  let quoted = false;
  const endCell = () => {
    row.push(cell);
    cell = "";
  };
  const endRow = () => {
    endCell();
    if (row.length > 1 || row[0].trim() !== "") found.push(row);
    row = [];
  };
  for (let place = text.charCodeAt(0) === 0xfeff ? 1 : 0; place < text.length; place++) {
    const sign = text[place];
    if (quoted) {
      if (sign !== '"') cell += sign;
      else if (text[place + 1] === '"') cell += text[++place];
      else quoted = false;
    } else if (sign === '"' && cell === "") quoted = true;
    else if (sign === by) endCell();
    else if (sign === "\n" || sign === "\r") {
      if (sign === "\r" && text[place + 1] === "\n") place++;
      endRow();
    } else cell += sign;
  }
  if (cell !== "" || row.length) endRow();
  return found;
}

/** Return the text of a file: UTF-8, UTF-16 with its mark, or else what Windows wrote in Western Europe. */
export function decoded(bytes) {
  const [first, second] = bytes;
  if (first === 0xff && second === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (first === 0xfe && second === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

/** Return the columns that answers have and their lines, as `headstart predict` writes them. */
export function answerTable(answers, none) {
  const flat = answers.map(({ prediction, probability, probabilities, low, high, ...rest }) => {
    const plain = { prediction: prediction ?? none, probability, low, high, set: rest.set?.join("; ") };
    Object.assign(plain, { unknown: rest.unknown, unseen: rest.unseen?.join("; ") });
    for (const [label, share] of Object.entries(probabilities ?? {})) plain[`probability of ${label}`] = share;
    return plain;
  });
  const names = [...new Set(flat.flatMap(Object.keys))];
  const header = names.filter((name) => flat.some((line) => (line[name] ?? null) !== null));
  return { header, lines: flat.map((line) => header.map((name) => line[name])) };
}

/** Return rows as CSV. A cell that a spreadsheet would take for a formula gets an apostrophe before it. */
export function written(table) {
  const cell = (value) => {
    let text = String(value ?? "");
    const number = /^[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?$/.test(text);
    if (/^\s*[=+\-@\t\r\n＝＋－＠]/.test(text) && !number) text = `'${text}`;
    return /[",;\n\r\t]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `\ufeff${table.map((row) => row.map(cell).join(",")).join("\r\n")}\r\n`;
}
