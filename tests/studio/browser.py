"""Drive the page of the studio in Chromium, and paint the same strokes in NumPy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, BrowserContext, Page, expect

from mpn.masks import load_labels
from mpn.types import UInt8Array

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Pixel = tuple[int, int]
"""(x, y) of a pixel of the frame."""

expect.set_options(timeout=30_000)  # the machine may be busy

MARGIN_PX = 12
"""Space around a frame that fits the window, in CSS pixels."""


class StudioPage:
    """The page, with the actions of a user.

    Args:
        browser: An open browser.
        address: Address of the server.
        size_hw: (height, width) of the frames.
        corrections: Folder of the drawn masks.
        viewport: (width, height) of the window in CSS pixels.
        scale: Device pixels per CSS pixel.
        context: Context that other pages share; None for a new one.
    """

    def __init__(
        self,
        browser: Browser,
        address: str,
        *,
        size_hw: tuple[int, int],
        corrections: Path,
        viewport: tuple[int, int] = (1280, 800),
        scale: float = 1,
        context: BrowserContext | None = None,
    ) -> None:
        self.context = context or browser.new_context(
            viewport={"width": viewport[0], "height": viewport[1]}, device_scale_factor=scale
        )
        self.size_hw, self._corrections = size_hw, corrections
        self.problems: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]")
        self.wait_for_frame(0)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning") and "412" not in message.text:
            self.problems.append(message.text)

    # Geometry

    def fitted_view(self) -> tuple[float, float, float]:
        """Compute zoom and place of a frame that fits the window, as the page should."""
        box = self.canvas_box
        height, width = self.size_hw
        zoom = min((box["width"] - 2 * MARGIN_PX) / width, (box["height"] - 2 * MARGIN_PX) / height)
        return zoom, (box["width"] - width * zoom) / 2, (box["height"] - height * zoom) / 2

    def view(self) -> tuple[float, float, float]:
        """Return the zoom of the page and the place of the frame in the canvas."""
        data = self.page.locator("#canvas").evaluate("c => ({...c.dataset})")
        return float(data["zoom"]), float(data["panX"]), float(data["panY"])

    @property
    def canvas_box(self) -> dict[str, float]:
        """Place of the canvas in the window."""
        box = self.page.locator("#canvas").bounding_box()
        assert box is not None
        return dict(box)

    def point(self, pixel: Pixel) -> tuple[float, float]:
        """Return the point of the window at the centre of a pixel."""
        box, (zoom, left, top) = self.canvas_box, self.view()
        return (
            box["x"] + left + (pixel[0] + 0.5) * zoom,
            box["y"] + top + (pixel[1] + 0.5) * zoom,
        )

    # Actions

    def draw(self, pixels: Sequence[Pixel]) -> None:
        """Draw a stroke through pixels with the mouse, and wait until it is saved."""
        mouse = self.page.mouse
        mouse.move(*self.point(pixels[0]))
        mouse.down()
        for pixel in pixels[1:]:
            mouse.move(*self.point(pixel))
        mouse.up()
        self.wait_for_save()

    def polygon(self, pixels: Sequence[Pixel]) -> None:
        """Click the corners of a polygon and close it, and wait until it is saved."""
        self.tool("p")
        for pixel in pixels:
            self.page.mouse.click(*self.point(pixel))
        self.page.locator("#canvas").press("Shift+Enter")
        self.wait_for_save()

    def tool(self, key: str) -> None:
        """Choose a tool by its key."""
        self.page.locator("#canvas").press(key)

    def set_size(self, diameter: int) -> None:
        """Set the diameter of the brush."""
        self.page.locator("#size").fill(str(diameter))

    def go_to(self, frame: int) -> None:
        """Show a frame by its number."""
        self.page.locator("#frame-number").fill(str(frame))
        self.page.locator("#frame-number").press("Enter")
        self.wait_for_frame(frame)

    def run(self) -> None:
        """Run, and wait for the end."""
        self.page.locator("#run").click()
        expect(self.page.locator("#run-label")).to_have_text("Cancel")
        text = self.page.locator("#run-text")
        expect(text).to_have_text(re.compile("Finished|failed"), timeout=120_000)
        assert "Finished" in text.inner_text(), self.page.locator("#notice-text").inner_text()

    # States

    def wait_for_frame(self, frame: int) -> None:
        """Wait until a frame and its mask are shown."""
        expect(self.page.locator(f'#canvas[data-frame="{frame}"]')).to_be_attached()

    def wait_for_save(self) -> None:
        """Wait until the server has everything that is drawn."""
        expect(self.page.locator("#saved")).to_have_text("Saved")

    def saved(self, frame: int) -> UInt8Array:
        """Read the drawn mask of a frame from the disk."""
        return load_labels(self._corrections / f"{frame:05d}.png", allow_empty=True)

    def picture(self, path: Path | None = None) -> bytes:
        """Take a screenshot of the window."""
        if path is None:
            return self.page.screenshot()
        return self.page.screenshot(path=path, type="jpeg", quality=82)


def stroke(labels: UInt8Array, pixels: Sequence[Pixel], diameter: int, object_id: int) -> None:
    """Set the pixels whose centre is at most ``diameter / 2`` from a line."""
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.int64)
    for (ax, ay), (bx, by) in zip(pixels[:1] + list(pixels), pixels, strict=False):
        dx, dy = bx - ax, by - ay
        along, length2 = (x - ax) * dx + (y - ay) * dy, dx * dx + dy * dy
        to_a, to_b = (x - ax) ** 2 + (y - ay) ** 2, (x - bx) ** 2 + (y - by) ** 2
        across = (x - ax) * dy - (y - ay) * dx
        near = np.where(
            along <= 0,
            4 * to_a <= diameter**2,
            np.where(
                along >= length2,
                4 * to_b <= diameter**2,
                4 * across**2 <= diameter**2 * length2,
            ),
        )
        labels[near] = object_id


def filled_polygon(labels: UInt8Array, pixels: Sequence[Pixel], object_id: int) -> None:
    """Set the pixels whose centre is in a polygon (even-odd) or on its outline."""
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.int64)
    inside = np.zeros(labels.shape, bool)
    closed = [*pixels, pixels[0]]
    for (ax, ay), (bx, by) in pairwise(closed):
        side = (x - ax) * (by - ay) - (y - ay) * (bx - ax)
        is_right = side > 0 if by > ay else side < 0
        inside ^= ((ay <= y) != (by <= y)) & is_right
    labels[inside] = object_id
    stroke(labels, closed, 1, object_id)


def page_facts(page: Page) -> list[dict[str, Any]]:
    """Return name and kind of each visible control, for a screen reader."""
    script = """() => JSON.stringify([...document.querySelectorAll(
        'button, input, canvas[tabindex], [role=slider]')]
      .filter(e => e.offsetParent !== null)
      .map(e => ({
        id: e.id, kind: e.tagName,
        name: (e.getAttribute('aria-label') || [...(e.labels || [])].map(l => l.textContent).join()
               || e.textContent).trim(),
      })))"""
    facts: list[dict[str, Any]] = json.loads(page.evaluate(script))
    return facts
