// The page of mpn studio: state, panels, navigation and runs.

import * as api from "./api.js";
import { drawingInput } from "./drawing.js";
import { FrameMask } from "./mask.js";
import { countPixels } from "./raster.js";
import { pngOf } from "./png.js";
import { fillHelp, handleKeys } from "./keys.js";
import { Timeline, reliabilityOf } from "./timeline.js";
import { View } from "./view.js";

const MOST_BITMAP_BYTES = 128 << 20;
const DETAIL_AFTER_MS = 150; // a finer picture is fetched when zooming and seeking have paused
const REFRESH_MS = 300; // at most so often is the timeline changed by a run
const REVOKE_AFTER_MS = 60_000; // a download has begun by then
const MOST_OBJECTS = 32; // as in a mask that mpn-run takes
const $ = (id) => document.getElementById(id);

const state = {
  video: null,
  palette: [],
  mask: null, // FrameMask of the shown frame: its index, ids and revision; all edits are of this frame
  get index() {
    return this.mask?.index ?? wanted;
  },
  tool: "brush",
  size: 24,
  selected: 1,
  added: new Set(),
  names: {},
  directions: {},
  drawn: {},
  pending: [],
  run: { state: "idle" },
  tracks: [], // by frame: Map of object id -> track
  isPlaying: false,
};
let wanted = 0; // frame that is being loaded, or the shown one; navigation goes on from here
let view;
let timeline;

// Start

async function start() {
  if (!api.takeToken()) return showBlank();
  let initial;
  try {
    initial = await api.getJson("state");
  } catch (error) {
    return showBlank(error.message);
  }
  const { video, palette, out } = initial;
  Object.assign(state, { video, palette });
  $("app").hidden = false;
  $("title").textContent = video.name;
  $("facts").textContent = `${video.width} × ${video.height}, ${video.frames} frames`;
  document.title = `${video.name} – mpn studio`;
  $("results-out").textContent = out;
  $("frame-number").max = video.frames - 1;
  $("frame-last").textContent = `of ${video.frames - 1}`;
  state.size = Math.max(3, Math.round(Math.min(video.width, video.height) / 20));

  view = new View($("canvas"), video.width, video.height, palette);
  view.onZoom = (zoom) => {
    $("zoom-text").textContent = `${Math.round(zoom * 100)} %`;
    wantDetail();
  };
  timeline = new Timeline($("timeline"), video.frames, palette, (index) => seekByUser(index));
  timeline.describe = describeFrame;
  takeEdits(initial);
  showRun(initial.run);
  isFollowing = isRunning() && $("follow").checked;
  wire();
  setTool("brush");
  setSize(state.size);
  await loadTracks();
  await seek(video.first);
  api.followEvents(onEvent, onLost);
  document.body.dataset.ready = "true";
}

function showBlank(text) {
  if (text) $("blank-text").textContent = text;
  $("blank").hidden = false;
  $("app").hidden = true;
}

// Frames

const bitmaps = new Map(); // "index/level" -> ImageBitmap, least recently used first
let seekNumber = 0;
let detailTimer = 0;
let shownLevel = -1;

function neededLevel() {
  const { sides, width, height } = state.video;
  const needed = Math.max(width, height) * view.scale;
  const level = sides.findIndex((side) => side !== null && side >= Math.min(needed, Math.max(width, height)));
  return level === -1 ? sides.length - 1 : level;
}

async function bitmapOf(index, level, signal) {
  const key = `${index}/${level}`;
  let bitmap = bitmaps.get(key);
  if (bitmap) bitmaps.delete(key);
  else bitmap = await api.getFrame(index, level, signal);
  bitmaps.set(key, bitmap);
  let bytes = 0;
  for (const each of bitmaps.values()) bytes += 4 * each.width * each.height;
  for (const [oldest, each] of bitmaps) {
    if (bytes <= MOST_BITMAP_BYTES || each === bitmap || each === view.bitmap) break;
    bytes -= 4 * each.width * each.height;
    bitmaps.delete(oldest);
    each.close();
  }
  return bitmap;
}

let loading = null; // AbortController of the frame being loaded

/** Show a frame. The latest call wins; an earlier one that is not finished is dropped. */
async function seek(index) {
  index = Math.max(0, Math.min(state.video.frames - 1, index));
  const number = ++seekNumber;
  finishDrawing();
  void state.mask?.save();
  wanted = index;
  timeline.setIndex(index);
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  try {
    const level = Math.min(neededLevel(), 1);
    const [bitmap, mask] = await Promise.all([bitmapOf(index, level, signal), loadMask(index, signal)]);
    if (number !== seekNumber) return;
    finishDrawing(); // of the frame that was shown until now
    shownLevel = level;
    view.setFrame(bitmap);
    showMask(unsaved.get(index) ?? mask);
    $("frame-number").value = index;
    timeline.setIndex(index);
    wantDetail();
  } catch (error) {
    if (error.name === "AbortError" || number !== seekNumber) return;
    wanted = state.index;
    $("frame-number").value = wanted;
    timeline.setIndex(wanted);
    stopPlaying();
    showError(error);
  }
}

function seekByUser(index) {
  if (isRunning()) $("follow").checked = false;
  isFollowing = false;
  stopPlaying();
  return seek(index);
}

function wantDetail() {
  clearTimeout(detailTimer);
  detailTimer = setTimeout(async () => {
    const level = neededLevel();
    const { index } = state;
    if (level <= shownLevel || state.isPlaying) return;
    try {
      const bitmap = await bitmapOf(index, level, loading?.signal);
      if (index !== state.index) return;
      shownLevel = level;
      view.setFrame(bitmap);
    } catch (error) {
      if (error.name !== "AbortError") showError(error);
    }
  }, DETAIL_AFTER_MS);
}

async function play() {
  if (state.isPlaying) return stopPlaying();
  state.isPlaying = true;
  $("play").setAttribute("aria-pressed", "true");
  if (wanted === state.video.frames - 1) await seek(0);
  while (state.isPlaying && wanted < state.video.frames - 1) {
    await seek(wanted + 1);
    await new Promise(requestAnimationFrame);
  }
  stopPlaying();
}

function stopPlaying() {
  state.isPlaying = false;
  $("play").setAttribute("aria-pressed", "false");
}

// Masks

const unsaved = new Map(); // index -> FrameMask that is not saved yet: a frame may be left before
const listeners = {
  onChange: (rect) => {
    view.repaint(rect);
    updateUndo();
  },
  onSaveState: (text, mask) => {
    $("saved").textContent = text;
    if (mask.isDirty) unsaved.set(mask.index, mask);
  },
  onSaved: (mask) => {
    if (!mask.isDirty) unsaved.delete(mask.index);
    void loadEdits();
    if (mask === state.mask) showFrameState();
  },
  onConflict: (mask) => showConflict(mask),
  onSaveError: (error) => {
    const again = error.status === 401 ? "" : ", trying again";
    showNotice(`The drawing is not saved${again}: ${error.message}`, rescueButtons());
  },
};
const kept = new Map(); // index -> FrameMask with its undo steps
const MOST_KEPT_BYTES = 64 << 20;

async function loadMask(index, signal) {
  if (unsaved.has(index)) return unsaved.get(index);
  const before = kept.get(index);
  const etag = before?.etag;
  const loaded = await api.getMask(index, signal);
  if (before && (before.isBusy || before.etag !== etag)) return before; // drawn in the meantime
  if (before && before.etag === loaded.etag && loaded.source === "drawn") return before;
  const { width, height } = state.video;
  return new FrameMask(index, width, height, loaded, listeners);
}

function showMask(mask) {
  state.mask = mask;
  kept.delete(mask.index);
  kept.set(mask.index, mask);
  const most = Math.max(1, Math.floor(MOST_KEPT_BYTES / mask.labels.length));
  for (const index of kept.keys()) {
    if (kept.size <= most) break;
    kept.delete(index);
  }
  view.setMask(mask);
  $("canvas").dataset.frame = mask.index;
  updateUndo();
  showFrameState();
  showObjects();
}

/** Load the shown frame's mask again, unless it is being drawn. */
async function reloadMask() {
  const { mask } = state;
  if (!mask || mask.isBusy) return;
  const { etag } = mask;
  try {
    const again = await loadMask(mask.index);
    if (state.mask === mask && !mask.isBusy && mask.etag === etag) showMask(again);
  } catch (error) {
    showError(error);
  }
}

function showConflict(mask) {
  showNotice(`Frame ${mask.index} was changed in another page. Your drawing of it is not saved.`, [
    ["Load the other drawing", () => {
      mask.isDirty = false;
      mask.hasConflict = false;
      unsaved.delete(mask.index);
      kept.delete(mask.index);
      if (wanted === mask.index) void seek(mask.index);
    }],
    ["Keep mine", () => mask.save({ overwrite: true })],
  ]);
}

/** Buttons that keep drawings of a page whose server does not come back. */
function rescueButtons() {
  if (!unsaved.size) return [];
  return [["Save drawing as a file", () => {
    for (const mask of unsaved.values()) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(pngOf(mask, state.palette));
      link.download = `${String(mask.index).padStart(5, "0")}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_AFTER_MS);
    }
    showNotice("The drawing is in your downloads. Copy it to corrections/ of the output folder before you start mpn studio.");
  }]];
}

async function discardDrawing() {
  const { mask } = state;
  try {
    await mask.discard();
    unsaved.delete(mask.index);
    kept.delete(mask.index);
    $("saved").textContent = "Drawing discarded";
    await loadEdits();
    if (wanted === mask.index) await seek(mask.index);
  } catch (error) {
    if (error.status === 412) showConflict(mask);
    else showError(error);
  }
}

async function copyBefore() {
  const { mask } = state;
  if (!mask || mask.index === 0) return;
  const { index } = mask;
  finishDrawing();
  try {
    const before = unsaved.get(index - 1) ?? (await api.getMask(index - 1));
    if (state.mask !== mask) return;
    if (before.labels) mask.replace(before.labels);
    else $("saved").textContent = `Frame ${index - 1} has no mask`;
  } catch (error) {
    showError(error);
  }
}

// Edits: names, directions, the list of drawn masks

function takeEdits({ names, directions, drawn, pending }) {
  Object.assign(state, { names, directions, drawn, pending });
  timeline.set({ drawn: new Set(Object.keys(drawn).map(Number)), pending: new Set(pending) });
  showObjects();
  showFrameState();
  showRunButton();
}

async function loadEdits() {
  try {
    takeEdits(await api.getJson("edits"));
  } catch (error) {
    showError(error);
  }
}

// Objects

function objectIds() {
  const ids = new Set([1, state.selected, ...state.added]);
  for (const id of Object.keys(state.names)) ids.add(Number(id));
  for (const id of state.trackedIds ?? []) ids.add(id);
  if (state.mask) countPixels(state.mask.labels).forEach((count, id) => count && id && ids.add(id));
  return [...ids].sort((a, b) => a - b);
}

function nameOf(id) {
  return state.names[id] ?? `object ${id}`;
}

function colourOf(id) {
  const [r, g, b] = state.palette[id];
  return `rgb(${r} ${g} ${b})`;
}

function swatch(id) {
  const element = document.createElement("span");
  element.className = "swatch";
  element.style.background = colourOf(id);
  return element;
}

function showObjects() {
  if (!state.video) return;
  const ids = objectIds();
  const list = $("objects");
  const shown = [...list.children].map((item) => Number(item.dataset.id));
  if (shown.join() !== ids.join()) list.replaceChildren(...ids.map(objectItem));
  for (const item of list.children) {
    const id = Number(item.dataset.id);
    const isSelected = id === state.selected;
    item.classList.toggle("is-selected", isSelected);
    item.querySelector(".choose").setAttribute("aria-pressed", String(isSelected));
    const input = item.querySelector("input");
    if (document.activeElement !== input) input.value = state.names[id] ?? "";
    const isHidden = view.hidden.has(id);
    const eye = item.querySelector(".eye");
    eye.setAttribute("aria-pressed", String(isHidden));
    eye.textContent = isHidden ? "Show" : "Hide";
    eye.setAttribute("aria-label", `Hide ${nameOf(id)}`);
  }
  const objects = ids.filter((id) => state.trackedIds?.has(id)).map((id) => ({ id }));
  timeline.set({ objects });
  $("rows").replaceChildren(
    ...objects.map(({ id }) => {
      const row = document.createElement("div");
      row.append(swatch(id), nameOf(id));
      return row;
    }),
  );
}

function objectItem(id) {
  const item = document.createElement("li");
  item.dataset.id = id;
  const choose = document.createElement("button");
  choose.type = "button";
  choose.className = "choose";
  choose.setAttribute("aria-label", `Draw object ${id}`);
  choose.append(swatch(id), String(id));
  choose.addEventListener("click", () => select(id));
  const input = document.createElement("input");
  input.type = "text";
  input.maxLength = 60;
  input.placeholder = `object ${id}`;
  input.setAttribute("aria-label", `Name of object ${id}`);
  input.addEventListener("focus", () => select(id));
  input.addEventListener("change", async () => {
    try {
      takeEdits(await api.sendJson("PUT", `names/${id}`, { name: input.value }));
    } catch (error) {
      showError(error);
    }
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") $("canvas").focus();
  });
  const eye = document.createElement("button");
  eye.type = "button";
  eye.className = "eye";
  eye.addEventListener("click", () => {
    const hidden = new Set(view.hidden);
    if (!hidden.delete(id)) hidden.add(id);
    view.setLook({ hidden });
    showObjects();
  });
  item.append(choose, input, eye);
  return item;
}

function select(id) {
  if (state.selected === id) return;
  finishDrawing();
  state.selected = id;
  showObjects();
}

function addObject() {
  const ids = objectIds();
  let id = 1;
  while (ids.includes(id)) id++;
  if (ids.length >= MOST_OBJECTS) return showNotice(`A mask has at most ${MOST_OBJECTS} objects.`);
  state.added.add(id);
  select(id);
}

// The shown frame

function describeFrame(index) {
  const marks = [];
  if (index in state.drawn) marks.push(state.pending.includes(index) ? "drawn, not run yet" : "drawn");
  if (timeline.worth.has(index)) marks.push("worth a look");
  const tracks = [...(state.tracks[index]?.values() ?? [])].map(
    (track) => `${nameOf(track.object_id)} ${track.state === "lost" ? "lost" : `reliability ${reliabilityOf(track).toFixed(2)}`}`,
  );
  return [`frame ${index} of ${state.video.frames - 1}`, ...marks, ...tracks].join(", ");
}

function showFrameState() {
  const { index, mask } = state;
  if (!mask) return;
  $("frame-title").textContent = `Frame ${index}`;
  const isDrawn = index in state.drawn || mask.source === "drawn";
  const isPending = mask.source === "drawn";
  const isEmpty = isPending && !mask.labels.some((id) => id);
  const states = {
    drawn: isEmpty
      ? "Everything is erased, which counts as no drawing. Discard it to show the result, if there is one."
      : "Drawn by you, not in the results yet. Run to use it.",
    result: isDrawn ? "Drawn by you, and in the results." : "Result of the run.",
    none: "No mask yet. Draw an object here, or run from another frame.",
  };
  const tracks = [...(state.tracks[index]?.values() ?? [])];
  const facts = isPending
    ? []
    : tracks.map((track) =>
        track.state === "lost"
          ? `${nameOf(track.object_id)}: lost.`
          : `${nameOf(track.object_id)}: reliability ${reliabilityOf(track).toFixed(2)}, ${track.area_px} px.`,
      );
  const missing = isPending && !isEmpty ? missingObjects() : "";
  $("frame-state").textContent = [states[mask.source], ...facts, missing].filter(Boolean).join("\n");
  $("direction").disabled = !isDrawn;
  const direction = state.directions[index] ?? "both";
  for (const input of $("direction").querySelectorAll("input")) input.checked = input.value === direction;
  $("discard").disabled = !isDrawn;
  $("copy-before").disabled = index === 0;
  showRunButton();
}

/** A run keeps its own result of an object that a mask does not hold: no mask can end an object. */
function missingObjects() {
  const counts = countPixels(state.mask.labels);
  const missing = [...(state.tracks[state.index]?.values() ?? [])].filter(
    (track) => track.area_px && !counts[track.object_id],
  );
  if (!missing.length) return "";
  return `The drawing has no ${missing.map((track) => nameOf(track.object_id)).join(", ")}: a run keeps its own result there.`;
}

async function setDirection(direction) {
  const { mask } = state;
  await mask.save();
  try {
    takeEdits(await api.sendJson("PUT", `directions/${mask.index}`, { direction }));
  } catch (error) {
    showError(error);
  }
}

// Tracks and frames worth a look

let tracksTimer = 0;

function addTracks(frames) {
  for (const { frame, objects } of frames) {
    state.tracks[frame] = new Map(objects.map((track) => [track.object_id, track]));
  }
  const ids = new Set();
  for (const objects of state.tracks) for (const id of objects?.keys() ?? []) ids.add(id);
  const isNew = ids.size !== state.trackedIds?.size;
  state.trackedIds = ids;
  timeline.set({ tracks: state.tracks });
  if (isNew) showObjects();
}

async function loadTracks() {
  const { frames, worth } = await api.getJson("tracks");
  state.tracks = new Array(state.video.frames);
  addTracks(frames);
  timeline.set({ worth: new Set(worth.map(({ frame }) => frame)) });
  $("worth-none").hidden = worth.length > 0;
  $("worth").replaceChildren(
    ...worth.map(({ frame, object_id, is_lost, reliability }) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      const number = document.createElement("strong");
      number.textContent = `Frame ${frame}`;
      const reason = is_lost ? "lost" : `reliability ${reliability.toFixed(2)}`;
      button.append(number, `${nameOf(object_id)}: ${reason}`);
      button.addEventListener("click", () => seekByUser(frame));
      item.append(button);
      return item;
    }),
  );
  showFrameState();
}

let waiting = []; // tracks of a run that are not shown yet
let isFollowing = false; // no other frame was chosen since the start of the run

function showRunFrames(frames) {
  waiting.push(...frames);
  if (tracksTimer) return;
  tracksTimer = setTimeout(() => {
    tracksTimer = 0;
    const shown = waiting;
    waiting = [];
    addTracks(shown);
    const indices = shown.map(({ frame }) => frame);
    for (const index of indices) if (!unsaved.has(index)) kept.delete(index);
    if (isFollowing && !state.isPlaying) void seek(indices.at(-1));
    else if (indices.includes(state.index)) void reloadMask();
  }, REFRESH_MS);
}

// Runs

const isRunning = () => ["running", "stopping"].includes(state.run.state);

function showRun(run) {
  const before = state.run;
  state.run = run;
  const { done, expected, message, backward, kept } = run;
  const texts = {
    idle: "",
    running: backward
      ? `Backwards from frame ${backward.source}: ${backward.done} of ${backward.count} frames`
      : done ? `${done}${expected ? ` of ${expected}` : ""} frames` : "Starting …",
    stopping: "Stopping …",
    complete: `Finished: ${done} frames`,
    stopped: `Cancelled: ${kept} of ${state.video.frames} frames have results`,
    failed: "The run failed",
  };
  $("run-text").textContent = texts[run.state] ?? "";
  const progress = $("run-progress");
  progress.hidden = !isRunning();
  if (backward) progress.value = backward.done / backward.count;
  else if (done && expected) progress.value = done / expected;
  else progress.removeAttribute("value");
  if (run.state === "failed" && before.state !== "failed") {
    const isOther = message.startsWith("cannot resume"); // other options or engines than before
    showNotice(message, isOther ? [["Run again from the start", confirmRestart]] : []);
  }
  showRunButton();
}

function showRunButton() {
  const button = $("run");
  button.classList.toggle("is-running", isRunning());
  if (isRunning()) {
    $("run-label").textContent = "Cancel";
    button.disabled = state.run.state === "stopping";
    return;
  }
  const { pending, index } = state;
  $("run-label").textContent = pending.includes(index) && state.trackedIds?.size ? `Run from frame ${index}` : "Run";
  button.disabled = Object.keys(state.drawn).length === 0 && !state.mask?.isDirty;
}

async function runOrCancel() {
  try {
    if (isRunning()) return showRun(await api.sendJson("DELETE", "run"));
    hideNotice();
    finishDrawing();
    await Promise.all([...unsaved.values(), state.mask].map((mask) => mask.save()));
    $("follow").checked = isFollowing = true;
    showRun(await api.sendJson("POST", "run"));
  } catch (error) {
    showError(error);
  }
}

function confirmRestart() {
  showNotice("Running from the start replaces the results in the folder. Your drawings are kept.", [
    ["Replace the results", async () => {
      try {
        showRun(await api.sendJson("POST", "run", { restart: true }));
      } catch (error) {
        showError(error);
      }
    }],
  ]);
}

// Events of the server

let wasLost = false;

function onEvent(event) {
  if (event.type === "hello") {
    showRun(event.run);
    if (wasLost) {
      wasLost = false;
      hideNotice();
      void loadTracks().then(loadEdits).then(reloadMask);
    }
  } else if (event.type === "run") {
    const wasRunning = isRunning();
    showRun(event);
    if (wasRunning && !isRunning()) void loadTracks().then(loadEdits).then(reloadMask);
  } else if (event.type === "frames") {
    showRunFrames(event.frames);
  } else if (event.type === "mask") {
    if (event.page === api.PAGE) return;
    void loadEdits();
    kept.delete(event.frame);
    if (event.frame !== state.index) return;
    const { mask } = state;
    // A drawing that is not saved yet: the answer to its save states the conflict, once.
    if (!mask?.isDirty && !mask?.isInStroke) {
      $("saved").textContent = "Updated from another page";
      void reloadMask();
    }
  } else if (event.type === "edits") {
    void loadEdits();
  } else if (event.type === "pages" && event.count > 1 && !state.isShared) {
    state.isShared = true;
    showNotice("This video is open in another page too. Each page shows what the other one saves.");
  } else if (event.type === "pages") {
    state.isShared = event.count > 1;
  }
}

function onLost(error) {
  if (wasLost && !error) return;
  wasLost = true;
  showNotice(
    error
      ? error.message
      : "No connection to mpn studio. Trying again … If it was started again, open the address in its terminal.",
    rescueButtons(),
  );
}

// Notices

function showNotice(text, buttons = []) {
  $("notice-text").textContent = text;
  const close = ["Close", () => {}];
  $("notice-buttons").replaceChildren(
    ...[...buttons, close].map(([label, action]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => {
        hideNotice();
        action();
      });
      return button;
    }),
  );
  $("notice").hidden = false;
}

function hideNotice() {
  $("notice").hidden = true;
}

function showError(error) {
  if (error instanceof api.ApiError) showNotice(error.message);
  else throw error;
}

// Tools

function setTool(tool) {
  finishDrawing();
  state.tool = tool;
  $("canvas").dataset.tool = tool;
  for (const button of $("tools").children) {
    const isChosen = button.dataset.tool === tool;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
  }
}

function setSize(size) {
  state.size = Math.max(1, Math.min(Number($("size").max), Math.round(size)));
  $("size").value = state.size;
  $("size-text").textContent = `${state.size} px`;
  if (view.cursor) view.cursor.diameter = state.tool === "polygon" ? 1 : state.size;
  view.draw();
}

function updateUndo() {
  $("undo").disabled = !state.mask?.undoable.length;
  $("redo").disabled = !state.mask?.redoable.length;
}

let drawing;

function finishDrawing() {
  drawing?.finish();
}

function undo() {
  if (drawing.undoPoint()) return;
  state.mask?.undo();
  updateUndo();
  showFrameState();
}

function redo() {
  state.mask?.redo();
  updateUndo();
  showFrameState();
}

function wire() {
  drawing = drawingInput({ state, view, canvas: $("canvas"), status: $("canvas-status"), mayPaint, afterStroke });
  const actions = {
    undo, redo, play, addObject, copyBefore,
    run: runOrCancel,
    tool: setTool,
    size: (change) => setSize(state.size + change * Math.max(1, Math.round(state.size / 10))),
    step: (change) => seekByUser(wanted + change),
    end: (index) => seekByUser(index),
    object: (id) => select(id),
    zoom: (factor) => view.zoomAtCentre(factor),
    fit: () => view.fit(),
    full: () => view.zoomAtCentre(1 / view.scale),
    toggleMasks: () => view.setLook({ showsMasks: !view.showsMasks }),
    worth: (change) => stepWorth(change),
    help: () => $("help-dialog").showModal(),
    last: () => state.video.frames - 1,
  };
  handleKeys(actions, drawing);
  fillHelp($("help-keys"));
  for (const [id, action] of [
    ["undo", undo], ["redo", redo], ["play", play], ["add-object", addObject], ["copy-before", copyBefore],
    ["run", runOrCancel], ["discard", discardDrawing], ["help", actions.help], ["zoom-fit", actions.fit],
    ["zoom-in", () => actions.zoom(1.5)], ["zoom-out", () => actions.zoom(1 / 1.5)],
    ["previous", () => actions.step(-1)], ["next", () => actions.step(1)],
    ["results", () => ($("results-command").textContent = resultsCommand(), $("results-dialog").showModal())],
  ]) $(id).addEventListener("click", action);
  for (const button of $("tools").children) button.addEventListener("click", () => setTool(button.dataset.tool));
  $("tools").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const buttons = [...$("tools").children];
    const chosen = buttons.findIndex((button) => button.dataset.tool === state.tool);
    const button = buttons[(chosen + step + buttons.length) % buttons.length];
    setTool(button.dataset.tool);
    button.focus();
    event.preventDefault();
    event.stopPropagation();
  });
  $("size").max = Math.max(120, Math.round(Math.min(state.video.width, state.video.height) / 4));
  $("size").addEventListener("input", () => setSize(Number($("size").value)));
  $("opacity").addEventListener("input", () => view.setLook({ opacity: Number($("opacity").value) / 100 }));
  $("follow").addEventListener("change", () => (isFollowing = $("follow").checked));
  $("frame-number").addEventListener("change", () => {
    const { valueAsNumber } = $("frame-number");
    if (Number.isNaN(valueAsNumber)) $("frame-number").value = state.index;
    else void seekByUser(Math.round(valueAsNumber));
  });
  for (const input of $("direction").querySelectorAll("input")) {
    input.addEventListener("change", () => setDirection(input.value));
  }
  addEventListener("pagehide", finishDrawing); // the end of a stroke saves it
  addEventListener("beforeunload", (event) => {
    finishDrawing();
    if (unsaved.size) event.preventDefault();
  });
  addEventListener("hashchange", () => location.reload());
}

function stepWorth(change) {
  const frames = [...timeline.worth].sort((a, b) => a - b);
  const found = change > 0 ? frames.find((frame) => frame > wanted) : frames.findLast((frame) => frame < wanted);
  if (found !== undefined) void seekByUser(found);
}

/** Whether the tool may replace a pixel of this id. */
function mayPaint() {
  const { selected } = state;
  return $("protect").checked ? (id) => id === 0 || id === selected : () => true;
}

function afterStroke() {
  updateUndo();
  showFrameState();
  showObjects();
}

function resultsCommand() {
  const out = $("results-out").textContent;
  const quoted = /^[\w./-]+$/.test(out) ? out : `'${out.replaceAll("'", "'\\''")}'`;
  return `mpn review ${quoted}\nmpn convert ${quoted} --to ...   # formats: mpn convert --help`;
}

void start();
