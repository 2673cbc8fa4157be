"""OpenCV's number of threads, which belongs to the whole process."""

from __future__ import annotations

import cv2

from mpn.closing import Closing


class OpenCvThreads(Closing):
    """Sets the number until it is closed, then sets back what it was.

    Args:
        threads: At least 1.
    """

    def __init__(self, threads: int) -> None:
        self._before: int | None = cv2.getNumThreads()
        cv2.setNumThreads(threads)

    def close(self) -> None:
        """Set back the number; closing twice is allowed."""
        if self._before is not None:
            cv2.setNumThreads(self._before)
            self._before = None
