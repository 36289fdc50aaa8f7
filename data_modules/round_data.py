"""What the data modules share: each plays one round per epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy

from choosy.data.batches import ItemBatches
from choosy.data.encode import Reader
from choosy.data.heldout import AUTO, held_out, heldout_source, question
from choosy.data.mixture import divided, mixture
from choosy.data.reading import Promptlike, fingerprint, saying_once
from choosy.data.sources import Source, named
from choosy.methods.loss_inputs import Loss
from choosy.module import WeightedDPO
from choosy.resume.run_folder import began_with
from choosy.rounds.evaluate import as_pairs
from choosy.rounds.needs import check_needs
from choosy.rounds.reference import refuse_mixed_adapters
from choosy.rounds.run import Run
from choosy.terminal import logger
from choosy.types import Candidates, Prompt

log = logger(__name__)


@dataclass(kw_only=True, eq=False)
class RoundData(LightningDataModule, ABC):
    """Reads the data of a run, and gives each epoch the batches of its round.

    Args:
        train: What to train on: a file (JSONL, JSON, CSV, TSV, TXT, Parquet), a pattern of files, a `datasets` folder,
            a hub id, `choosy:prompts/...`, a list of these, or their shares by name.
        run: Plays the rounds.
        reader: Reads the data.
        heldout: Prompts to evaluate on; `auto` = those that come with Choosy where its prompts are trained on, else a
            tenth of those in `train`, at most 64, which are then not trained on; None = no evaluation.
        heldout_pairs: Labeled pairs to evaluate on, in any format of `choosy.data.formats`; None = none.
        limit: Most prompts to train on; None = all.
        shares: Of the sources in `train`, in their order: so much of each is drawn, as many prompts as can be without
            repeating one, or `limit` of them; None = all rows.
        heldout_limit: Most prompts, and most pairs, to evaluate on; None = all.
    """

    train: str | list[str] | dict[str, float]
    run: Run
    reader: Reader
    heldout: Source | None = None
    heldout_pairs: str | list[str] | None = None
    limit: int | None = None
    shares: list[float] | None = None
    heldout_limit: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.source, self.source_shares = divided(self.train, self.shares)
        self.run.labels.check_budget()
        self.heldout = heldout_source(self.source, self.heldout) or self.heldout
        self.run.labels.check_heldout(named(self.heldout) if self.heldout else None)
        self.prompts: list[Prompt] = []
        self.heldout_prompts: list[Prompt] = []
        self.labeled_pairs: list[Candidates] = []
        self.given: dict[str, Candidates] = {}  # the responses of data.train, if it has any

    @abstractmethod
    def read_train(self, module: WeightedDPO) -> list[Prompt]:
        """Read what to train on, check that the run can train on it, and return its prompts."""

    def read_sources(self, read: Callable[[Source, int | None], list[Promptlike]]) -> list[Promptlike]:
        """Read `train` by a function of a source and a limit: all of its sources, or a mixture of them in shares."""
        if self.source_shares is None:
            return read(self.source, self.limit)
        found = {source: read(source, None) for source in self.source}
        return mixture(found, self.source_shares, limit=self.limit)

    @abstractmethod
    def play(self, number: int) -> None:
        """Play a round."""

    def check_needs(self, loss: Loss, responses: Collection[int], *, source: str) -> None:
        """Refuse parts that do not suit each other, or the numbers of responses that prompts have."""
        callbacks = cast(Any, self.trainer).callbacks  # which the run meets after the data
        selector = next((one for one in callbacks if hasattr(type(one), "pair_utilities")), None)
        check_needs(self.run, loss, responses=responses, source=source, pair_selector=selector)

    def setup(self, stage: str) -> None:
        if self.prompts:
            return
        assert self.trainer is not None
        module = cast(WeightedDPO, self.trainer.lightning_module)
        refuse_mixed_adapters(self.run.reference, module.policy)
        if self.run.sampler.ahead and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "sampler.ahead=1 copies whole weights to the process that samples, and trainer=fsdp shards them; type "
                "trainer=ddp, or sampler.ahead=0."
            )
        with saying_once():
            self.read(module)
        read = {
            "data.train": fingerprint(self.given.get(p.id, p) for p in self.prompts),
            "data.heldout": fingerprint(self.heldout_prompts),
            "data.heldout_pairs": fingerprint(self.labeled_pairs),
        }
        self.run.open(module.policy, module.loss, self.prompts, read)

    def read(self, module: WeightedDPO) -> None:
        """Read what to train on, and what to evaluate on."""
        self.prompts = self.read_train(module)
        if self.heldout == AUTO:
            self.hold_out()
        elif self.heldout:
            self.heldout_prompts = self.reader.prompts(
                self.heldout, module.policy, limit=self.heldout_limit, judge=self.run.labels.evaluator
            )
            self.warn_of_trained_on()
        if self.heldout_pairs:
            given = self.reader.candidates(self.heldout_pairs, module.policy, limit=self.heldout_limit, heldout=True)
            self.labeled_pairs = as_pairs(given, named(self.heldout_pairs))

    def hold_out(self) -> None:
        """Take some of the prompts away from training to evaluate on; none where nobody judges their answers.

        A resumed run holds out the prompts that it held out when it began, also if another labeler judges now.
        """
        judge, count = self.run.labels.evaluator, len({question(p) for p in self.prompts})
        began = began_with(self.run.folder).get("data.heldout") if self.run.resuming else None
        wanted = judge is not None if began is None else began != fingerprint([])
        if wanted:
            held = held_out(self.prompts, self.heldout_limit)
            self.heldout_prompts = [self.reader.as_evaluated(p) for p in held]
        if judge is not None:
            judge.check_prompts(self.heldout_prompts)
        out = {question(p) for p in self.heldout_prompts}
        self.prompts = [p for p in self.prompts if question(p) not in out]
        kept = {p.id for p in self.prompts}
        self.given = {name: c for name, c in self.given.items() if name in kept}
        others = "Type data.heldout=FILE to evaluate on others"
        why = "they are too few" if wanted else "nobody judges their answers" if judge is None else "when the run began"
        said = f"none of its {count} prompts is held out, as {why}: nothing is evaluated. {others}."
        if out:
            said = f"held out to evaluate on, and not trained on: {len(out)} of its {count} prompts. {others}, or "
            said += "data.heldout=null to train on all."
        if self.trainer is not None and self.trainer.is_global_zero:
            log.warning(f"{named(self.source)}: {said}")

    def warn_of_trained_on(self) -> None:
        """Say how many held-out prompts are trained on too: the policy may have learned their answers by heart."""
        trained = {p.text for p in self.prompts}
        both = sum(p.text in trained for p in self.heldout_prompts)
        if both and self.trainer is not None and self.trainer.is_global_zero:
            log.warning(
                f"Of the {len(self.heldout_prompts)} prompts in data.heldout, {both} are in data.train too: the "
                "figures of the evaluation are partly of prompts that are trained on."
            )

    def train_dataloader(self) -> ItemBatches:
        """Play this epoch's round, then train on its items."""
        assert self.trainer is not None
        number = self.trainer.current_epoch
        for callback in cast(Any, self.trainer).callbacks:
            if hasattr(callback, "on_round_start"):
                callback.on_round_start()
        self.play(number)
        return self.run.loader(number)

    def on_exception(self, exception: BaseException) -> None:
        self.run.forget_pool()  # there is no teardown after an error
        self.run.ahead.close()

    def teardown(self, stage: str) -> None:
        self.run.close()

    def state_dict(self) -> dict[str, Any]:
        return self.run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.load_state_dict(state_dict)
