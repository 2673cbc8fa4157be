// Paint object ids into a frame. All coordinates are integer pixels, and all tests are in exact
// integer arithmetic: the same points give the same pixels at any zoom and on any screen.

/** A rectangle of changed pixels: x0, y0 inclusive, x1, y1 exclusive. */
export function emptyRect() {
  return { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
}

export function isEmptyRect(rect) {
  return rect.x1 <= rect.x0 || rect.y1 <= rect.y0;
}

export function growRect(rect, other) {
  rect.x0 = Math.min(rect.x0, other.x0);
  rect.y0 = Math.min(rect.y0, other.y0);
  rect.x1 = Math.max(rect.x1, other.x1);
  rect.y1 = Math.max(rect.y1, other.y1);
  return rect;
}

function clipped(mask, x0, y0, x1, y1) {
  return {
    x0: Math.max(0, x0),
    y0: Math.max(0, y0),
    x1: Math.min(mask.width, x1),
    y1: Math.min(mask.height, y1),
  };
}

/**
 * Set all pixels whose centre is at most half a diameter from the segment a-b.
 *
 * mask: {width, height, labels: Uint8Array}; a, b: {x, y} pixels; may(id): whether a pixel of this
 * id may be replaced. Returns the rectangle of the touched pixels.
 */
export function paintSegment(mask, a, b, diameter, id, may = () => true) {
  const reach = Math.ceil(diameter / 2);
  const rect = clipped(
    mask,
    Math.min(a.x, b.x) - reach,
    Math.min(a.y, b.y) - reach,
    Math.max(a.x, b.x) + reach + 1,
    Math.max(a.y, b.y) + reach + 1,
  );
  if (isEmptyRect(rect)) return emptyRect();
  const dx = b.x - a.x;
  const dy = b.y - a.y;
  const length2 = dx * dx + dy * dy;
  const squared = diameter * diameter; // compared with 4 times the squared distance
  const { labels, width } = mask;
  for (let y = rect.y0; y < rect.y1; y++) {
    const ay = y - a.y;
    const by = y - b.y;
    for (let x = rect.x0; x < rect.x1; x++) {
      const ax = x - a.x;
      const along = ax * dx + ay * dy;
      let isInside;
      if (along <= 0) {
        isInside = 4 * (ax * ax + ay * ay) <= squared;
      } else if (along >= length2) {
        const bx = x - b.x;
        isInside = 4 * (bx * bx + by * by) <= squared;
      } else {
        const across = ax * dy - ay * dx;
        isInside = 4 * across * across <= squared * length2;
      }
      const position = y * width + x;
      if (isInside && may(labels[position])) labels[position] = id;
    }
  }
  return rect;
}

/**
 * Set all pixels whose centre is in a polygon (even-odd rule) or on its outline.
 *
 * points: at least one {x, y} pixel.
 */
export function paintPolygon(mask, points, id, may = () => true) {
  const xs = points.map((point) => point.x);
  const ys = points.map((point) => point.y);
  const rect = clipped(mask, Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1);
  const { labels, width } = mask;
  for (let y = rect.y0; y < rect.y1; y++) {
    // Smallest x of a pixel to the right of each crossing of this row.
    const crossings = [];
    points.forEach((a, i) => {
      const b = points[(i + 1) % points.length];
      if (a.y <= y !== b.y <= y) {
        crossings.push(a.x + Math.floor(((y - a.y) * (b.x - a.x)) / (b.y - a.y)) + 1);
      }
    });
    crossings.sort((left, right) => left - right);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const x1 = Math.min(crossings[i + 1], rect.x1);
      for (let x = Math.max(crossings[i], rect.x0); x < x1; x++) {
        const position = y * width + x;
        if (may(labels[position])) labels[position] = id;
      }
    }
  }
  if (isEmptyRect(rect)) growRect(rect, emptyRect());
  points.forEach((a, i) => {
    growRect(rect, paintSegment(mask, a, points[(i + 1) % points.length], 1, id, may));
  });
  return rect;
}

/** Copy a rectangle of an id map. */
export function cropLabels(mask, rect) {
  const columns = rect.x1 - rect.x0;
  const crop = new Uint8Array(columns * (rect.y1 - rect.y0));
  for (let y = rect.y0; y < rect.y1; y++) {
    const from = y * mask.width + rect.x0;
    crop.set(mask.labels.subarray(from, from + columns), (y - rect.y0) * columns);
  }
  return crop;
}

/** Write a rectangle that cropLabels has copied. */
export function pasteLabels(mask, rect, crop) {
  const columns = rect.x1 - rect.x0;
  for (let y = rect.y0; y < rect.y1; y++) {
    const from = (y - rect.y0) * columns;
    mask.labels.set(crop.subarray(from, from + columns), y * mask.width + rect.x0);
  }
}

/** Pixels per id, as an array of 256 counts. */
export function countPixels(labels) {
  const counts = new Uint32Array(256);
  for (let i = 0; i < labels.length; i++) counts[labels[i]]++;
  return counts;
}
