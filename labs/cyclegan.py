"""CycleGAN: translates images of one kind into another, learnt from two sets without pairs (Zhu et al. 2017).

    python -m labs.cyclegan --x data/emojis/Apple --y data/emojis/Windows
    python -m labs.cyclegan --x horse2zebra/trainA --y horse2zebra/trainB --style photo
    python -m labs.cyclegan --resume --out runs/NAME
    python -m labs.cyclegan translate MODEL --direction xy IMAGE… | FOLDER --out translated/
    python -m labs.cyclegan measure MODEL --x apple --y fluent     # pairs, matched by name: how near are translations?

The translator G turns images x into the other kind, y; the translator F turns y into x. Each has a discriminator that
compares its images with real ones, and what goes there and back again must be what it was. In the code G is `xy`, F is
`yx`, and the discriminators are `x` and `y`, by the images that they judge. Run folder, checkpoints, resume and
interruptions are those of rollnumber_04.py, whose parts these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from labs import pairs, parts
from labs.pairs import LEAST, Pairs
from labs.parts import default
from rollnumber_04 import UserError, option

########################################################################################################################
#                                                       Options                                                        #
########################################################################################################################

STYLES = ("emoji", "photo")
SHOWN = 24  # test images of each kind in a sheet


def by_style(like: Any, emoji: Any, photo: Any) -> Any:
    """A field of Config like another one, whose default depends on --style; it is None until that is known."""
    known = [f"{name}: {value}" for name, value in (("emoji", emoji), ("photo", photo)) if value not in (None, False)]
    text = f"{like.metadata['help']} ({', '.join(known)})".replace(": True", "")
    return field(default=None, metadata=like.metadata | {"help": text, "emoji": emoji, "photo": photo})


@dataclass(frozen=True)
class Config(parts.Config):
    """The options of a CycleGAN. The defaults of --style emoji are the emoji lab's, those of photo Zhu et al.'s."""

    without: ClassVar = (
        "data", "download", "translation", "latent_dim", "loss", "multitask", "class_weight", "validation_split",
        "evaluate_every", "evaluate_samples", "inception_weights",
    )  # fmt: skip
    epochs: int | None = by_style(default("epochs", None, "passes over the images x"), None, 200)
    iterations: int | None = by_style(default("iterations", None), 5000, None)
    batch_size: int = by_style(option(None, "images of each kind in a step, of each process", 1, 2**16), 32, 1)
    image_size: int = by_style(option(None, "pixels a side, a multiple of 4", LEAST, 1024, fixed=True), 32, 256)
    flip: bool = by_style(default("flip", None, "mirror half of the images"), False, True)
    width_g: int = by_style(default("width_g", None, "channels of the translators' first stage"), 32, 64)
    width_d: int = by_style(default("width_d", None, "channels of the discriminators' first stage"), 32, 64)
    lr_g: float = by_style(default("lr_g", None, "learning rate of the translators"), 3e-4, 2e-4)
    lr_d: float = by_style(default("lr_d", None, "learning rate of the discriminators"), 3e-4, 2e-4)
    beta1: float = by_style(default("beta1", None), 0.3, 0.5)
    ema: float = by_style(default("ema", None, "half-life, in images, of the averages of the translators"), 10_000, 0)

    x: Path | None = option(None, "images of one kind, to be turned into y", group="sets of images", word="PATH")
    y: Path | None = option(None, "images of the other kind, to be turned into x", word="PATH")
    x_test: Path | None = option(None, "test images of x; looked for beside --x if omitted", word="PATH")
    y_test: Path | None = option(None, "test images of y; looked for beside --y if omitted", word="PATH")
    held_out: float = option(
        0.0, "share of both sets' files, chosen by name so that pairs stay together, to be test images", 0, 0.9,
        fixed=True, word="SHARE",
    )  # fmt: skip
    load_size: int | None = option(None, "scale the images to this first, and crop at random", LEAST, 2048)
    crop: bool = by_style(
        option(None, "scale the images to 286/256 of --image-size first, and crop at random"), False, True
    )

    style: str = option(
        "emoji", "the emoji lab's networks and defaults, or Zhu et al.'s", choices=STYLES, group="style", fixed=True
    )
    blocks: int = by_style(option(None, "residual blocks of a translator", 0, 100, fixed=True), 1, 9)

    lambda_cycle: float = option(
        10.0, "weight λ of the cycles' mean L1 (the emoji handout sums over 3×32×32 numbers: its 0.015 is 46 here)",
        0, 10**6, group="losses", word="W",
    )  # fmt: skip
    lambda_identity: float = by_style(
        option(None, "weight of mean|G(y) - y| and mean|F(x) - x|, times λ", 0, 10**6, word="W"), 0.0, 0.5
    )
    pool: int = by_style(option(None, "pool of N earlier translations for D", 0, 2**16, fixed=True, word="N"), 0, 50)
    lr_decay: bool = by_style(option(None, "let both rates fall to 0 in the second half of the run"), False, True)

    def __post_init__(self) -> None:
        has_length = self.epochs or self.iterations  # either one is the length of the run
        for part in fields(self) if self.style in STYLES else ():  # `check_options` refuses any other style
            if getattr(self, part.name) is None and not (has_length and part.name in ("epochs", "iterations")):
                object.__setattr__(self, part.name, part.metadata.get(self.style))

    @property
    def loaded_size(self) -> int:
        """Pixels a side of the training images, of which a square of `image_size` is shown to the networks."""
        return self.load_size or (self.image_size * 286 // 256 if self.crop else self.image_size)

    def check(self) -> None:
        """Raise UserError for options that do not go together."""
        super().check()
        for flag in ("x", "y"):
            if getattr(self, flag) is None:
                raise UserError("is missing; name a folder of images", f"--{flag}")
        if self.held_out and (self.x_test or self.y_test):
            raise UserError("does not go with --x-test or --y-test, which are test images, too", "--held-out")
        if self.image_size % 4:
            raise UserError("must be a multiple of 4", f"--image-size {self.image_size}")
        if self.x.resolve() == self.y.resolve():
            raise UserError("is the folder of --x; there is nothing to translate into", f"--y {self.y}")
        if self.loaded_size < self.image_size:
            raise UserError(f"is less than --image-size {self.image_size}", f"--load-size {self.load_size}")
        if self.pool and self.pool < self.batch_size:
            raise UserError(f"must hold at least a batch, --batch-size {self.batch_size}", f"--pool {self.pool}")
        if self.deterministic and self.style == "photo" and self.device != "cpu" and torch.cuda.is_available():
            raise UserError("on a GPU torch cannot, for the reflected borders of --style photo", "--deterministic")
        if self.lambda_identity and not self.lambda_cycle:
            raise UserError("needs --lambda-cycle, by which it is multiplied", "--lambda-identity")


########################################################################################################################
#                                                       Networks                                                       #
########################################################################################################################


class Translator(nn.Module):
    """Images B×channels×H×W of one kind to images of another, of the same size, both in (-1, 1).

    Encoder, residual blocks, decoder, without a linear layer, so that H and W may be any multiples of 4. "emoji" is the
    emoji lab's CycleGenerator: 5×5 convolutions, batch norm, nearest upsampling (144,448 parameters by default).
    "photo" is that of Zhu et al. (c7s1-64, d128, d256, R256 …, u128, u64, c7s1-3; Johnson et al. 2016): instance norm
    and reflected borders. Shapes beside the layers are those of 32×32 emoji and 256×256 photos.
    """

    def __init__(self, style: str = "emoji", channels: int = 3, width: int = 32, blocks: int = 1):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        if style not in STYLES or blocks > 100:  # as a file may say
            raise ValueError(f"no translator of style {style} with {blocks} blocks")
        if style == "emoji":
            self.layers = nn.Sequential(
                nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),  # 32×16×16
                nn.Conv2d(width, 2 * width, 5, 2, 2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),  # 64×8×8
                *(EmojiBlock(2 * width) for _ in range(blocks)),
                nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 5, 1, 2, bias=False),
                nn.BatchNorm2d(width), nn.ReLU(),  # 32×16×16
                nn.Upsample(scale_factor=2), nn.Conv2d(width, channels, 5, 1, 2, bias=False), nn.Tanh(),  # 3×32×32
            )  # fmt: skip
        else:
            self.layers = nn.Sequential(
                nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7),  # 64×256×256
                nn.InstanceNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(),  # 128×128×128
                nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.InstanceNorm2d(4 * width), nn.ReLU(),  # 256×64×64
                *(PhotoBlock(4 * width) for _ in range(blocks)),
                nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(),
                nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), nn.InstanceNorm2d(width), nn.ReLU(),  # 64×256×256
                nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh(),  # 3×256×256
            )  # fmt: skip
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    @torch.no_grad()
    def translate(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Uint8 images n×H×W×3 to as many of the other kind; sides that are no multiples of 4 are continued."""
        device = next(self.parameters()).device
        images = gan.to_range(torch.as_tensor(pixels).to(device))
        height, width = images.shape[2:]
        # From 8 pixels on the blocks' maps can reflect their borders.
        right, below = (max(8, side + -side % 4) - side for side in (width, height))
        # Reflection takes less than the image has; a border of a narrower one is repeated instead.
        how = "reflect" if right < width and below < height else "replicate"
        padded = F.pad(images, (0, right, 0, below), how)
        return gan.to_uint8(self(padded)[..., :height, :width]).permute(0, 2, 3, 1).cpu().numpy()


class EmojiBlock(nn.Module):
    """The emoji lab's residual block: B×features×H×W and what a convolution of 3×3 and its norm add to them."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


class PhotoBlock(nn.Module):
    """Zhu et al.'s residual block (He et al. 2016): B×features×H×W and what two convolutions of 3×3 add to them."""

    def __init__(self, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(features, features, 3), nn.InstanceNorm2d(features), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(features, features, 3), nn.InstanceNorm2d(features),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


class PatchDiscriminator(nn.Module):
    """Images B×channels×H×W to scores B×h×w, each of a patch of the image, high for real.

    "emoji" is the emoji lab's: 5×5 convolutions of stride 2 with batch norm and ReLU, one score for 32×32. "photo" is
    the PatchGAN of Isola et al. 2017, whose scores see 70×70 pixels each.
    """

    def __init__(self, style: str = "emoji", channels: int = 3, width: int = 32):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        if style not in STYLES:  # as a file may say
            raise ValueError(f"no discriminator of style {style}")
        if style == "emoji":
            self.layers = nn.Sequential(
                nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),  # 32×16×16
                nn.Conv2d(width, 2 * width, 5, 2, 2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),  # 64×8×8
                nn.Conv2d(2 * width, 4 * width, 5, 2, 2, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU(),  # 128×4×4
                nn.Conv2d(4 * width, 1, 5, 2, 1, bias=False),  # 1×1×1
            )  # fmt: skip
        else:
            self.layers = nn.Sequential(
                nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2),  # 64×128×128
                nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2),  # 128×64×64
                nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.InstanceNorm2d(4 * width), nn.LeakyReLU(0.2),  # 256×32×32
                nn.Conv2d(4 * width, 8 * width, 4, 1, 1), nn.InstanceNorm2d(8 * width), nn.LeakyReLU(0.2),  # 512×31×31
                nn.Conv2d(8 * width, 1, 4, 1, 1),  # 1×30×30
            )  # fmt: skip
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)[:, 0]


def initialise(network: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 0.02²); their biases, which only photos' have, are 0."""
    gan.initialise(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


########################################################################################################################
#                                                       Training                                                       #
########################################################################################################################


class CycleGAN(gan.GAN):
    """Two translators and two discriminators in training (Zhu et al. 2017)."""

    Config = Config
    commands: ClassVar = {"translate": pairs.translate, "measure": pairs.measure}
    uses: ClassVar = {"translators": "translate {} --direction xy IMAGE --out translated"}
    networks: ClassVar = {"xy": Translator, "yx": Translator, "x": PatchDiscriminator, "y": PatchDiscriminator}

    def build(self) -> None:
        """Make the networks, and the pools of earlier translations."""
        config, size = self.config, self.config.image_size
        self.xy, self.yx = (Translator(config.style, self.channels, config.width_g, config.blocks) for _ in range(2))
        self.x, self.y = (PatchDiscriminator(config.style, self.channels, config.width_d) for _ in range(2))
        if config.pool:
            self.pools = {kind: parts.Pool(config.pool, (self.channels, size, size)) for kind in ("x", "y")}

    def optimized(self) -> dict[str, tuple[Sequence[str], float]]:
        """One optimizer for both translators, and one for both discriminators."""
        config = self.config
        return {"translators": (("xy", "yx"), config.lr_g), "discriminators": (("x", "y"), config.lr_d)}

    @staticmethod
    def models(config: Config) -> dict[str, Sequence[str]]:
        """One file holds both translators."""
        return {"translators": ("xy", "yx")}

    @staticmethod
    def columns(config: Config) -> tuple[str, ...]:
        """The metrics of a step."""
        return ("d_loss", "g_loss", "cycle_loss", "identity_loss", "g_xy", "g_yx", "d_x", "d_y")

    def on(self, device: torch.device) -> CycleGAN:
        """Move it to a device; on CUDA a rate that falls is a tensor there, which captured steps read anew."""
        super().on(device)
        if self.config.lr_decay and device.type == "cuda":
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = torch.tensor(group["lr"], device=device)
        return self

    def batch(self, images: Pairs, index: Tensor) -> tuple[Tensor, Tensor]:
        """Real images x and y, B×C×S×S each: x those of `index`, 1×B, and as many y drawn at random, so no pairs."""
        drawn = torch.randint(len(images.other_pixels), index[0].shape, generator=self.rng, device=self.rng.device)
        batches = []
        for pixels, chosen in ((images.pixels, index[0]), (images.other_pixels, drawn.to(images.other_pixels.device))):
            batch = gan.real_batch(pixels, chosen, self.config.flip, self.rng)
            batches.append(pairs.crops(batch, self.config.image_size, self.rng))
        return tuple(batches)

    def step(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """One update of both translators, then one of both discriminators, on real images B×C×S×S.

        Returns the metrics of `columns`, on the device: nothing is read back in here.
        """
        if self.config.lr_decay:
            self.set_rates()
        fakes, (g_xy, g_yx, cycle, identity) = self.update_translators(x, y)
        d_x, d_y = self.update_discriminators({"x": x, "y": y}, fakes)
        return [d_x + d_y, g_xy + g_yx, cycle, identity, g_xy, g_yx, d_x, d_y]

    def update_translators(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """One step down the translators' loss; returns translations {"x": F(y), "y": G(x)}, and the loss's four parts.

        mean((D_y(G(x)) - 1)²) + mean((D_x(F(y)) - 1)²) + λ·(mean|F(G(x)) - x| + mean|G(F(y)) - y|)
        + λ·λ_identity·(mean|G(y) - y| + mean|F(x) - x|) (Zhu et al. 2017, sections 3 and 5.2).
        """
        config, translate_x, translate_y = self.config, self.xy, self.yx
        self.x.requires_grad_(False)  # the gradient passes through the discriminators; their own is not wanted
        self.y.requires_grad_(False)
        with self.autocast():
            fake_y, fake_x = translate_x(x), translate_y(y)
            score_y, score_x = self.y(fake_y), self.x(fake_x)
            back_x, back_y = translate_y(fake_y), translate_x(fake_x)
            same_x, same_y = (translate_y(x), translate_x(y)) if config.lambda_identity else (x, y)
        g_xy, g_yx = gan.ls_g_loss(score_y.float()), gan.ls_g_loss(score_x.float())
        cycle = distance(back_x, x) + distance(back_y, y)
        identity = distance(same_x, x) + distance(same_y, y)
        self.update("translators", g_xy + g_yx + config.lambda_cycle * (cycle + config.lambda_identity * identity))
        self.x.requires_grad_(True)
        self.y.requires_grad_(True)
        losses = g_xy, g_yx, cycle, identity
        return {"x": fake_x.detach(), "y": fake_y.detach()}, tuple(loss.detach() for loss in losses)

    def update_discriminators(self, real: dict[str, Tensor], fakes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One step down J(D_x) + J(D_y), least squares both; real and translated images pass apart. Returns the two."""
        losses = []
        for kind, discriminator in (("x", self.x), ("y", self.y)):
            shown = self.pools[kind].swap(fakes[kind], None, self.rng)[0] if self.pools else fakes[kind]
            with self.autocast():
                real_scores, fake_scores = discriminator(real[kind]), discriminator(shown)
            losses.append(gan.ls_d_loss(real_scores.float(), fake_scores.float()))
        self.update("discriminators", losses[0] + losses[1])
        return losses[0].detach(), losses[1].detach()

    def set_rates(self) -> None:
        """Set the learning rates of the step to come, as `rate_share` says."""
        for name, (_, rate) in self.optimized().items():
            for group in self.optimizers[name].param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].copy_((2 * rate * (1 - self.steps / self.planned)).clamp(0, rate))
                else:
                    group["lr"] = rate * rate_share(int(self.steps), self.planned)

    def jumps(self, step: int, before: dict[str, Any]) -> list[str]:
        """The learning rates, if they fall and another number of steps was planned."""
        planned = before.get("planned")
        if not (self.config.lr_decay and before.get("lr_decay") and type(planned) is int and 0 < planned < 2**62):
            return []
        was, becomes = rate_share(step, planned), rate_share(step, self.planned)
        said = f"the learning rates stood at {was:.0%} of their first value and go on at {becomes:.0%}"
        return [said] if was != becomes else []

    @classmethod
    def load(cls, config: Config) -> tuple[Config, Pairs, Pairs | None]:
        """The options as they are, the training images, and test images if there are any. Raises UserError."""
        return config, *pairs.load_sets(config)

    def look(self, images: Pairs, validation: Pairs | None) -> gan.Snapshot:
        """Test images (or the middle of training images) translated and back again, and how far off they end."""
        size, sheets, distances = self.config.image_size, {}, []
        given, count = validation or images, SHOWN if self.config.image_size <= 128 else SHOWN // 4
        for there, back, pixels in (("xy", "yx", given.pixels), ("yx", "xy", given.other_pixels)):
            edge = (pixels.shape[1] - size) // 2
            columns = [pixels[:count, edge:, edge:][:, :size, :size].cpu()]
            for direction in (there, back):
                columns.append(pairs.translate_all(self.averages[direction], columns[-1]))
            sheets["{}_to_{}".format(*there)] = pairs.sheet_of(torch.stack(columns, 1).numpy())
            distances.append((columns[2].float() - columns[0].float()).abs().mean() / 127.5)
        return gan.Snapshot({"test_cycle": float(sum(distances))}, sheets)

    @staticmethod
    def uses_classes(config: Config) -> bool:
        """It knows none."""
        return False

    def sets(self, images: Pairs) -> dict[str, gan.Images]:
        """Both sets, by what the user called them."""
        return {str(self.config.x): images, str(self.config.y): replace(images, pixels=images.other_pixels)}

    @staticmethod
    def interval_columns(config: Config) -> tuple[str, ...]:
        """What `look` measures."""
        return ("test_cycle",)

    def curves(self) -> dict[str, tuple[str, str, str]]:
        """The pictures of losses."""
        formulas = {
            "g_xy": "mean((D(G(x)) − 1)²)", "g_yx": "mean((D(F(y)) − 1)²)", "d_x": "J(D) of x", "d_y": "J(D) of y",
            "cycle_loss": "mean L1, both cycles",
        }  # fmt: skip
        if self.config.lambda_identity:
            formulas["identity_loss"] = "mean L1, both"
        return {column: (column, column.replace("_", " "), formula) for column, formula in formulas.items()}

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """None: the losses of translators and discriminators do not tell who has won."""
        return []

    def describe(self) -> tuple[str, str]:
        """The networks and the objective, in words."""
        config, counts = self.config, [gan.count_parameters(network) for network in (self.xy, self.x)]
        identity = config.lambda_cycle * config.lambda_identity
        objective = f"least squares with {config.lambda_cycle:g} · cycle" + f" and {identity:g} · identity" * bool(
            identity
        )
        objective += ", rates falling to 0" * config.lr_decay
        return "two translators of {:,} and two discriminators of {:,} parameters".format(*counts), objective


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean absolute difference of all numbers, in units of the range (-1, 1)."""
    return (found.float() - wanted.float()).abs().mean()


def rate_share(step: int, planned: int) -> float:
    """The share of their first values that rates have in a step: 1 in the first half, then it falls linearly to 0."""
    return max(0.0, min(1.0, 2 * (1 - step / planned)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.cyclegan")


if __name__ == "__main__":
    gan.exit_with(main)
