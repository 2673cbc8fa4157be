// The timeline: per object a row with area, reliability and state, all frames in one canvas.

const HEAD_PX = 30;
const ROW_PX = 34;
const GAP_PX = 4;
const SIDE_PX = 8;

/** Reliability of a mask, 0..1; results of older versions have its confidence only. */
export const reliabilityOf = (track) => track.reliability ?? track.confidence;

export class Timeline {
  /** canvas: focusable, with role slider; frames: number of frames; onSeek(index): a user's choice. */
  constructor(canvas, frames, palette, onSeek) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.frames = frames;
    this.palette = palette;
    this.index = 0;
    this.tracks = []; // by frame: Map of object id -> track, or undefined
    this.objects = [];
    this.drawn = new Set();
    this.pending = new Set();
    this.worth = new Set();
    this.describe = () => "";
    this.isQueued = false;
    canvas.setAttribute("aria-valuemin", 0);
    canvas.setAttribute("aria-valuemax", frames - 1);
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    const seek = (event) => onSeek(this.frameAt(event.clientX));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      seek(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && seek(event));
    canvas.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(frames / 20));
      const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageUp: page, PageDown: -page };
      const ends = { Home: 0, End: frames - 1 };
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key in steps) onSeek(this.index + steps[event.key]);
      else if (event.key in ends) onSeek(ends[event.key]);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  set(values) {
    Object.assign(this, values);
    this.draw();
  }

  setIndex(index) {
    this.index = index;
    this.canvas.setAttribute("aria-valuenow", index);
    this.canvas.setAttribute("aria-valuetext", this.describe(index));
    this.draw();
  }

  get plotWidth() {
    return Math.max(1, this.cssWidth - 2 * SIDE_PX);
  }

  frameAt(clientX) {
    const x = clientX - this.canvas.getBoundingClientRect().left - SIDE_PX;
    return Math.max(0, Math.min(this.frames - 1, Math.floor((x / this.plotWidth) * this.frames)));
  }

  xOf(index) {
    return SIDE_PX + (index / this.frames) * this.plotWidth;
  }

  draw() {
    if (this.isQueued) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { canvas, context } = this;
    const ratio = devicePixelRatio;
    this.cssWidth = canvas.parentElement.clientWidth;
    const rows = Math.max(1, this.objects.length);
    const height = HEAD_PX + rows * (ROW_PX + GAP_PX);
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(this.cssWidth * ratio);
    canvas.height = Math.round(height * ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.cssWidth, height);
    context.font = `11px ${style.fontFamily}`;
    this.drawScale(colour);
    for (let row = 0; row < rows; row++) {
      const y = HEAD_PX + row * (ROW_PX + GAP_PX);
      context.fillStyle = colour("--row");
      context.fillRect(SIDE_PX, y, this.plotWidth, ROW_PX);
      if (this.objects[row]) this.drawObject(this.objects[row], y, colour);
    }
    this.drawMarks(colour);
    const x = this.xOf(this.index + 0.5);
    context.fillStyle = colour("--accent");
    context.fillRect(Math.round(x) - 1, 0, 2, height);
    context.beginPath();
    context.moveTo(x - 6, 0);
    context.lineTo(x + 6, 0);
    context.lineTo(x, 7);
    context.fill();
  }

  drawScale(colour) {
    const { context } = this;
    const most = Math.max(2, Math.floor(this.plotWidth / 70));
    const raw = this.frames / most;
    const power = 10 ** Math.floor(Math.log10(Math.max(1, raw)));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw) ?? 1;
    context.fillStyle = colour("--muted");
    context.textAlign = "center";
    for (let index = 0; index < this.frames; index += step) {
      const x = this.xOf(index + 0.5);
      context.fillRect(Math.round(x), HEAD_PX - 4, 1, 4);
      context.fillText(String(index), x, HEAD_PX - 19);
    }
  }

  /** Draw the row of an object: one column per pixel, however many frames it stands for. */
  drawObject({ id }, y, colour) {
    const { context, frames } = this;
    const columns = Math.min(frames, Math.floor(this.plotWidth));
    const [r, g, b] = this.palette[id];
    const lost = colour("--lost");
    let largest = 1;
    for (const objects of this.tracks) largest = Math.max(largest, objects?.get(id)?.area_px ?? 0);
    const line = [];
    for (let column = 0; column < columns; column++) {
      const first = Math.floor((column * frames) / columns);
      const last = Math.max(first + 1, Math.floor(((column + 1) * frames) / columns));
      let area = 0;
      let least = Infinity;
      let isLost = false;
      let isFound = false;
      let isThere = false;
      for (let index = first; index < last; index++) {
        const track = this.tracks[index]?.get(id);
        if (!track) continue;
        isThere = true;
        area = Math.max(area, track.area_px);
        isLost ||= track.state === "lost";
        isFound ||= track.events.includes("redetected");
        if (track.area_px) least = Math.min(least, reliabilityOf(track));
      }
      if (!isThere) {
        line.push(null);
        continue;
      }
      const x = Math.round(this.xOf(first)); // whole pixels: no seams between columns
      const w = Math.max(1, Math.round(this.xOf(last)) - x);
      const high = (area / largest) * (ROW_PX - 8);
      context.fillStyle = `rgb(${r} ${g} ${b} / 35%)`;
      context.fillRect(x, y + ROW_PX - 4 - high, w, high);
      if (isLost) {
        context.fillStyle = lost;
        context.fillRect(x, y + ROW_PX - 4, w, 4);
      }
      if (isFound) {
        context.fillStyle = colour("--found");
        context.fillRect(x + w / 2 - 1, y, 2, ROW_PX - 4);
      }
      line.push(least === Infinity ? null : [x + w / 2, y + 3 + (1 - least) * (ROW_PX - 10)]);
    }
    context.lineJoin = "round";
    for (const [style, width] of [[colour("--panel"), 4], [colour("--line"), 1.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.beginPath();
      let before = null;
      for (const point of line) {
        if (point) context[before ? "lineTo" : "moveTo"](...point);
        before = point;
      }
      context.stroke();
    }
  }

  drawMarks(colour) {
    const { context } = this;
    const y = HEAD_PX - 2;
    for (const index of this.worth) {
      const x = this.xOf(index + 0.5);
      context.fillStyle = colour("--warn");
      context.beginPath();
      context.moveTo(x, y - 10);
      context.lineTo(x + 6, y + 1);
      context.lineTo(x - 6, y + 1);
      context.fill();
    }
    for (const index of this.drawn) {
      const x = this.xOf(index + 0.5);
      context.beginPath();
      context.moveTo(x, y - 9);
      context.lineTo(x + 5, y - 4);
      context.lineTo(x, y + 1);
      context.lineTo(x - 5, y - 4);
      context.closePath();
      context.fillStyle = colour(this.pending.has(index) ? "--panel" : "--accent");
      context.fill();
      context.strokeStyle = colour("--accent");
      context.lineWidth = 2;
      context.stroke();
    }
  }
}
