from __future__ import annotations

import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.errors import FormatError  # noqa: E402
from clemreg.segment import data, validation  # noqa: E402
from clemreg.segment.blockwise import PredictOptions  # noqa: E402
from clemreg.segment.data import (  # noqa: E402
    PatchOptions,
    PatchSampler,
    TrainingVolume,
    contrast_limits,
)
from clemreg.segment.loss import (  # noqa: E402
    balanced_loss,
    balancing_weights,
    weighted_entropy,
)
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.predict import predict  # noqa: E402
from clemreg.segment.targets import class_targets, signed_distance_nm  # noqa: E402
from clemreg.segment.training import Outlets, TrainOptions, converged, train  # noqa: E402
from clemreg.segment.validation import Score, Validation  # noqa: E402
from clemreg.space.grid import Grid  # noqa: E402
from clemreg.volume import Volume  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
SPACING = (16.0, 16.0, 16.0)


def test_signed_distance_is_brute_force():
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    spacing = np.array([5.24, 4.0, 4.0])
    mask = rng.random((7, 8, 9)) < 0.4
    found = signed_distance_nm(mask, spacing)
    points = np.argwhere(np.ones_like(mask)) * spacing
    inside, outside = points[mask.ravel()], points[~mask.ravel()]
    expected = np.where(
        mask.ravel(), cKDTree(outside).query(points)[0] - 2, 2 - cKDTree(inside).query(points)[0]
    )
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5)


def test_class_targets_follow_the_organelle_and_membrane_peaks_inside_the_surface():
    distances = np.stack([[-30.0, 0.0, 12.0, 24.0, 60.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    distances = distances.astype(np.float32)[:, None, None]
    known = np.zeros(distances.shape, bool)
    known[0] = True
    (er, membrane, mito), seen = class_targets(distances, known, ("er", "mito_mem", "mito"))
    assert np.argmax(membrane) == 2
    np.testing.assert_allclose(membrane[0, 0, [1, 3]], 0, atol=1e-7)
    np.testing.assert_allclose(mito, np.tanh(distances[0] / 50), rtol=1e-6)
    np.testing.assert_allclose(er, np.tanh(distances[1] / 50), rtol=1e-6)
    assert seen.all(axis=(1, 2, 3)).tolist() == [False, True, True]
    np.testing.assert_array_equal(distances[0, 0, 0], [-30, 0, 12, 24, 60])  # left as it was


def test_balance_is_a_power_of_the_weights():
    """Unbalanced, the loss is the plain mean of the cross entropy over what is known."""
    generator = torch.Generator().manual_seed(9)
    target = torch.tanh(torch.randn(1, 1, 6, 6, 6, generator=generator) - 1)
    logits = torch.randn(1, 1, 6, 6, 6, generator=generator)
    known = torch.rand(1, 1, 6, 6, 6, generator=generator) < 0.7
    plain = torch.nn.functional.binary_cross_entropy(
        torch.sigmoid(2 * logits[known]), (target[known] + 1) / 2
    )
    share = (target[known] > 0).double().mean()
    found = []
    for balance in (0.0, 0.5, 1.0):
        weights = balancing_weights(target > 0, known, balance)
        found.append(float(weighted_entropy(logits, target, known, weights)))
    entropy = torch.nn.functional.binary_cross_entropy(
        torch.sigmoid(2 * logits[known]), (target[known] + 1) / 2, reduction="none"
    )
    weight = torch.where(target[known] > 0, 1 / (2 * share), 1 / (2 * (1 - share)))
    expected = [float((entropy * weight**b).mean()) for b in (0.0, 0.5, 1.0)]
    assert found[0] == pytest.approx(float(plain), rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)


def logit(prediction):
    """What gives this prediction after the tanh."""
    return torch.atanh(prediction)


def test_loss_is_least_at_the_truth():
    """The gradient vanishes where prediction and target are equal; Dice adds at the surface."""
    target = torch.tanh(torch.linspace(-3, 3, 64).reshape(1, 1, 4, 4, 4))
    known = torch.ones_like(target, dtype=torch.bool)
    logits = logit(target).requires_grad_()
    weights = balancing_weights(target > 0, known)
    weighted_entropy(logits, target, known, weights).backward()
    assert float(logits.grad.abs().max()) < 1e-7
    logits.grad = None
    balanced_loss(logits, target, known, ("mito",)).backward()
    far = logits.grad[target.abs() > 0.9]
    assert float(far.abs().max()) < 1e-4
    assert float(logits.grad.abs().max()) > 1e-3


def test_a_membrane_of_low_target_values_is_worth_finding():
    """Cross entropy hardly tells these two guesses apart; Dice does."""
    target = torch.full((1, 10, 10, 40), -0.5)
    target[..., 16:24] = 0.12
    known = torch.ones_like(target, dtype=torch.bool)
    weights = torch.ones_like(target)
    entropies, losses = [], []
    for guess in (0.1, -0.1):
        logits = target.clone()
        logits[..., 16:24] = guess
        logits = logit(logits)
        entropies.append(float(weighted_entropy(logits, target, known, weights)))
        losses.append(
            float(balanced_loss(logits[None], target[None], known[None], ("mito_mem",), 0.0))
        )
    assert losses[0] < losses[1]
    assert losses[1] - losses[0] > 5 * (entropies[1] - entropies[0]) > 0


def test_loss_counts_both_sides_alike():
    """One wrong positive weighs as much as all negatives wrong alike."""
    target = torch.full((1, 1, 1, 10), -0.5)
    target[..., :2] = 0.5
    known = torch.ones_like(target, dtype=torch.bool)
    weights = balancing_weights(target > 0, known)
    right = logit(target)
    losses = []
    for side in (target > 0, target < 0):
        wrong = right.clone()
        wrong[side] *= -1
        difference = weighted_entropy(wrong, target, known, weights)
        losses.append(float(difference - weighted_entropy(right, target, known, weights)))
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > 0.05


def test_loss_leaves_out_the_unknown():
    classes = ("mito", "er")
    generator = torch.Generator().manual_seed(4)
    target = torch.tanh(torch.randn(1, 2, 4, 4, 4, generator=generator))
    logits = torch.randn(1, 2, 4, 4, 4, generator=generator)
    known = torch.rand(1, 2, 4, 4, 4, generator=generator) < 0.5
    known[:, 1] = False
    loss = balanced_loss(logits, target, known, classes)
    changed, other = logits.clone(), target.clone()
    changed[~known] = 50.0
    other[~known] = 0.99
    torch.testing.assert_close(balanced_loss(changed, other, known, classes), loss)
    changed[known] += 1.0
    assert float((balanced_loss(changed, other, known, classes) - loss).abs()) > 0.01


def test_a_batch_of_which_nothing_is_known_teaches_nothing():
    logits = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    nowhere = torch.zeros(logits.shape, dtype=torch.bool)
    loss = balanced_loss(logits, torch.zeros_like(logits), nowhere, ("mito", "er"))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def ball_volume(rng):
    grid = np.stack(np.meshgrid(*[np.arange(48) * 16.0] * 3, indexing="ij"), -1)
    distance = 150 - np.linalg.norm(grid - 376, axis=-1)
    em = np.where(distance > 0, 90, 170) + rng.normal(scale=8, size=distance.shape)
    distances = {"mito": distance.astype(np.float32)}
    return TrainingVolume(em.clip(0, 255).astype(np.uint8), distances, SPACING)


def test_patches_keep_image_and_distance_together():
    """After any turn and magnification the dark ball is where the distance is positive."""
    volume = ball_volume(np.random.default_rng(0))
    sampler = PatchSampler([volume], PatchOptions(16.0, 24, 6, scale=(0.8, 1.25)))
    agree = []
    for seed in range(12):
        x, distances, known = sampler.draw(np.random.default_rng(seed))
        assert x.shape == (36, 36, 36)
        assert distances.shape == known.shape == (2, 24, 24, 24)
        assert not known[1].any()  # nobody annotated the ER here
        distance = distances[0]
        core = x[6:-6, 6:-6, 6:-6]
        inside, outside = distance > 25, distance < -25
        if inside.sum() > 50 and outside.sum() > 50:
            agree.append(abs(core[inside].mean() - core[outside].mean()) > 3 * core[outside].std())
    assert len(agree) >= 6
    assert np.mean(agree) > 0.8


def test_beyond_a_slab_the_outermost_voxels_go_on_and_are_not_known(monkeypatch):
    """Grey values and distances grow along z alike, so each tells where the other should be."""
    monkeypatch.setattr(data, "recolour", lambda _rng, x: x)
    z = np.arange(60.0)[:, None, None] + np.zeros((60, 40, 50))
    volume = TrainingVolume(
        (4 * z).astype(np.uint8), {"mito": (16 * z).astype(np.float32)}, SPACING
    )
    sampler = PatchSampler([volume], PatchOptions(16.0, 24, 6, scale=(1.0, 1.0), slabs=1.0))
    low, high = contrast_limits(volume.em)
    cut = 0
    for seed in range(20):
        x, distances, known = sampler.draw(np.random.default_rng(seed))
        em = (x[6:-6, 6:-6, 6:-6] + 1) * (high - low) / 2 + low
        truth, here = distances[0], known[0]
        assert here.any()
        truth = truth / np.median(truth[here] / em[here])  # patches are magnified a little
        np.testing.assert_allclose(em[here], truth[here], atol=5)
        assert em.min() > truth[here].min() - 5
        assert em.max() < truth[here].max() + 5
        cut += np.ptp(em) < 60  # a whole patch spans 24 voxels of 4 levels
    assert 3 <= cut <= 18  # those that end across z


def test_parts_end_at_faces_edges_and_corners():
    """Known is a box; half of them end across one axis, three in ten across two, the rest all."""
    rng = np.random.default_rng(3)
    em = rng.integers(0, 255, (90, 90, 90)).astype(np.uint8)
    volume = TrainingVolume(em, {"mito": np.ones(em.shape, np.float32)}, SPACING)
    sampler = PatchSampler([volume], PatchOptions(16.0, 24, 2, scale=(1.0, 1.0), slabs=1.0))
    ended = []
    for _ in range(300):
        known = sampler.draw(rng)[2][0]
        seen = [known.any(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
        assert known.sum() == np.prod([s.sum() for s in seen])
        ended.append([not s.all() for s in seen])
    counts = np.bincount(np.sum(ended, axis=1), minlength=4)
    assert counts[0] < 36  # about as thick as the patch
    np.testing.assert_allclose(counts[1:] / 300, (0.5, 0.3, 0.2), atol=0.08)
    assert np.ptp(np.sum(ended, axis=0)) < 60  # no axis more often than others


@pytest.mark.parametrize(
    ("dice", "distance", "ends"),
    [
        ([0.8, 0.7, 0.7], [10, 12, 12], True),
        ([0.8, 0.7, 0.6], [10, 12, 14], True),
        ([0.8, 0.7, 0.71], [10, 12, 14], False),  # the Dice recovers
        ([0.8, 0.7, 0.7], [10, 12, 11], False),  # the distance recovers
        ([0.7, 0.7, 0.7], [10, 12, 12], False),  # the Dice before was no worse
        ([0.7, 0.6], [10, 12], False),
        ([0.8, 0.7, float("nan")], [10, 12, 12], False),
    ],
)
def test_training_ends_by_the_rule_of_the_paper(dice, distance, ends):
    scores = [Score(d / (2 - d), d, m) for d, m in zip(dice, distance, strict=True)]
    assert converged(scores) is ends
    assert converged([Score(0.1, 0.2, 90), *scores]) is ends or len(dice) < 3


def test_validation_scores_what_the_network_finds():
    """A network that answers the grey value finds the ball that is bright; and no more."""
    volume = ball_volume(np.random.default_rng(0))
    bright = TrainingVolume(255 - volume.em, volume.distances_nm, (8.0, 16.0, 16.0), name="ball")
    network = UNet(NetworkOptions(("mito", "er"), (1,), (1,), ()))
    with torch.no_grad():
        network.down[0][0].weight.zero_()
        network.down[0][0].weight[0, 0, 1, 1, 1] = 1
        network.down[0][0].bias.fill_(4)  # so that the ReLU lets all grey values through
        network.head.weight.fill_(1)
        network.head.bias.fill_(-4)
    validation = Validation([bright], 16.0, ("mito", "er"))
    scores, example = validation.examine(network)
    assert set(scores) == {"mito"}  # nobody annotated the ER
    assert scores["mito"].iou > 0.93
    assert scores["mito"].dice == pytest.approx(2 / (1 + 1 / scores["mito"].iou))
    assert scores["mito"].mean_false_distance_nm < 1
    assert example.shape == (60, 180)  # as it is predicted: at 12.8 nm, a fifth finer than made for
    assert example.dtype == np.uint8
    grey, truth, found = (example[:, i : i + 60] > 127 for i in (0, 60, 120))
    assert min((grey == truth).mean(), (found == truth).mean()) > 0.98  # one above another
    with torch.no_grad():
        network.head.bias.fill_(-9)  # nothing found
    score = validation.examine(network)[0]["mito"]
    assert (score.iou, score.dice) == (0, 0)
    assert np.isnan(score.mean_false_distance_nm)


def test_held_out_volumes_know_classes_by_any_name():
    """Scored are those that follow from what is annotated; of others nothing is known."""
    volume = ball_volume(np.random.default_rng(0))
    classes = ("ld", "mito_membrane", "er", "mito")
    network = UNet(NetworkOptions(classes, (1,), (1,), ()))
    validation = Validation([volume], 16.0, classes)
    assert set(validation.examine(network)[0]) == {"mito_membrane", "mito"}
    (_, truth, known), *_ = validation.cases
    plain = Validation([volume], 16.0, ("mito_mem", "mito")).cases[0]
    np.testing.assert_array_equal(truth[[1, 3]], plain[1])
    assert known.all(axis=(1, 2, 3)).tolist() == [False, True, False, True]


def test_the_journal_is_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from clemreg.segment.journal import Journal

    with closing(Journal(tmp_path)) as journal:
        journal.loss(10, 0.5, 2.0)
        journal.scores(20, {"mito": Score(0.5, 0.75, 12.0)}, np.zeros((4, 12), np.uint8))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("mito/dice")] == [(20, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5)]
    assert len(events.Images("EM, truth, prediction")) == 1


def test_tensorboard_is_loaded_by_the_journal_only():
    code = "import sys, clemreg.pipeline.train; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_training_learns_a_ball_and_resumes_alike(tmp_path):
    volume = ball_volume(np.random.default_rng(0))
    small = {"batch": 1, "output": 24, "widths": (4, 8), "down": (1, 1), "up": (2,)}
    small |= {"margin": 8, "learning_rate": 2e-2, "average": 0.9, "fold": 2, "classes": ("mito",)}
    options = TrainOptions(**small, steps=90, checkpoint_every=30, threads=1)
    validation = Validation([ball_volume(np.random.default_rng(1))], 16.0, ("mito",))
    straight = train([volume], options, validation=validation, checkpoint=tmp_path / "a.ckpt")
    assert [step for step, _ in straight.history] == [30, 60, 90]
    # Everything called ball would score 0.03, nothing 0.
    assert straight.history[-1][1]["mito"].iou > 0.7

    class Stop(Exception):
        pass

    def stop(step, _total, _message):
        if step == 70:
            raise Stop

    with pytest.raises(Stop):
        train(
            [volume],
            options,
            validation=validation,
            checkpoint=tmp_path / "b.ckpt",
            outlets=Outlets(progress=stop),
        )
    resumed = train([volume], options, validation=validation, checkpoint=tmp_path / "b.ckpt")
    assert len(resumed.losses) == 30
    assert resumed.history == straight.history
    for key, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value)  # to the bit
    other = TrainOptions(**small, steps=61)
    with pytest.raises(FormatError, match="steps"):
        train([volume], other, checkpoint=tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    "spacing", [SPACING, (14.0, 16.0, 19.0), (5.24, 4.0, 9.0), (16.0, 30.0, 24.0)]
)
def test_held_out_volumes_are_scored_as_they_are_predicted(tmp_path, spacing):
    """Up to the border: what `predict` writes is the tanh of what validation thresholds."""
    from clemreg.segment.models import Model, ModelCard
    from clemreg.segment.reading import size_ratio, taken_spacing

    torch.manual_seed(2)
    # Of these convolutions, both passes pool the same pairs of voxels.
    network = UNet(NetworkOptions(("mito",), (4, 6), (2, 2), (2,))).eval()
    with torch.no_grad():
        network.head.weight *= 20
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 9, 7))  # so that averages of voxels still differ
    em = np.kron(coarse, np.ones((5, 5, 5)))[:38, :, :34].astype(np.uint8)
    grid = Grid(em.shape, spacing, (300.0, -200.0, 70.0), "em")
    card = ModelCard(name="random", spacing_nm=SPACING)
    model = Model(card, network, tmp_path / "random.safetensors")
    held_out = TrainingVolume(em, {"mito": np.ones(em.shape, np.float32)}, spacing)
    seen, _, _ = Validation([held_out], SPACING[0], ("mito",)).cases[0]
    logits = validation._predict(network, seen) * size_ratio(
        taken_spacing(spacing, SPACING), SPACING
    )
    options = PredictOptions(limits=contrast_limits(em), precise=True)
    stored = predict(Volume(em, grid), model, tmp_path / "out.zarr", options=options).read()
    assert stored.std() > 4
    assert stored.shape == logits.shape
    np.testing.assert_allclose(stored, np.clip(128 * np.tanh(logits) + 127, 0, 255), atol=1.01)
