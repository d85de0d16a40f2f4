from __future__ import annotations

import pytest

from clemreg.config import load_run_config, resolve
from clemreg.errors import ConfigError, MissingError

MINIMAL = '[em]\npath = "em.zarr"\n[lm]\npath = "lm.tif"\n'


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_two_paths_are_enough(config):
    loaded = load_run_config(config)
    assert (loaded.em.path, loaded.lm.path, loaded.lm.channel) == ("em.zarr", "lm.tif", "mito")


def test_a_byte_order_mark_is_no_fault(config):
    config.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_run_config(config).em.path == "em.zarr"


def test_overrides_are_toml_values_or_plain_words(config):
    loaded = load_run_config(
        config,
        ["register.seed=7", "register.psf=sim", 'proof.raters=["AW", "JB"]', "lm.channel=1"],
    )
    assert loaded.register_.seed == 7
    assert loaded.register_.psf == "sim"
    assert loaded.proof.raters == ("AW", "JB")
    assert loaded.lm.channel == 1


def test_every_fault_is_named_with_what_was_found(config):
    config.write_text(MINIMAL + '[register]\ngrid_spacing_um = -3\ngrid_spacing = 5\npsf = "x"\n')
    with pytest.raises(ConfigError) as error:
        load_run_config(config)
    text = str(error.value)
    assert "register.grid_spacing_um: Input should be greater than 0.1 (got -3)" in text
    assert "register.grid_spacing: Extra inputs are not permitted (got 5)" in text
    assert "register.psf" in text


@pytest.mark.parametrize("size", ["8 nm", "8,8,8", "8,8,8 bananas", "a,b,c nm"])
def test_a_voxel_size_needs_three_numbers_and_a_unit(config, size):
    with pytest.raises(ConfigError, match=r"em\.voxel_size"):
        load_run_config(config, [f'em.voxel_size="{size}"'])


@pytest.mark.parametrize("override", ["seed", "=3", "register..seed=3", "em.path.x=1"])
def test_a_malformed_override_is_refused(config, override):
    with pytest.raises(ConfigError):
        load_run_config(config, [override])


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(MissingError, match="clemreg init"):
        load_run_config(tmp_path / "none.toml")


def test_broken_toml_names_the_line(config):
    config.write_text("[em\n")
    with pytest.raises(ConfigError, match="line 1"):
        load_run_config(config)


def test_paths_start_from_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "b")
    assert resolve("$PLACE/c.h5::raw/s0", tmp_path) == f"{(tmp_path / 'b/c.h5').resolve()}::raw/s0"


def test_a_file_with_a_dollar_sign_in_its_name_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    (tmp_path / "my $DATA" / "${HOME}").mkdir(parents=True)
    literal = tmp_path / "my $DATA" / "${HOME}"
    assert resolve("my $DATA/${HOME}::s0", tmp_path) == f"{literal}::s0"
    assert resolve("$DATA/em.zarr::s0", tmp_path) == f"{tmp_path / 'data' / 'em.zarr'}::s0"
