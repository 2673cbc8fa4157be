"""A result whose probabilities stay on the device until somebody wants them."""

from __future__ import annotations

from collections.abc import Callable

from mpn.types import Float32Array, StepResult


class DeviceStepResult(StepResult):
    """A :class:`mpn.types.StepResult`; ``probs`` are copied to the host when first read.

    That must happen before the next frame: then they are overwritten, and reading them is an
    error. The other attributes stay valid. Make one with ``probs`` an array, or a function without
    arguments that copies it.
    """

    @property
    def probs(self) -> Float32Array:
        """(K, H, W) float32; see the class.

        Raises:
            InputError: If the next frame was begun meanwhile.
        """
        held: Float32Array | Callable[[], Float32Array] = self.__dict__["_probs"]
        if callable(held):
            held = held()
            held.setflags(write=False)
            self.__dict__["_probs"] = held
        return held

    @probs.setter
    def probs(self, value: Float32Array | Callable[[], Float32Array]) -> None:
        self.__dict__["_probs"] = value

    def __repr__(self) -> str:
        shape = (len(self.object_ids), *self.labels.shape)
        return (
            f"DeviceStepResult(index={self.index}, labels={self.labels.shape}, "
            f"probs={shape}, object_ids={self.object_ids})"
        )
