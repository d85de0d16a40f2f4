"""What a GPU would see, as far as a processor can tell."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clemreg.segment import inference, parallel, predict  # noqa: E402
from clemreg.segment.blockwise import PredictOptions  # noqa: E402
from clemreg.segment.contract import _as_function  # noqa: E402
from clemreg.segment.data import TrainingVolume  # noqa: E402
from clemreg.segment.models import Model, ModelCard  # noqa: E402
from clemreg.segment.network import NetworkOptions, UNet  # noqa: E402
from clemreg.segment.validation import Validation  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]
SHAPE = NetworkOptions(("mito",), (4, 6), (1, 1), (2,), 2)


def test_a_gpu_without_number_is_the_one_of_the_process(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parallel.training_device("cuda") == torch.device("cuda:3")
    assert parallel.training_device("cuda:1") == torch.device("cuda:1")
    assert parallel.training_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parallel.training_device("") == torch.device("cuda:3")


def test_bfloat16_where_it_is_multiplied_in_hardware(monkeypatch):
    asked = []

    def supported(*, including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not parallel.bfloat16_is_fast(torch.device("cuda:0"))
    assert asked == [False]  # older GPUs emulate it


def test_features_in_any_order_in_memory(monkeypatch):
    """Some algorithms of GPUs give channels first, whatever the weights."""
    torch.manual_seed(0)
    fast = inference.FastUNet(UNet(SHAPE).eval())
    x = torch.rand(1, 1, 44, 40, 48) * 2 - 1
    with torch.inference_mode():
        expected = inference.joined(fast(x))
        plain = inference._Convolution.forward
        monkeypatch.setattr(
            inference._Convolution, "forward", lambda self, x: plain(self, x).contiguous()
        )
        torch.testing.assert_close(inference.joined(fast(x)), expected, rtol=0, atol=1e-6)


def test_everything_moves_to_the_device():
    """On torch's device without numbers any tensor left behind on the processor is an error."""
    fast = inference.FastUNet(UNet(SHAPE).eval()).to("meta")
    found = inference.joined(fast(torch.empty(1, 1, 44, 40, 48, device="meta")))
    assert found.device.type == "meta"
    halo = 2 * UNet(SHAPE).halo
    assert found.shape == (1, 44 - halo, 40 - halo, 48 - halo)


@pytest.mark.parametrize("precise", [True, False])
def test_precise_is_float32_to_the_last_bit(precise):
    """GPUs round factors of float32 products to 10 bits, unless told otherwise."""
    model = Model(ModelCard("m", (8.0, 8.0, 8.0)), UNet(SHAPE).eval())
    runner = predict._Runner(model, PredictOptions(precise=precise))
    seen = []
    runner.network.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    before = torch.backends.cudnn.allow_tf32
    runner(np.zeros((44, 40, 48), np.float32), ((runner.halo, runner.halo),) * 3)
    assert seen == [before and not precise]
    assert torch.backends.cudnn.allow_tf32 == before


class Elsewhere(torch.nn.Module):
    """Lies on another device, and remembers where its input lay."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.device.type)
        return torch.ones(x.shape)

    def padded_logits(self, x):
        return self(x)


def test_blocks_go_where_the_network_is():
    network = Elsewhere()
    assert _as_function(network)(np.zeros((2, 3, 4), np.float32)).shape == (1, 2, 3, 4)
    assert network.seen == ["meta"]


def test_held_out_volumes_are_scored_where_the_network_is(monkeypatch):
    em = np.random.default_rng(0).integers(0, 255, (8, 12, 16)).astype(np.uint8)
    volume = TrainingVolume(em, {"mito": np.full(em.shape, -9.0, np.float32)}, (16.0,) * 3)
    network = UNet(SHAPE).eval()
    seen = []

    def logits(x, *_):
        seen.append(x.device.type)
        return torch.zeros(1, 1, *x.shape[2:])

    monkeypatch.setattr(network, "padded_logits", logits)
    Validation([volume], 16.0, ("mito",)).examine(network.to("meta"))
    assert set(seen) == {"meta"}
