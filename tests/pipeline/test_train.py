from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import tifffile

torch = pytest.importorskip("torch")

from clemreg.cli.app import run_app  # noqa: E402
from clemreg.errors import (  # noqa: E402
    ConfigError,
    FormatError,
    MissingError,
)
from clemreg.pipeline.train import (  # noqa: E402
    load_train_config,
    train_from_config,
)
from clemreg.segment.models import bundled_models, load_model, model_shape  # noqa: E402

from .conftest import CONFIG  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("torch")]


def test_train_makes_a_network_and_goes_on_from_its_checkpoint(config, capsys):
    pytest.importorskip("tensorboard")
    path, _, _ = config
    command = ["train", str(path), "--data", f"mine={path.parent / 'data'}"]
    assert run_app([*command, "--journal", str(path.parent / "runs")]) == 0
    out = path.parent / "ball.safetensors"
    assert str(out) in capsys.readouterr().out
    assert list((path.parent / "runs").iterdir())
    first = load_model(out)
    assert (first.card.name, first.card.steps) == ("ball", 4)
    assert first.card.trained_on == ("mine", "simulated")
    out.unlink()
    assert run_app(command) == 0  # nothing is left to do
    again = load_model(out).network.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.network.state_dict().items())


REAL = CONFIG[CONFIG.index("[[real]]") : CONFIG.index("[simulated]")]


@pytest.mark.parametrize(
    ("section", "classes"), [(REAL, '["nucleus"]'), (REAL, '["er"]'), ("[simulated]", '["LD"]')]
)
def test_classes_that_are_annotated_nowhere_are_refused(config, section, classes):
    """Before anything is read: there are no files where this one looks for them."""
    path, _, _ = config
    head = CONFIG[: CONFIG.index("[[real]]")].replace('["mito"]', classes)
    path.write_text(head + section)
    with pytest.raises(ConfigError, match=rf"nothing to train on has {classes[2:-2]} annotated"):
        train_from_config(path)
    assert not list(path.parent.glob("ball.*s"))


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(config):
    path, _, _ = config
    path.write_text(CONFIG.replace("threads = 1", 'threads = 1\ndevice = "gpu"'))
    with pytest.raises(ConfigError, match="device = 'gpu'"):
        train_from_config(path)  # the EM is somewhere else


def test_a_class_that_is_annotated_nowhere_is_told(config, caplog):
    """Others are learnt beside it; one that only the simulator shows is taught."""
    path, _, _ = config
    path.write_text(CONFIG.replace('["mito"]', '["mito", "LD", "er"]'))
    train_from_config(path, (f"mine={path.parent / 'data'}",))
    (told,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told.startswith("nothing to train on has LD annotated: ")


def test_what_is_never_drawn_teaches_nothing(config, caplog):
    path, _, _ = config
    path.write_text(CONFIG.replace('["mito"]', '["mito", "er"]') + "weight = 0.0\n")
    train_from_config(path, (f"mine={path.parent / 'data'}",))
    assert "nothing to train on has er annotated" in caplog.text
    path.write_text(path.read_text().replace("[simulated]", "weight = 0.0\n[simulated]"))
    with pytest.raises(ConfigError, match="there is nothing to train on") as error:
        train_from_config(path, (f"mine={path.parent / 'data'}",), overwrite=True)
    assert "a weight above 0" in error.value.hint
    path.write_text(CONFIG[: CONFIG.index("[[real]]")])
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        train_from_config(path, overwrite=True)


def test_other_data_are_not_gone_on_with(config, capsys):
    """Moved files are; other slices held out are not: what was learnt from would be scored."""
    path, _, _ = config
    moved = (path.parent / "data").rename(path.parent / "moved")
    command = ["train", str(path), "--data", f"mine={moved}"]
    assert run_app(command) == 0
    before = (path.parent / "ball.safetensors").read_bytes()
    moved = moved.rename(path.parent / "data")
    path.write_text(path.read_text().replace("held_out = [0, 10]", "held_out = [10, 20]"))
    command[-1] = f"mine={moved}"
    assert run_app(command) == 1
    assert "was trained with other data: real, voxels differ" in capsys.readouterr().err
    assert (path.parent / "ball.safetensors").read_bytes() == before
    path.write_text(CONFIG)
    assert run_app(command) == 0


@pytest.mark.parametrize("name", ["em.tif", "mito.tif"])
def test_files_that_were_changed_are_not_gone_on_with(config, capsys, name):
    path, em, labels = config
    command = ["train", str(path), "--data", f"mine={path.parent / 'data'}"]
    assert run_app(command) == 0
    values = {"em.tif": em, "mito.tif": labels}[name].copy()
    values[20, 11, 12] ^= 1
    tifffile.imwrite(path.parent / "data" / name, values)
    assert run_app(command) == 1
    assert "was trained with other data: voxels differ" in capsys.readouterr().err


def test_of_several_processes_one_says_what_was_written(config, capsys, monkeypatch):
    path, _, _ = config
    command = ["train", str(path), "--data", f"mine={path.parent / 'data'}"]
    monkeypatch.setenv("RANK", "1")
    assert run_app(command) == 0
    assert "wrote" not in capsys.readouterr().out
    assert not (path.parent / "ball.safetensors").exists()


def test_a_wrong_configuration_is_refused(config):
    path, _, _ = config
    with pytest.raises(MissingError, match=r"no training configuration"):
        load_train_config(path.parent / "none.toml")
    path.write_text(CONFIG.replace("steps = 4", "step = 4"))
    with pytest.raises(ConfigError, match=r"unknown training options \['step'\]") as error:
        load_train_config(path)
    assert "steps, batch" in error.value.hint
    path.write_text(CONFIG.replace('name = "ball"', "nam = 1"))
    with pytest.raises(ConfigError, match="invalid training configuration") as error:
        load_train_config(path)
    assert "\n  nam: Extra inputs are not permitted (got 1)" in error.value.message
    assert "pydantic" not in error.value.message
    path.write_text(CONFIG.replace("steps = 4", 'steps = "many"'))
    with pytest.raises(ConfigError, match=r"invalid training options:\n  steps: .*\(got 'many'\)"):
        load_train_config(path)
    path.write_text(CONFIG.replace("output = 8", "output = 9"))
    with pytest.raises(ConfigError, match=r"training options:\n  output = 9 and margin") as error:
        load_train_config(path)  # before anything is read
    assert error.value.hint == "with this margin, output may be 8 or 10"
    path.write_text(CONFIG.replace("up = [2]", "up = [2, 2]"))
    with pytest.raises(ConfigError, match=r"widths \(2, 3\) need as many entries in down"):
        load_train_config(path)
    path.write_text("= 3")
    with pytest.raises(ConfigError, match=r"is not valid TOML"):
        load_train_config(path)


CELLMAP = '[[cellmap]]\nname = "a"\nem = "e"\ngroundtruth = "g"\n'


@pytest.mark.parametrize(
    ("section", "line", "text"),
    [
        ("", "present = 7.0", r"present: .*less than or equal to 1 \(got 7.0\)"),
        ("", "present = nan", r"present: .*\(got nan\)"),
        ("[simulated]", "blocks = 0", r"simulated.blocks: .*greater than or equal to 1"),
        ("[simulated]", "shape = [0, 8, 8]", r"simulated.shape.0: .*greater than or equal to 1"),
        ("[simulated]", "spacing_nm = [20, 12]", r"simulated.spacing_nm: .*smaller number first"),
        ("[simulated]", "spacing_nm = [0, 12]", r"simulated.spacing_nm.0: .*greater than 0"),
        ("[simulated]", "seed = -1", r"simulated.seed: .*greater than or equal to 0"),
        ("[simulated]", "weight = -1.0", r"simulated.weight: .*greater than or equal to 0"),
        ("[simulated]", "inset_nm = nan", r"simulated.inset_nm: .*finite"),
        (REAL, "weight = nan", r"real.0.weight: .*\(got nan\)"),
        (REAL, "weight = inf", r"real.0.weight: .*finite"),
        (REAL, "pool = 0", r"real.0.pool: .*greater than or equal to 1 \(got 0\)"),
        (REAL, "pool = 100", r"real.0.pool: .*less than or equal to 32 \(got 100\)"),
        (CELLMAP, "contrast = [20, 20]", r"cellmap.0.contrast: .*two grey values"),
        (CELLMAP, "contrast = [20, nan]", r"cellmap.0.contrast.*finite"),
        (CELLMAP, "weight = -0.5", r"cellmap.0.weight: .*greater than or equal to 0"),
        ('[[cosem]]\nn5 = "a.n5"', "weight = nan", r"cosem.0.weight: .*\(got nan\)"),
        ("[augment]", "rotation = [1.0, 0.0]", r"rotation = \[1.0, 0.0\]: .*the smaller first"),
        ("[augment]", "contrast = [1.75, 0.25]", r"contrast = .*the smaller first"),
        ("[augment]", "gamma = [0.0, 2.0]", r"gamma = \[0.0, 2.0\]: expected above 0"),
        ("[augment]", "subsample = 0", r"subsample = 0: expected from 1 on"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tmp_path, section, line, text):
    path = tmp_path / "c.toml"
    path.write_text(f'name = "a"\nout = "a.safetensors"\n{section}\n{line}\n')
    with pytest.raises(ConfigError, match=text):
        load_train_config(path)


@pytest.mark.parametrize("contrast", ["[20, 220]", "[220, 20]"])
def test_black_may_be_brighter_than_white(tmp_path, contrast):
    path = tmp_path / "c.toml"
    path.write_text(f'name = "a"\nout = "a.safetensors"\n{CELLMAP}\ncontrast = {contrast}\n')
    assert load_train_config(path).cellmap[0].contrast is not None


@pytest.mark.parametrize("out", ["", "net", "net.pt", ".safetensors"])
def test_a_network_is_written_to_a_file_that_it_is_read_from(config, out):
    path, _, _ = config
    path.write_text(CONFIG.replace('out = "ball.safetensors"', f'out = "{out}"'))
    with pytest.raises(ConfigError, match=r"out: .*file of a network is NAME\.safetensors"):
        load_train_config(path)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("mine", "--data 'mine' is not of the form NAME=FOLDER"),
        ("mine=", "--data 'mine=' is not of the form NAME=FOLDER"),
        ("=data", "no entry is called ''"),
        ("mien=data", "--data 'mien=data': no entry is called 'mien'"),
    ],
)
def test_folders_of_no_entry_are_refused(config, item, text):
    path, _, _ = config
    path.write_text(CONFIG + CELLMAP + '[[cosem]]\nn5 = "jrc_ball.n5"\n')
    with pytest.raises(ConfigError, match=text) as error:
        load_train_config(path, ("a=elsewhere", item))
    assert error.value.hint == "entries are: mine, a, jrc_ball"


def test_ids_are_looked_for_where_the_crops_are_and_beside_the_configuration(tmp_path):
    path, folder = tmp_path / "c.toml", tmp_path / "sample"
    folder.mkdir()
    path.write_text(
        'name = "a"\nout = "a.safetensors"\n[[cosem]]\nn5 = "jrc_ball.n5"\nids = "ids.json"\n'
    )
    data = (f"jrc_ball={folder}",)
    assert load_train_config(path, data).cosem[0].ids == str(tmp_path / "ids.json")
    (folder / "ids.json").touch()
    assert load_train_config(path, data).cosem[0].ids == str(folder / "ids.json")
    (tmp_path / "ids.json").touch()
    assert load_train_config(path, data).cosem[0].ids == str(folder / "ids.json")
    assert load_train_config(path).cosem[0].ids == str(tmp_path / "ids.json")
    path.write_text(path.read_text().replace('ids = "ids.json"', ""))
    assert load_train_config(path, data).cosem[0].ids == ""


def test_a_folder_may_have_an_equals_sign_in_its_name(config):
    path, _, _ = config
    assert load_train_config(path, ("mine=a=b",)).real[0].em == str(Path("a=b") / "em.tif")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ('[[cosem]]\nn5 = "a.n5"\nheldout = ["crop1"]', "cosem.0.heldout"),
        ('[[cosem]]\nn5 = "a.n5"\nem = "coarse"', "cosem.0.em"),
        ('[[cellmap]]\nname = "a"\nem = "e"\ngroundtruth = "g"\ncrop = []', "cellmap.0.crop"),
        ("[augment]\njitter = 3", "augment.jitter"),
        ("[simulated]\nblock = 3", "simulated.block"),
    ],
)
def test_misspelt_keys_are_refused_by_name(tmp_path, section, key):
    path = tmp_path / "c.toml"
    path.write_text(f'name = "a"\nout = "a.safetensors"\n{section}\n')
    with pytest.raises(ConfigError, match=key):
        load_train_config(path)


RECIPES = sorted(Path(str(files("clemreg.segment") / "models")).glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_bundled_networks_are_valid(recipe):
    assert load_train_config(recipe).train_options().classes[:2] == ("mito", "mito_mem")


def test_each_bundled_network_has_a_recipe_of_its_shape():
    recipes = {path.stem: path for path in RECIPES}
    for card in bundled_models():
        options = load_train_config(recipes[card.name]).train_options()
        assert options.network() == model_shape(card.name)
        assert (options.spacing_nm,) * 3 == card.spacing_nm


def test_the_example_of_the_guide_is_valid(tmp_path):
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "train.md"
    examples = guide.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert len(examples) == 2
    for example in examples:
        (tmp_path / "c.toml").write_text(example.split("```")[0], encoding="utf-8")
        assert load_train_config(tmp_path / "c.toml").train_options().patch().outputs in (64, 68)


def test_a_setup_brings_what_the_paper_trained_with(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('name = "a"\nout = "a.safetensors"\nsetup = "26.1"\n[options]\nsteps = 5\n')
    options = load_train_config(path).train_options()
    assert options.classes == ("mito", "mito_membrane", "mito_DNA")
    assert (options.architecture, options.loss, options.optimiser) == ("cosem", "paper", "adam")
    assert (options.learning_rate, options.betas, options.steps) == (5e-5, (0.95, 0.999), 5)
    shape = options.patch()
    assert (shape.inputs, shape.outputs, shape.input_nm, shape.output_nm) == (216, 68, 8.0, 4.0)
    assert options.cosem().widths == (12, 72, 432, 2592)
    assert load_train_config(path).simulated is None
    path.write_text('name = "a"\nout = "a.safetensors"\nsetup = "02"\n')
    with pytest.raises(MissingError, match="no setup '02'"):
        load_train_config(path)


CROPS = """
name = "crops"
out = "crops.safetensors"
[options]
spacing_nm = 4.0
classes = ["mito", "mito_membrane", "LD"]
steps = 2
batch = 1
output = 16
margin = 4
widths = [2, 3]
down = [1, 1]
up = [2]
loss = "paper"
checkpoint_every = 1
threads = 1
[augment]
control_voxels = 20
[[cosem]]
n5 = "jrc_ball.n5"
ids = "IDS"
held_out = ["crop8"]
"""


@pytest.mark.slow
def test_crops_of_the_paper_teach_and_score(cosem_sample, tmp_path):
    """The paper's targets and loss on COSEM's files; crop 8 is only looked at."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "crops.toml"
    ids = tmp_path / "ids.json"
    ids.write_text((cosem_sample.parent / "ids.json").read_text())
    path.write_text(CROPS.replace("IDS", str(ids)))
    command = ["train", str(path), "--data", f"jrc_ball={cosem_sample.parent}"]
    assert run_app([*command, "--journal", str(tmp_path / "runs")]) == 0
    model = load_model(tmp_path / "crops.safetensors")
    assert model.classes == ("mito", "mito_membrane", "LD")
    assert model.card.trained_on == ("jrc_ball/crop3",)
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert [e.step for e in events.Scalars("mito/dice")] == [1, 2]
    assert len(events.Images("EM, truth, prediction")) == 2
    assert run_app(command) == 0  # nothing is left to do
    ids.write_text(ids.read_text().replace("[14, 15]", "[14]"))
    with pytest.raises(FormatError, match="trained with other data: crops differ"):
        train_from_config(path, (f"jrc_ball={cosem_sample.parent}",))
    path.write_text(path.read_text().replace("crop8", "crop9"))
    with pytest.raises(ConfigError, match="held_out names crop9") as error:
        train_from_config(path, (f"jrc_ball={cosem_sample.parent}",))
    assert "crop3, crop8" in error.value.hint


@pytest.mark.slow
def test_cellmap_crops_teach_and_score(cellmap_sample, tmp_path):
    """From OME-NGFF to a network: mitochondria from their parts, ER absent, LD unknown."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "crops.toml"
    text = CROPS[: CROPS.index("[[cosem]]")].replace('"LD"]', '"er", "LD"]')
    path.write_text(
        text + '[[cellmap]]\nname = "ball"\nem = "em.zarr"\ngroundtruth = "groundtruth"\n'
        'held_out = ["crop110"]\n'
    )
    command = ["train", str(path), "--data", f"ball={cellmap_sample}"]
    assert run_app([*command, "--journal", str(tmp_path / "runs")]) == 0
    model = load_model(tmp_path / "crops.safetensors")
    assert model.classes == ("mito", "mito_membrane", "er", "LD")
    assert (model.card.trained_on, model.card.steps) == (("ball/crop21",), 2)
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    scored = {tag.split("/")[0] for tag in events.Tags()["scalars"] if tag.endswith("/iou")}
    assert {"mito", "mito_membrane"} <= scored
    assert "LD" not in scored
    path.write_text(path.read_text().replace("crop110", "crop3"))
    with pytest.raises(ConfigError, match="held_out names crop3") as error:
        train_from_config(path, (f"ball={cellmap_sample}",))
    assert "crop110, crop21" in error.value.hint


@pytest.mark.slow
def test_the_network_of_the_paper_is_trained_from_a_file(cosem_sample, tmp_path):
    from clemreg.segment.exchange import open_network

    text = CROPS.replace("IDS", str(cosem_sample.parent / "ids.json"))
    options = text.index("[options]"), text.index("[augment]")
    mine = """[options]
architecture = "cosem"
widths = [2, 3, 4, 5]
up_widths = [3, 2, 4]
output = 32
steps = 1
checkpoint_every = 1
threads = 1
"""
    text = text[: options[0]] + 'setup = "26.1"\n' + mine + text[options[1] :]
    text = text.replace('held_out = ["crop8"]', 'em = "phases"')
    path = tmp_path / "paper.toml"
    path.write_text(text)
    out = train_from_config(path, (f"jrc_ball={cosem_sample.parent}",))
    network = open_network(out)
    assert network.classes == ("mito", "mito_membrane", "mito_DNA")
    assert network.setup.input_nm == 8.0
