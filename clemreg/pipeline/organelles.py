"""``clemreg organelles``: from predictions to every table, as one chain of steps.

Every analysis of every organelle is a step of its own, in a folder of its own, and depends on what
that organelle is made of; so a changed key redoes its step and what reads from it, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clemreg.blocks.executors import executor_named, started
from clemreg.blocks.run import Progress
from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.config import resolve
from clemreg.config_organelles import (
    MeshConfig,
    MicrotubulesConfig,
    OrganellesConfig,
    PlanarityConfig,
    ReconstructConfig,
    RibosomesConfig,
    SkeletonConfig,
)
from clemreg.io.atomic import atomic_write_json, atomic_write_text, remove
from clemreg.measure.interactions import interactions, partners, write_graphml
from clemreg.measure.tables import read_table, require_parquet, write_table
from clemreg.pipeline.analyses import (
    RECONSTRUCTED,
    contact_step,
    labels_of,
    measure_step,
    mesh_step,
    options_of,
    planar_sites_step,
    planarity_step,
    reconstruct_step,
    ribosome_step,
    skeleton_step,
    trace_step,
)
from clemreg.pipeline.context import this_command, versions
from clemreg.pipeline.grids import refuse_other_voxels
from clemreg.pipeline.measure import open_mask, summary
from clemreg.pipeline.microtubules import MicrotubuleCommand
from clemreg.pipeline.refine import (
    RefineOptions,
    choose,
    find_prediction,
    find_predictions,
    open_predictions,
    refine_cell,
)
from clemreg.pipeline.ribosomes import RibosomeCommand
from clemreg.pipeline.steps import Step, input_fingerprint, one_run_at_a_time, run_steps
from clemreg.refine.recipe import load_recipe
from clemreg.report.organelles import write_organelles_page
from clemreg.space.grid import Grid
from clemreg.volume import Volume

Work = Callable[[Path, Blockwise], Mapping[str, Any]]
"""Writes its files into a folder and returns their summary."""
_Part = SkeletonConfig | PlanarityConfig | MeshConfig
_Traced = MicrotubulesConfig | RibosomesConfig

LABELS, SUMMARY, REPORT, PAGE = "labels.zarr", "summary.json", "organelles.json", "index.html"


def run_organelles(
    config: OrganellesConfig,
    base: Path,
    *,
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
    announce: Callable[[str, str], None] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Do every step that is not finished.

    Parameters
    ----------
    config
        What to do.
    base
        Folder that relative paths start from.
    progress
        Opens a progress display with a title.
    announce
        Told ``(step, state)``.

    Returns
    -------
    dict, Path
        Content of ``organelles.json``, and the page that links every table.

    Raises
    ------
    MissingError
        An input is not there.
    ConfigError
        Recipe or executor is not known.
    """
    chain = Chain(config, base, progress or _silent)
    chain.refuse_impossible()
    steps = chain.steps()
    with one_run_at_a_time(chain.folder):
        seconds = run_steps(steps, chain.folder, announce=announce)
        report: dict[str, Any] = _read_json(chain.folder / REPORT) | {"timings_s": seconds}
        atomic_write_json(chain.folder / REPORT, report)
    return report, chain.folder / PAGE


def _silent(_title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done, _total, _message: None)


@dataclass(frozen=True)
class Chain:
    """One run: its configuration, where its files are, and its steps.

    Attributes
    ----------
    config, base, progress
        As in `run_organelles`.
    """

    config: OrganellesConfig
    base: Path
    progress: Callable[[str], AbstractContextManager[Progress]] = _silent

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(resolve(self.config.output.dir, self.base))

    @property
    def predictions(self) -> str:
        """Where the predictions are."""
        return resolve(self.config.input.predictions, self.base)

    @property
    def recipe(self) -> str:
        """Preset, or path of a recipe."""
        name = self.config.input.recipe
        return resolve(name, self.base) if name.endswith(".toml") else name

    @property
    def cell(self) -> str | None:
        """Path of the cell's mask."""
        cell = self.config.input.cell
        return None if cell is None else resolve(cell, self.base)

    def labels(self, name: str) -> str:
        """Where the ids of an organelle are, or of what else has this name."""
        if name in self.reconstructions:
            return str(self.folder / "reconstruct" / name / RECONSTRUCTED)
        for verb in ("microtubules", "ribosomes"):
            part: _Traced | None = getattr(self.config, verb)
            if part is not None and part.name == name:
                return str(labels_of(part, self.folder / verb / name))
        return str(self.folder / LABELS / name)

    def planarity(self, name: str) -> Path:
        """Where the planarity of an organelle is."""
        return self.folder / "planarity" / name / "planarity.zarr"

    @property
    def reconstructions(self) -> dict[str, ReconstructConfig]:
        """What is reconstructed, by name."""
        return {part.title: part for part in self.config.reconstruct}

    def mask(self, path: str | None) -> Volume | None:
        """Open a mask, if there is one."""
        return None if path is None else open_mask(path, self.config.input.voxel_size)

    def prediction(self, name: str) -> VolumeFile:
        """Find the prediction of a structure that no recipe makes."""
        return find_prediction(self.predictions, name, self.config.input.voxel_size)

    def refuse_impossible(self) -> None:
        """Say now what would otherwise be found after hours of work."""
        compute = self.config.compute
        executor_named(compute.executor, compute.workers)
        cell = self.mask(self.cell)
        if self.config.output.parquet:
            require_parquet()
        refuse_other_voxels(self.config, self._predicted(), cell)
        for contact in self.config.contacts:
            options_of(contact)

    def _predicted(self) -> dict[str, Volume]:
        """Open what everything that can be named is made from."""
        wanted = self.config.input.organelles
        chosen, _ = choose(load_recipe(self.recipe), self.files, wanted, self.predictions)
        volumes = open_predictions(chosen, self.files)
        for made in (self.config.microtubules, self.config.ribosomes):
            if made is not None:
                volumes[made.name] = self.prediction(made.prediction).open()
        return volumes | {name: volumes[part.of] for name, part in self.reconstructions.items()}

    @cached_property
    def identities(self) -> dict[str, Any]:
        """What each organelle is made of: its steps and predictions, and those of what it needs."""
        given = self.config.input
        recipe, files = load_recipe(self.recipe), self.files
        found: dict[str, Any] = {
            name: {
                part: [
                    organelle.model_dump(mode="json"),
                    repr(files.get(part)),
                    input_fingerprint(files[part].uri) if part in files else None,
                ]
                for part, organelle in recipe.in_order((name,))
            }
            for name in given.organelles
        }
        for made in (self.config.microtubules, self.config.ribosomes):
            if made is not None:
                file = self.prediction(made.prediction)
                found[made.name] = [made.model_dump(), repr(file), input_fingerprint(file.uri)]
        planarity = self.config.planarity
        for name, part in self.reconstructions.items():
            of = [found[n] for n in (part.of, part.remove_inside) if n is not None]
            found[name] = [part.model_dump(), planarity.model_dump() if planarity else None, *of]
        return found

    @cached_property
    def files(self) -> Mapping[str, VolumeFile]:
        """Predictions that the recipe names."""
        given = self.config.input
        options = RefineOptions(given.organelles, given.voxel_size)
        return find_predictions(self.predictions, load_recipe(self.recipe), options)

    @property
    def grid(self) -> Grid:
        """Voxels of the first prediction."""
        return next(iter(self.files.values())).open().grid

    # -- steps ------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """All steps, each after what it reads from."""
        labels = self.folder / LABELS
        made = (*(labels / name for name in self.config.input.organelles), labels / "clemreg.json")
        config = self.config
        of_recipe = {name: self.identities[name] for name in config.input.organelles}
        steps = [Step("refine", self._refine, of_recipe, (), made)]
        steps += self._each("planarity", config.planarity, planarity_step)
        steps += self._reconstructed()
        steps += self._traced()
        steps += [
            *self._morphology(),
            *self._each("skeletonize", config.skeletonize, skeleton_step),
        ]
        steps += [*self._contacts(), *self._contact_planarity()]
        steps += self._each("mesh", config.mesh, mesh_step)
        inputs = {**config.output.model_dump(exclude={"dir"}), "version": versions()["clemreg"]}
        pages = (self.folder / REPORT, self.folder / PAGE)
        names = tuple(step.name for step in steps)
        return [*steps, Step("summary", self._summary, inputs, names, pages)]

    def _morphology(self) -> Iterator[Step]:
        inputs = {"cell": input_fingerprint(self.cell), "report": self.config.measure.report}
        for name in self.config.measured:
            settings = (self.mask(self.cell), self.config.measure)
            work = partial(measure_step, self.labels(name), *settings)
            yield self._step("measure", name, (name,), inputs, work)

    def _each(self, verb: str, config: _Part | None, work: Callable[..., Any]) -> Iterator[Step]:
        """One step for each organelle that a section names."""
        if config is not None:
            settings = config.model_dump(exclude={"organelles"})
            for name in config.organelles:
                yield self._step(
                    verb, name, (name,), settings, partial(work, self.labels(name), config)
                )

    def _traced(self) -> Iterator[Step]:
        """Microtubules and ribosomes, which have programs of their own."""
        if (tubes := self.config.microtubules) is not None:
            yield self._step(
                "microtubules", tubes.name, (tubes.name,), {}, partial(self._microtubules, tubes)
            )
        if (ribosomes := self.config.ribosomes) is not None:
            on = [n for n in (ribosomes.planarity, ribosomes.nuclear_envelope) if n]
            work = partial(self._ribosomes, ribosomes)
            planarity = self.config.planarity if ribosomes.planarity else None
            settings = {"planarity": planarity.model_dump() if planarity else None}
            yield self._step("ribosomes", ribosomes.name, (ribosomes.name, *on), settings, work)

    def _reconstructed(self) -> Iterator[Step]:
        for name, part in self.reconstructions.items():
            inside = part.remove_inside
            mask = self.folder / LABELS / inside if inside else None
            work = partial(self._reconstruct, part, mask)
            yield self._step("reconstruct", name, (name,), {}, work)

    def _contact_planarity(self) -> Iterator[Step]:
        """Planarity of each contact site, on each side that has one."""
        if (config := self.config.planarity) is None:
            return
        for contact, name in self.config.planar_sides:
            of = (contact.a, contact.b or contact.a)
            settings = {"contact": contact.model_dump(), "planarity": config.model_dump()}
            work = partial(
                planar_sites_step,
                self.folder / "contacts" / contact.title,
                self.planarity(self._planar(name)),
                ("a" if name == contact.a else "b", config.cut),
            )
            yield self._step("contact_planarity", contact.side(name), of, settings, work)

    def _contacts(self) -> Iterator[Step]:
        names = []
        for contact in self.config.contacts:
            of = (contact.a, contact.b or contact.a)
            work = partial(contact_step, contact, self.labels)
            step = self._step("contacts", contact.title, of, contact.model_dump(), work)
            names.append(step.name)
            yield step
        if names:
            folder = self.folder / "interactions"
            outputs = (folder / SUMMARY,)
            yield Step("interactions", self._interactions, {}, tuple(names), outputs)

    def _step(
        self, verb: str, name: str, of: tuple[str, ...], settings: Mapping[str, Any], work: Work
    ) -> Step:
        """Step with a folder of its own, ``VERB/NAME``."""
        folder = self.folder / verb / name
        inputs = {"settings": settings, "of": [self.identities[o] for o in of]}
        title = f"{verb}-{name}"
        return Step(
            title,
            lambda: self._do(title, folder, inputs, work),
            inputs,
            outputs=(folder / SUMMARY,),
        )

    def _do(self, title: str, folder: Path, inputs: Mapping[str, Any], work: Work) -> None:
        compute = self.config.compute
        text = json.dumps([inputs, compute.block], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        with (
            self.progress(title) as progress,
            started(executor_named(compute.executor, compute.workers)) as executor,
            _workplace(folder, key),
        ):
            found = work(folder, Blockwise((compute.block,) * 3, executor, progress))
            atomic_write_json(folder / SUMMARY, found)

    def _planar(self, name: str) -> str:
        """Name of the organelle whose planarity goes with a name."""
        return self.reconstructions[name].of if name in self.reconstructions else name

    # -- work -------------------------------------------------------------------------------------

    def _refine(self) -> None:
        given, compute = self.config.input, self.config.compute
        options = RefineOptions(
            given.organelles, given.voxel_size, compute.block, compute.executor, compute.workers
        )
        out = self.folder / LABELS
        with self.progress("refine") as progress:
            refine_cell(self.predictions, self.recipe, out, options=options, progress=progress)

    def _reconstruct(
        self, config: ReconstructConfig, mask: Path | None, folder: Path, how: Blockwise
    ) -> Mapping[str, Any]:
        inside = None if mask is None else open_mask(str(mask))
        return reconstruct_step(self.planarity(config.of), inside, config, folder, how)

    def _microtubules(
        self, config: MicrotubulesConfig, folder: Path, how: Blockwise
    ) -> Mapping[str, Any]:
        command = MicrotubuleCommand(self.prediction(config.prediction), folder)
        return trace_step(config, command, how)

    def _ribosomes(
        self, config: RibosomesConfig, folder: Path, how: Blockwise
    ) -> Mapping[str, Any]:
        on, nuclear = config.planarity, config.nuclear_envelope
        command = RibosomeCommand(
            self.prediction(config.prediction),
            folder,
            str(self.planarity(on)) if on else None,
            self.labels(nuclear) if nuclear else None,
        )
        return ribosome_step(config, command, how)

    def _interactions(self) -> None:
        folder = self.folder / "interactions"
        paths = [
            self.folder / "contacts" / contact.title / "contacts.csv"
            for contact in self.config.contacts
        ]
        pairs = interactions([read_table(path) for path in paths])
        objects = partners(pairs)
        remove(folder)
        write_table(folder / "pairs.csv", pairs)
        write_table(folder / "partners.csv", objects)
        write_graphml(folder / "graph.graphml", pairs)
        found = {"pairs": len(pairs), **summary(objects, ["partners"])}
        atomic_write_json(folder / SUMMARY, found)

    def _summary(self) -> None:
        config = self.config
        if config.output.parquet:
            self._write_parquet()
        counts = _read_json(self.folder / LABELS / "clemreg.json")["organelles"]
        organelles: dict[str, dict[str, Any]] = {
            name: {"refine": {k: v for k, v in counts[name].items() if k != "seconds"}}
            for name in config.input.organelles
        }
        for verb, names in self._measured().items():
            for name in names:
                organelles.setdefault(name, {})[verb] = self._found(verb, name)
        contacts = {c.title: self._found("contacts", c.title) for c in config.contacts}
        for contact, name in config.planar_sides:
            found = self._found("contact_planarity", contact.side(name))
            contacts[contact.title].setdefault("planarity", {})[name] = found
        report = {
            "title": config.output.title,
            "organelles": organelles,
            "contacts": contacts,
            "interactions": self._found("interactions", "") if contacts else None,
            "provenance": self._provenance(),
        }
        atomic_write_json(self.folder / REPORT, report)
        write_organelles_page(self.folder / PAGE, _read_json(self.folder / REPORT))

    def _write_parquet(self) -> None:
        """Write every table as Parquet, too."""
        for path in sorted(self.folder.glob("*/**/*.csv")):
            write_table(path.with_suffix(".parquet"), read_table(path))

    def _measured(self) -> dict[str, Sequence[str]]:
        """Name the organelles of every verb."""
        config = self.config
        names: dict[str, Sequence[str]] = {}
        names["reconstruct"] = tuple(self.reconstructions)
        for verb in ("microtubules", "ribosomes"):
            made: _Traced | None = getattr(config, verb)
            names[verb] = (made.name,) if made else ()
        names["measure"] = config.measured
        for verb in ("skeletonize", "planarity", "mesh"):
            part: _Part | None = getattr(config, verb)
            names[verb] = part.organelles if part else ()
        return names

    def _found(self, verb: str, name: str) -> dict[str, Any]:
        """Summary of a step, and its files."""
        folder = self.folder / verb / name
        files = sorted(p for p in folder.iterdir() if p.name != SUMMARY and p.name[0] != ".")
        listed = [p.relative_to(self.folder).as_posix() for p in files]
        return {**_read_json(folder / SUMMARY), "files": listed}

    def _provenance(self) -> dict[str, Any]:
        """Command, resolved configuration, versions and inputs."""
        return {
            "command": this_command(),
            "config": self.config.model_dump(mode="json"),
            "recipe": load_recipe(self.recipe).model_dump(mode="json"),
            "versions": versions(),
            "inputs": {
                "predictions": input_fingerprint(self.predictions),
                "cell": input_fingerprint(self.cell),
            },
        }


@contextmanager
def _workplace(folder: Path, key: str) -> Iterator[None]:
    """Empty a step's folder, unless what lies there is unfinished work of just this step.

    Finished blocks of a killed step are good for the same inputs only.
    """
    mark = folder / ".unfinished"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        remove(folder)
        atomic_write_text(mark, key)
    yield
    mark.unlink()


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
