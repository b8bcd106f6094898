"""What many networks of one shape compute side by side: hidden layers, and before them the convolutions of images."""

import math
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn
from torch.nn.functional import conv2d

MINUS_ONE = torch.tensor(-1.0)
SIDES, CHANNELS = range(8, 85), range(1, 5)  # of what is taken for an image
NATURE = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))  # channels, kernel, stride, padding
SMALL = ((16, 3, 2, 1), (32, 3, 2, 1))
LARGE = 36  # the shortest side that leaves NATURE's last layer something
AT_ONCE = 2**22  # numbers in the images that are looked at together where nothing is learned


def hidden_layers(x, weight1, bias1, weight2, bias2):  # [m, B, in] -> [m, B, hidden], m networks at once
    x = tanh_of_half(torch.baddbmm(bias1, x, weight1, beta=2, alpha=2))
    return tanh_of_half(torch.baddbmm(bias2, x, weight2, beta=2, alpha=2))


def tanh_of_half(x):
    """tanh(x/2) = 2σ(x) − 1. On a CPU torch's sigmoid is several times as fast as its tanh, else the largest cost."""
    return torch.add(MINUS_ONE, torch.sigmoid(x), alpha=2)  # one operation, where 2 * σ - 1 is two


class Image(NamedTuple):
    """What an observation space shows, if that is an image."""

    height: int
    width: int
    channels: int
    scale: float | None  # by which integers are divided; None for images of floats

    @classmethod
    def of(cls, space):
        """The `Image` of a Box [H, W, C] with sides of 8 to 84 and up to 4 channels; None for another space."""
        if not isinstance(space, Box) or len(space.shape) != 3:
            return None
        height, width, channels = space.shape
        if height not in SIDES or width not in SIDES or channels not in CHANNELS:
            return None
        return cls(*space.shape, float(space.high.max()) if np.issubdtype(space.dtype, np.integer) else None)


class Trunk(nn.Module):
    """Convolutions of n members with two networks each (policy, value), every network with weights of its own.

    Where both sides are 36 or more they are those of Mnih et al. 2015: 32 channels of 8 × 8 every 4 pixels, 64 of 4 × 4
    every 2, 64 of 3 × 3. On smaller images they are 16 and then 32 channels of 3 × 3 every 2 pixels, padded by one.
    After each is a ReLU. The features, `size` of them, are the last layer's and, for each of its channels, two moments:
    its sum weighted by the row and by the column, from −1 to 1, as a place may be learned sooner from these than from
    one weight a cell. Integers are divided by `image.scale`.

    One network after the other: on a CPU that takes half the time of one convolution in groups, and a third of unfolded
    images in one batched matmul.
    """

    def __init__(self, n, image):
        super().__init__()
        self._image = image
        self._layers = NATURE if min(image.height, image.width) >= LARGE else SMALL
        before, sides = image.channels, (image.height, image.width)
        for i, (channels, kernel, stride, padding) in enumerate(self._layers):
            self.register_parameter(f"kernel{i}", nn.Parameter(torch.zeros(n, 2, channels, before, kernel, kernel)))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(n, 2, channels)))
            before, sides = channels, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        self.size = before * (math.prod(sides) + 2)

    def reset(self, i, generator):
        """Draw member i's kernels, orthogonal, with a torch generator."""
        for layer in range(len(self._layers)):
            for kernel in getattr(self, f"kernel{layer}")[i]:
                kernel.copy_(nn.init.orthogonal_(torch.empty(kernel.shape), math.sqrt(2), generator=generator))

    def forward(self, obs, networks=slice(2)):
        """Features [n · m, B, size] of flattened images obs [n, B, H · W · C]; `networks`: a slice of m of the two."""
        if torch.is_grad_enabled():
            return self._features(obs, networks)
        most = max(1, AT_ONCE // (len(obs) * obs.shape[-1]))
        return torch.cat([self._features(some, networks) for some in obs.split(most, 1)], 1)

    def _features(self, obs, networks):
        height, width, channels, scale = self._image
        parameters = [p[:, networks].unbind() for p in self.parameters()]  # kernel, bias, kernel, … of each member
        features = []
        for x, *of_member in zip(obs, *parameters, strict=True):
            x = x.view(-1, height, width, channels).movedim(-1, 1).float()
            x = x if scale is None else x / scale
            features += [self._convolved(x, of_network) for of_network in zip(*of_member, strict=True)]
        return torch.stack(features)

    def _convolved(self, x, parameters):
        for (_, _, stride, padding), kernel, bias in zip(self._layers, parameters[::2], parameters[1::2], strict=True):
            x = conv2d(x, kernel, bias, stride, padding).relu()
        height, width = x.shape[2:]
        by_row = x.sum(3) @ torch.linspace(-1, 1, height, device=x.device)
        by_column = x.sum(2) @ torch.linspace(-1, 1, width, device=x.device)
        return torch.cat((x.flatten(1), by_row, by_column), 1)
