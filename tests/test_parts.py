"""What labs share: losses, gradient penalties, the pool, augmentations, classes, initial weights; by closed forms."""

import numpy as np
import pytest
import torch
from conftest import toy_lab

import rollnumber_04 as gan
from labs import conv, emoji, fashion, parts

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat")


def real_images(seed=0, size=8):
    return torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ losses, penalties


def test_hinge_and_wasserstein_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert parts.hinge_d_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert parts.wgan_d_loss(real, fake).item() == pytest.approx(1 / 3 - 0.5)
    assert parts.wgan_g_loss(fake).item() == pytest.approx(-1 / 3)


def test_penalties_of_a_linear_discriminator_have_closed_forms():
    w = torch.randn(3 * 8 * 8, generator=seeded(0))

    def linear(x):
        return x.flatten(1) @ w

    norm = w.norm().item()
    assert parts.wgan_gp(linear, real_images()).item() == pytest.approx((norm - 1) ** 2, rel=1e-5)
    assert parts.zero_gp(linear, real_images()).item() == pytest.approx(norm**2, rel=1e-5)
    assert parts.r1(linear, real_images()).item() == pytest.approx(norm**2 / 2, rel=1e-5)


def test_penalties_take_the_norm_of_each_image_on_its_own():
    scale = torch.arange(8.0)

    def slopes(x):  # image i has the gradient (i, 0, 0 …)
        return x.flatten(1)[:, 0] * scale

    assert torch.equal(parts.squared_gradient_norms(slopes, real_images()), scale**2)
    assert parts.wgan_gp(slopes, real_images()).item() == pytest.approx(((scale - 1) ** 2).mean().item(), abs=1e-4)
    assert parts.zero_gp(slopes, real_images()).item() == pytest.approx((scale**2).mean().item())
    assert parts.r1(slopes, real_images()).item() == pytest.approx((scale**2).mean().item() / 2)


def test_where_penalties_look():
    real, fake = real_images(0), real_images(1)

    def half_square(x):  # whose gradient is the image itself
        return x.square().flatten(1).sum(1) / 2

    assert parts.r1(half_square, real).item() == pytest.approx(real.square().sum().item() / 16, rel=1e-5)
    points = parts.points_between(real, fake, seeded(0))
    share = ((points - fake) / (real - fake)).flatten(1)
    assert torch.allclose(share, share[:, :1].expand_as(share), atol=1e-3)  # one share for an image
    assert (share[:, 0] > 0).all()
    assert (share[:, 0] < 1).all()
    assert share[:, 0].std() > 0.1


def test_the_slope_of_a_flat_critic_has_a_gradient():
    """The root of 0, of which WGAN-GP takes the gradient, has an infinite one."""
    weight = torch.zeros(3 * 8 * 8, requires_grad=True)
    penalty = parts.wgan_gp(lambda x: x.flatten(1) @ weight, real_images())
    assert penalty.item() == pytest.approx(1, abs=1e-5)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("penalty", "make", "size"),
    [
        (parts.r1, lambda: conv.Discriminator(8, 3, 4), 8),
        (parts.wgan_gp, lambda: fashion.Critic(8, 3, 4, NAMES), 8),
        (parts.zero_gp, lambda: emoji.Discriminator(3, 4), 32),
    ],
    ids=["r1", "wgan_gp", "zero_gp"],
)
def test_the_penaltys_gradient_reaches_the_weights(penalty, make, size):
    """The gradient of loss and penalty, which is a gradient's gradient, against central differences in float64."""
    torch.manual_seed(3)
    network, labels = make().double(), torch.arange(8) % 3
    for weight in network.parameters():
        torch.nn.init.normal_(weight, 0, 0.2)
    told = (labels,) if isinstance(network, fashion.Critic) else ()
    real, fake = real_images(0, size).double(), real_images(1, size).double()
    points = parts.points_between(real, fake, seeded(2))
    weight = network.features[0].weight

    def loss():
        value = penalty(lambda images: network(images, *told), points)
        return gan.ls_d_loss(network(real, *told), network(fake, *told)) + 3 * value

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0, 0, 0), (1, 2, 3, 1), (3, 1, 2, 2)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            values.append(loss().item())
            with torch.no_grad():
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- the pool


def test_the_pools_statistics():
    rng = seeded(0)
    pool = parts.Pool(64, (1, 1, 1))

    def batch(first):  # images that carry their number, and a label that can be told from it
        numbers = torch.arange(first, first + 16)
        return numbers.float().reshape(-1, 1, 1, 1), numbers % 7

    ages, fresh = [], 0
    for k in range(600):
        images, labels = pool.swap(*batch(16 * k), rng)
        numbers = images.flatten().long()
        assert torch.equal(numbers % 7, labels)  # a label stays with its image
        assert len(numbers.unique()) == 16
        if k < 4:
            assert torch.equal(numbers, torch.arange(16 * k, 16 * k + 16))  # until it is full it only takes
            assert pool.is_full == (k == 3)
            continue
        age = 16 * k + 15 - numbers
        fresh += int((age < 16).sum())
        ages += age[age >= 16].tolist()
        assert len(pool.images.unique()) == 64
    assert pool.filled == 64
    assert fresh / (596 * 16) == pytest.approx(0.5, abs=0.02)
    # 8 of 64 places change in a batch: an image stays 8 batches on average, so it is 128 images old when it leaves.
    assert np.mean(ages) == pytest.approx(8 * 16, rel=0.06)


def test_a_pool_that_no_batch_fills_evenly():
    rng = seeded(0)
    pool = parts.Pool(20, (1, 1, 1))
    for first in (0, 16, 32):
        pool.swap(torch.arange(first, first + 16.0).reshape(-1, 1, 1, 1), None, rng)
        assert pool.filled == min(20, first + 16)
    assert set(pool.images.flatten().tolist()) <= set(range(48))


def test_a_pools_state_is_all_of_it():
    pools, rng = [parts.Pool(20, (1, 1, 1)) for _ in range(2)], seeded(0)
    pools[0].swap(torch.rand(16, 1, 1, 1, generator=rng), torch.arange(16), rng)
    pools[1].load_state_dict(pools[0].state_dict())
    images, labels = torch.rand(16, 1, 1, 1, generator=rng), torch.arange(16)
    for _ in range(3):
        found, expected = (pool.swap(images, labels, seeded(1)) for pool in pools)
        assert all(map(torch.equal, found, expected))
    assert pools[1].filled == 20
    for lie in (-1, 21):
        with pytest.raises(ValueError, match="a pool of 20 images does not hold"):
            pools[1].load_state_dict(pools[0].state_dict() | {"_extra_state": lie})


# ---------------------------------------------------------------------------------------------------- augmentations


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_as_the_paper_says(channels):
    images = torch.rand(6, channels, 8, 8, generator=seeded()) * 2 - 1
    found = parts.recoloured(images, seeded(1))
    draws = torch.rand(3, 6, generator=seeded(1)).double().numpy()
    for image, new, brighter, purer, stronger in zip(images.double().numpy(), found, *draws, strict=True):
        image = image + brighter - 0.5
        image = image.mean(0) + 2 * purer * (image - image.mean(0))
        image = image.mean() + (0.5 + stronger) * (image - image.mean())
        assert np.allclose(new.numpy(), image, atol=1e-5)


def test_translations_move_whole_images_by_up_to_an_eighth():
    images, seen = torch.rand(400, 2, 16, 8, generator=seeded()), set()
    for old, new in zip(images, gan.translated(images, seeded()), strict=True):
        padded = torch.nn.functional.pad(old, (1, 1, 2, 2))
        places = [(i, j) for i in range(5) for j in range(3) if torch.equal(padded[:, i : i + 16, j : j + 8], new)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 15
    halves = gan.translated(images.bfloat16(), seeded())  # not rounded by the product
    assert torch.equal(halves, gan.translated(images.bfloat16().float(), seeded()).bfloat16())


def test_holes_are_up_to_half_the_side():
    holes = parts.cut_out(torch.ones(300, 3, 8, 12), seeded())
    heights = (holes == 0).any(3).any(1).sum(1)
    widths = (holes == 0).any(2).any(1).sum(1)
    assert torch.equal((holes == 0).sum((1, 2, 3)), 3 * heights * widths)  # whole rectangles, in all channels
    assert {*heights.tolist()} == {2, 3, 4}  # half, or less at a border
    assert {*widths.tolist()} == {3, 4, 5, 6}


def test_the_gradient_passes_through_augmentations():
    model, _ = toy_lab("labs.biggan", "--augment cutout,colour,translation", CPU)
    images = real_images()[:2].double().requires_grad_(True)

    def changed_again(x):
        model.rng.manual_seed(0)
        return model.augment(x)

    assert torch.autograd.gradcheck(changed_again, images)
    assert torch.autograd.gradgradcheck(changed_again, images, fast_mode=True)
    rng = seeded(0)
    by_hand = parts.cut_out(gan.translated(parts.recoloured(images, rng), rng), rng)
    assert torch.equal(by_hand, changed_again(images))


def test_d_sees_real_and_generated_images_changed_and_their_labels_as_they_are():
    model, images = toy_lab("labs.biggan", "--augment cutout --conditional", CPU)
    seen, labels = [], images.labels[:8]
    model.discriminator.register_forward_pre_hook(lambda network, inputs: seen.append(inputs))
    model.step((torch.ones(8, 3, 28, 28), labels))
    assert len(seen) == 3  # real, fake, G's step
    for shown, told in seen:
        assert (shown == 0).all(1).sum((1, 2)).min() >= 7 * 7  # the least hole, in a corner
        assert torch.equal(told, labels)


# ----------------------------------------------------------------------------------------------- classes and weights


def test_one_hot():
    assert parts.one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_class_is_told_by_its_name_or_its_number():
    for label in ("bee", 1, "1", "name=bee", "number=1"):
        assert parts.class_number(label, NAMES) == 1
    assert [parts.class_number(i, [str(digit) for digit in range(10)]) for i in range(10)] == [*range(10)]
    for label in ("dog", 3, -1, "1.0", ""):
        with pytest.raises(gan.UserError, match="is not among the classes ant, bee, cat"):
            parts.class_number(label, NAMES)


def test_orthogonal_weights():
    network = torch.nn.Sequential(
        torch.nn.Linear(100, 200), torch.nn.Conv2d(3, 8, 4), torch.nn.ConvTranspose2d(90, 8, 2)
    )
    parts.initialise_orthogonal(network)
    for layer in network:
        matrix = layer.weight.flatten(1)
        matrix = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5)
        assert not layer.bias.any()


def test_spectral_norm_is_of_convolutions_and_linear_layers():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4), torch.nn.BatchNorm2d(8), torch.nn.Linear(20, 30))
    parts.normalise_spectra(network.modules())
    for _ in range(100):  # power iterations
        _ = network[0].weight, network[2].weight
    for layer in (network[0], network[2]):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)
    assert not torch.nn.utils.parametrize.is_parametrized(network[1])
