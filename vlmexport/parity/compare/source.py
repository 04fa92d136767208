"""Where the float model's values come from: the model itself, here or spread over workers, or a recording of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmexport.artifact.bundle.contents import configuration_of
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.calibrate import Sample
from vlmexport.checkpoint.hub import is_hub_id
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.parity.compare.clients import More
from vlmexport.parity.compare.evaluate import Evaluation, run_against, run_samples, without_budget
from vlmexport.parity.compare.views import views_result
from vlmexport.parity.reference.recording import Recorder, Recording
from vlmexport.parity.reference.same import other_model
from vlmexport.parity.reference.values import Live
from vlmexport.parity.result import Inputs, ViewsResult
from vlmexport.runtime.open import Machine
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model


class Against:
    """The float model of a bundle, found and verified; nothing runs yet.

    Args:
        inputs: what a recording must be of.
        reference: folder, Hub id or ``demo``; the one that the manifest names where it is None.
        vision_tower: its tower, where it carries none and the folder that the manifest names has moved.
        dask: where samples run, as in ``check``.
        record: file to write its values to.
        replay: recording to take its place.
        machine: on whose cores bundles run too.
        console: where downloads are told of.
        client: whose pixels are measured too.

    Raises:
        UsageError: these exclude each other, or the recording is none or of other samples.
        CheckpointError: it is another model than the bundle was made from.
    """

    def __init__(
        self,
        manifest: Manifest,
        inputs: Inputs,
        *,
        reference: str | None = None,
        vision_tower: str | None = None,
        dask: str | None = None,
        record: Path | None = None,
        replay: Path | None = None,
        machine: Machine | None = None,
        console: Console = QUIET,
        client: More | None = None,
    ) -> None:
        if replay and (reference or vision_tower or dask or record):
            raise UsageError(
                "--replay takes the place of the float model", "leave out --reference, --vision-tower, --dask, --record"
            )
        if record and dask:
            raise UsageError("--record and --dask exclude each other", "record in one process")
        if record and not record.absolute().parent.is_dir():
            raise UsageError(f"{record} cannot be written", "name a file in a folder that exists")
        self._inputs, self._dask, self._record = inputs, dask, record
        self._machine, self._client = machine, client
        if replay:
            recording = Recording(replay)
            recording.refuse_other(inputs)
            self._source: Checkpoint | Recording = recording
        else:
            self._source = _reference(manifest, reference, vision_tower, console)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The float model's weights; None where a recording takes its place."""
        return None if isinstance(self._source, Recording) else self._source

    def run(self, bundle: Path, samples: Sequence[Sample], advance: Callable[[], None], stock: int) -> Evaluation:
        """Compare a bundle with it.

        Args:
            stock: samples to run without our repairs too.
        """
        if isinstance(self._source, Recording):
            return run_against(bundle, self._source, samples, advance, stock, self._machine, self._client)
        if self._dask is not None:
            from vlmexport.parity.compare.spread import evaluate

            return evaluate(bundle, self._source, samples, self._dask, advance, stock)
        if self._record is None:
            return run_samples(
                bundle, self._source, samples, advance, stock=stock, machine=self._machine, client=self._client
            )
        reference = ReferenceRuntime(self._source)
        recorder, without = Recorder(Live(reference), self._record, self._inputs), without_budget(reference)
        try:
            run = run_against(bundle, recorder, samples, advance, stock, self._machine, self._client, without)
            recorder.finish(views_result(run.without, self._source))
        finally:
            recorder.close()
        return run

    def views(self, run: Evaluation) -> ViewsResult | None:
        """What the budget of views costs by itself; None where there is none, or a recording does not tell."""
        if isinstance(self._source, Recording):
            return self._source.views
        return views_result(run.without, self._source)


def _reference(
    manifest: Manifest, reference: str | None, vision_tower: str | None, console: Console = QUIET
) -> Checkpoint:
    """The float model, when its weights and its configuration are those that the bundle was made from."""
    checkpoint = _opened(manifest, reference, vision_tower, console).within(manifest.recipe.max_views)
    difference = other_model(
        (manifest.source.weights, manifest.source.configuration), "the bundle",
        (checkpoint.fingerprints, configuration_of(checkpoint.spec)), "the checkpoint",
    )  # fmt: skip
    if difference:
        raise CheckpointError(
            f"{checkpoint.path} is not the model that this bundle was made from ({difference})",
            "pass the right one with --reference, or export this one again",
        )
    return checkpoint


def _opened(manifest: Manifest, reference: str | None, vision_tower: str | None, console: Console) -> Checkpoint:
    """The checkpoint; where the manifest alone says where it was, an error says how to tell where it is now."""
    where = manifest.source.path
    try:
        return open_model(reference or where, vision_tower or manifest.source.vision_tower, console)
    except CheckpointError as error:
        if reference is not None or Path(where).exists() or where == "demo":
            raise
        cure = "pass it with --reference, or a recording of it with --replay"
        raise CheckpointError(
            f"the float model of this bundle is not where it was: {error.what}",
            f"{error.cure}; or {cure}" if is_hub_id(where) else cure,
        ) from error
