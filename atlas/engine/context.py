"""A model with its context, and with what guesses for it, as the settings ask. Loading takes seconds to minutes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import structlog

from atlas.engine.draft_model import SLOTS, ModelDrafter, check_vocabulary
from atlas.engine.gain import ROWS_MAX, RowCosts
from atlas.engine.ngram import NgramDrafter
from atlas.engine.runner import Model, Runner, supports_gpu
from atlas.engine.sizing import context_cells, physical_cores, saved_cells
from atlas.engine.speculation import ROW_SHARE_CPU, ROW_SHARE_GPU, Speculator
from atlas.errors import ModelFileError
from atlas.settings import EngineSettings

log = structlog.get_logger("atlas.engine")

BATCH_TOKENS = 512  # rows of one decode; llama.cpp's default physical batch


class Opened(NamedTuple):
    """What the engine thread will own."""

    model: Model
    runner: Runner
    costs: RowCosts
    speculator: Speculator | None

    def close(self) -> None:
        """Free all of it; the thread has ended, or never begun."""
        if self.speculator is not None:
            self.speculator.close()
        self.runner.close()
        self.model.close()


def open_context(path: Path, settings: EngineSettings) -> Opened:
    """See `load_engine`. Where it fails nothing stays in memory: the server may go on without this model."""
    with ExitStack() as undoing:
        model = Model(path, gpu_layers=settings.gpu_layers)
        undoing.callback(model.close)
        draft = _draft_model(model, settings)
        if draft is not None:
            undoing.callback(draft.close)
        guesses = _guesses(model, settings)
        runner = _runner(model, settings, draft=draft, guesses=guesses)
        undoing.callback(runner.close)
        costs = RowCosts(ROW_SHARE_GPU if has_gpu_layers(settings) else ROW_SHARE_CPU)
        opened = Opened(model, runner, costs, _speculator(model, runner, costs, draft, settings) if guesses else None)
        undoing.pop_all()
    return opened


def _runner(model: Model, settings: EngineSettings, *, draft: Model | None, guesses: bool) -> Runner:
    return Runner(
        model,
        context_tokens=settings.context_tokens or context_cells(model, max_sequences=settings.max_sequences, draft=draft),
        num_sequences=settings.max_sequences + settings.cached_sequences,
        batch_tokens=max(BATCH_TOKENS, settings.max_sequences + settings.prefill_chunk_tokens),
        num_outputs=ROWS_MAX if guesses else 0,
        threads=settings.threads or physical_cores(),
        flash_attention=flash_attention(settings),
    )


def absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def flash_attention(settings: EngineSettings) -> str:
    """On a CPU it adds f16 in an order that depends on what else runs (docs/log.md): llama.cpp chooses only with GPU layers."""
    return "off" if settings.flash_attention == "auto" and not has_gpu_layers(settings) else settings.flash_attention


def host_tokens(model: Model, runner: Runner, settings: EngineSettings) -> int:
    wanted = settings.host_cache_tokens
    return saved_cells(model, context_tokens=runner.context_tokens) if wanted < 0 else wanted


def has_gpu_layers(settings: EngineSettings) -> bool:
    return supports_gpu() and settings.gpu_layers != 0


def _guesses(model: Model, settings: EngineSettings) -> bool:
    """A recurrent state cannot be taken back to before a wrong guess."""
    if settings.speculation == "off" or model.can_drop_tails:
        return settings.speculation != "off"
    log.warning("speculation.unsupported", model=str(model.path), architecture=model.architecture)
    return False


def _draft_model(model: Model, settings: EngineSettings) -> Model | None:
    if settings.speculation != "draft" or not model.can_drop_tails:
        return None
    if not settings.draft_model:
        raise ModelFileError(
            "engine.speculation is 'draft' and engine.draft_model is empty: name the GGUF file of a small model that has the"
            f" vocabulary of {model.path.name}, or set engine.speculation to 'ngram' or 'off'"
        )
    try:
        draft = Model(absolute(settings.draft_model), gpu_layers=settings.gpu_layers)
    except ModelFileError as error:
        raise ModelFileError(f"engine.draft_model: {error.message}; or set engine.speculation to 'ngram' or 'off'") from None
    try:
        check_draft(draft, model)
    except ModelFileError:
        draft.close()
        raise
    return draft


def check_draft(draft: Model, target: Model) -> None:
    """Raises ModelFileError unless this one can guess for that one."""
    if not draft.can_drop_tails:
        raise ModelFileError(
            f"engine.draft_model {draft.path} ({draft.architecture}) cannot take back a wrong guess: its state is recurrent;"
            " name a transformer, or set engine.speculation to 'ngram' or 'off'"
        )
    check_vocabulary(draft, target)


def _speculator(model: Model, runner: Runner, costs: RowCosts, draft: Model | None, settings: EngineSettings) -> Speculator:
    return Speculator(
        NgramDrafter(),
        None if draft is None else _model_drafter(draft, model, runner, costs, settings),
        model.vocab,
        costs=costs,
        max_tokens=settings.draft_tokens,
    )


def _model_drafter(draft: Model, model: Model, runner: Runner, costs: RowCosts, settings: EngineSettings) -> ModelDrafter:
    draft_runner = Runner(
        draft,
        context_tokens=runner.context_tokens,
        num_sequences=SLOTS,
        batch_tokens=BATCH_TOKENS,
        threads=settings.threads or physical_cores(),
        flash_attention=flash_attention(settings),
    )
    share = draft.size_bytes / model.size_bytes
    return ModelDrafter(
        draft,
        draft_runner,
        chunk_tokens=min(BATCH_TOKENS, settings.prefill_chunk_tokens),
        first_cost_s=lambda: share * costs.seconds(1),
    )
