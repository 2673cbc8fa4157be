// The mask of one frame: ids, undo, and saving. The Uint8Array of ids is the only truth; canvases
// show it.

import { deleteMask, putMask } from "./api.js";
import { cropLabels, emptyRect, growRect, isEmptyRect, paintPolygon, paintSegment, pasteLabels } from "./raster.js";

const RETRY_AFTER_MS = 2000;
const MOST_HISTORY_BYTES = 64 << 20;

export class FrameMask {
  /**
   * index: frame; labels: Uint8Array of width * height; source, etag: as from getMask.
   * listeners: {onChange(rect), onSaved(mask), onConflict(mask), onSaveState(text, mask),
   * onSaveError(error)}
   */
  constructor(index, width, height, { labels, source, etag }, listeners) {
    this.index = index;
    this.width = width;
    this.height = height;
    this.labels = labels ?? new Uint8Array(width * height);
    this.source = source;
    this.etag = etag;
    this.listeners = listeners;
    this.undoable = [];
    this.redoable = [];
    this.isDirty = false; // differs from what is saved
    this.hasConflict = false;
    this.timer = 0;
    this.saving = null;
    this.before = null; // ids at the start of a stroke
    this.touched = null;
  }

  // Strokes

  beginStroke() {
    this.before = this.labels.slice();
    this.touched = emptyRect();
  }

  get isInStroke() {
    return this.before !== null;
  }

  /** Whether the ids differ, or soon may differ, from those of the server. */
  get isBusy() {
    return this.isInStroke || this.isDirty || this.saving !== null;
  }

  segment(a, b, diameter, id, may) {
    const rect = paintSegment(this, a, b, diameter, id, may);
    growRect(this.touched, rect);
    if (!isEmptyRect(rect)) this.listeners.onChange(rect);
  }

  endStroke() {
    const rect = this.touched;
    const before = { width: this.width, labels: this.before };
    this.before = null;
    if (isEmptyRect(rect)) return;
    this.remember({ rect, before: cropLabels(before, rect), after: cropLabels(this, rect) });
  }

  cancelStroke() {
    if (!this.isInStroke) return;
    this.labels.set(this.before);
    const rect = this.touched;
    this.before = null;
    if (!isEmptyRect(rect)) this.listeners.onChange(rect);
  }

  polygon(points, id, may) {
    this.beginStroke();
    const rect = paintPolygon(this, points, id, may);
    growRect(this.touched, rect);
    this.listeners.onChange(rect);
    this.endStroke();
  }

  /** Replace all ids, as one step of undo. */
  replace(labels) {
    this.beginStroke();
    this.labels.set(labels);
    this.touched = { x0: 0, y0: 0, x1: this.width, y1: this.height };
    this.listeners.onChange(this.touched);
    this.endStroke();
  }

  remember(step) {
    if (step.before.every((id, i) => id === step.after[i])) return;
    this.undoable.push(step);
    this.redoable = [];
    let bytes = this.undoable.reduce((sum, each) => sum + 2 * each.before.length, 0);
    while (bytes > MOST_HISTORY_BYTES && this.undoable.length > 1) {
      bytes -= 2 * this.undoable.shift().before.length;
    }
    this.changed();
  }

  undo() {
    return this.move(this.undoable, this.redoable, "before");
  }

  redo() {
    return this.move(this.redoable, this.undoable, "after");
  }

  move(from, to, side) {
    const step = from.pop();
    if (step === undefined) return false;
    pasteLabels(this, step.rect, step[side]);
    to.push(step);
    this.listeners.onChange(step.rect);
    this.changed();
    return true;
  }

  // Saving

  changed() {
    this.isDirty = true;
    this.source = "drawn";
    this.listeners.onSaveState("Saving …", this);
    void this.save(); // at once: the page may be closed right after a stroke
  }

  /** Save now if anything is unsaved; returns when it is. */
  async save({ overwrite = false } = {}) {
    clearTimeout(this.timer);
    while (this.saving) await this.saving;
    if (!this.isDirty) return;
    if (this.hasConflict && !overwrite) return this.listeners.onConflict(this);
    this.isDirty = false;
    this.saving = this.put(overwrite ? "*" : this.etag);
    await this.saving;
  }

  async put(etag) {
    try {
      this.etag = await putMask(this.index, this.labels, etag);
      this.hasConflict = false;
      this.listeners.onSaveState(this.isDirty ? "Saving …" : "Saved", this);
      this.listeners.onSaved(this);
    } catch (error) {
      this.isDirty = true;
      if (error.status === 412) {
        this.hasConflict = true;
        this.listeners.onSaveState("Not saved", this);
        this.listeners.onConflict(this);
      } else {
        this.listeners.onSaveState("Not saved", this);
        this.listeners.onSaveError(error);
        if (error.status !== 401) this.timer = setTimeout(() => this.save(), RETRY_AFTER_MS);
      }
    } finally {
      this.saving = null;
    }
  }

  /** Remove the drawn mask of this frame on the server. */
  async discard() {
    clearTimeout(this.timer);
    while (this.saving) await this.saving;
    this.isDirty = false;
    this.etag = await deleteMask(this.index, this.etag);
  }
}
