from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import FormatError, GridError  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet, fold, unfold  # noqa: E402
from clemreg.segment.trainee import Trainee, start_from  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]


def reached(network, size, slope):
    """First or last input voxel that the last output depends on.

    All weights are positive and the input grows along the diagonal, so that no ReLU is closed and
    every maximum lies at the end that is asked for.
    """
    positive = copy.deepcopy(network)
    for parameter in positive.parameters():
        parameter.data = parameter.data.abs() + 0.01
    ramp = 1e-3 * slope * torch.arange(size, dtype=torch.double)
    x = (1 + ramp[:, None, None] + ramp[:, None] + ramp)[None, None].requires_grad_()
    positive._pass(x, 0, lambda features: features)[0, 0, -1, -1, -1].backward()
    touched = torch.nonzero(x.grad[0, 0])
    return int(touched.min() if slope < 0 else touched.max())


@pytest.mark.parametrize(
    ("widths", "down", "up", "folded", "halo"),
    [
        ((4, 6, 8), (2, 2, 2), (2, 2), 1, 20),
        ((3, 4, 5, 6), (1, 2, 2, 1), (2, 1, 2), 1, 33),
        ((4, 6), (1, 3), (3,), 1, 10),
        ((4, 6), (1, 2), (2,), 3, 21),
        ((4, 6, 8), (1, 2, 1), (2, 1), 2, 26),
    ],
)
def test_halo_is_the_receptive_field_and_shifts_go_through(widths, down, up, folded, halo):
    torch.manual_seed(1)
    network = UNet(NetworkOptions(("mito",), widths, down, up, folded)).double().eval()
    assert network.halo == halo
    size = network.input_size(2 * network.step)
    corner = size - 1 - halo  # the input voxel below the last output
    # Pooling pairs voxels, so the field of one output voxel is up to step - 1 longer on one side.
    low, high = reached(network, size, -1), reached(network, size, 1)
    assert corner - halo - (network.step - 1) <= low <= corner - halo
    assert high == corner + halo
    larger = torch.randn(1, 1, *(size + network.step,) * 3, dtype=torch.double)
    here = network(larger)[..., network.step :, network.step :, network.step :]
    there = network(larger[..., network.step :, network.step :, network.step :])
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("folded", [1, 2])
def test_padded_pass_equals_the_valid_one_far_from_the_edge(folded):
    torch.manual_seed(2)
    down = (1, 2, 1)
    network = UNet(NetworkOptions(("mito", "er"), (4, 6, 8), down, (2, 1), folded)).double()
    step = network.step
    n = network.input_size(step)
    # The padded pass pools from voxel 0, the valid one after its convolutions: start the valid
    # one where both pool the same voxels.
    start = -folded * sum(count * 2**level for level, count in enumerate(down[:-1])) % step
    x = torch.randn(1, 1, *(-(-(n + start) // step) * step,) * 3, dtype=torch.double)
    padded = torch.tanh(network.padded_logits(x))
    assert padded.shape[2:] == x.shape[2:]
    valid = network(x[..., start : start + n, start : start + n, start : start + n])
    core = slice(start + network.halo, start + network.halo + step)
    torch.testing.assert_close(padded[..., core, core, core], valid)


@pytest.mark.parametrize(
    ("down", "up"), [((2, 2, 2, 2), (2, 2, 2)), ((2, 2, 2), (2, 1, 2)), ((2, 0, 2, 2), (2, 1, 2))]
)
def test_impossible_shapes_are_refused(down, up):
    with pytest.raises(GridError):
        NetworkOptions(("mito",), (4, 6, 8, 8), down, up)


def test_folded_network_does_what_the_trainee_does():
    torch.manual_seed(5)
    trainee = Trainee(NetworkOptions(("mito", "er"), (4, 6, 8, 8), (1, 2, 2, 2), (2, 1, 2)))
    for norm in trainee.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias)
    x = torch.randn(1, 1, 16, 24, 32)
    trainee.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            trainee.folded().padded_logits(x), trainee(x), rtol=1e-4, atol=1e-5
        )


def test_settled_normalisation_changes_nothing_but_how_it_goes_on():
    torch.manual_seed(6)
    trainee = Trainee(NetworkOptions(("mito", "er"), (4, 6, 8, 8), (1, 2, 2, 2), (2, 1, 2)))
    x = 3 + torch.randn(2, 1, 16, 24, 32)
    with torch.no_grad():
        before = trainee.network.padded_logits(x)
        trainee.settle(x)
        torch.testing.assert_close(trainee.eval()(x), before, rtol=1e-4, atol=1e-5)
        # In training the same patches meet their own statistics, which are now those kept.
        torch.testing.assert_close(trainee.train()(x), before, rtol=5e-2, atol=5e-3)
    weights = torch.cat([norm.weight for norm in trainee.norms])
    assert not torch.allclose(weights, torch.ones_like(weights), rtol=0.1)


def test_starting_from_another_network_moves_heads_by_name():
    torch.manual_seed(3)
    old = UNet(NetworkOptions(("mito", "mito_mem"), (4, 6), (2, 2), (2,)))
    new = UNet(NetworkOptions(("er", "mito_mem", "mito"), (4, 6), (2, 2), (2,)))
    er = new.head.weight[0].clone()
    start_from(new, old)
    torch.testing.assert_close(new.head.weight[1], old.head.weight[1])
    torch.testing.assert_close(new.head.weight[2], old.head.weight[0])
    torch.testing.assert_close(new.head.weight[0], er)
    torch.testing.assert_close(new.down[0][0].weight, old.down[0][0].weight)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (NetworkOptions(("mito",), (4, 5), (2, 2), (2,)), "widths no smaller"),
        (NetworkOptions(("mito",), (4, 6, 8)), "its down, up"),
        (NetworkOptions(("mito",), (4, 6), (1, 2), (2,)), "its down, up"),
    ],
    ids=["narrower", "deeper", "fewer convolutions"],
)
def test_a_network_to_start_from_that_does_not_fit_is_refused(options, hint):
    old = UNet(NetworkOptions(("mito", "mito_mem"), (4, 6), (2, 2), (2,)))
    with pytest.raises(FormatError, match=r"another shape: widths \(4, 6\)") as error:
        start_from(UNet(options), old)
    assert hint in error.value.hint


def test_a_network_that_does_not_fold_cannot_start_from_one_that_does():
    old = UNet(NetworkOptions(("mito",), (4, 6), (2, 2), (2,), 2))
    with pytest.raises(FormatError, match="fold 2"):
        start_from(UNet(NetworkOptions(("mito",), (4, 6), (2, 2), (2,))), old)


@pytest.mark.parametrize("fold", [1, 2])
def test_a_wider_network_starts_with_the_predictions_of_the_narrow_one(fold):
    torch.manual_seed(8)
    narrow = UNet(NetworkOptions(("mito", "mito_mem"), (4, 6, 8), fold=fold)).double()
    wide = UNet(NetworkOptions(("er", "mito_mem", "mito"), (5, 9, 16), fold=fold)).double()
    start_from(wide, narrow)
    n = wide.input_size(2 * wide.step)
    x = torch.randn(1, 1, n, n, n, dtype=torch.double)
    torch.testing.assert_close(wide(x)[:, [2, 1]], narrow(x))
    wide(x)[:, 1:].sum().backward()
    joint = wide.up[0][0].weight.grad
    assert float(joint[:4, 4].abs().max()) > 0  # new channels can still win influence


def test_starting_from_another_network_moves_all_rows_of_a_folded_head():
    torch.manual_seed(4)
    old = UNet(NetworkOptions(("mito", "er"), (4, 6), (1, 1), (2,), 2))
    new = UNet(NetworkOptions(("er", "mito"), (4, 6), (1, 1), (2,), 2))
    start_from(new, old)
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(new(x)[:, [1, 0]], old(x))


def test_a_network_for_fine_voxels_starts_as_the_coarse_one_on_their_mean():
    torch.manual_seed(5)
    fine = UNet(NetworkOptions(("er", "mito"), (4, 6), (1, 1), (2,), 2)).double()
    coarse = UNet(NetworkOptions(("mito", "er"), (4, 6), (1, 1), (2,))).double()
    start_from(fine, coarse)
    x = torch.randn(1, 1, 24, 20, 28, dtype=torch.double)
    answer = coarse.padded_logits(torch.nn.functional.avg_pool3d(x, 2))
    repeated = answer.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(fine.padded_logits(x)[:, [1, 0]], repeated)


def test_folding_takes_cubes_and_is_undone():
    x = torch.arange(2 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    folded = fold(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert folded[1, 8:16, 1, 2, 3].tolist() == x[1, 1, 2:4, 4:6, 6:8].flatten().tolist()
    assert torch.equal(unfold(folded, 2), x)
    assert fold(x, 1) is x
