// Images: read, turned upright and made small in the browser, from files, the clipboard or a webcam.

import { icon, make } from "./elements.js";
import { tell } from "./service.js";

/** The longest side of what is sent. Networks look at far less; where a picture was taken is not sent at all. */
const SIDE = 512;
/** Of at most so many pixels, an image is sent without loss. */
const SMALL = 256 * 256;

/** Return an image file as a small upright one, PNG or JPEG; null where this browser cannot read it. */
export async function scaled(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    return await drawn(image, image.naturalWidth || SIDE, image.naturalHeight || SIDE);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Return what an image or a video shows as a small file. The browser turns it as its EXIF data say. */
export async function drawn(source, width, height) {
  const factor = Math.min(1, SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * factor));
  canvas.height = Math.max(1, Math.round(height * factor));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let clear = false;
  for (let place = 3; place < pixels.length && !clear; place += 4) clear = pixels[place] < 255;
  const type = clear || canvas.width * canvas.height <= SMALL ? "image/png" : "image/jpeg";
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no image"))), type, 0.92);
  });
}

/** Return a file's bytes as base64. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Return the images among files as small ones, and tell of those that are none. */
export async function readImages(files, place) {
  const found = [];
  const failed = [];
  for (const file of files) {
    const blob = await scaled(file);
    if (blob) found.push({ blob, name: file.name ?? "" });
    else failed.push(file.name);
  }
  const shown = failed.slice(0, 5).join(", ") + (failed.length > 5 ? ", …" : "");
  tell(place, failed.length ? { key: "not_images", values: { names: shown } } : null);
  return found;
}

/** Return the folders that were dropped, as [name, files] each; none where only files were. */
export async function folders(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  const inside = async (folder) => {
    const reader = folder.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      found.push(...some.filter((entry) => entry.isFile && !entry.name.startsWith(".")));
    }
    return Promise.all(found.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
  };
  return Promise.all(entries.map(async (folder) => [folder.name, await inside(folder)]));
}

let stopOther = () => {};

/** Return a button that opens a webcam, and the place where it opens; `shoot(blob)` is given each picture.
 *
 * With `live`, pictures are taken all the time, each when `shoot` is done with the one before.
 */
export function webcam({ label, shoot, live = false, say = "webcam" }) {
  const panel = make("div", { class: "webcam", hidden: true });
  const error = make("div", { class: "error", role: "alert" });
  const button = make("button", { label, "aria-expanded": "false" }, icon("camera"), make("span", { say }));
  let stream = null;

  const stop = () => {
    for (const track of stream?.getTracks() ?? []) track.stop();
    const focused = panel.contains(document.activeElement);
    stream = null;
    panel.hidden = true;
    panel.replaceChildren();
    button.setAttribute("aria-expanded", "false");
    if (focused) button.focus();
  };

  button.addEventListener("click", async () => {
    if (stream) return stop();
    stopOther();
    if (!navigator.mediaDevices) return tell(error, { key: "webcam_insecure" });
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
    } catch (reason) {
      return tell(error, { key: "webcam_denied", values: { reason: reason.name } });
    }
    tell(error, null);
    stopOther = stop;
    const own = stream;
    const video = make("video", { autoplay: true, playsinline: true, label: "webcam_here" });
    video.muted = true;
    video.srcObject = stream;
    const picture = async () => {
      if (stream === own && video.videoWidth) await shoot(await drawn(video, video.videoWidth, video.videoHeight));
    };
    const end = make("button", { say: "webcam_stop", onclick: stop });
    panel.replaceChildren(video);
    if (live) panel.append(end);
    else panel.append(takeButton(picture), end);
    panel.hidden = false;
    button.setAttribute("aria-expanded", "true");
    panel.querySelector("button").focus();
    while (live && stream === own) {
      if (!document.hidden) await picture();
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
  });
  return { button, panel, error, stop };
}

/** Return the button that takes a picture, and one after another as long as it is held. */
function takeButton(picture) {
  let held = null;
  const release = () => {
    clearInterval(held);
    held = null;
  };
  const take = make("button", { class: "primary", say: "webcam_take" });
  take.addEventListener("pointerdown", () => {
    release();
    picture();
    held = setInterval(picture, 250);
  });
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) take.addEventListener(end, release);
  // by the keyboard or a screen reader, which press no pointer
  take.addEventListener("click", (event) => {
    if (event.detail === 0) picture();
  });
  return take;
}
