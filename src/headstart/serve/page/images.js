// Images: their classes, and what is tried.

import { shownAnswer, spoken } from "./answers.js";
import { classList } from "./classes.js";
import { announce, dropButton, icon, id, make, takesDrops } from "./elements.js";
import { base64, folders, readImages, webcam } from "./pictures.js";
import { tell } from "./service.js";
import { word } from "./texts.js";

/** As many answers as are kept on the page beside those to what was tried last. */
const TRIED = 12;

export function images(host) {
  const list = classList(host, (card) => imagesOfClass(card));
  const folderNote = make("p", { class: "note", say: "classes_from_folders" });
  const folderError = make("div", { class: "error", role: "alert" });
  const examples = make("div", {}, list.element, folderNote, folderError);
  takesDrops(examples, async (transfer) => {
    for (const [name, files] of await folders(transfer)) {
      await list.named(name).body.take(files);
    }
  });

  // what is tried
  let tried = [];
  const error = make("div", { class: "error", role: "alert" });
  const results = make("ul", { class: "tried" });
  const [drop, input] = dropButton({
    say: "try_images",
    label: null,
    accept: "image/*",
    take: (files) => tryFiles(files),
  });
  const live = make("div", { class: "live", hidden: true });
  const camera = webcam({
    label: null,
    say: "try_live",
    live: true,
    shoot: async (blob) => {
      try {
        const [answer] = await ask([blob]);
        live.hidden = false;
        live.replaceChildren(shownAnswer(answer));
        tell(error, null);
      } catch (reason) {
        tell(error, reason);
        camera.stop();
      }
    },
  });
  camera.button.addEventListener("click", () => (live.hidden = true));
  const clearButton = make("button", {
    class: "quiet",
    say: "answers_clear",
    hidden: true,
    onclick: () => clearTried(),
  });
  const trial = make(
    "div",
    { class: "trial" },
    drop,
    input,
    camera.button,
    camera.panel,
    live,
    camera.error,
    error,
    results,
    clearButton,
  );
  takesDrops(trial, (transfer) => tryFiles([...transfer.files]));

  async function ask(blobs) {
    const inputs = await Promise.all(blobs.map(async (blob) => ({ image: await base64(blob) })));
    return host.predict(inputs);
  }

  async function tryFiles(files) {
    const found = await readImages(files, error);
    if (!found.length) return;
    const added = found.map(({ blob, name }) => {
      const answer = make("div", {}, make("p", { class: "note", say: "answering" }));
      const url = URL.createObjectURL(blob);
      const element = make("li", {}, make("img", { src: url, alt: name }), answer);
      return { blob, url, element, answer };
    });
    for (const one of added.toReversed()) results.prepend(one.element);
    tried = [...added, ...tried];
    for (const old of tried.splice(Math.max(TRIED, added.length))) dropTried(old);
    clearButton.hidden = false;
    await answerTried(added, true);
  }

  async function answerTried(some, aloud) {
    try {
      const answers = await ask(some.map(({ blob }) => blob));
      answers.forEach((answer, place) => some[place].answer.replaceChildren(shownAnswer(answer)));
      tell(error, null);
      if (aloud) announce(...spoken(answers[0]));
    } catch (reason) {
      // what has no answer yet is taken away by nobody: it is asked again
      tell(error, reason, () => answerTried(some, true));
    }
  }

  function dropTried({ element, url }) {
    element.remove();
    URL.revokeObjectURL(url);
  }

  function clearTried() {
    tried.forEach(dropTried);
    tried = [];
    clearButton.hidden = true;
    tell(error, null);
    drop.focus();
  }

  return {
    examples,
    trial,
    shown: list.shown,
    obstacle: list.obstacle,
    body: async ({ body: { label, blob } }) => ({ label, image: await base64(blob) }),
    open: list.open,
    settle: list.settle,
    clear() {
      list.clear();
      camera.stop();
      if (tried.length) clearTried();
    },
    learned: () => tried.length && answerTried(tried, false),
    translate: list.translate,
    paste(files) {
      if (trial.contains(host.place())) return tryFiles(files);
      const card = list.cards().find((one) => one.element.contains(host.place())) ?? list.cards()[0] ?? list.named("");
      return card.body.take(files);
    },
  };
}

/** The images of one class. */
function imagesOfClass(card) {
  let own = [];
  const grid = make("ul", { class: "thumbs" });
  const error = make("div", { class: "error", role: "alert" });
  const [drop, input] = dropButton({
    say: "images_add",
    label: ["images_add_to", { name: "" }],
    accept: "image/*",
    take: (files) => take(files),
  });
  const camera = webcam({ label: ["webcam_for", { name: "" }], shoot: (blob) => put([{ blob, name: "" }]) });
  const element = make(
    "div",
    {},
    grid,
    make("div", { class: "actions" }, drop, input, camera.button),
    camera.panel,
    camera.error,
    error,
  );
  takesDrops(element, async (transfer) => {
    // a folder dropped on a class is more of that class
    const inside = (await folders(transfer)).flatMap(([, files]) => files);
    take(inside.length ? inside : [...transfer.files]);
  });

  async function take(files) {
    put(await readImages(files, error));
  }

  function put(found) {
    if (!found.length) return;
    for (const { blob, name } of found) {
      const one = { key: id("image"), blob, url: URL.createObjectURL(blob) };
      one.button = make("button", { class: "thumb", tabindex: "-1", title: name || null });
      one.button.append(make("img", { src: one.url, alt: "" }), icon("cross"));
      one.button.addEventListener("click", () => remove(one));
      one.element = make("li", {}, one.button);
      own.push(one);
      grid.append(one.element);
    }
    grid.scrollTop = grid.scrollHeight;
    announce("added", { name: card.name(), count: found.length });
    card.changed();
  }

  function remove(one) {
    const place = own.indexOf(one);
    own = own.filter((other) => other !== one);
    one.element.remove();
    card.changed();
    (own[place] ?? own[place - 1])?.button.focus() ?? drop.focus();
    if (!own.length) drop.focus();
    card.undo.offer("example_removed", { name: card.name() }, () => {
      own.splice(place, 0, one);
      grid.insertBefore(one.element, grid.children[place] ?? null);
      card.changed();
      one.button.focus();
    });
  }

  // one stop of the Tab key for all of them; arrows go from one to the next
  grid.addEventListener("keydown", (event) => {
    const place = own.findIndex(({ button }) => button === document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Delete" && place >= 0) remove(own[place]);
    else if (step) own[place + step]?.button.focus();
    else return;
    event.preventDefault();
  });
  grid.addEventListener("focusin", (event) => {
    for (const { button } of own) button.tabIndex = button === event.target ? 0 : -1;
  });

  return {
    element,
    take,
    examples: () => own.map(({ key, blob }) => ({ key, body: { blob } })),
    clear() {
      for (const one of own) {
        one.element.remove();
        URL.revokeObjectURL(one.url);
      }
      own = [];
    },
    stop: camera.stop,
    relabel() {
      const name = card.name();
      word(drop, "images_add_to", { name }, "label");
      word(camera.button, "webcam_for", { name }, "label");
      own.forEach(({ button }, place) => word(button, "example_remove", { number: place + 1, name }, "label"));
      if (own.length && !own.some(({ button }) => button.tabIndex === 0)) own[0].button.tabIndex = 0;
    },
  };
}
