"""The page in Chromium: drawings are written pixel by pixel, nothing is lost.

With MPN_WRITE_PICTURES=1 the screenshots of the tutorial are written to docs/pictures.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Dialog, Route, expect, sync_playwright

from mpn.evaluation import SequenceScore, evaluate_sequence, load_davis
from mpn.masks import load_labels, save_labels
from mpn.runtime.session.request import RunRequest
from mpn.runtime.session.session import run_video
from mpn.synthetic import ClipPaths, write_clip
from mpn.types import UInt8Array
from tests.conftest import REPOSITORY
from tests.studio.browser import (
    ARGUMENTS,
    CHROMIUM,
    Pixel,
    StudioPage,
    filled_polygon,
    page_facts,
    stroke,
)
from tests.studio.servers import StudioProcess

pytestmark = pytest.mark.browser

FRAMES = 12
CORRECTED = 6
SIZE_HW = (240, 426)
KOI, BALL = 1, 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not installed (apt-get install chromium)"
        if os.environ.get("MPN_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pond(tmp_path_factory: pytest.TempPathFactory) -> ClipPaths:
    return write_clip(tmp_path_factory.mktemp("pond"), frames=FRAMES, size_hw=SIZE_HW, objects=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    if os.environ.get("MPN_WRITE_PICTURES") == "1":
        return REPOSITORY / "docs" / "pictures"
    return tmp_path


def open_page(browser: Browser, server: StudioProcess, out: Path, **options: object) -> StudioPage:
    return StudioPage(
        browser,
        server.address,
        size_hw=SIZE_HW,
        corrections=out / "corrections",
        **options,  # type: ignore[arg-type]
    )


def corners(labels: UInt8Array, object_id: int) -> list[Pixel]:
    """Return corners of a polygon around an object, as a user clicks them."""
    mask = (labels == object_id).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    return [(int(x), int(y)) for x, y in cv2.approxPolyDP(largest, 1.5, closed=True)[:, 0]]


def score(clip: ClipPaths, masks: Path) -> SequenceScore:
    (sequence,) = load_davis(clip.davis_root, "val").sequences
    return evaluate_sequence(sequence, masks)


def test_session_from_first_stroke_to_corrected_result(
    browser: Browser, pond: ClipPaths, tmp_path: Path, pictures: Path
) -> None:
    """Draw, run, correct, run again, close, reopen; then the same with mpn-run."""
    out = tmp_path / "out"
    truth = load_labels(pond.first_mask)
    expected = np.zeros(SIZE_HW, np.uint8)
    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out)
        page.polygon(corners(truth, KOI))
        filled_polygon(expected, corners(truth, KOI), KOI)
        page.page.get_by_label("Name of object 1").fill("koi")
        page.page.get_by_label("Name of object 1").press("Enter")
        page.tool("n")
        ball = corners(truth, BALL)
        page.polygon(ball)
        filled_polygon(expected, ball, BALL)
        page.page.get_by_label("Name of object 2").fill("ball")
        page.page.get_by_label("Name of object 2").press("Enter")
        np.testing.assert_array_equal(page.saved(0), expected)
        page.picture(pictures / "studio-draw.jpg")

        page.run()
        masks = sorted((out / "masks").iterdir())
        assert len(masks) == FRAMES
        np.testing.assert_array_equal(load_labels(masks[0]), expected)

        page.go_to(CORRECTED)
        page.picture(pictures / "studio-result.jpg")
        corrected = load_labels(masks[CORRECTED])
        page.tool("1")
        page.tool("e")
        page.set_size(9)
        line = [(20, 30), (60, 34), (90, 60)]
        page.draw(line)
        stroke(corrected, line, 9, 0)
        page.tool("b")
        head = [(380, 200), (392, 214)]
        page.draw(head)
        stroke(corrected, head, 9, KOI)
        np.testing.assert_array_equal(page.saved(CORRECTED), corrected)
        expect(page.page.locator("#run-label")).to_have_text(f"Run from frame {CORRECTED}")
        page.picture(pictures / "studio-correct.jpg")
        page.page.get_by_label("Forwards").check()
        before = {path.name: path.read_bytes() for path in masks}
        page.run()
        after = {path.name: path.read_bytes() for path in masks}
        assert load_labels(masks[CORRECTED]).tobytes() == corrected.tobytes()
        kept = [f"{index:05d}.png" for index in range(CORRECTED)]
        assert all(before[name] == after[name] for name in kept)
        assert before[f"{CORRECTED + 1:05d}.png"] != after[f"{CORRECTED + 1:05d}.png"]
        assert page.problems == []
        page.context.close()
        assert server.stop() == 0

    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out)
        expect(page.page.get_by_label("Name of object 1")).to_have_value("koi")
        expect(page.page.get_by_label("Name of object 2")).to_have_value("ball")
        expect(page.page.locator("#frame-state")).to_contain_text("and in the results")
        page.go_to(CORRECTED)
        expect(page.page.locator("#frame-state")).to_contain_text("Drawn by you")
        expect(page.page.get_by_label("Forwards")).to_be_checked()
        # Erasing and undoing gives back the very mask.
        page.tool("e")
        rows, columns = np.nonzero(corrected == KOI)
        page.draw([(int(columns[0]), int(rows[0])), (int(columns[-1]), int(rows[-1]))])
        assert (page.saved(CORRECTED) != corrected).any()
        page.tool("Control+z")
        page.wait_for_save()
        np.testing.assert_array_equal(page.saved(CORRECTED), corrected)
        page.page.emulate_media(color_scheme="dark")
        page.page.set_viewport_size({"width": 800, "height": 700})
        page.picture(pictures / "studio-800.jpg")
        page.context.close()

    drawn = out / "corrections"
    request = RunRequest(
        video=str(pond.video), masks={0: drawn / "00000.png"}, out=tmp_path / "again"
    )
    run_video(request)
    masks_of_both = {index: drawn / f"{index:05d}.png" for index in (0, CORRECTED)}
    run_video(replace(request, masks=masks_of_both, directions={CORRECTED: "forward"}, resume=True))
    expected_score = score(pond, tmp_path / "again" / "masks")
    assert score(pond, out / "masks") == expected_score
    assert min(each.region.mean for each in expected_score.objects) > 0.5


@pytest.mark.parametrize("scale", [1, 2])
def test_drawing_is_written_pixel_by_pixel(
    browser: Browser, pond: ClipPaths, tmp_path: Path, scale: int
) -> None:
    """Brush, eraser, polygon and undo at two zooms, with mouse and keyboard."""
    out = tmp_path / "out"
    expected = np.zeros(SIZE_HW, np.uint8)
    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out, scale=scale, viewport=(1000, 700))
        assert page.view() == pytest.approx(page.fitted_view(), abs=0.01)
        wave = [(40, 60), (75, 41), (110, 88), (110, 40), (-9, 130), (0, 239)]
        page.set_size(13)
        page.draw(wave)
        stroke(expected, wave, 13, 1)
        _check_colour(page, expected, (75, 41), (200, 150))

        mouse = page.page.mouse
        mouse.move(*page.point((110, 60)))
        while page.view()[0] < 5:
            before = page.page.locator("#zoom-text").inner_text()
            mouse.wheel(0, -300)
            expect(page.page.locator("#zoom-text")).not_to_have_text(before)
        for diameter, shape in ((1, [(100, 50), (120, 57)]), (2, [(90, 70), (96, 74)]),
                                (7, [(105, 60), (112, 66), (99, 72)])):  # fmt: skip
            page.set_size(diameter)
            page.tool("2")
            page.draw(shape)
            stroke(expected, shape, diameter, 2)
        page.tool("e")
        page.draw([(104, 58), (110, 70)])
        stroke(expected, [(104, 58), (110, 70)], 7, 0)
        star = [(95, 45), (125, 66), (96, 68), (122, 44), (110, 80)]
        page.tool("3")
        page.polygon(star)
        filled_polygon(expected, star, 3)
        np.testing.assert_array_equal(page.saved(0), expected)
        _check_colour(page, expected, (110, 70), (85, 79))

        kept = expected.copy()
        page.tool("b")
        page.set_size(31)
        page.draw([(95, 50), (120, 75)])
        stroke(expected, [(95, 50), (120, 75)], 31, 3)
        np.testing.assert_array_equal(page.saved(0), expected)
        page.tool("Control+z")
        page.wait_for_save()
        np.testing.assert_array_equal(page.saved(0), kept)
        page.tool("Control+Shift+z")
        page.wait_for_save()
        np.testing.assert_array_equal(page.saved(0), expected)

        # With the keyboard: from the pointer's last pixel 10 to the left, and 3 down.
        page.set_size(5)
        page.tool("Enter")
        for key in ("Shift+ArrowLeft", "ArrowDown", "ArrowDown", "ArrowDown"):
            page.tool(key)
        page.tool("Enter")
        page.wait_for_save()
        stroke(expected, [(120, 75), (110, 75), (110, 76), (110, 77), (110, 78)], 5, 3)
        np.testing.assert_array_equal(page.saved(0), expected)
        assert page.problems == []
        page.context.close()


def _check_colour(page: StudioPage, labels: UInt8Array, painted: Pixel, free: Pixel) -> None:
    """Check that the mask is shown where it is: the colour changes when it is hidden."""
    assert labels[painted[1], painted[0]]
    assert not labels[free[1], free[0]]
    page.page.mouse.move(5, 300)
    shown = _screen_colours(page, painted, free)
    page.tool("m")
    hidden = _screen_colours(page, painted, free)
    page.tool("m")
    assert np.abs(shown[0] - hidden[0]).max() > 40
    assert np.abs(shown[1] - hidden[1]).max() <= 2


def _screen_colours(page: StudioPage, *pixels: Pixel) -> list[np.ndarray]:
    page.page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r)))")
    picture = np.array(Image.open(io.BytesIO(page.picture())).convert("RGB")).astype(int)
    scale = page.page.evaluate("devicePixelRatio")
    points = [page.point(pixel) for pixel in pixels]
    return [picture[round(y * scale), round(x * scale)] for x, y in points]


def test_two_pages_do_not_fight(browser: Browser, pond: ClipPaths, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = np.zeros(SIZE_HW, np.uint8)
    with StudioProcess(pond.video, out) as server:
        first = open_page(browser, server, out)
        box = first.canvas_box
        second = open_page(browser, server, out, context=first.context)
        expect(first.page.locator("#notice-text")).to_contain_text("another page")
        assert first.canvas_box == box  # a notice does not move the frame under the pointer
        first.set_size(9)
        second.set_size(9)
        first.draw([(50, 50), (90, 90)])
        stroke(expected, [(50, 50), (90, 90)], 9, 1)
        # The other page shows it at once, and draws on top of it.
        expect(second.page.locator("#saved")).to_have_text("Updated from another page")
        expect(second.page.locator("#frame-state")).to_contain_text("Drawn by you")
        second.draw([(90, 50), (50, 90)])
        stroke(expected, [(90, 50), (50, 90)], 9, 1)
        np.testing.assert_array_equal(second.saved(0), expected)
        expect(first.page.locator("#saved")).to_have_text("Updated from another page")

        # Both draw at the same time: the later one is not saved before its user has chosen.
        with second.page.expect_request(lambda request: request.method == "PUT"):
            second.page.mouse.move(*second.point((200, 50)))
            second.page.mouse.down()
            first.draw([(300, 50), (300, 90)])
            stroke(expected, [(300, 50), (300, 90)], 9, 1)
            np.testing.assert_array_equal(first.saved(0), expected)
            second.page.mouse.up()
        expect(second.page.locator("#notice-text")).to_contain_text("changed in another page")
        np.testing.assert_array_equal(first.saved(0), expected)
        # Another stroke does not pass over the choice.
        second.page.get_by_role("button", name="Close").click()
        expect(second.page.locator("#notice")).to_be_hidden()
        second.page.mouse.move(*second.point((60, 200)))
        second.page.mouse.down()
        second.page.mouse.up()
        expect(second.page.locator("#notice")).to_be_visible()
        np.testing.assert_array_equal(first.saved(0), expected)
        second.page.get_by_role("button", name="Load the other drawing").click()
        expect(second.page.locator("#notice")).to_be_hidden()
        second.draw([(10, 200), (30, 200)])
        stroke(expected, [(10, 200), (30, 200)], 9, 1)
        np.testing.assert_array_equal(second.saved(0), expected)
        first.context.close()


def test_edits_are_of_the_shown_frame(browser: Browser, pond: ClipPaths, tmp_path: Path) -> None:
    """While another frame is loading; and the last stroke before a reload is saved."""
    out = tmp_path / "out"
    drawn = {index: np.zeros(SIZE_HW, np.uint8) for index in (0, 9)}
    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out)
        page.set_size(9)
        for index, line in ((9, [(200, 50), (250, 90)]), (0, [(50, 50), (90, 90)])):
            page.go_to(index)
            page.draw(line)
            stroke(drawn[index], line, 9, 1)
        held: list[Route] = []
        page.page.route("**/api/masks/10", lambda route: held.append(route))
        with page.page.expect_request("**/api/masks/10"):
            page.tool(">")
        page.tool("c")
        expect(page.page.locator("#frame-title")).to_have_text("Frame 0")
        expect(page.page.locator("#frame-number")).to_have_value("0")
        page.draw([(300, 50), (350, 90)])
        stroke(drawn[0], [(300, 50), (350, 90)], 9, 1)
        held[0].continue_()
        page.wait_for_frame(10)
        expect(page.page.locator("#frame-number")).to_have_value("10")
        page.go_to(0)
        for index in drawn:
            np.testing.assert_array_equal(page.saved(index), drawn[index])

        page.page.mouse.move(*page.point((10, 200)))
        page.page.mouse.down()
        page.page.mouse.up()
        page.page.reload()
        page.page.wait_for_selector("body[data-ready]")
        stroke(drawn[0], [(10, 200)], 9, 1)
        np.testing.assert_array_equal(page.saved(0), drawn[0])
        assert page.problems == []
        page.context.close()


def test_large_drawing_is_kept_when_the_page_is_closed(
    browser: Browser, pond: ClipPaths, tmp_path: Path
) -> None:
    """Browsers send 64 kB for a closed page; a larger mask needs a prompt."""
    out = tmp_path / "out"
    expected = np.zeros(SIZE_HW, np.uint8)
    expected[:, ::2] = 2  # each pixel is a run
    with StudioProcess(pond.video, out) as server:
        (out / "corrections").mkdir(exist_ok=True)
        save_labels(out / "corrections" / "00000.png", expected)
        page = open_page(browser, server, out)
        page.set_size(9)
        kinds: list[str] = []

        def stay(dialog: Dialog) -> None:
            kinds.append(dialog.type)
            dialog.dismiss()

        page.page.on("dialog", stay)
        page.page.mouse.move(*page.point((10, 200)))
        page.page.mouse.down()
        with page.page.expect_request(lambda r: r.method == "PUT") as sent:
            page.page.close(run_before_unload=True)
        assert len(sent.value.post_data_buffer or b"") > 64 << 10
        page.wait_for_save()
        stroke(expected, [(10, 200)], 9, 1)
        np.testing.assert_array_equal(page.saved(0), expected)
        page.page.mouse.up()
        # 12 discs in a frame of 4K are small enough for a page that is gone.
        size = page.page.evaluate("""async () => {
            const { runsOf } = await import("/runs.js");
            const labels = new Uint8Array(3840 * 2160);
            for (let k = 0; k < 12; k++)
                for (let y = -300; y <= 300; y++) {
                    const half = Math.round(Math.sqrt(300 ** 2 - y ** 2));
                    const middle = 3840 * (360 + 720 * (k % 3) + y) + 480 + 960 * (k >> 2);
                    labels.fill(k + 1, middle - half, middle + half + 1);
                }
            return runsOf(labels).length;
        }""")
        assert 30_000 < size < 60_000
        with page.page.expect_event("close"):
            page.page.close(run_before_unload=True)
        assert kinds == ["beforeunload"]
        page.context.close()


def test_drawing_of_a_killed_server_is_kept(
    browser: Browser, pond: ClipPaths, tmp_path: Path
) -> None:
    """The page offers it as a file, which a later start takes as the drawing."""
    out = tmp_path / "out"
    expected = np.zeros(SIZE_HW, np.uint8)
    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out)
        page.set_size(9)
        server.kill()
        page.page.mouse.move(*page.point((10, 200)))
        page.page.mouse.down()
        page.page.mouse.up()
        stroke(expected, [(10, 200)], 9, 1)
        expect(page.page.locator("#notice-text")).to_contain_text("not saved")
        with page.page.expect_download() as download:
            page.page.get_by_role("button", name="Save drawing as a file").click()
        assert download.value.suggested_filename == "00000.png"
        download.value.save_as(out / "corrections" / "00000.png")
        np.testing.assert_array_equal(page.saved(0), expected)
        page.context.close()


class _HostilePage(BaseHTTPRequestHandler):
    """A page of another site that tries to read and to change."""

    target = ""

    def do_GET(self) -> None:
        script = """
          const results = [];
          async function attempt(path, options) {
            try {
              const response = await fetch(TARGET + path, options);
              results.push(response.type === 'opaque' ? 'opaque' : await response.text());
            } catch (error) { results.push('refused'); }
          }
          (async () => {
            await attempt('/api/state', {});
            await attempt('/api/masks/0', {method: 'PUT', body: 'x', headers: {'if-match': '*'}});
            await attempt('/api/run', {method: 'POST', mode: 'no-cors', body: '{}'});
            await attempt('/', {mode: 'no-cors'});
            await new Promise(done => {
              const script = document.createElement('script');
              script.onload = () => { results.push('loaded'); done(); };
              script.onerror = () => { results.push('refused'); done(); };
              script.src = TARGET + '/main.js';
              document.head.append(script);
            });
            document.title = results.join();
          })();""".replace("TARGET", repr(self.target))
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(f"<title>wait</title><script>{script}</script>".encode())

    def log_message(self, *args: object) -> None:
        pass


def test_page_of_another_origin_gets_nothing(
    browser: Browser, pond: ClipPaths, tmp_path: Path
) -> None:
    """Another port on the same host is another origin; the studio is open too."""
    out = tmp_path / "out"
    with StudioProcess(pond.video, out) as server:
        page = open_page(browser, server, out)
        address = server.address.partition("/#")[0]
        handler = type("Handler", (_HostilePage,), {"target": address})
        hostile = HTTPServer(("127.0.0.1", 0), handler)
        Thread(target=hostile.serve_forever, daemon=True).start()
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{hostile.server_port}/")
        expect(other).to_have_title("refused,refused,refused,refused,refused")
        hostile.shutdown()
        hostile.server_close()
        # Control: the same request of the page itself is valid.
        assert page.page.evaluate("() => fetch('/main.js').then(r => r.status)") == 200
        with server.client() as client:
            state = client.get("/api/state").json()
        assert (state["drawn"], state["run"]["state"]) == ({}, "idle")
        # A page without the token shows how to open it, and nothing of the video.
        stranger = browser.new_context().new_page()
        stranger.goto(address)
        expect(stranger.locator("#blank")).to_be_visible()
        expect(stranger.locator("#app")).to_be_hidden()
        # Each control has a name.
        facts = page_facts(page.page)
        assert len(facts) > 30
        assert [fact for fact in facts if not fact["name"]] == []
        page.context.close()
