"""Layers of many networks of one shape at once: hidden layers, and the convolutions that images pass first."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.nn.functional import conv2d

MINUS_ONE = torch.tensor(-1.0)
IMAGE_SIDES, IMAGE_CHANNELS = range(8, 85), range(1, 5)  # of a Box that is taken for an image
NATURE = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))  # channels, kernel, stride, padding
SMALL = ((16, 3, 2, 1), (32, 3, 2, 1))
SMALLEST_FOR_NATURE = 36  # pixels; on a shorter side nothing would be left of the last layer
BLOCKS_PER_NETWORK = 4  # of `Blocks`; more blocks mean less padding, but smaller matrices
NUMBERS_AT_ONCE = 2**22  # numbers in the images that are convolved at a time where nothing is learned


def hidden_layers(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Two tanh layers of m networks: [m, B, in] -> [m, B, hidden]."""
    x = tanh_of_half(torch.baddbmm(bias1, x, weight1, beta=2, alpha=2))
    return tanh_of_half(torch.baddbmm(bias2, x, weight2, beta=2, alpha=2))


def tanh_of_half(x: Tensor) -> Tensor:
    """tanh(x/2) = 2σ(x) − 1. On a CPU, torch's sigmoid is several times as fast as its tanh."""
    return torch.add(MINUS_ONE, torch.sigmoid(x), alpha=2)  # one operation instead of two


class Blocks(NamedTuple):
    """S inputs in B blocks of equal width. Each block holds inputs of one of n networks.

    So one batched matmul evaluates each network at its own inputs only, with at most a quarter more places than inputs.
    B depends on S and n alone, so that nothing waits for a GPU. Unused places hold input 0. The other inputs change a
    result only by rounding.
    """

    index: Tensor  # [B, width], the input at each place
    place: Tensor  # [S], the place of each input in the flattened blocks
    network: Tensor  # [B]

    @classmethod
    def of(cls, network: Tensor, n: int) -> "Blocks":
        """The blocks of inputs whose networks are `network` [S], of n."""
        S, device = len(network), network.device
        width = math.ceil(S / (BLOCKS_PER_NETWORK * n))
        used = min(n, S)
        # The most that can be needed: a network with c inputs needs 1 + (c − 1) // width blocks.
        B = (S - used) // width + used
        numbers, networks = torch.arange(S, device=device), torch.arange(n, device=device)
        in_order, order = network.sort(stable=True)
        # How many inputs belong to each network or to one before it.
        until = torch.searchsorted(in_order, networks, right=True)
        count = until.diff(prepend=until.new_zeros(1))
        end = ((count + width - 1) // width).cumsum(0)  # the block after each network's last
        shift = end.roll(1).index_fill(0, networks[:1], 0) * width - (until - count)
        place = torch.empty_like(order).scatter_(0, order, numbers + shift[in_order])
        index = place.new_zeros(B * width).scatter_(0, place, numbers).view(B, width)
        of_block = torch.searchsorted(end, torch.arange(B, device=device), right=True).clamp(max=n - 1)
        return cls(index, place, of_block)

    def gather(self, x: Tensor) -> Tensor:
        """The inputs x [S, …] by block: [B, width, …]."""
        return x[self.index]

    def scatter(self, y: Tensor) -> Tensor:
        """The outputs y [B, width, …] in the order of the inputs: [S, …]."""
        return y.flatten(0, 1)[self.place]


class Image(NamedTuple):
    """The images that an observation space shows."""

    height: int
    width: int
    channels: int
    scale: float | None  # integers are divided by it; None for images of floats

    @classmethod
    def of(cls, space: Space[Any]) -> "Image | None":
        """The `Image` of a Box [H, W, C] with sides of 8 to 84 and up to 4 channels; None for any other space."""
        if not isinstance(space, Box) or len(space.shape) != 3:
            return None
        height, width, channels = space.shape
        if height not in IMAGE_SIDES or width not in IMAGE_SIDES or channels not in IMAGE_CHANNELS:
            return None
        scale = float(space.high.max()) if np.issubdtype(space.dtype or np.float32, np.integer) else None
        return cls(height, width, channels, scale)


class Trunk(nn.Module):
    """Convolutions of n members with two networks each (policy, value); no network shares weights with another.

    If both sides have at least 36 pixels they are those of Mnih et al. 2015: 32 channels of 8 × 8 with stride 4, 64 of
    4 × 4 with stride 2, 64 of 3 × 3. On smaller images they are 16 and then 32 channels of 3 × 3 with stride 2 and
    padding 1. A ReLU follows each layer.

    There are `size` features: the last layer's, and for each of its channels two moments, the sums weighted by row and
    by column from −1 to 1. A position is sometimes learned sooner from these than from one weight per cell.

    Networks are convolved one after the other. On a CPU this is twice as fast as a grouped convolution, and three times
    as fast as one batched matmul over unfolded images.
    """

    def __init__(self, n: int, image: Image) -> None:
        super().__init__()
        self._image = image
        self._layers = NATURE if min(image.height, image.width) >= SMALLEST_FOR_NATURE else SMALL
        before, sides = image.channels, [image.height, image.width]
        for i, (channels, kernel, stride, padding) in enumerate(self._layers):
            self.register_parameter(f"kernel{i}", nn.Parameter(torch.zeros(n, 2, channels, before, kernel, kernel)))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(n, 2, channels)))
            before, sides = channels, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        self.size = before * (math.prod(sides) + 2)

    def reset(self, i: int, generator: torch.Generator) -> None:
        """Draw orthogonal kernels for member i."""
        for layer in range(len(self._layers)):
            for kernel in getattr(self, f"kernel{layer}")[i]:
                kernel.copy_(nn.init.orthogonal_(torch.empty(kernel.shape), math.sqrt(2), generator=generator))

    def forward(self, obs: Tensor, networks: slice = slice(2)) -> Tensor:
        """Features [n · m, B, size] of flattened images [n, B, H · W · C]; `networks` selects m of the two."""
        if torch.is_grad_enabled():
            return self._features(obs, networks)
        at_once = max(1, NUMBERS_AT_ONCE // (len(obs) * obs.shape[-1]))
        return torch.cat([self._features(chunk, networks) for chunk in obs.split(at_once, 1)], 1)

    def _features(self, obs: Tensor, networks: slice) -> Tensor:
        height, width, channels, scale = self._image
        parameters = [p[:, networks].unbind() for p in self.parameters()]  # kernel, bias, kernel, … of each member
        features: list[Tensor] = []
        for x, *of_member in zip(obs, *parameters, strict=True):
            x = x.view(-1, height, width, channels).movedim(-1, 1).float()
            x = x if scale is None else x / scale
            features += [self._convolve(x, of_network) for of_network in zip(*of_member, strict=True)]
        return torch.stack(features)

    def _convolve(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        for (_, _, stride, padding), kernel, bias in zip(self._layers, parameters[::2], parameters[1::2], strict=True):
            x = conv2d(x, kernel, bias, stride, padding).relu()
        height, width = x.shape[2:]
        by_row = x.sum(3) @ torch.linspace(-1, 1, height, device=x.device)
        by_column = x.sum(2) @ torch.linspace(-1, 1, width, device=x.device)
        return torch.cat((x.flatten(1), by_row, by_column), 1)
