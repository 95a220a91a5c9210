// What has to be asked of the service so that it has learned what is shown. Pure functions over values.
//
// What is shown is a list of examples `{ key, label, body }`: the key tells one from another and changes with it, the
// label is null where numbers are predicted, the body is what is sent. What was learned is `{ task, sent }`, with `sent`
// a Map from key to label. Examples that only the service has, of a task that was opened again, have keys of KEPT.

export const KEPT = "kept:";

/** Return what there is to do, as `{ add, drop, anew, changes }`, or `stuck: true` where that cannot be done.
 *
 * `add`: examples to send. `drop`: labels to remove. `anew`: whether the task is learned again as a new one, since
 * single examples cannot be taken back from a task. `changes`: how many examples differ from what was learned.
 */
export function plan(shown, learned) {
  if (!learned) return { add: shown, drop: [], anew: true, changes: shown.length };
  const now = new Map(shown.map(({ key, label }) => [key, label]));
  const add = shown.filter(({ key }) => !learned.sent.has(key));
  const gone = [...learned.sent].filter(([key, label]) => !now.has(key) || now.get(key) !== label);
  const changes = add.length + gone.length;
  const left = new Set(now.values());
  const whole = gone.every(([key, label]) => !now.has(key) && !left.has(label) && label !== null);
  if (whole) return { add, drop: [...new Set(gone.map(([, label]) => label))], anew: false, changes };
  if ([...learned.sent.keys()].some((key) => key.startsWith(KEPT)))
    return { add, drop: [], anew: false, changes, stuck: true };
  return { add: shown, drop: [], anew: true, changes };
}

/** Return examples so that each class comes early: one of each, then the next of each. */
export function dealt(shown) {
  const turns = new Map();
  const ordered = shown.map((example, place) => {
    const turn = turns.get(example.label) ?? 0;
    turns.set(example.label, turn + 1);
    return { example, turn, place };
  });
  return ordered.sort((one, other) => one.turn - other.turn || one.place - other.place).map(({ example }) => example);
}

/** Return why classes cannot be learned, as [key, values] of texts.js, or null where they can. */
export function obstacle(classes, [least, most]) {
  const filled = classes.filter(({ count }) => count > 0);
  if (filled.some(({ name }) => !name)) return ["learn_no_name", {}];
  const names = filled.map(({ name }) => name);
  const twice = names.find((name, place) => names.indexOf(name) !== place);
  if (twice !== undefined) return ["learn_same_name", { name: twice }];
  if (least === most && filled.length !== most) return ["learn_exactly", { most, count: filled.length }];
  if (filled.length < least) return ["learn_needs_two", { least }];
  if (most && filled.length > most) return ["learn_too_many", { most, count: filled.length }];
  return null;
}
