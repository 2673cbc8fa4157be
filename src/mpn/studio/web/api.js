// Requests to the server. The token is in the part of the address after '#', which a browser sends
// to no server; it is kept for reloads of this tab only.

import { runsOf } from "./runs.js";

const MOST_KEEPALIVE_BYTES = 60000; // browsers refuse 64 KiB of all such requests together
const TOKEN_KEY = "mpn-studio-token";
const RECONNECT_MS = 1000;

/** Number of this page: its own events come back with it. */
export const PAGE = Array.from(crypto.getRandomValues(new Uint32Array(2)), (n) => n.toString(36)).join("");

export class ApiError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

let token = "";

/** Take the token from the address, or from this tab before a reload; returns whether there is one. */
export function takeToken() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem(TOKEN_KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  token = sessionStorage.getItem(TOKEN_KEY) ?? "";
  return token !== "";
}

export async function request(method, path, { body, headers = {}, signal, keepalive = false } = {}) {
  let response;
  try {
    response = await fetch(`/api/${path}`, {
      method,
      body,
      signal,
      keepalive,
      headers: { authorization: `Bearer ${token}`, "x-page": PAGE, ...headers },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "mpn studio does not answer: is it still running?", null);
  }
  if (!response.ok) {
    const text = await response.text();
    let parsed = null;
    try {
      parsed = JSON.parse(text);
    } catch {
      // a refusal has no body
    }
    const message =
      parsed?.message ??
      (response.status === 401
        ? "mpn studio was started again, and this page belongs to the earlier start. Open the address in its terminal."
        : `The request failed (${response.status}).`);
    throw new ApiError(response.status, message, parsed);
  }
  return response;
}

export async function getJson(path) {
  return (await request("GET", path)).json();
}

export async function sendJson(method, path, value = {}) {
  const response = await request(method, path, {
    body: JSON.stringify(value),
    headers: { "content-type": "application/json" },
  });
  return response.json();
}

export async function getFrame(index, level, signal) {
  const response = await request("GET", `frames/${index}/${level}`, { signal });
  return createImageBitmap(await response.blob());
}

/** Returns {labels: Uint8Array or null, source, etag}. */
export async function getMask(index, signal) {
  const response = await request("GET", `masks/${index}`, { signal });
  const etag = response.headers.get("etag").replaceAll('"', "");
  const source = response.headers.get("x-mask-source");
  if (response.status === 204) return { labels: null, source, etag };
  return { labels: new Uint8Array(await response.arrayBuffer()), source, etag };
}

/**
 * Save ids of a frame; returns the new revision. etag "*" overwrites any. The request is on its way
 * when this returns, and outlives the page if it is small enough for that.
 */
export async function putMask(index, labels, etag) {
  const body = runsOf(labels);
  const response = await request("PUT", `masks/${index}`, {
    body,
    keepalive: body.length < MOST_KEEPALIVE_BYTES,
    headers: { "if-match": `"${etag}"`.replace('"*"', "*"), "content-type": "application/octet-stream" },
  });
  return (await response.json()).etag;
}

export async function deleteMask(index, etag) {
  const response = await request("DELETE", `masks/${index}`, { headers: { "if-match": `"${etag}"` } });
  return (await response.json()).etag;
}

/** Call onEvent with each event of the server, and onLost while there is no connection. */
export async function followEvents(onEvent, onLost) {
  for (;;) {
    try {
      const response = await request("GET", "events");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          if (part.startsWith("data: ")) onEvent(JSON.parse(part.slice(6)));
        }
      }
    } catch (error) {
      if (error.status === 401) {
        onLost(error);
        return;
      }
    }
    onLost(null);
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
  }
}
