// The classes with their examples: names, counts, adding and removing, and taking that back.

import { announce, icon, id, make } from "./elements.js";
import { KEPT, obstacle } from "./plan.js";
import { say, translate, word } from "./texts.js";

/** Return a bar that says what was removed, and brings it back. */
export function undoBar() {
  const said = make("span");
  const button = make("button", { class: "quiet", say: "undo" });
  const bar = make("div", { class: "undo", hidden: true }, said, button);
  let back = () => {};
  button.addEventListener("click", () => {
    bar.hidden = true;
    back();
    announce("undone");
  });
  return {
    bar,
    button,
    offer(key, values, undo) {
      word(said, key, values);
      announce(key, values);
      back = undo;
      bar.hidden = false;
    },
    rest() {
      bar.hidden = true;
    },
  };
}

/** Return the list of classes.
 *
 * @param host `changed()` is called after every change, `run()` gives what the service says of the run
 * @param makeBody makes what a class's examples stand in: of `card` (`name()`, `changed()`, `undo`) returns
 *   `{ element, examples(): [{ key, body }], clear(), focus() }`
 */
export function classList(host, makeBody) {
  const list = make("ul", { class: "classes" });
  const undo = undoBar();
  const add = make("button", { class: "add", onclick: () => addCard().nameInput.select() }, icon("plus"));
  add.append(make("span", { say: "class_add" }));
  let cards = [];
  let made = 0;

  function addCard(name = null, place = cards.length) {
    const number = ++made;
    const card = { key: id("class"), kept: 0 };
    card.nameInput = make("input", {
      class: "name",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: "200",
      dir: "auto",
      label: ["class_name", { number }],
    });
    card.nameInput.value = name ?? say("class_new", { number });
    // a name that nobody gave changes with the language
    card.given = name !== null;
    card.number = number;
    card.nameInput.addEventListener("input", () => {
      card.given = true;
      changed();
    });
    card.name = () => card.nameInput.value.trim();
    card.changed = changed;
    card.undo = undo;
    card.count = make("span", { class: "count" });
    card.body = makeBody(card);
    const remove = make("button", { class: "quiet icon-only", onclick: () => removeCard(card) }, icon("cross"));
    card.relabel = () => {
      word(remove, "class_remove", { name: card.name() }, "label");
      const count = card.body.examples().length;
      const parts = [];
      if (card.kept) parts.push(say("count_kept", { count: card.kept }));
      if (count || !card.kept) parts.push(say(count === 1 ? "count_one" : "count_many", { count }));
      card.count.textContent = parts.join(" + ");
      card.nameInput.readOnly = card.kept > 0;
      card.body.relabel?.();
    };
    card.element = make(
      "li",
      { class: "card" },
      make("div", { class: "head" }, card.nameInput, card.count, remove),
      card.body.element,
    );
    put(card, place);
    return card;
  }

  function put(card, place) {
    cards.splice(place, 0, card);
    list.insertBefore(card.element, list.children[place] ?? null);
    changed();
    return card;
  }

  function removeCard(card) {
    const place = cards.indexOf(card);
    card.body.stop?.();
    cards = cards.filter((one) => one !== card);
    card.element.remove();
    changed();
    undo.offer("class_removed", { name: card.name() }, () => put(card, place).nameInput.focus());
    undo.button.focus();
  }

  function changed() {
    for (const card of cards) card.relabel();
    host.changed();
  }

  /** Return the class of a name, a new one where there is none; an untouched, empty one is taken first. */
  function named(name) {
    const found = cards.find((card) => card.name() === name);
    if (found) return found;
    const free = cards.find((card) => !card.given && !card.kept && !card.body.examples().length);
    if (!free) return addCard(name);
    free.nameInput.value = name;
    free.given = true;
    return free;
  }

  function clear() {
    for (const card of cards) {
      card.body.stop?.();
      card.element.remove();
    }
    cards = [];
    made = 0;
    undo.rest();
    addCard();
    addCard();
  }

  const element = make("div", {}, list, undo.bar, add);
  clear();
  return {
    element,
    add,
    named,
    cards: () => cards,
    clear,
    shown: () =>
      cards.flatMap((card) => {
        const label = card.name();
        const kept = card.kept ? [{ key: KEPT + card.key, label, body: null }] : [];
        return [...kept, ...card.body.examples().map(({ key, body }) => ({ key, label, body: { label, ...body } }))];
      }),
    obstacle: () =>
      obstacle(
        cards.map((card) => ({ name: card.name(), count: card.kept + card.body.examples().length })),
        host.run().ways ?? [2, null],
      ),
    /** Show a task that the service has: its classes, whose examples are not here. */
    open(task) {
      clear();
      for (const card of cards) card.element.remove();
      cards = [];
      task.labels.forEach((label, place) => {
        addCard(label).kept = task.counts[place];
      });
      changed();
    },
    /** Examples that were sent to a task that was opened again are with the service now. */
    settle(task) {
      for (const card of cards) {
        const place = task.labels.indexOf(card.name());
        if (place < 0) continue;
        card.kept = task.counts[place];
        card.body.clear();
      }
      changed();
    },
    translate() {
      for (const card of cards) {
        if (!card.given) card.nameInput.value = say("class_new", { number: card.number });
        card.relabel();
      }
      translate(element);
    },
  };
}
