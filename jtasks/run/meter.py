"""The speed of a run, and its use of the hardware."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping


def peak_memory() -> dict[str, float]:
    """Return {"peak_memory_bytes": maximum over local devices so far}; {} on CPUs, which do not count."""
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [device["peak_bytes_in_use"] for device in stats if "peak_bytes_in_use" in device]
    return {"peak_memory_bytes": float(max(peaks))} if peaks else {}


class Meter:
    """The step timer of one run.

    Args:
      count: maps a range of 0-based steps to the contents of their batches over all devices: `examples`, and
        `tokens` if batches are sized in tokens.
    """

    def __init__(self, count: Callable[[range], Mapping[str, float]]):
        self._count = count
        self._begin: tuple[float, int] | None = None  # time and step at which the timed interval began
        self._flops: float | None = None
        self._peak: float | None = None

    def set_flops(self, flops: float, peak: float | None) -> None:
        """Set operations per step and peak operations per second, over all devices, from which `rates` has `mfu`."""
        self._flops, self._peak = flops, peak

    def start(self, step: int) -> None:
        """Start the timer after `step`, unless it runs already."""
        self._begin = self._begin or (time.perf_counter(), step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside from the step time."""
        entered, begin = time.perf_counter(), self._begin
        try:
            yield
        finally:
            self._begin = begin and (begin[0] + time.perf_counter() - entered, begin[1])

    def rates(self, step: int) -> dict[str, float]:
        """Return the means from the start of the timer to now, when `step` is computed; {} if no step was timed.

        Returns:
          `examples_per_second` (and other counts), `seconds_per_step` and, after `set_flops` with a peak, `mfu`.
        """
        if self._begin is None or step <= self._begin[1]:
            return {}
        begun, first = self._begin
        passed = max(time.perf_counter() - begun, 1e-9)
        seconds = passed / (step - first)
        rates = {f"{name}_per_second": amount / passed for name, amount in self._count(range(first, step)).items()}
        rates["seconds_per_step"] = seconds
        return rates | ({"mfu": self._flops / seconds / self._peak} if self._flops and self._peak else {})

    def restart(self, step: int) -> None:
        """Start the timer again after `step`."""
        self._begin = (time.perf_counter(), step)
