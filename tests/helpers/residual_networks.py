"""Small residual networks of every kind that a user's own module may be. All take images (n, 3, 8, 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 4


def conv_bn(channels: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))


class Net(nn.Module):
    """A stem, blocks in a row, a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU())
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """`x + branch(x)`, written in place."""

    def __init__(self, branch: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = conv_bn() if branch is None else branch

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return out


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class AddsElsewhere(Residual):
    """The addition is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x, self.branch(x))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(torch.relu(self.bn(x)))


class OverwritesInput(nn.Module):
    """Adds its branch into the memory of its input: cannot be trained, but runs."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_bn()

    def forward(self, x: Tensor) -> Tensor:
        x += self.branch(x)
        return x


class OverwritesView(OverwritesInput):
    """The same, through a view of that memory."""

    def forward(self, x: Tensor) -> Tensor:
        x.flatten(1).add_(self.branch(x).flatten(1))
        return x


class Wrapper(nn.Module):
    """The identity in eval mode, and a keyword argument that nobody needs."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
        return self.drop(x)


class DropsShortcut(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.branch = conv_bn()
        self.wrapper = Wrapper(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapper(x) + self.branch(x)


class ScaledShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_bn()
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.branch(x)


class NormalisedShortcut(nn.Module):
    """The shortcut passes a norm of its own, as in the blocks of RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.norm = conv_bn(), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(x) + self.branch(x))


class HalvedBranch(nn.Module):
    """`torch.add` with a factor: still a branch, but the shortcut is what is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_bn()

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.branch(x), x, alpha=0.5)


class PairBlock(nn.Module):
    """Returns its features and its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv_bn()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        branch = self.branch(x)
        return x + branch, branch


class PairNet(Net):
    """Reads one of the two values."""

    def __init__(self, *blocks: nn.Module, reads: int = 0) -> None:
        super().__init__(*blocks)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)[self.reads] if isinstance(block, PairBlock) else block(x)
        return self.head(x.mean((2, 3)))


class InMapping(Residual):
    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"features": super().forward(given["features"])}


class MappingNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        given = {"features": self.stem(x)}
        for block in self.blocks:
            given = block(given)
        return self.head(given["features"].mean((2, 3)))


class Stage(nn.Module):
    """Residual additions in the forward of a module of its own, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(x + layer(x))
        return x


class InPlaceStage(nn.Module):
    """Activations overwrite what the first module of a branch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.relu(x + norm(self.relu(convolution(x))))
        return x


class StageNet(Net):
    def __init__(self, stage: type[nn.Module] = Stage) -> None:
        super().__init__()
        self.body = stage()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class InPlaceStageNet(StageNet):
    def __init__(self) -> None:
        super().__init__(InPlaceStage)


class Remembers(Residual):
    """Keeps its branch where the network reads it."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.branch(x)
        return x + self.seen


class ReadingNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        for block in self.blocks:
            if isinstance(block, Remembers):
                x = x * torch.sigmoid(block.seen)
        return self.head(x.mean((2, 3)))


class BorrowingNet(Net):
    """Runs a part of its block 1 once more."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.tanh(self.blocks[1].branch(x)).mean((2, 3)))


class DavidNet(nn.Module):
    """Additions in the network's own forward, as in the well-known ResNet9."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.res1 = nn.Sequential(conv_bn(), nn.ReLU(), conv_bn())
        self.res2 = nn.Sequential(conv_bn(), nn.ReLU(), conv_bn())
        self.down = nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1), nn.ReLU())
        self.res3 = nn.Sequential(conv_bn(2 * WIDTH), nn.ReLU())
        self.res4 = conv_bn(2 * WIDTH)
        self.res5 = conv_bn(2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.res1(x) + x
        x = self.res2(x) + x
        x = self.down(x)
        x = x + self.res3(x)
        x = x + torch.relu(self.res4(x))
        x = x + torch.sigmoid(self.res5(x))
        return self.head(x.mean((2, 3)))


class OpenNet(nn.Module):
    """Additions in its own forward: a projection, and one branch that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.main = (nn.Conv2d(n, WIDTH, 1) for n in (3, WIDTH, WIDTH))
        self.once, self.twice, self.last = (conv_bn() for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.project(x) + self.main(x)
        x = x + self.once(x)
        x = x + self.twice(x)
        x = x + self.twice(x)
        x = x + self.last(x)
        return self.head(x.mean((2, 3)))


class GlobalSkip(Net):
    """A shortcut around all blocks beside those of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Residual() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.head(x.mean((2, 3)))


class FixedAttention(nn.Module):
    """Encoder layer whose own code reads an attribute of a module in one branch, and does the other's work itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        assert self.attention.batch_first
        x = x + self.attention(query=y, key=y, value=y)[0]
        return x + self.gain * self.down(torch.relu(self.up(self.norm2(x))))


class TokenNet(nn.Module):
    """Patches as tokens, layers in a row."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, WIDTH))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class AttentionLayer(nn.Module):
    """Encoder layer that takes the first of the two values that attention returns."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attention(query=self.norm(x), key=x, value=x)
        x = x + out
        return x + self.mlp(x)


def encoder(norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, norm_first=norm_first)


class Lucid(nn.Module):
    """Attention and MLP in pairs, added by the module that holds them all, which ends in a norm."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return self.norm(x)


class InTuple(Residual):
    """Returns its features in a tuple, as layers of transformers do."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class WithSize(Residual):
    """Takes and returns the features and their size, as timm's MViTv2 does."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        return super().forward(x), size


class TupleNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        sized, size = isinstance(self.blocks[0], WithSize), tuple(x.shape[2:])
        for block in self.blocks:
            if sized:
                x, size = block(x, size)
            else:
                (x,) = block(x)
        return self.head(x.mean((2, 3)))


class SumOfList(Residual):
    """`sum` begins with 0 + x."""

    def forward(self, x: Tensor) -> Tensor:
        return sum([x, self.branch(x)])  # type: ignore[return-value]


class ThenPReLU(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class Numbered(Net):
    """Blocks in a plain `nn.Sequential`, called by number."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(len(self.blocks)):
            x = self.blocks[number](x)
        return self.head(x.mean((2, 3)))


class Paired(Numbered):
    """Each block with a gain of its own, paired by `zip`."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, gain in zip(self.blocks, (1.0, 0.5, 2.0, -1.0), strict=True):
            x = gain * block(x)
        return self.head(x.mean((2, 3)))


class Aliased(nn.Module):
    """The stages of a backbone under a second name, through which they run; the blocks in a second container."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net(Residual(), Residual(), Residual())
        del self.backbone.head
        self.features = nn.Sequential(self.backbone.stem, *self.backbone.blocks)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class ReadsBlocks(Net):
    """Looks at an attribute of its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if isinstance(block.branch, nn.Module) else x
        return self.head(x.mean((2, 3)))


class Bias(nn.Module):
    """Relative positions: takes nothing, returns a table, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, WIDTH))

    def forward(self) -> Tensor:
        return self.table * 2


class BiasedLayer(nn.Module):
    """Encoder layer of which one branch calls a module without any tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.mix, self.mlp = Bias(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x * self.bias())
        return x + self.mlp(x)


class InWindows(nn.Module):
    """Adds its branch in windows of half the height and width, in another order of dimensions, padded and rolled."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 2)).roll(1, 1)
        x = x.view(n, 2, h // 2, 2, w // 2 + 1, c).transpose(2, 3).reshape(4 * n, -1, c)
        x = x + self.mix(x)
        x = x.view(n, 2, 2, h // 2, w // 2 + 1, c).transpose(2, 3).reshape(n, h, w + 2, c)
        return x.roll(-1, 1)[:, :, :w].permute(0, 3, 1, 2)


class Mirrored(InWindows):
    """Does not put back what it rearranged."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(3)


class ClassToken(nn.Module):
    """Adds to the first token, beside which the others stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1] + self.mix(x.mean(1, keepdim=True))
        return torch.cat([first, x[:, 1:]], dim=1)


class SecondInput(nn.Module):
    """Adds to the second thing that it is given what it finds in both, as blocks of a class token do."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, summary: Tensor) -> Tensor:
        return summary + self.mix(torch.cat([summary, tokens], dim=1).mean(1, keepdim=True))


class SummaryNet(TokenNet):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        summary = x.mean(1, keepdim=True)
        for layer in self.layers:
            summary = layer(x, summary)
        return self.head(summary[:, 0])


class ChangesLayout(Net):
    """Blocks of maps, the same with channels last, and of tokens, by turns."""

    def __init__(self) -> None:
        super().__init__(Residual(), Token(), Token(), Residual())

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        x = self.blocks[1](x.permute(0, 2, 3, 1))
        x = self.blocks[2](x.flatten(1, 2)).transpose(1, 2).unflatten(2, (8, 8))
        return self.head(self.blocks[3](x).mean((2, 3)))


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)
