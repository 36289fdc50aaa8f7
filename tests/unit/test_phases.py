"""The stopwatch of a run and what it shows, on a clock that the test winds."""

import io
import re
from types import SimpleNamespace

import pytest
import torch

from callbacks.progress import Progress
from choosy.console import Terminal
from choosy.reporting.display import PHASES, Phases


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def on_paper(clock: Clock) -> tuple[Phases, io.StringIO]:
    """Phases that print into a file."""
    phases, paper = Phases(clock=clock), io.StringIO()
    phases.show_on(Terminal(file=paper))
    return phases, paper


def test_a_phase_gets_the_seconds_it_took_and_leaves_a_line():
    clock = Clock()
    phases, paper = on_paper(clock)
    clock.now = 5.0  # between phases, counted for none
    with phases("sample", total=128, unit="prompts") as tick:
        clock.now += 2
        tick(5)
    assert phases.seconds == dict.fromkeys(PHASES, 0.0) | {"sample": 2.0}
    assert paper.getvalue() == "start  sample  5/128 prompts  2.0 s\n"


def test_an_inner_phase_pauses_the_outer_one():
    """1 s of training, 10 s of evaluation within it (3 s of them scoring), 2 s of training: 3, 7, 3."""
    clock = Clock()
    phases = Phases(clock=clock)
    with phases("train"):
        clock.now += 1
        with phases("evaluate"):
            clock.now += 4
            with phases("score"):
                clock.now += 3
            clock.now += 3
        clock.now += 2
    assert {name: s for name, s in phases.seconds.items() if s} == {"train": 3, "evaluate": 7, "score": 3}


def test_seconds_can_be_read_while_a_phase_is_open():
    clock = Clock()
    phases = Phases(clock=clock)
    with phases("train"):
        clock.now += 4
        assert phases.seconds["train"] == 4
        clock.now += 1
    assert phases.seconds["train"] == 5


def test_an_error_ends_every_open_phase():
    clock = Clock()
    phases, paper = on_paper(clock)

    def fail():
        clock.now += 2
        raise KeyError

    with pytest.raises(KeyError), phases("train"), phases("evaluate"):
        fail()
    assert paper.getvalue() == "start  evaluate  2.0 s\n"
    with phases("sample"):
        clock.now += 1
    assert (phases.seconds["train"], phases.seconds["evaluate"], phases.seconds["sample"]) == (0, 2, 1)


def test_the_seconds_survive_a_checkpoint(tmp_path):
    clock = Clock()
    phases = Phases(clock=clock)
    with phases("label"):
        clock.now += 2.5
    torch.save(phases.seconds, tmp_path / "state.pt")
    resumed = Phases(clock=clock)
    resumed.resume(torch.load(tmp_path / "state.pt", weights_only=True))
    with resumed("label"):
        clock.now += 1
    assert resumed.seconds["label"] == 3.5


def play(phases: Phases, clock: Clock) -> None:
    """The start's evaluation, and a round that is interrupted while it trains."""
    with phases("evaluate", total=64, unit="prompts") as tick:
        clock.now += 3
        tick(64)
    phases.round(1, 4)
    with phases("sample", total=128, unit="prompts") as tick:
        clock.now += 9.1
        tick(128)
    with phases("train", total=100, unit="pairs") as tick:
        clock.now += 60
        tick(40)
        with phases("select"):
            clock.now += 0.5
        with phases("score"):
            clock.now += 0.01
    phases.say("The label budget of 100 is spent; " + "training continues. " * 8)


LINES = [
    "start  evaluate  64 prompts  3.0 s",
    "round 2/4  sample  128 prompts  9.1 s",
    "round 2/4  select  0.5 s",
    "round 2/4  train  40/100 pairs  1 min 00 s",
    "The label budget of 100 is spent; " + ("training continues. " * 8).rstrip(),
]


def test_where_there_is_no_terminal_each_phase_leaves_one_line():
    clock = Clock()
    phases, paper = on_paper(clock)
    play(phases, clock)
    assert [line.rstrip() for line in paper.getvalue().splitlines()] == LINES


@pytest.fixture
def live():
    clock, screen = Clock(), io.StringIO()
    console = Terminal(file=screen, width=110, force_terminal=True, color_system=None)
    phases = Phases(clock=clock)
    phases.show_on(console)
    return SimpleNamespace(clock=clock, screen=screen, phases=phases)


def drawn(live) -> list[str]:
    """The bars as they are on the terminal now."""
    paper = Terminal(file=io.StringIO(), width=110)
    paper.print(live.phases._bars.get_renderable())
    return [line.rstrip() for line in paper.file.getvalue().splitlines()]


def test_on_a_terminal_every_open_phase_has_a_bar(live):
    live.phases.round(0, 4)
    with live.phases("evaluate", total=128, unit="prompts") as tick:
        tick(32)
        (bar,) = drawn(live)
        assert re.fullmatch(r"round 1/4 evaluate ━+[╸╺ ]?━* +32/128 prompts 0:00:00 .*", bar), bar
        with live.phases("score"):
            outer, inner = drawn(live)
            assert "evaluate" in outer
            assert re.match(r"round 1/4 score ", inner), inner
    assert drawn(live) == []


def test_on_a_terminal_each_phase_leaves_the_same_line_and_the_terminal_is_given_back(live):
    play(live.phases, live.clock)
    with pytest.raises(RuntimeError), live.phases("evaluate"):
        raise RuntimeError
    printed = live.screen.getvalue()
    for line in LINES[:-1]:
        assert printed.count(line) == 1, line
    assert printed.count("\x1b[?25h") == printed.count("\x1b[?25l") > 0  # the cursor


@pytest.fixture
def trainer():
    loss, training = SimpleNamespace(needs={"single"}), SimpleNamespace(epochs_per_round=3)
    run = SimpleNamespace(phases=Phases(clock=Clock()), pairs_this_round=6, loss=loss, training=training)
    return SimpleNamespace(datamodule=SimpleNamespace(run=run), is_global_zero=True, world_size=1)


def test_the_callback_drives_the_train_phase(trainer, capsys):
    progress = Progress()
    progress.setup(trainer, None, "fit")
    progress.on_train_epoch_start(trainer, None)
    for batch in ([1, 2, 3, 4], [5]):
        progress.on_train_batch_start(trainer, None, batch, 0)
        progress.on_train_batch_end(trainer, None, None, batch, 0)
    progress.on_train_epoch_end(trainer, None)
    assert capsys.readouterr() == ("", "start  train  5/6 responses (2 x 3)  0.0 s\n")


def test_a_run_resumed_in_the_middle_of_an_epoch_is_timed_too(trainer, capsys):
    progress = Progress()
    progress.setup(trainer, None, "fit")
    progress.on_train_batch_start(trainer, None, [1], 3)
    progress.on_train_batch_end(trainer, None, None, [1], 3)
    progress.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().err == "start  train  1/6 responses (2 x 3)  0.0 s\n"


def test_an_exception_ends_the_phase(trainer, capsys):
    progress = Progress()
    progress.setup(trainer, None, "fit")
    progress.on_train_epoch_start(trainer, None)
    progress.on_exception(trainer, None, KeyboardInterrupt())
    assert capsys.readouterr().err == "start  train  0/6 responses (2 x 3)  0.0 s\n"


def test_the_other_ranks_measure_and_show_nothing(trainer, capsys):
    trainer.is_global_zero = False
    progress = Progress()
    progress.setup(trainer, None, "fit")
    progress.on_train_epoch_start(trainer, None)
    progress.on_train_epoch_end(trainer, None)
    assert capsys.readouterr() == ("", "")
