"""A run: plays its rounds in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

from choosy.data.batches import ItemBatches, PoolItems
from choosy.data.pool import Pool, round_file
from choosy.data.shared_pool import forget_mapped, read_round
from choosy.data.table_files import damage, is_there
from choosy.errors import refuse_none
from choosy.labeling.buyer import LabelBuyer
from choosy.methods.loss_inputs import Loss, form_of
from choosy.methods.weighting import Weighting
from choosy.models.policy import Policy
from choosy.parallel.ranks import OneRank, Ranks, current_ranks
from choosy.reporting.display import Phases
from choosy.reporting.metrics import cost_metrics
from choosy.resume.partial_rounds import files_of, forget
from choosy.resume.run_folder import ledger_copy, open_folder, refuse_edited
from choosy.resume.run_lock import release
from choosy.rounds.ahead import SampleAhead
from choosy.rounds.choose import refuse_second, refuse_silent, refuse_warmup, refuse_without
from choosy.rounds.context import PairSelector, Parts, PromptSelector, Round, Sample
from choosy.rounds.edit import refuse_several
from choosy.rounds.empty import refuse_empty, why_empty
from choosy.rounds.label import buy_labels, is_spent, made_of, refuse_many, together
from choosy.rounds.label_ahead import LabelAhead
from choosy.rounds.learned_reward import LearnedReward
from choosy.rounds.record import Record
from choosy.rounds.reference import Reference, policy_share, refuse_moving
from choosy.rounds.round import play_round
from choosy.rounds.sample import Resumable, many_cut
from choosy.rounds.score import rescore_pool
from choosy.rounds.training import Training
from choosy.sampling.protocol import Sampler
from choosy.terminal import logger
from choosy.types import Prompt

log = logger(__name__)


class Run:
    """Holds the pool and the two slots, and plays each round once.

    Args:
        folder: Folder of the run; rounds are written to `rounds/` below it.
        sampler: The sampling engine.
        labels: Where labels are bought.
        weighting: The factor on each pair's loss.
        training: Which pairs each round trains on.
        seed: Seed of the run.
        rounds: Number of rounds that are planned.
        reference: The policy at the start (`initial`), as it was before each round (`previous_round`), or that policy's
            share in a mixture with the reference before (TR-DPO).
        learned_reward: Predicts rewards for the selectors that ask it; None takes its defaults.
    """

    def __init__(
        self,
        folder: str,
        *,
        sampler: Sampler,
        labels: LabelBuyer,
        weighting: Weighting,
        training: Training,
        seed: int = 0,
        rounds: int = 4,
        reference: Reference = "initial",
        learned_reward: LearnedReward | None = None,
    ) -> None:
        refuse_none("rounds", rounds)
        if sampler.ahead and rounds == 1:
            raise ValueError("sampler.ahead=1 samples the next round's prompts, and rounds=1 has none; type rounds=2.")
        self.folder = Path(folder)
        self.ahead = SampleAhead(sampler)
        self.sampler = self.ahead.sampler
        self.labels = labels
        self.weighting = weighting
        self.training = training
        self.seed = seed
        self.rounds = rounds
        self.reference, self.reference_share = reference, policy_share(reference)
        self.learned_reward = learned_reward or LearnedReward()
        refuse_moving(reference, self.learned_reward.embedder)
        self.holds_folder = False  # locked by this run, and by no command that plays it
        self.is_open = False  # the folder is this run's, whoever has locked it
        self.resuming = False  # set before the run is opened, where it continues an earlier one
        self.prompt_selector: PromptSelector | None = None
        self.pair_selector: PairSelector | None = None
        self.pool = Pool()
        self.phases = Phases()
        self.record = Record()
        self.ranks: Ranks = OneRank()
        self.read: dict[str, str] = {}  # the fingerprints of the data
        self.empty_rounds = 0  # in a row
        self.labels_before = 0, 0  # bought and reused in earlier rounds

    @property
    def rounds_folder(self) -> Path:
        """Where the rounds' files lie."""
        return self.folder / "rounds"

    def use(self, *, prompts: PromptSelector | None = None, pairs: PairSelector | None = None) -> None:
        """Give a slot its selector; a slot that has another one refuses it."""
        refuse_without("prompt_utilities", prompts)
        refuse_without("pair_utilities", pairs)
        self.learned_reward.refuse_absent(prompts, pairs)
        refuse_silent(prompts, self.labels)
        refuse_second("prompts", self.prompt_selector, prompts)
        refuse_second("pairs", self.pair_selector, pairs)
        self.prompt_selector = prompts or self.prompt_selector
        self.pair_selector = pairs or self.pair_selector

    def refuse_slots(self, responses: int, *, fresh: bool) -> None:
        """Refuse selectors that do not suit the most responses that a prompt has, or given ones (not `fresh`)."""
        if self.pair_selector is None and not self.labels.scores:
            refuse_many(responses, self.labels.labeler.name)
        if self.training.pairing == "all" or (self.pair_selector and self.pair_selector.per_prompt != 1):
            refuse_several(responses, self.labels.editor)
        if not fresh:
            refuse_warmup(self.prompt_selector)

    def open(self, policy: Policy, loss: Loss, prompts: Sequence[Prompt], read: Mapping[str, str]) -> None:
        """Open the run's folder and its ledger once all ranks have met; the policy's weights may not be loaded yet.

        `read` has the fingerprints of the data, by what is typed for them.
        """
        self.policy, self.loss = policy, loss
        self.labels.use_policy(policy)
        self.labels.check_prompts(prompts)
        self.ranks = current_ranks()
        self.sampler.refuse_ranks(self.ranks.size)
        self.read = dict(read)
        self.holds_folder = open_folder(self.folder, self.labels, self.ranks, self.read, resuming=self.resuming)
        self.is_open = True

    def close(self) -> None:
        """End the sampler of a run that is over, and give the folder free."""
        self.sampler.close()
        self.ahead.close()
        self.ahead.forget(self.rounds_folder)
        self.forget_pool()
        self.is_open = False
        if self.holds_folder:
            release(self.folder)
            self.holds_folder = False

    def forget_pool(self) -> None:
        """Delete the files that the ranks have mapped or write; those that have mapped one keep it."""
        if self.ranks.rank == 0 and self.is_open:  # else the folder may be another run's
            forget_mapped(self.rounds_folder)

    def play(self, number: int, prompts: Sequence[Prompt], sample: Sample) -> None:
        """Play a round, unless the pool has it or its file is there from before an interruption."""
        if self.pool.round >= number:
            return
        self.phases.round(number, self.rounds)
        moved = self.reference_share > 0 and number > 0
        if moved:
            self.policy.states.refer_to_current(self.reference_share)
        self.record.begin_round()
        if self.ranks.on_rank_zero(lambda: is_there(round_file(self.rounds_folder, number), self.phases.say)):
            self._adopt(number)
            return
        at = replace(self.at(number), given=sample.given)
        at = replace(at, ahead=self.ahead.finish(at, prompts, responses=sample.responses))
        if moved and len(self.pool) and "reference" in self.loss.needs:
            at = replace(at, pool=rescore_pool(at))
        self.pool = self._played(at, prompts, sample)
        counts = sum(self.ranks.gather([at.counts]), Counter[str]())
        if not sample.given:
            counts += self._full(len(prompts), sample.responses)
        self.record.count(counts, at.importance)
        if cut := many_cut(self.record.cut_share or 0.0, self.sampler.max_new_tokens):
            self.phases.say(cut)
        self.write()
        self._report_items(number)
        least = 1 if sample.given else together(sample.responses, self.labels, self.pair_selector)
        self._report_empty(number, is_spent=not self.labels.pays(least), given=bool(sample.given))

    def _full(self, prompts: int, responses: int) -> Counter[str]:
        """What a round would take that samples all prompts and labels all responses, or all their pairs."""
        labels = responses if self.labels.scores else comb(responses, 2)
        return Counter(
            full_responses=prompts * responses, full_labels=prompts * labels * self.labels.terms.labels_per_answer
        )

    def sample_ahead(self, number: int, prompts: Sequence[Prompt], *, responses: int) -> None:
        """Begin to sample a round while the one before trains, with sampler.ahead=1, where it may buy labels."""

        def is_wanted() -> bool:
            path = round_file(self.rounds_folder, number)
            spent = is_spent(responses, self.labels, self.pair_selector)
            return not spent and not (path.exists() and damage(path) is None)

        if number < self.rounds:
            selector = self.prompt_selector
            self.ahead.begin(self.at(number), prompts, selector, responses=responses, is_wanted=is_wanted)

    def _items(self, number: int, *, only_round: bool | None = None) -> PoolItems:
        """The items that a round trains on."""
        only = self.training.train_on == "round" if only_round is None else only_round
        return PoolItems(self.pool, self.loss.needs, round=number, only_round=only, neutral=self.labels.terms.neutral)

    def _report_items(self, number: int) -> None:
        """Say of which labels the round's items are made."""
        if self.ranks.rank > 0:
            return
        (spent, reused), now = self.labels_before, self.labels.counts
        self.labels_before = now.spent, now.reused
        items, new = (len(self._items(number, only_round=only)) for only in (None, True))
        if items:
            form, scored, passes = form_of(self.loss.needs), self.labels.scores, self.training.epochs_per_round
            counts = {"bought": now.spent - spent, "reused": now.reused - reused, "passes": passes}
            self.phases.say(made_of(items, new, form, **counts, scored=scored, given=self.labels.terms.given_only))

    def _report_empty(self, number: int, *, is_spent: bool, given: bool) -> None:
        """Say that a round has nothing to train on; stop after several in a row, and where no round had anything.

        With given responses a round may find that all of them are labeled, which is no fault either.
        """
        self.empty_rounds = 0 if self._items(number) else self.empty_rounds + 1
        if not self.empty_rounds:
            return
        no_item = f"no {form_of(self.loss.needs)} out of {len(self.pool)} prompts"
        all_labeled = given and not any(self.record.judged.values()) and not is_spent
        found = f"Round {number + 1} of {self.rounds} made {no_item}: {why_empty(self.record.judged, all_labeled)}"
        so_far = {"is_last": number + 1 == self.rounds, "has_trained": self.record.counts["pairs_trained"] > 0}
        refuse_empty(found, self.empty_rounds, **so_far, is_spent=is_spent, all_labeled=all_labeled, labels=self.labels)
        self.phases.say(f"{found} It trains nothing, and the run continues.")

    def at(self, number: int) -> Round:
        """Return the context of a round; -1 is the start."""
        parts = (self.policy, self.sampler, self.pool, self.ranks, self.phases, self.loss, self.learned_reward)
        return Round(
            number,
            self.seed,
            *parts,
            rounds=self.rounds,
            folder=self.rounds_folder,
            pairing=self.training.pairing_for(self.loss),
            threshold=self.training.threshold,
            neutral=self.labels.terms.neutral,
        )

    def _played(self, at: Round, prompts: Sequence[Prompt], sample: Sample) -> Pool:
        """Play a round that a crash does not lose, with labels bought during the sampling where that is possible."""
        with LabelAhead(self.labels, lambda some: buy_labels(at, some, self.labels)) as labels:
            ahead = labels if self.pair_selector is None else None  # a selector has not yet chosen what is labeled
            parts = Parts(
                sample=Resumable(sample, prompts, self.rounds_folder, ahead),
                labels=labels,
                weighting=self.weighting,
                keep=self.training.keep,
                reward_gap=self.training.reward_gap,
                prompt_selector=self.prompt_selector,
                pair_selector=self.pair_selector,
            )
            pool = play_round(at, prompts, parts)
            if labeled := labels.finish():
                self.phases.say(f"{labeled} prompts were labeled while the round was sampled.")
                at.counts["labeled_ahead"] += labeled
        return pool

    def _adopt(self, number: int) -> None:
        """Take a round from its file, which may have counted the round's training already."""
        self.pool, about = read_round(self.rounds_folder, number, self.ranks)
        self.record.read(about)
        self.learned_reward.knowledge[number] = about["learned_reward"]
        self.labels_before = about["labels"]["spent"], about["labels"]["reused"]
        self.phases.resume(about["seconds"])

    def spent_out(self, number: int, *, responses: int) -> bool:
        """Whether so many fresh responses could get no label any more, so that they are not worth sampling."""

        def nothing_left() -> bool:  # a round that was begun before, or whose file is damaged, has bought its labels
            begun = files_of(self.rounds_folder, number) or round_file(self.rounds_folder, number).exists()
            spent = is_spent(responses, self.labels, self.pair_selector)
            return spent and not begun and not self.ahead.plans(number)

        if len(self.pool) == 0 or not self.ranks.on_rank_zero(nothing_left):
            return False
        goes_on = "training continues with its pairs" if self._items(number) else "no round trains any more"
        self.phases.say(f"{self.labels.limits} is spent; {goes_on}.")
        return True

    def loader(self, number: int) -> ItemBatches:
        """Return the batches of a round's training."""
        training = self.training
        items = self._items(number)
        self.pairs_this_round = len(items) * training.epochs_per_round
        return ItemBatches(
            items,
            batch_size=training.batch_size,
            seed=self.seed,
            round=number,
            passes=training.epochs_per_round,
            rank=self.ranks.rank,
            size=self.ranks.size,
            normalize=self.weighting.normalize,
        )

    def about(self) -> dict[str, Any]:
        """What is written about the run with each round's table."""
        labels, bought, judge = self.labels, self.labels.counts, self.labels.evaluator
        return {
            "run": labels.run,
            "round": self.pool.round,
            "rounds": self.rounds,
            "seed": self.seed,
            "budget": labels.budget,
            "labels": {"spent": bought.spent, "reused": bought.reused, "evaluation": bought.evaluation},
            "labels_given": labels.terms.given_only,
            "labels_reused": labels.ledger.reused_labels(labels.run),
            **self.record.as_written(),
            "money": {"spent": bought.money, "evaluation": bought.money_evaluation, "budget": labels.budget_money},
            "seconds": dict(self.phases.seconds),
            "learned_reward": self.learned_reward.knowledge.get(self.pool.round, {}),
            "labeler": labels.knowledge,
            "parts": self.pool.part_means(),
            "sources": self.pool.source_means(),
            "judge": "" if judge is None else f"{judge.labeler.name} {judge.terms.fingerprint}",  # with its settings
        }

    def end_round(self, trained: Mapping[str, float]) -> dict[str, float]:
        """Count the round's training, write its table with the evaluation, and return the costs for the loggers.

        `trained` has means over the round's training, by the names of `reporting.summary.MEASURES`.
        """
        self.record.trained = trained
        self.record.counts["pairs_trained"] += self.pairs_this_round
        self.write()
        return cost_metrics(self.ranks.on_rank_zero(self.about))

    def write(self) -> None:
        """Write the round's file on rank 0, delete the parts that it replaces, and copy a ledger of this run alone."""
        if self.ranks.rank == 0:
            self.pool.save(self.rounds_folder, self.about(), self.record.heldout_rows)
            forget(self.rounds_folder, self.pool.round)
            if Path(self.labels.ledger.path).resolve().parent == self.folder.resolve():
                self.labels.ledger.copy(ledger_copy(self.folder))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the round, whose file holds the rest."""
        return {
            "round": self.pool.round,
            "phases": self.phases.seconds,
            "pairs_trained": self.record.counts["pairs_trained"],
            "data": self.read,
            "ahead": self.ahead.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the pool of the checkpoint's round."""
        if state["round"] >= self.rounds:
            raise ValueError(
                f"{state['round'] + 1} rounds of the run are played, and rounds={self.rounds} plans fewer; type "
                f"rounds={state['round'] + 2} or more to train on, or the same number to write its results again."
            )
        self.record.counts["pairs_trained"] = state["pairs_trained"]
        if state["round"] >= 0:
            self._adopt(state["round"])
        self.ahead.load_state_dict(state.get("ahead", {}))  # one of an earlier version has none
        self.phases.resume(state["phases"])
        refuse_edited(state["data"], self.read)
