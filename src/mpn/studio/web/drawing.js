// Pointer and keyboard input on the canvas.

const WHEEL_STEP = 1.0015;
const CLOSE_PX = 9; // a click so near the first point closes the polygon

/**
 * Connect the canvas to the tools. Returns {finish, undoPoint, key}.
 *
 * state: tool, size, selected, mask; mayPaint(): predicate for a stroke; afterStroke(): after each
 * change of the mask; status: element of the texts for screen readers.
 */
export function drawingInput({ state, view, canvas, status, mayPaint, afterStroke }) {
  let last = null; // last pixel of the stroke in progress
  let may = null;
  let pan = null;
  let points = []; // of the polygon in progress
  let isSpaceHeld = false;
  let isPenDown = false; // the keyboard draws while it moves
  let place = { x: view.width >> 1, y: view.height >> 1 }; // where the keyboard continues
  const touches = new Map();
  let pinch = null;

  const paints = () => state.tool === "brush" || state.tool === "eraser";
  const idOf = () => (state.tool === "eraser" ? 0 : state.selected);
  const diameter = () => (paints() ? state.size : 1);

  function begin(pixel) {
    if (!state.mask || state.mask.isInStroke) return;
    may = mayPaint();
    if (state.tool === "eraser") may = () => true;
    state.mask.beginStroke();
    state.mask.segment(pixel, pixel, state.size, idOf(), may);
    last = pixel;
  }

  function extend(pixel) {
    if (last === null || (pixel.x === last.x && pixel.y === last.y)) return;
    state.mask.segment(last, pixel, state.size, idOf(), may);
    last = pixel;
  }

  function end() {
    if (last === null) return;
    last = null;
    state.mask.endStroke();
    afterStroke();
  }

  function addPoint(pixel) {
    const first = points[0];
    const reach = CLOSE_PX / view.zoom;
    if (points.length > 2 && Math.hypot(pixel.x - first.x, pixel.y - first.y) <= reach) return closePolygon();
    points.push(clamp(pixel));
    showPolygon(null);
    say(`Point ${points.length}`);
  }

  function clamp({ x, y }) {
    return { x: Math.max(0, Math.min(view.width - 1, x)), y: Math.max(0, Math.min(view.height - 1, y)) };
  }

  function closePolygon() {
    const shape = points;
    points = [];
    showPolygon(null);
    if (shape.length < 3 || !state.mask) return say("A polygon needs three points");
    state.mask.polygon(shape, state.selected, mayPaint());
    afterStroke();
    say("Polygon filled");
  }

  function showPolygon(next) {
    view.polygon = points.length ? { points, next } : null;
    canvas.dataset.points = points.length;
    view.draw();
  }

  function say(text) {
    status.textContent = text;
  }

  function moveCursor(pixel, isKeyboard) {
    place = clamp(pixel);
    view.cursor = state.tool === "hand" ? null : { ...pixel, diameter: diameter(), isKeyboard };
    if (points.length) showPolygon(pixel);
    view.draw();
  }

  // Pointer

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") {
      touches.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (touches.size === 2) {
        state.mask?.cancelStroke();
        last = null;
        pinch = pinchOf(touches);
        return;
      }
    }
    if (event.button === 1 || state.tool === "hand" || isSpaceHeld) {
      event.preventDefault();
      pan = { x: event.clientX, y: event.clientY };
      canvas.classList.add("is-panning");
      return;
    }
    if (event.button !== 0 || pinch) return;
    const pixel = view.pixelAt(event.clientX, event.clientY);
    moveCursor(pixel, false);
    if (paints()) begin(pixel);
    else if (state.tool === "polygon") addPoint(pixel);
  });

  canvas.addEventListener("pointermove", (event) => {
    if (touches.has(event.pointerId)) touches.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pinch && touches.size === 2) {
      const now = pinchOf(touches);
      view.panBy(now.x - pinch.x, now.y - pinch.y);
      view.zoomAt(now.x, now.y, now.distance / pinch.distance);
      pinch = now;
      return;
    }
    if (pan) {
      view.panBy(event.clientX - pan.x, event.clientY - pan.y);
      pan = { x: event.clientX, y: event.clientY };
      return;
    }
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) extend(view.pixelAt(each.clientX, each.clientY));
    moveCursor(view.pixelAt(event.clientX, event.clientY), false);
  });

  function release(event) {
    touches.delete(event.pointerId);
    if (touches.size < 2) pinch = null;
    if (pan) {
      pan = null;
      canvas.classList.remove("is-panning");
    }
    end();
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", (event) => {
    state.mask?.cancelStroke();
    last = null;
    release(event);
  });
  canvas.addEventListener("pointerleave", () => {
    if (last === null && !view.cursor?.isKeyboard) {
      view.cursor = null;
      view.draw();
    }
  });
  canvas.addEventListener("dblclick", () => points.length > 2 && closePolygon());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 30 : 1;
      if (event.shiftKey) view.panBy(-event.deltaY * lines, 0);
      else view.zoomAt(event.clientX, event.clientY, WHEEL_STEP ** (-event.deltaY * lines));
    },
    { passive: false },
  );

  // Keyboard

  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) moveCursor(place, true);
  });
  canvas.addEventListener("blur", () => {
    lift();
    view.cursor = null;
    view.draw();
  });

  function lift() {
    isPenDown = false;
    end();
  }

  /** Handle a key on the focused canvas; returns whether it was used. */
  function key(event) {
    const step = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const { x, y } = place;
      const pixel = clamp({ x: x + dx * step, y: y + dy * step });
      if (isPenDown) extend(pixel);
      moveCursor(pixel, true);
      view.reveal(pixel);
      say(`${pixel.x}, ${pixel.y}`);
      return true;
    }
    if (event.key === "Enter") {
      const pixel = place;
      moveCursor(pixel, true);
      if (state.tool === "polygon") {
        if (event.shiftKey) closePolygon();
        else addPoint(pixel);
      } else if (paints() && !isPenDown) {
        isPenDown = true;
        begin(pixel);
        say("Drawing: arrow keys draw, Enter ends");
      } else if (paints()) {
        lift();
        say("Drawn");
      }
      return true;
    }
    if (event.key === "Escape" && (points.length || last !== null)) {
      points = [];
      showPolygon(null);
      state.mask?.cancelStroke();
      last = null;
      isPenDown = false;
      say("Cancelled");
      return true;
    }
    return false;
  }

  return {
    key,
    /** End a stroke, and drop a polygon that is not closed. */
    finish() {
      lift();
      points = [];
      showPolygon(null);
    },
    /** Remove the last point of the polygon in progress; returns whether there was one. */
    undoPoint() {
      if (!points.length) return false;
      points.pop();
      showPolygon(null);
      return true;
    },
    holdSpace(isHeld) {
      isSpaceHeld = isHeld;
    },
  };
}

function pinchOf(touches) {
  const [a, b] = [...touches.values()];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)) };
}
