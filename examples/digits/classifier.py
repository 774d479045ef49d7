"""A small convolutional network that reads digits; it judges what the diffusion model draws."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = Path(__file__).resolve().parent / "classifier.safetensors"


class DigitReader(nn.Module):
    """Images in [0, 1], shape (N, 1, 28, 28), to logits of the ten digits."""

    def __init__(self, width: int = 32) -> None:
        """Build three convolution stages of growing width and a linear head."""
        super().__init__()
        wide = 2 * width
        self.features = nn.Sequential(
            *self._stage(1, width),
            *self._stage(width, width),
            nn.MaxPool2d(2),
            *self._stage(width, wide),
            *self._stage(wide, wide),
            nn.MaxPool2d(2),
            *self._stage(wide, wide),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(wide * 49, 10))

    @staticmethod
    def _stage(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.features(images))


def save_reader(reader: DigitReader, path: Path = WEIGHTS) -> None:
    """Store the weights as half-precision safetensors (counters stay integers)."""
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in reader.state_dict().items()
    }
    save_file(state, path)


def load_reader(path: Path = WEIGHTS) -> DigitReader:
    """Load the committed reader in fp32, ready to read."""
    reader = DigitReader()
    reader.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return reader.eval()


@torch.no_grad()
def read_digits(
    reader: DigitReader, images: torch.Tensor, batch: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the reader sees in each image and how sure it is (the largest probability)."""
    parts = [reader(part.float()).softmax(-1).max(-1) for part in images.split(batch)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
