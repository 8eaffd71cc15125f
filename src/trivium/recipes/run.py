"""A run of a recipe: its folder, what it logs, and how it ends.

    run = Run.start(config)
    if run.results is not None:                 # it was done before
        return run.results
    run.data(corpus)
    for step in run.steps(train(model, loss, batches, settings, folder=run.folder), settings):
        if step.number % config.evaluate_every == 0:
            run.evaluated(step.number, validation_loss=…)
            run.sample(step.number, text)
    run.save_model(model, "transformer", model_config, tokenizer)
    return run.finish({"bits per byte": …})

The same command goes on with a run that was stopped. Of several processes the first writes.
"""

import contextlib
import json
import random
import resource
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from trivium import checkpoint
from trivium.errors import TriviumError, UsageError
from trivium.files import read_json, write_atomic
from trivium.recipes import folder as folders
from trivium.recipes import metrics
from trivium.recipes.config import RecipeConfig
from trivium.recipes.hardware import peak_flops
from trivium.recipes.loading import RECORD
from trivium.recipes.progress import Progress, Speed, plain
from trivium.recipes.surroundings import now, surroundings
from trivium.train import Step, TrainConfig, whole_state
from trivium.train.parallel import World, join
from trivium.train.snapshots import newest, number_of


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with a line that says where the run was saved and how it goes on."""


class Source(Protocol):
    """What a model is trained on, as `trivium.data` gives it."""

    @property
    def description(self) -> str: ...

    @property
    def hash(self) -> str: ...


class Run:
    """The folder of a run and what is written there. Made by `Run.start`.

    folder    where it lies
    results   of a run that is done already; else None
    device    where to compute
    first     whether this is the process that writes
    """

    def __init__(self, name: str, config: RecipeConfig, folder: Path, world: World) -> None:
        self.name, self.config, self.folder, self.world = name, config, folder, world
        self.device, self.first = world.device, world.first
        self.results: dict[str, Any] | None = None
        self.charts: list[Any] = []
        self.tables: list[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = []
        self._facts: dict[str, Any] = {}
        self._record: dict[str, Any] = {}
        self._progress: Progress | None = None
        self._joined = False
        self._began, self._next_report = time.monotonic(), 0.0

    @classmethod
    def start(cls, config: RecipeConfig) -> "Run":
        """Take the run's folder, or go on with the run that is there.

        Seeds Python's, NumPy's and PyTorch's random numbers. Raises UsageError if the folder holds
        a run of other settings or something else, or another process runs there.
        """
        source = Path(sys.modules[type(config).__module__].__file__ or "run.py")
        name = source.stem.replace("_", "-")
        folder = Path(config.out or f"runs/{name}").expanduser()
        alone = not dist.is_initialized()
        run = cls(name, config, folder, join(config.device))
        run._joined = alone and run.world.size > 1
        _seed(config.seed)
        if config.dry_run:
            return run
        failure: TriviumError | None = None
        if run.first:
            try:
                run._take_folder(source)
            except TriviumError as error:
                failure = error
        outcome = run._agree(failure is None, run.results)
        if failure is not None:
            raise failure
        if outcome is None:
            raise SystemExit(2)  # the first process says why
        run.results = outcome[0]
        if run.results is not None:
            run._part()
        return run

    def _part(self) -> None:
        """Leave the other processes, all at once, if it was this run that met them."""
        if self._joined and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def _agree(self, fine: bool, results: Any) -> tuple[Any] | None:
        """What the first process found: (results,), or None for a failure."""
        told = [(results,) if fine else None]
        if self.world.size > 1:
            dist.broadcast_object_list(told, 0)
        return told[0]

    def _take_folder(self, source: Path) -> None:
        config = metrics.clean(asdict(self.config))
        there = folders.check(self.folder)
        folders.claim(self.folder)
        if there and self.config.fresh:
            self.tell(f"{self.folder} is set aside: {folders.set_aside(self.folder)}")
            folders.claim(self.folder)
            there = {}
        elif there and folders.clear(self.folder):
            there = {}
        try:
            if there:
                folders.compare(self.folder, there, self.name, config)
                results = read_json(self.folder / folders.RESULTS, optional=True)
                self.results = results.get("results")
        except UsageError:
            folders.release(self.folder)
            raise
        if self.results is not None:
            self.tell(f"{self.folder} is done already: fresh=yes or another out= begins anew")
            folders.release(self.folder)
            return
        self._record = there or {"recipe": self.name, "started": now(), "data": {}}
        self._record |= {
            "config": config,
            "source": str(source),
            **surroundings(self.device, self.world.size),
        }
        self._write_record()

    def _write_record(self) -> None:
        self._write(RECORD, json.dumps(self._record, indent=2, ensure_ascii=False))

    # -- what is told while it runs -------------------------------------------------------------

    def data(self, source: Source, name: str = "training", *, licence: str | None = None) -> None:
        """Record what the model is trained on, and say it.

        Raises UsageError if the run began with other data.
        """
        self.tell(f"{name} data: {source.description}")
        if self.config.dry_run or not self._writes():
            return
        known = self._record["data"].get(name, {}).get("hash")
        found = source.hash
        if known not in (None, found):
            raise UsageError(
                f"the {name} data are not those that the run in {self.folder} began with (hash "
                f"{found[:19]}, not {str(known)[:19]}): choose another folder "
                "with out=, or set the run aside with fresh=yes"
            )
        licence = licence or getattr(source, "licence", None)
        facts = {"description": source.description, "hash": found, "licence": licence}
        self._record["data"][name] = facts
        self._write_record()

    def steps(
        self,
        steps: Iterable[Step],
        settings: TrainConfig,
        *,
        tokens: int | None = None,
        flops_per_token: float | None = None,
    ) -> Iterator[Step]:
        """The steps of `train`, logged in metrics.jsonl and shown on stderr.

        tokens: that a step reads, on all ranks (default: those that carry loss)
        flops_per_token: for the cost and the share of the device that is used (MFU)
        """
        peak = None
        if flops_per_token and self.first:
            one, known = peak_flops(self.device, settings.precision)
            peak = one * self.world.size
            self._facts |= {"flops_per_token": flops_per_token, "peak_flops": peak, "peak": known}
        speed = Speed()
        first: int | None = None
        number = 0
        quiet = not self.first
        with Progress(self.name, settings.steps, quiet=quiet) as self._progress:
            try:
                for step in steps:
                    number = step.number
                    if first is None:
                        first = number
                        self._rewind(number)
                    read = step.weight if tokens is None else tokens
                    speed.add(read, step.seconds)
                    self._log_step(step, read)
                    words = f"loss {step.loss:.4f}, {speed.words(flops_per_token, peak)}"
                    self._progress.show(number, words)
                    for note in step.notes:
                        self.tell(note)
                    yield step
            except Stopped:
                raise
            except KeyboardInterrupt:
                raise Stopped(self._how_to_go_on(number, settings.steps)) from None
            finally:
                if isinstance(steps, Generator):
                    steps.close()  # it saves, when the recipe stops early
        self._progress = None

    def estimate(
        self,
        model: nn.Module,
        loss: Any,
        batches: Iterable[Any],
        settings: TrainConfig,
        *,
        tokens: int | None = None,
        flops_per_token: float | None = None,
    ) -> dict[str, Any]:
        """What the run would take in memory and time: the results of a dry run."""
        if self.world.size > 1:
            raise UsageError("a dry run is of one process: start it without torchrun")
        from trivium.recipes.estimate import estimate

        more: dict[str, Any] = {"tokens": tokens, "flops_per_token": flops_per_token}
        return estimate(model, loss, batches, settings, device=self.device, **more)

    def _rewind(self, number: int) -> None:
        """The step `number` is the first of this process: drop what was measured from it on."""
        if number > 1:
            self.tell(f"goes on after step {number - 1:,}, in {self.folder}")
        if self._writes():
            metrics.rewind(self.folder / "metrics.jsonl", number)
            for path in (self.folder / "samples").glob("*.txt"):
                if path.stem.split("-")[0].isdigit() and int(path.stem.split("-")[0]) >= number:
                    path.unlink()

    def _log_step(self, step: Step, tokens: float) -> None:
        row: dict[str, Any] = {"loss": step.loss, **step.metrics}
        row |= {"learning_rate": step.learning_rate, "grad_norm": step.grad_norm}
        row |= {"tokens": int(tokens), "seconds": round(step.seconds, 6)}
        if step.skipped:
            row["skipped"] = True
        self.log(step.number, **row)

    def _how_to_go_on(self, number: int, total: int) -> str:
        said = f"stopped after step {number:,} of {total:,}"
        snapshot = newest(self.folder)
        if snapshot is None:
            return f"{said}: nothing was saved, the same command begins again"
        last = number_of(snapshot)
        behind = "" if last == number else f" after step {last:,}"
        return f"{said}: saved in {self.folder}, the same command goes on{behind}"

    def log(self, step: int, **numbers: Any) -> None:
        """Add a line to metrics.jsonl."""
        if self._writes():
            metrics.append(self.folder / "metrics.jsonl", {"step": step, **numbers})

    def evaluated(self, step: int, **numbers: float) -> None:
        """Record and say what was measured on held-out data after a step."""
        self.log(step, **numbers)
        said = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in numbers.items())
        self.tell(f"step {step:,}: {said}")
        self._refresh()

    def sample(self, step: int, text: str) -> None:
        """Keep a text that the model wrote after a step, and show how it begins."""
        if self._writes():
            place, number = self.folder / "samples", 1
            path = place / f"{step:08}.txt"
            while path.exists():
                number += 1
                path = place / f"{step:08}-{number}.txt"
            self._write(str(path.relative_to(self.folder)), text)
        shown = plain(text)
        self.tell(f"step {step:,} writes: {shown[:100]}{'…' if len(shown) > 100 else ''}")

    def tell(self, text: str) -> None:
        """A line to the person, on stderr."""
        if not self.first:
            return
        if self._progress is not None:
            self._progress.say(text)
        else:
            with contextlib.suppress(OSError):
                print(plain(text), file=sys.stderr, flush=True)

    def progress(self, label: str, total: int | None, unit: str = "") -> Progress:
        """A bar for work other than the steps of `train`: `with run.progress(…) as bar:
        bar.show(done, words)`."""
        return Progress(label, total, unit=unit, quiet=not self.first)

    # -- what is left in the folder ---------------------------------------------------------------

    def save_model(
        self, model: nn.Module, kind: str, config: Any, tokenizer: Any = None, template: Any = None
    ) -> None:
        """Write the model so that the folder is one that `-m` takes. All ranks must call it.

        kind: of trivium.models.KINDS
        """
        state = whole_state(model)
        self._facts["parameters"] = sum(tensor.numel() for tensor in state.values())
        if not self._writes():
            return
        checkpoint.save(self.folder, model, kind, config, state=state)
        if tokenizer is not None:
            tokenizer.save(self.folder)
        if template is not None:
            self._write("chat_template.jinja", template.named["default"])

    def finish(
        self, results: Mapping[str, Any], *, about: str = "", limits: str = ""
    ) -> dict[str, Any]:
        """Write the curves, the report and the model card; returns the results.

        about: what the model is (default: the recipe's docstring); limits: what to beware of
        """
        done: dict[str, Any] = metrics.clean(dict(results))
        if self._writes():
            from trivium.recipes.report import write_all

            self._facts |= {"about": about or self._about(), "limits": limits, **self._costs()}
            record = {"results": done, "facts": metrics.clean(self._facts), "finished": now()}
            for line in write_all(self.folder, record, self.charts, self.tables):
                self.tell(line)
            self._write(folders.RESULTS, json.dumps(record, indent=2, ensure_ascii=False))
            self.tell(f"done: {self.folder} (report.html, README.md)")
            folders.release(self.folder)
        self.results = done
        self._part()
        return done

    def _costs(self) -> dict[str, Any]:
        cost: dict[str, Any] = metrics.cost(metrics.read(self.folder / "metrics.jsonl"))
        if "flops_per_token" in self._facts:
            cost["flops"] = self._facts["flops_per_token"] * cost["tokens"]
        if not cost["steps"]:
            cost = {"seconds": time.monotonic() - self._began}
        if self.device.type == "cuda":
            cost["peak_memory"] = torch.cuda.max_memory_allocated(self.device)
        else:
            cost["peak_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return cost

    def _about(self) -> str:
        return (sys.modules[type(self.config).__module__].__doc__ or "").strip()

    def _refresh(self) -> None:
        """Write the report of a run that is under way, in a small part of its time."""
        now = time.monotonic()
        if not self._writes() or now < self._next_report:
            return
        from trivium.recipes.report import refresh

        refresh(self.folder)
        self._next_report = now + max(30.0, 50 * (time.monotonic() - now))

    def _writes(self) -> bool:
        if self.config.dry_run:
            raise UsageError(f"the recipe {self.name} has no dry run")
        return self.first

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.folder / name, text)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
