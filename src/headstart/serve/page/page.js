// The page: what there is to learn with, the classes, learning, and trying.

import { announce, field, make, save } from "./elements.js";
import { images } from "./images.js";
import { dealt, plan } from "./plan.js";
import { sentences } from "./sentences.js";
import * as service from "./service.js";
import { tables } from "./tables.js";
import { chooseLanguage, language, languages, say, silence, translate, word } from "./texts.js";

const kinds = { images, text: sentences, tables };
/** As many tasks as can be chosen from. */
const MOST_TASKS = 1000;
const byId = (name) => document.getElementById(name);
const { tell } = service;

let limits = null;
let run = null;
let view = null;
let known = [];
/** What the service has learned: `{ task, sent, reopened }`, or null. */
let learned = null;
let busy = null;
/** Where a person was last, so that what is pasted goes there. */
let place = null;

const host = {
  run: () => run,
  learned: () => learned,
  place: () => place,
  changed: () => view && drawLearn(),
  predict,
};

// what is learned, in the middle

const learnButton = make("button", { class: "primary big", "aria-describedby": "learn-state", onclick: learn });
const learnState = make("p", { id: "learn-state", class: "note" });
const taskName = make("input", { autocomplete: "off", maxlength: "200", dir: "auto" });
const nameField = field("learn_name", taskName);
const progress = make("progress", { "aria-labelledby": "learn-progress" });
const progressText = make("p", { id: "learn-progress", class: "note", "aria-live": "polite" });
const stop = make("button", { say: "cancel", onclick: () => busy?.abort() });
const working = make("div", { class: "working", hidden: true }, progress, progressText, stop);
const learnError = make("div", { class: "error", role: "alert" });
const outcome = make("div", { class: "outcome", hidden: true });
const takeError = make("div", { class: "error", role: "alert" });
byId("learn-here").append(nameField, learnButton, learnState, working, learnError, outcome);

const strictness = make("select");
for (const [value, key] of [
  ["", "off"],
  ["0.01", "1"],
  ["0.05", "5"],
  ["0.2", "20"],
]) {
  strictness.append(make("option", { value, say: `strictness_${key}` }));
}
strictness.addEventListener("change", () => learned && view.learned());
const strictnessField = field("strictness", strictness);
const later = make("p", { class: "note", say: "try_later" });

function drawLearn() {
  const shown = view.shown();
  const todo = plan(shown, learned);
  const reason = view.obstacle() ?? (todo.stuck ? ["learn_stuck", {}] : null);
  const ready = !reason && !busy && todo.changes > 0;
  // not `disabled`: the button stays where Tab goes, and says why it does nothing
  learnButton.setAttribute("aria-disabled", String(!ready));
  word(learnButton, !learned ? "learn" : todo.changes ? "learn_again" : "learn_done");
  if (reason) word(learnState, ...reason);
  else if (learned && todo.changes) word(learnState, "learn_unlearned", { count: todo.changes });
  else if (learned) word(learnState, "learn_ready", { count: sum(learned.task.counts) });
  else silence(learnState);
  learnState.hidden = Boolean(busy);
  nameField.hidden = Boolean(learned && !todo.anew);
  // another run or task would be mixed up with what is being learned
  byId("run").disabled = byId("task").disabled = Boolean(busy);
  working.hidden = !busy;
}

const sum = (counts) => counts.reduce((total, count) => total + count, 0);

function unlearned() {
  return view ? plan(view.shown(), learned).changes : 0;
}

async function learn() {
  if (learnButton.getAttribute("aria-disabled") === "true") return learnState.focus?.();
  const shown = view.shown();
  const todo = plan(shown, learned);
  const own = (busy = new AbortController());
  tell(learnError, null);
  drawLearn();
  progress.removeAttribute("value");
  stop.focus();
  try {
    const waiting = (seconds) => word(progressText, "busy", { seconds });
    await send(shown, todo, { signal: own.signal, waiting });
  } catch (reason) {
    // a task that somebody deleted is learned anew, where all of it is still here
    if (reason.status === 404 && !learned?.reopened) learned = null;
    tell(learnError, reason, learn);
  } finally {
    busy = null;
    drawLearn();
    learnButton.focus();
  }
}

/** Let the service learn what is shown, a part at a time where a request would be too large. */
async function send(shown, todo, options) {
  const add = todo.anew ? dealt(shown) : todo.add;
  word(progressText, "learn_sending", { done: 0, count: add.length });
  const bodies = await Promise.all(add.map((example) => view.body(example)));
  const parts = service.parts(bodies, limits.examples ?? Infinity, 0.9 * (limits.body_bytes ?? Infinity));
  const before = learned;
  const name = taskName.value.trim();
  if (todo.anew) learned = null;
  let done = 0;
  try {
    for (const part of parts) {
      word(progressText, parts.length > 1 ? "learn_sending" : "learn_learning", { done, count: add.length });
      if (parts.length > 1) progress.value = done / add.length;
      const key = keyOf([learned?.task.id, run.name, name, part]);
      const task = learned
        ? await service.grow(learned.task.id, part, key, options)
        : await service.create({ run: run.name, ...(name ? { name } : {}), examples: part }, key, options);
      // a request of the same content that comes later is another one
      keyOf.text = null;
      const sent = new Map(learned?.sent);
      for (const example of add.slice(done, done + part.length)) sent.set(example.key, example.label);
      // what was acknowledged is known to be there, whatever happens to the next part
      learned = { task, sent, reopened: learned?.reopened ?? false };
      done += part.length;
    }
  } finally {
    // what is learned anew takes the place of what was learned before
    if (!learned) learned = before;
    else if (todo.anew && before) service.forget(before.task.id).catch(() => {});
  }
  for (const label of todo.drop) {
    const task = await service.dropClass(learned.task.id, label, options);
    learned = { ...learned, task, sent: new Map([...learned.sent].filter(([, own]) => own !== label)) };
  }
  if (learned.reopened) {
    view.settle(learned.task);
    learned.sent = new Map(view.shown().map(({ key, label }) => [key, label]));
  }
  remember(learned.task, before?.task.id);
  drawOutcome();
  announce("learn_ready", { count: sum(learned.task.counts) });
  view.learned();
}

/** Return a key that is the same where the same is sent again, so that an answer that was lost is no second task. */
function keyOf(request) {
  const text = JSON.stringify(request);
  if (keyOf.text !== text) [keyOf.text, keyOf.key] = [text, service.requestKey()];
  return keyOf.key;
}

function drawOutcome() {
  outcome.hidden = !learned;
  outcome.replaceChildren();
  later.hidden = Boolean(learned);
  view.trial.inert = !learned;
  strictnessField.hidden = !learned || learned.task.labels.length === 0;
  if (!learned) return;
  const { estimate, warnings = [], labels } = learned.task;
  if (estimate) outcome.append(drawEstimate(estimate));
  else if (labels.length) outcome.append(make("p", { class: "note", say: "estimate_none" }));
  if (warnings.length) {
    const said = warnings.map((text) => make("li", { lang: "en", dir: "auto" }, text));
    outcome.append(make("div", { class: "warnings" }, make("h3", { say: "warnings" }), make("ul", {}, ...said)));
  }
  outcome.append(drawTake());
}

function drawEstimate({ right, judged, accuracy, low, high, more }) {
  const band = make("span", { class: "band" });
  const dot = make("span", { class: "dot" });
  band.style.insetInlineStart = `${100 * low}%`;
  band.style.inlineSize = `${100 * (high - low)}%`;
  dot.style.insetInlineStart = `${100 * accuracy}%`;
  const whole = (share) => Math.round(100 * share);
  const element = make(
    "div",
    { class: "estimate" },
    make("p", { class: "verdict", say: ["estimate_head", { low: whole(low), high: whole(high) }] }),
    make("div", { class: "scale", "aria-hidden": "true" }, band, dot),
    make("p", { say: ["estimate_text", { right, judged }] }),
  );
  if (more) {
    element.append(make("h3", { say: "more" }), make("p", { lang: "en", dir: "auto" }, more));
  }
  return element;
}

function drawTake() {
  const buttons = ["onnx", "module"].map((to) =>
    make("button", { say: `export_${to}`, onclick: (event) => takeAway(to, event.currentTarget) }),
  );
  const sure = make("button", { class: "danger", say: "forget_sure", onclick: forgetTask });
  const not = make("button", { say: "forget_not" });
  const question = make("div", { class: "actions", hidden: true }, sure, not);
  const ask = make("button", { class: "quiet", say: "forget", "aria-expanded": "false" });
  const open = (on) => {
    question.hidden = !on;
    ask.setAttribute("aria-expanded", String(on));
    (on ? not : ask).focus();
  };
  ask.addEventListener("click", () => open(question.hidden));
  not.addEventListener("click", () => open(false));
  tell(takeError, null);
  return make(
    "div",
    { class: "take" },
    make("h3", { say: "export" }),
    make("div", { class: "actions" }, ...buttons),
    takeError,
    ask,
    question,
  );
}

async function takeAway(to, button) {
  const { id, name } = learned.task;
  tell(takeError, null);
  button.setAttribute("aria-busy", "true");
  announce("export_busy");
  try {
    const stem = (name || id).replace(/[^\p{L}\p{N}_-]+/gu, "_").slice(0, 60) || id;
    const file = `${stem}-${to}.zip`;
    save(await service.exported(id, to), file);
    announce("export_done", { name: file });
  } catch (reason) {
    tell(takeError, reason, () => takeAway(to, button));
  } finally {
    button.removeAttribute("aria-busy");
  }
}

async function forgetTask() {
  const { id } = learned.task;
  try {
    await service.forget(id);
  } catch (reason) {
    if (reason.status !== 404) return tell(takeError, reason, forgetTask);
  }
  known = known.filter((task) => task.id !== id);
  const { reopened } = learned;
  learned = null;
  if (reopened) view.clear();
  drawTasks();
  drawOutcome();
  drawLearn();
  view.learned();
  announce("forgotten");
  learnButton.focus();
}

// what is tried, on the right

async function predict(inputs, options = {}) {
  const parts = service.parts(inputs, limits.queries ?? Infinity, 0.9 * (limits.body_bytes ?? Infinity));
  const reject = strictnessField.hidden ? 0 : Number(strictness.value);
  const found = [];
  for (const part of parts) found.push(...(await service.predict(learned.task.id, part, reject, options)).predictions);
  // where nothing is known of other classes, there is nothing to be chosen
  if (found.some(({ unknown }) => typeof unknown !== "number")) strictnessField.hidden = true;
  return found;
}

// what there is: runs and tasks, above

function drawRuns() {
  const select = byId("run");
  select.replaceChildren(
    ...limits.runs.map(({ name, kind }) => make("option", { value: name, say: [`run_${kind}`, { name }] })),
  );
  select.value = run.name;
  byId("run-field").hidden = limits.runs.length < 2;
}

function chooseRun(name) {
  const before = run;
  run = limits.runs.find((one) => one.name === name);
  // what was shown of images is still there for another run of images
  const stays = before?.kind === run.kind && run.kind !== "tables" && !learned?.reopened;
  learned = null;
  if (!stays) {
    view?.clear();
    view = kinds[run.kind](host);
    byId("examples-here").replaceChildren(view.examples);
    byId("try-here").replaceChildren(later, strictnessField, view.trial);
  }
  document.body.dataset.kind = run.kind;
  word(byId("purpose"), run.kind === "tables" ? "purpose_tables" : "purpose");
  tell(learnError, null);
  drawTasks();
  drawOutcome();
  drawLearn();
}

function drawTasks() {
  const select = byId("task");
  const date = (task) =>
    new Date(task.created).toLocaleString(language(), {
      month: "short",
      day: "numeric",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    });
  const named = (task) => {
    const { labels } = task;
    const name = task.name ?? labels.slice(0, 3).join(", ") + (labels.length > 3 ? ", …" : "");
    const words = name ? { dir: "auto" } : { say: ["task_unnamed", { date: date(task) }] };
    return make("option", { value: task.id, ...words }, name);
  };
  select.replaceChildren(
    make("option", { value: "", say: "task_new" }),
    ...known.filter((task) => task.run === run.name).map(named),
  );
  select.value = learned?.task.id ?? "";
  byId("task-field").hidden = select.options.length < 2;
}

function remember(task, before) {
  known = [task, ...known.filter(({ id }) => id !== task.id && id !== before)];
  drawTasks();
}

async function openTask(id) {
  if (unlearned() && !window.confirm(say("leave", { count: unlearned() }))) return drawTasks();
  tell(byId("wide"), null);
  if (!id) {
    learned = null;
    view.clear();
    taskName.value = "";
  } else {
    try {
      const task = await service.oneTask(id);
      view.open(task);
      learned = { task, sent: new Map(view.shown().map(({ key, label }) => [key, label])), reopened: true };
    } catch (reason) {
      tell(byId("wide"), reason, () => openTask(id));
      return drawTasks();
    }
  }
  tell(learnError, null);
  drawTasks();
  drawOutcome();
  drawLearn();
  view.learned();
}

/** Return the tasks that the service has, the newest first. */
async function allTasks() {
  const found = [];
  for (let after = null; after !== undefined;) {
    const page = await service.tasks(after);
    found.push(...page.tasks);
    after = page.next ?? undefined;
  }
  return found.reverse().slice(0, MOST_TASKS);
}

async function start() {
  const wide = byId("wide");
  word(wide, "starting");
  try {
    limits = await service.limits();
    known = await allTasks();
  } catch (reason) {
    silence(wide);
    return tell(wide, reason.status === 401 ? null : reason, start);
  }
  silence(wide);
  byId("lock").hidden = true;
  limits.runs = limits.runs.filter(({ kind }) => Object.hasOwn(kinds, kind));
  if (!limits.runs.length) return tell(wide, { key: "no_runs" });
  byId("bench").hidden = false;
  chooseRun(run?.name ?? limits.runs[0].name);
  drawRuns();
}

service.whenLocked(() => {
  const lock = byId("lock");
  if (!lock.hidden || service.hasToken())
    tell(byId("token-error"), service.hasToken() ? { key: "token_refused" } : null);
  lock.hidden = false;
  byId("token").focus();
});

byId("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  service.useToken(byId("token").value.trim());
  byId("token").value = "";
  // nothing that is shown is lost where a token runs out while one works
  if (view)
    service.limits().then(
      () => (byId("lock").hidden = true),
      (reason) => tell(byId("token-error"), reason),
    );
  else start();
});

byId("run").addEventListener("change", (event) => {
  const name = event.target.value;
  const other = limits.runs.find((one) => one.name === name);
  const lost = other.kind !== run.kind || run.kind === "tables";
  if (lost && unlearned() && !window.confirm(say("leave", { count: unlearned() })))
    event.target.value = run.name;
  else chooseRun(name);
});
byId("task").addEventListener("change", (event) => openTask(event.target.value));

const languageSelect = byId("language");
for (const [tag, name] of Object.entries(languages))
  languageSelect.append(make("option", { value: tag, lang: tag }, name));
languageSelect.addEventListener("change", () => {
  chooseLanguage(languageSelect.value);
  speak();
});

function speak() {
  document.documentElement.lang = language();
  languageSelect.value = language();
  silence(byId("live"));
  for (const root of [document, later, strictnessField]) translate(root);
  if (view) {
    drawTasks();
    view.translate();
    drawLearn();
  }
}

// pasting goes to where one was last; typing fields keep theirs
for (const event of ["pointerdown", "focusin"]) document.addEventListener(event, ({ target }) => (place = target));
document.addEventListener("paste", (event) => {
  if (!view) return;
  const files = [...event.clipboardData.files].filter(({ type }) => type.startsWith("image/"));
  const typing = event.target.closest?.("input, textarea");
  if (files.length && view.paste) {
    event.preventDefault();
    view.paste(files);
  } else if (!typing && view.pasteText?.(event.clipboardData.getData("text/plain"))) event.preventDefault();
});
// a file that misses its place would be opened instead of the page
for (const event of ["dragover", "drop"]) window.addEventListener(event, (dragged) => dragged.preventDefault());

window.addEventListener("beforeunload", (event) => {
  if (unlearned()) event.preventDefault();
});

speak();
start();
