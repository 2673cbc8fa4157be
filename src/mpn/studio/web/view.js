// The canvas: the frame, the ids in colour, the pointer. Zoom and pan are in CSS pixels.

const MOST_ZOOM = 64;
const MARGIN_PX = 12;
const PIXELS_FROM_ZOOM = 3; // from here on single pixels of the frame are shown as squares

export class View {
  constructor(canvas, width, height, palette) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.width = width;
    this.height = height;
    this.palette = palette;
    this.zoom = 1;
    this.panX = 0;
    this.panY = 0;
    this.isFitted = true;
    this.bitmap = null;
    this.mask = null;
    this.hidden = new Set();
    this.opacity = 0.5;
    this.showsMasks = true;
    this.cursor = null; // {x, y, diameter, isKeyboard}
    this.polygon = null; // {points, next}
    this.onZoom = () => {};
    this.overlay = new OffscreenCanvas(width, height);
    this.overlayContext = this.overlay.getContext("2d");
    this.isDrawQueued = false;
    this.makeColours();
    new ResizeObserver(() => this.resized()).observe(canvas);
    this.watchScale();
  }

  watchScale() {
    const query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", () => (this.resized(), this.watchScale()), { once: true });
  }

  resized() {
    const rect = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(rect.width * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(rect.height * devicePixelRatio));
    if (this.isFitted) this.fit();
    else this.draw();
  }

  // Zoom and pan

  fit() {
    const rect = this.canvas.getBoundingClientRect();
    const room = { w: rect.width - 2 * MARGIN_PX, h: rect.height - 2 * MARGIN_PX };
    this.zoom = Math.max(0.01, Math.min(room.w / this.width, room.h / this.height));
    this.panX = (rect.width - this.width * this.zoom) / 2;
    this.panY = (rect.height - this.height * this.zoom) / 2;
    this.isFitted = true;
    this.moved();
  }

  zoomAt(clientX, clientY, factor) {
    const rect = this.canvas.getBoundingClientRect();
    const x = clientX - rect.left;
    const y = clientY - rect.top;
    const least = Math.min(1, rect.width / this.width / 4);
    const zoom = Math.min(MOST_ZOOM, Math.max(least, this.zoom * factor));
    this.panX = x - ((x - this.panX) * zoom) / this.zoom;
    this.panY = y - ((y - this.panY) * zoom) / this.zoom;
    this.zoom = zoom;
    this.isFitted = false;
    this.moved();
  }

  zoomAtCentre(factor) {
    const rect = this.canvas.getBoundingClientRect();
    this.zoomAt(rect.left + rect.width / 2, rect.top + rect.height / 2, factor);
  }

  panBy(dx, dy) {
    this.panX += dx;
    this.panY += dy;
    this.isFitted = false;
    this.moved();
  }

  moved() {
    this.canvas.dataset.zoom = this.zoom;
    this.canvas.dataset.panX = this.panX;
    this.canvas.dataset.panY = this.panY;
    this.onZoom(this.zoom);
    this.draw();
  }

  /** The pixel of the frame at a point of the page; it may be outside. */
  pixelAt(clientX, clientY) {
    const rect = this.canvas.getBoundingClientRect();
    return {
      x: Math.floor((clientX - rect.left - this.panX) / this.zoom),
      y: Math.floor((clientY - rect.top - this.panY) / this.zoom),
    };
  }

  /** Move the view so that a pixel is visible. */
  reveal({ x, y }) {
    const rect = this.canvas.getBoundingClientRect();
    const left = x * this.zoom + this.panX;
    const top = y * this.zoom + this.panY;
    const dx = Math.min(0, rect.width - MARGIN_PX - left) + Math.max(0, MARGIN_PX - left);
    const dy = Math.min(0, rect.height - MARGIN_PX - top) + Math.max(0, MARGIN_PX - top);
    if (dx || dy) this.panBy(dx, dy);
  }

  /** Pixels of the screen per pixel of the frame. */
  get scale() {
    return this.zoom * devicePixelRatio;
  }

  // Content

  setFrame(bitmap) {
    this.bitmap = bitmap;
    this.draw();
  }

  setMask(mask) {
    this.mask = mask;
    if (mask) this.repaint({ x0: 0, y0: 0, x1: this.width, y1: this.height });
    else this.draw();
  }

  setLook({ opacity = this.opacity, hidden = this.hidden, showsMasks = this.showsMasks }) {
    Object.assign(this, { opacity, hidden, showsMasks });
    this.makeColours();
    if (this.mask) this.repaint({ x0: 0, y0: 0, x1: this.width, y1: this.height });
  }

  makeColours() {
    const colours = (alpha) =>
      Uint32Array.from(this.palette, ([r, g, b], id) =>
        id === 0 || this.hidden.has(id) ? 0 : ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0,
      );
    this.inside = colours(Math.round(255 * this.opacity));
    this.edge = colours(Math.min(255, Math.round(255 * this.opacity) + 90));
  }

  /** Colour the ids of a rectangle again; its neighbours too, whose edges may change. */
  repaint(rect) {
    const { width, height } = this;
    const labels = this.mask.labels;
    const x0 = Math.max(0, rect.x0 - 1);
    const y0 = Math.max(0, rect.y0 - 1);
    const x1 = Math.min(width, rect.x1 + 1);
    const y1 = Math.min(height, rect.y1 + 1);
    if (x1 <= x0 || y1 <= y0) return;
    const image = this.overlayContext.createImageData(x1 - x0, y1 - y0);
    const pixels = new Uint32Array(image.data.buffer);
    const { inside, edge } = this;
    let target = 0;
    for (let y = y0; y < y1; y++) {
      const up = y > 0 ? -width : 0;
      const down = y < height - 1 ? width : 0;
      let i = y * width + x0;
      for (let x = x0; x < x1; x++, i++, target++) {
        const id = labels[i];
        if (id === 0) continue;
        const isEdge =
          labels[i + up] !== id ||
          labels[i + down] !== id ||
          (x > 0 && labels[i - 1] !== id) ||
          (x < width - 1 && labels[i + 1] !== id);
        pixels[target] = isEdge ? edge[id] : inside[id];
      }
    }
    this.overlayContext.putImageData(image, x0, y0);
    this.draw();
  }

  draw() {
    if (this.isDrawQueued) return;
    this.isDrawQueued = true;
    requestAnimationFrame(() => {
      this.isDrawQueued = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { context, canvas, width, height } = this;
    const ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = getComputedStyle(canvas).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const scale = this.scale;
    context.setTransform(scale, 0, 0, scale, this.panX * ratio, this.panY * ratio);
    context.imageSmoothingEnabled = scale < PIXELS_FROM_ZOOM;
    context.imageSmoothingQuality = "medium";
    if (this.bitmap) context.drawImage(this.bitmap, 0, 0, width, height);
    if (this.mask && this.showsMasks) {
      context.imageSmoothingEnabled = scale < 1;
      context.drawImage(this.overlay, 0, 0);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.polygon) this.drawPolygon();
    if (this.cursor) this.drawCursor();
  }

  toScreen({ x, y }) {
    return [(x + 0.5) * this.zoom + this.panX, (y + 0.5) * this.zoom + this.panY];
  }

  twoTone(draw) {
    const { context } = this;
    for (const [style, line] of [["rgb(0 0 0 / 75%)", 3], ["#fff", 1.25]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.beginPath();
      draw(context);
      context.stroke();
    }
  }

  drawPolygon() {
    const { points, next } = this.polygon;
    const shown = next ? [...points, next] : points;
    this.twoTone((context) => {
      shown.forEach((point, i) => context[i ? "lineTo" : "moveTo"](...this.toScreen(point)));
      for (const point of points) {
        const [x, y] = this.toScreen(point);
        context.moveTo(x + 3, y);
        context.arc(x, y, 3, 0, 2 * Math.PI);
      }
    });
  }

  drawCursor() {
    const [x, y] = this.toScreen(this.cursor);
    const radius = Math.max(2, (this.cursor.diameter / 2) * this.zoom);
    this.twoTone((context) => {
      context.arc(x, y, radius, 0, 2 * Math.PI);
      if (this.cursor.isKeyboard) {
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          context.moveTo(x + dx * (radius + 3), y + dy * (radius + 3));
          context.lineTo(x + dx * (radius + 12), y + dy * (radius + 12));
        }
      }
    });
  }
}
