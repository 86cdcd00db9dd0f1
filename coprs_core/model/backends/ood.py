"""Out-of-distribution detection: how far a photo is from the training images of a model.

An image is described by the means and standard deviations of its image embedding's channels. Its
distance from the training images is Mahalanobis's (Lee et al., "A Simple Unified Framework for
Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018), in units of a border
that nearly all of those lie within.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coprs_core.geometry import unpadded_prior_size, unpadded_size

BORDER_QUANTILE = 0.99
"""Share of the held-out training images that lie within the border."""
MIN_IMAGES_PER_DIMENSION = 5
"""Fewer images for each number that describes one, and chance decides the distances."""


@dataclass(frozen=True, eq=False)
class OodStatistics:
    """Statistics of a checkpoint's training images; all float32. A file has the same names.

    Attributes:
        mean: [D], of the images' descriptions.
        whitening: [D, D]; applied to a description less the mean, it makes all directions alike.
        border: [1], the distance within which nearly all of those images lie.
    """

    mean: Tensor
    whitening: Tensor
    border: Tensor

    def distance(self, description: Tensor) -> float:
        """Distance of an image of description [D]: 0 is the average, 1 the border."""
        return float(self._mahalanobis(description.float().cpu()[None]) / self.border)

    def _mahalanobis(self, descriptions: Tensor) -> Tensor:
        centred = descriptions - self.mean
        return (centred @ self.whitening.T).square().mean(1).sqrt()

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors of a file."""
        return {"mean": self.mean, "whitening": self.whitening, "border": self.border}


def image_statistics(image_embedding: Tensor, photo_size: tuple[int, int], side: int) -> Tensor:
    """Describe an image in 2 C numbers, float32: means, then standard deviations, of the channels
    over the cells that show photo.

    Args:
        image_embedding: [1, C, h, w], of SAM's image encoder.
        photo_size: (height, width) of the photo in pixels.
        side: of SAM's square input, in pixels.
    """
    unpadded = torch.tensor([unpadded_size(photo_size, side)])
    rows, columns = unpadded_prior_size(unpadded, side, image_embedding.shape[-1])[0].tolist()
    cells = image_embedding[0, :, :rows, :columns].flatten(1).cpu().double()  # MPS has none
    return torch.cat([cells.mean(1), cells.std(1, correction=0)]).float()


def min_images(channels: int) -> int:
    """How many images `fit_ood_statistics` needs for an image embedding of so many channels."""
    return 2 * MIN_IMAGES_PER_DIMENSION * 2 * channels


def fit_ood_statistics(descriptions: Tensor) -> OodStatistics:
    """Fit to the descriptions [N, D] of training images; N is at least `min_images`.

    Every other one gives mean and covariance, the rest the border: distances of the images that
    were fitted are too small.
    """
    fitted, held_out = descriptions.double()[0::2], descriptions.double()[1::2]
    values, directions = torch.linalg.eigh(torch.cov(fitted.T))
    whitening = (directions / values.clamp(min=values.max() * 1e-9).sqrt()).T
    raw = OodStatistics(fitted.mean(0), whitening, torch.ones(1))._mahalanobis(held_out)
    border = raw.quantile(BORDER_QUANTILE)[None]
    return OodStatistics(fitted.mean(0).float(), whitening.float(), border.float())
