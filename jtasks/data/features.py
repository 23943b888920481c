"""Features of videos: arrays `KIND/VIDEO.npy` [time, width], one folder per kind."""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jtasks.data import files
from jtasks.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of videos in a folder, `KIND/VIDEO.npy`, read on demand.

    Attributes:
      frames: maximum number of feature vectors of a video.
      threads: number of threads that read the videos of a batch.
    """

    folder: pathlib.Path
    kinds: tuple[str, ...]
    frames: int
    threads: int = 1

    def path(self, kind: str, video: str) -> pathlib.Path:
        """Return the path of one video's features of one kind."""
        return self.folder / kind / f"{video}.npy"

    def require(self, videos: Iterable[str]) -> None:
        """Raise a DataError that names missing files, or a ConfigError if the folder is missing."""
        wanted = [self.path(kind, video) for kind in self.kinds for video in dict.fromkeys(videos)]
        missing = [path for path in wanted if not path.is_file()]
        if missing:
            some = "".join(f"\n  {path}" for path in missing[:5])
            raise (DataError if self.folder.is_dir() else ConfigError)(
                f"{len(missing)} of {len(wanted)} files of features are missing, such as:{some}\n"
                "  what to do: put them there, set config.data.features_dir to the folder that holds"
                f" {', '.join(self.kinds)}, or train on text alone with --config.data.features='()'"
            )

    def width(self, video: str) -> int:
        """Return the number of features of a frame, all kinds together."""
        return sum(self._read(kind, video).shape[1] for kind in self.kinds)

    def batch(self, videos: Sequence[str | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Read features float32 [b, frames, width], zero after the last frame, and the number of frames [b].

        Args:
          videos: names, or features [time, width] themselves.
        """
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            arrays = list(pool.map(self.align, videos))
        widths = {array.shape[1] for array in arrays}
        if len(widths) > 1:
            raise DataError(
                f"features of different widths, {sorted(widths)}, among the videos {', '.join(map(str, videos[:5]))}"
            )
        batch = np.zeros((len(arrays), self.frames, widths.pop()), np.float32)
        for row, array in zip(batch, arrays, strict=True):
            row[: len(array)] = array
        return batch, np.array([len(array) for array in arrays], np.int32)

    def align(self, video: str | np.ndarray) -> np.ndarray:
        """Read features [time, width] of all kinds side by side, with at most `frames` frames.

        Kinds differ in frame rate. All are linearly interpolated at evenly spaced times, as many as the shortest kind
        has, at most `frames`; the first and the last frame of each are kept.
        """
        arrays = [self._read(kind, video) for kind in self.kinds] if isinstance(video, str) else [video]
        length = min(self.frames, *(len(array) for array in arrays))
        return np.concatenate([_resample(array, length) for array in arrays], axis=1)

    def _read(self, kind: str, video: str) -> np.ndarray:
        path = self.path(kind, video)
        array = files.array(path)  # maps the file, so only the needed parts are read
        if array.ndim != 2 or not array.size or array.dtype.kind != "f":
            raise DataError(f"{path} holds {array.dtype} {list(array.shape)}; expected floats [time, width]")
        return array


def _resample(array: np.ndarray, length: int) -> np.ndarray:
    times = np.linspace(0, len(array) - 1, length)
    before = np.floor(times).astype(int)
    after = np.minimum(before + 1, len(array) - 1)
    weight = (times - before)[:, None].astype(np.float32)
    return array[before].astype(np.float32) * (1 - weight) + array[after].astype(np.float32) * weight
