"""Write the review as one HTML file without scripts.

Texts of files and masks come from others: each is escaped, and the Content-Security-Policy of the
page forbids scripts, requests and frames.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import mpn
from mpn._common.text import one_line, printable
from mpn.masks import DAVIS_PALETTE
from mpn.runtime.media.overlay import OVERLAY_PALETTE
from mpn.runtime.review.builder import (
    Correction,
    FrameInfo,
    Review,
    RunFacts,
    Thumbnail,
    WorstFrame,
)
from mpn.runtime.review.pictures import data_uri
from mpn.runtime.review.series import (
    ABSENT,
    GIVEN,
    LOST,
    REDETECTED,
    ObjectSeries,
    reliability_of_track,
    stretches,
)
from mpn.runtime.review.timeline import timeline_svg
from mpn.runtime.review.worst import CHECK_BELOW
from mpn.types import Track, UInt8Array

_MARK = '<meta name="generator" content="mpn-runtime review">'
_HEAD_BYTES = 1024
_MOST_OBJECTS = 24
"""Timelines of the page: those of the least reliable objects."""
_MOST_SPANS = 4
_ONE_FRAME = {".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".npy"}
"""Suffixes of files that have the mask of one frame."""
_LONGEST_NAME = 80
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def is_review(path: Path) -> bool:
    """Return whether a file is a review, which may be replaced."""
    try:
        with path.open("rb") as file:
            return _MARK.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False


def html_of_review(review: Review, facts: RunFacts) -> bytes:
    """Return the page.

    Its size is bounded for any length of the video: 24 thumbnails, 12 frames of at most 0.5 MB, 12
    corrections and 24 timelines of at most 500 points.

    Args:
        review: Its contents.
        facts: Facts about the run.
    """
    style = files("mpn.runtime.review").joinpath("page.css").read_text(encoding="utf-8")
    title = f"Review of {_text(facts.title)}"
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the frames</a>\n<header>\n'
        f'<h1>{title}</h1>\n{_summary(review, facts)}\n</header>\n<main id="main">\n',
        _worst_section(review, facts),
        _timelines_section(review, facts),
        _corrections_section(review, facts),
        _sheet_section(review),
        f"</main>\n<footer><p>Written by mpn-runtime {_text(mpn.__version__)}. This file is "
        "complete: it loads nothing and runs no scripts.</p></footer>\n</body>\n</html>\n",
    ]
    return "".join(parts).encode("utf-8")


def _text(value: object) -> str:
    """Escape a text of a file or the user for HTML, quotes included."""
    return escape(printable(str(value)), quote=True)


def _summary(review: Review, facts: RunFacts) -> str:
    height, width = facts.size_hw
    shown = sorted(review.objects)[:_MOST_OBJECTS]
    marked = sum(1 for frame in review.worst if _least(frame.frame) < CHECK_BELOW)
    rows = [
        ("Video", f"<bdi>{_text(facts.video)}</bdi>, {width}x{height}"),
        ("Frames", _span_of(review)),
        ("Results", f"<bdi>{_text(facts.out)}</bdi>"),
        ("Objects", ", ".join(_object(k, facts) for k in shown)),
        ("In the masks", ", ".join(_colour_in_masks(k) for k in shown)),
        (
            "To check",
            f"{marked} of {len(review.worst)} below, with a reliability under {CHECK_BELOW}"
            if marked
            else f"no frame has a reliability under {CHECK_BELOW}",
        ),
    ]
    if facts.state and facts.state != "complete":
        rows.append(("State", f"the run is {_text(facts.state)}: later frames are missing"))
    rows += [("Note", _text(note)) for note in facts.notes]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<dl>{listed}</dl>"


def _span_of(review: Review) -> str:
    if not review.indices:
        return "none"
    return f"{len(review.indices)}, from {review.indices[0]} to {review.indices[-1]}"


def _object(object_id: int, facts: RunFacts) -> str:
    """Return colour, number and name of an object."""
    name = one_line(facts.object_names.get(object_id, ""), _LONGEST_NAME)
    label = f"object {object_id}" + (f" (<bdi>{_text(name)}</bdi>)" if name else "")
    return f'<span class="object">{_swatch(OVERLAY_PALETTE, object_id)}{label}</span>'


def _colour_in_masks(object_id: int) -> str:
    """Return number and colour of an object in the mask files."""
    swatch, colour = _swatch(DAVIS_PALETTE, object_id), _colour(DAVIS_PALETTE, object_id)
    return f'<span class="object">{swatch}{object_id}&nbsp;{colour}</span>'


def _swatch(palette: UInt8Array, object_id: int) -> str:
    return f'<span class="swatch" style="background:{_colour(palette, object_id)}"></span>'


def _colour(palette: UInt8Array, object_id: int) -> str:
    return f"#{palette[object_id].tobytes().hex()}"


def _worst_section(review: Review, facts: RunFacts) -> str:
    cards = "".join(
        _card(frame, number, review, facts) for number, frame in enumerate(review.worst, start=1)
    )
    if not cards:
        cards = "<p>Every mask was given by the user.</p>"
    else:
        cards = f'<ol class="cards">{cards}</ol>'
    return (
        '<section aria-labelledby="worst"><h2 id="worst">Frames to check</h2>\n'
        "<p>A correction of the first frame is expected to mend most, because it changes the "
        "frames around it too. The others are the least reliable frames, spread in time. To mend "
        "one: save the frame and the mask, paint the mask over the frame with any program, each "
        "object in its colour in the mask, save it as <code>fix.png</code>, and run the command "
        "with the options of the first run.</p>\n"
        f"{cards}</section>\n"
    )


def _card(worst: WorstFrame, number: int, review: Review, facts: RunFacts) -> str:
    frame, picture = worst.frame, worst.picture
    height, width = facts.size_hw
    outlines = "".join(
        f'<path d="{path}" style="stroke:{_colour(OVERLAY_PALETTE, object_id)}"/>'
        for object_id, path in picture.outlines.items()
        if path
    )
    reduced = (
        ""
        if picture.size_hw == facts.size_hw
        else (
            f"<p>The picture is reduced to {picture.size_hw[1]}x{picture.size_hw[0]}; the mask has "
            "the size of the video.</p>"
        )
    )
    stem = _text(_file_stem(frame))
    title = f"Frame {frame.index} ({_time(frame.pts_s)})"
    alternative = f"{title}, with the outlines of the masks"
    command = _text(_command(frame.index, facts))
    return (
        f'<li id="frame-{frame.index}"><article aria-labelledby="title-{frame.index}">\n'
        f'<h3 id="title-{frame.index}">{number}. {title}</h3>\n'
        f'<figure class="frame"><img src="{data_uri(picture.jpeg, "jpeg")}" width="{width}" '
        f'height="{height}" alt="{alternative}">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{outlines}</svg></figure>\n'
        f"<ul>{''.join(_verdict(track, facts) for track in _by_reliability(frame))}</ul>\n"
        f'<p><a href="{data_uri(picture.mask_png, "png")}" download="{stem}-mask.png">Save the mask'
        f'</a> <a href="{data_uri(picture.jpeg, "jpeg")}" download="{stem}-frame.jpg">Save the '
        f"frame</a></p>\n{reduced}"
        f'<pre tabindex="0" role="region" aria-label="Command for frame {frame.index}"><code>'
        f"{command}</code></pre>\n</article></li>\n"
    )


def _verdict(track: Track, facts: RunFacts) -> str:
    reliability = reliability_of_track(track)
    reasons = [f"reliability {reliability:.2f}"]
    if track.state == "lost":
        reasons.append("lost: no pixel; right if it is hidden")
    else:
        reasons.append(f"confidence {track.confidence:.2f}, {track.area_px} px")
    if "redetected" in track.events:
        reasons.append("re-detected here")
    flag = '<strong class="flag">check</strong> ' if reliability < CHECK_BELOW else ""
    return f"<li>{flag}{_object(track.object_id, facts)}: {'; '.join(reasons)}</li>"


def _by_reliability(frame: FrameInfo) -> list[Track]:
    return sorted(frame.tracks, key=reliability_of_track)[:_MOST_OBJECTS]


def _least(frame: FrameInfo) -> float:
    return min((reliability_of_track(track) for track in frame.tracks), default=1.0)


def _command(index: int, facts: RunFacts) -> str:
    """Return the command that corrects a frame, quoted for a shell.

    The corrected file replaces the mask that the frame has. Each other mask keeps its frame: a file
    alone would be the mask of the first frame, unless it has several frames in it. A resumed run
    keeps the directions of the masks.
    """
    words = ["mpn-run", facts.video]
    frames_of: dict[str, list[int]] = {}
    for frame, name in sorted(facts.masks.items()):
        frames_of.setdefault(name, []).append(frame)
    for name, frames in frames_of.items():
        is_whole = len(frames) > 1 and Path(name).suffix.lower() not in _ONE_FRAME
        if is_whole and index not in frames:
            words += ["--mask", name]
        else:
            words += [w for f in frames if f != index for w in ("--mask", f"{f}:{name}")]
    if not frames_of:
        words += ["--mask", "FIRST.png"]
    words += ["--mask", f"{index}:fix.png", "-o", str(facts.out)]
    return printable(shlex.join([*words, "--resume"]))


def _timelines_section(review: Review, facts: RunFacts) -> str:
    ranked = sorted(review.objects.values(), key=lambda series: sum(series.reliability))
    shown = sorted(ranked[:_MOST_OBJECTS], key=lambda series: series.object_id)
    positions = {index: at for at, index in enumerate(review.indices)}
    worst = [positions[frame.frame.index] for frame in review.worst]
    parts = [
        '<section aria-labelledby="timelines"><h2 id="timelines">Timelines</h2>\n'
        '<ul class="key"><li><span class="k-curve"></span>reliability, 0 to 1</li>'
        f'<li><span class="k-limit"></span>{CHECK_BELOW}: check below it</li>'
        '<li><span class="k-area"></span>area</li><li><span class="k-lost"></span>lost</li>'
        "<li>&#9670; mask of the user</li><li>&#9650; re-detected</li>"
        '<li><span class="k-check"></span>frame to check</li></ul>\n'
    ]
    if len(ranked) > len(shown):
        parts.append(f"<p>The {len(shown)} least reliable of {len(ranked)} objects.</p>")
    for series in shown:
        label = f"Timeline of object {series.object_id}"
        parts.append(
            f"<h3>{_object(series.object_id, facts)}</h3>"
            f"{timeline_svg(series, worst, label)}"
            f'<p class="axis"><span>{review.indices[0]}</span><span>frame</span>'
            f"<span>{review.indices[-1]}</span></p><p>{_facts_of(series, review)}</p>\n"
        )
    return "".join(parts) + "</section>\n"


def _facts_of(series: ObjectSeries, review: Review) -> str:
    """Return the timeline in words."""
    indices = review.indices
    known = [at for at, state in enumerate(series.state) if state != ABSENT]
    low = sum(1 for at in known if series.reliability[at] < CHECK_BELOW)
    lowest = min(known, key=lambda at: series.reliability[at], default=0)
    words = [
        f"Reliability under {CHECK_BELOW} in {low} of {len(known)} frames, lowest "
        f"{series.reliability[lowest]:.2f} in frame {indices[lowest]}"
    ]
    for state, name in ((LOST, "lost in"), (REDETECTED, "re-detected in"), (GIVEN, "given in")):
        spans = stretches(series.state, state)
        if spans:
            words.append(f"{name} {_frames(spans, indices)}")
    return "; ".join(words) + "."


def _frames(spans: Sequence[tuple[int, int]], indices: Sequence[int]) -> str:
    texts = [
        f"{indices[first]}" if first == last else f"{indices[first]} to {indices[last]}"
        for first, last in spans[:_MOST_SPANS]
    ]
    more = len(spans) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")


def _corrections_section(review: Review, facts: RunFacts) -> str:
    if not review.corrections:
        return ""
    items = "".join(_correction(correction) for correction in review.corrections)
    return (
        '<section aria-labelledby="corrections"><h2 id="corrections">Corrections</h2>\n'
        "<p>The corrected frames that changed most: the mask of the run, and that of the user."
        f"</p>\n{items}</section>\n"
    )


def _correction(correction: Correction) -> str:
    index, pictures = correction.frame.index, correction.pictures
    pair = "".join(
        f'<figure><img src="{data_uri(jpeg, "jpeg")}" alt="Frame {index} {name} the correction">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, jpeg in (("before", pictures.before), ("after", pictures.after))
    )
    return (
        f"<article><h3>Frame {index}</h3><p>IoU of both masks: {pictures.iou:.2f}</p>"
        f'<div class="pair">{pair}</div></article>\n'
    )


def _sheet_section(review: Review) -> str:
    items = "".join(_sheet_item(picture) for picture in review.sheet)
    return (
        '<section aria-labelledby="sheet"><h2 id="sheet">Contact sheet</h2>\n'
        f'<ul class="sheet">{items}</ul></section>\n'
    )


def _sheet_item(picture: Thumbnail) -> str:
    frame = picture.frame
    flag = ' <strong class="flag">check</strong>' if _least(frame) < CHECK_BELOW else ""
    return (
        f'<li><figure><img src="{data_uri(picture.jpeg, "jpeg")}" loading="lazy" '
        f'alt="Frame {frame.index} with its masks"><figcaption>{frame.index} '
        f"({_time(frame.pts_s)}){flag}</figcaption></figure></li>"
    )


def _time(pts_s: float) -> str:
    minutes, seconds = divmod(max(pts_s, 0.0), 60)
    return f"{int(minutes)}:{seconds:05.2f}"


def _file_stem(frame: FrameInfo) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in frame.name)[:60] or "frame"
