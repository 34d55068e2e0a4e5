"""The training loop: exact resume, pieces and processes that change nothing, the smoke recipe from end to end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import adversarial_recipe, official_recipe, tiny_recipe, write_clips

from cvvae_cli.checkpoint import load_model, save_model
from cvvae_cli.errors import CvvaeError, ModelError, UsageError
from cvvae_cli.training.loop import Trainer
from cvvae_cli.training.narrowing import exported_model
from cvvae_cli.training.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("training") / "clips")


def trainer(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, folder, "cpu", lambda line: None)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(run: Trainer) -> dict[str, Tensor]:
    return run.model.state_dict() | {f"average.{k}": v for k, v in run.averaged.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("make", [tiny_recipe, adversarial_recipe])
def test_a_run_killed_and_resumed_equals_one_that_was_not(clips: Path, tmp_path: Path, make: Callable[..., Recipe]) -> None:
    recipe = make(clips)
    whole = trainer(recipe, tmp_path / "whole")
    whole.run()
    killed = trainer(recipe, tmp_path / "part")
    kept, killed.save = killed.save, lambda: None

    def die(x: Tensor, numbers: list[int]) -> dict[str, float]:
        if killed.step == 3:
            kept()
            raise KeyboardInterrupt
        return Trainer.train_step(killed, x, numbers)

    killed.train_step = die
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = trainer(recipe, tmp_path / "part")
    assert resumed.step == 3
    resumed.run()
    assert_same(weights(whole), weights(resumed), 1e-6)
    one, two = logged(tmp_path / "whole"), logged(tmp_path / "part")
    assert [line["step"] for line in two] == list(range(1, 7))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-5)
    assert {line["stream"] for line in one} == {"0_video_5x32", "1_image_1x32"}


@pytest.mark.parametrize("variant", ["sd21", "sd3"])
def test_official_architectures_train_and_come_back_as_files(clips: Path, tmp_path: Path, variant: str) -> None:
    run = trainer(official_recipe(clips, variant), tmp_path / "run")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.run()
    changed = {name.split(".")[0] for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"encoder", "decoder"}
    save_model(exported_model(run), tmp_path / "a.safetensors")
    model = load_model(str(tmp_path / "a.safetensors"))
    x = torch.rand(1, 3, 5, 32, 32)
    assert model.config == run.recipe.model and model.decode(model.encode(x)[:, :4]).isfinite().all()


def test_a_failure_in_the_middle_of_a_step_keeps_the_last_whole_one(clips: Path, tmp_path: Path) -> None:
    recipe = adversarial_recipe(clips)
    whole = trainer(recipe, tmp_path / "whole")
    whole.run()
    every = replace(recipe, run=replace(recipe.run, checkpoint_every=1))
    torn = trainer(every, tmp_path / "torn")

    def fail(x: Tensor, y: Tensor) -> Tensor:
        if torn.step == 4:  # the networks of step 5 are changed already, its discriminator is not
            raise KeyboardInterrupt
        return Trainer._critic_step(torn, x, y)

    torn._critic_step = fail
    with pytest.raises(KeyboardInterrupt):
        torn.run()
    resumed = trainer(every, tmp_path / "torn")
    assert resumed.step == 4
    resumed.run()
    assert_same(weights(whole), weights(resumed), 1e-6)


def raise_in_step(run: Trainer, step: int, *numbers: signal.Signals) -> None:
    """Let signals come while a step is at work, counted from 0."""

    def train_step(x: Tensor, window_numbers: list[int]) -> dict[str, float]:
        if run.step == step:
            for number in numbers:
                signal.raise_signal(number)
        return Trainer.train_step(run, x, window_numbers)

    run.train_step = train_step


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What a harmless handler of SIGTERM has heard; Ctrl-C is Python's own, also where the tests run in the background."""
    heard: list[int] = []
    terminated = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield heard
    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGINT, interrupted)


def test_ctrl_c_ends_the_run_behind_the_step_at_hand(clips: Path, tmp_path: Path, heard: list[int]) -> None:
    run = trainer(tiny_recipe(clips), tmp_path)
    raise_in_step(run, 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == 2 and trainer(tiny_recipe(clips), tmp_path).step == 2
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_termination_is_handed_on_once_the_step_at_hand_is_saved(clips: Path, tmp_path: Path, heard: list[int]) -> None:
    run, before = trainer(tiny_recipe(clips), tmp_path), signal.getsignal(signal.SIGTERM)
    saved, kept = [], run.save
    run.save = lambda: (saved.append(list(heard)), kept())
    raise_in_step(run, 1, signal.SIGTERM)
    run.run()
    assert (saved, heard) == ([[]], [signal.SIGTERM])
    assert run.step == 2 and trainer(tiny_recipe(clips), tmp_path).step == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_asked_twice_the_run_ends_at_once(clips: Path, tmp_path: Path, heard: list[int]) -> None:
    run = trainer(tiny_recipe(clips), tmp_path)
    raise_in_step(run, 1, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.step == 1 and trainer(tiny_recipe(clips), tmp_path).step == 1 and heard == []
    again = trainer(tiny_recipe(clips), tmp_path)
    raise_in_step(again, 1, signal.SIGTERM, signal.SIGTERM)
    again.run()
    assert again.step == 2 and heard == [signal.SIGTERM] * 2  # in the step, and behind it since the handler returned


def test_an_ignored_signal_stays_ignored(clips: Path, tmp_path: Path, heard: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run = trainer(tiny_recipe(clips, steps=3), tmp_path)
    raise_in_step(run, 1, signal.SIGTERM)
    run.run()
    assert run.step == 3


def test_a_run_in_another_thread_trains_without_holding_signals(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips, steps=3), tmp_path)
    thread = threading.Thread(target=run.run)
    thread.start()
    thread.join()
    assert trainer(tiny_recipe(clips, steps=3), tmp_path).step == 3


def test_a_terminated_command_keeps_its_step_and_says_143(tmp_path: Path) -> None:
    write_clips(tmp_path / "demo")
    text = (ROOT / "recipes" / "smoke-image.toml").read_text()
    (tmp_path / "long.toml").write_text(text.replace("steps = 40", "steps = 4000"))
    command = [sys.executable, "-m", "cvvae_cli", "train", "long.toml"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("step ") for line in running.stderr)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143 and "Traceback" not in said
    state = torch.load(tmp_path / "runs" / "smoke-image" / "checkpoint.pt", weights_only=True)
    assert 10 <= state["step"] < 4000


def test_a_gradient_that_is_not_finite_changes_nothing_and_says_so(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips), tmp_path)
    kept = {name: value.clone() for name, value in weights(run).items()}
    x = torch.stack([run.streams[0].window(i) for i in range(2)])
    x[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(CvvaeError, match="Step 1 has a gradient that is not finite"):
        run.train_step(x, [0, 1])
    assert_same(kept, weights(run), 0)


def test_the_average_follows_by_its_decay(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips), tmp_path)
    name, expected = "decoder.patch_out.weight", None
    for step in range(1, 4):
        x = torch.stack([run.streams[0].window(i) for i in range(2)])
        before = run.averaged[name].clone()
        run.train_step(x, [0, 1])
        decay = min(run.recipe.optim.ema, (1 + step) / (10 + step))
        expected = decay * before + (1 - decay) * run.model.state_dict()[name]
        torch.testing.assert_close(run.averaged[name], expected)


def test_bfloat16_trains_near_float32(clips: Path, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        recipe = tiny_recipe(clips, steps=3, precision=precision)
        trainer(recipe, tmp_path / precision).run()
        losses.append([line["loss"] for line in logged(tmp_path / precision)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_pieces_of_a_batch_and_recomputed_blocks_change_nothing(clips: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clips, steps=3)
    cut = replace(recipe, optim=replace(recipe.optim, accumulate=2), run=replace(recipe.run, recompute=True))
    plain, pieces = trainer(recipe, tmp_path / "plain"), trainer(cut, tmp_path / "pieces")
    batches: dict[Trainer, list[int]] = {plain: [], pieces: []}
    inner: dict[Trainer, list[int]] = {plain: [], pieces: []}
    for run in (plain, pieces):
        encoder = run.model.encoder
        encoder.register_forward_pre_hook(lambda module, inputs, run=run: batches[run].append(len(inputs[0])))
        for block in (encoder.stage1[0], run.model.decoder.stage1[0]):
            block.conv1.register_forward_pre_hook(lambda module, inputs, run=run: inner[run].append(len(inputs[0])))
        run.run()
    assert batches == {plain: [2] * 3, pieces: [1] * 6}
    assert inner == {plain: [2] * 6, pieces: [1] * 24}, "two blocks, and each again on the way back"
    assert_same(weights(plain), weights(pieces), 2e-6)


def test_two_processes_equal_one_with_their_batches_together(clips: Path, tmp_path: Path) -> None:
    recipe = adversarial_recipe(clips, steps=4)
    alone = trainer(recipe, tmp_path / "alone")
    alone.run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path; from training_runs import adversarial_recipe; from cvvae_cli.training.loop import Trainer\n"
        "run = Trainer(adversarial_recipe(Path(sys.argv[1]), 4), sys.argv[2], 'cpu', lambda line: None)\n"
        "run.run(); run.close()"
    )
    arguments = [sys.executable, "-c", code, str(clips), str(tmp_path / "two"), str(ROOT / "tests"), str(ROOT)]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(arguments, env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    state = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert_same(alone.model.state_dict(), state["model"], 2e-5)
    assert_same(alone.critic.state_dict(), state["critic"], 2e-5)
    one, two = logged(tmp_path / "alone"), logged(tmp_path / "two")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-4)


def test_training_lowers_the_loss_on_what_it_sees(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips, steps=40), tmp_path)
    x = torch.stack([run.streams[0].window(i) for i in range(2)])
    losses = [run.train_step(x, [0, 1])["loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_run_folder_of_another_recipe_or_other_clips_is_refused(clips: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clips)
    trainer(recipe, tmp_path / "run").save()
    with pytest.raises(UsageError, match=r"run.seed \(1 and 2\) differ"):
        trainer(tiny_recipe(clips, seed=2), tmp_path / "run")
    others = write_clips(tmp_path / "others")
    next(others.iterdir()).unlink()
    with pytest.raises(UsageError, match=r"streams\[0\].sources"):
        trainer(tiny_recipe(others), tmp_path / "run")
    trainer(tiny_recipe(clips, steps=9), tmp_path / "run")  # prolonged


def test_steps_cannot_change_once_the_cosine_has_begun(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips, steps=4), tmp_path)
    run.run()
    with pytest.raises(UsageError, match="cannot change from 4 to 9 at step 4"):
        trainer(tiny_recipe(clips, steps=9), tmp_path)


def test_a_damaged_checkpoint_is_a_sentence(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips), tmp_path)
    run.save()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        trainer(tiny_recipe(clips), tmp_path)


def test_the_log_forgets_what_no_checkpoint_holds(clips: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clips, steps=4)
    run = trainer(recipe, tmp_path)
    run.save()  # of step 0; a sitting that logs and dies without a checkpoint follows
    run.folder.save = lambda state: None
    run.run()
    again = trainer(recipe, tmp_path)
    again.run()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]


def test_the_average_is_what_is_exported_and_says_how_it_was_made(clips: Path, tmp_path: Path) -> None:
    run = trainer(tiny_recipe(clips, steps=2), tmp_path)
    run.run()
    model, said = run.averaged_model(), run.provenance()
    assert torch.equal(model.state_dict()["decoder.patch_out.weight"], run.averaged["decoder.patch_out.weight"])
    assert said["steps"] == "2" and json.loads(said["recipe"])["run"]["name"] == "test" and len(said["commit"]) >= 7


def test_the_smoke_recipes_run_from_pictures_to_video_and_lower_the_loss(tmp_path: Path) -> None:
    write_clips(tmp_path / "demo")
    command = [sys.executable, "-m", "cvvae_cli", "train"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    picture = [*command, str(ROOT / "recipes" / "smoke-image.toml"), "--export", "runs/smoke-image.safetensors", "--quiet"]
    subprocess.run(picture, check=True, cwd=tmp_path, env=environment)
    subprocess.run([*command, str(ROOT / "recipes" / "smoke.toml"), "--quiet"], check=True, cwd=tmp_path, env=environment)
    lines = [line for line in logged(tmp_path / "runs" / "smoke") if line["stream"] == "0_video_5x32"]
    losses = [line["reconstruction"] + line["decoder_side"] + line["encoder_side"] for line in lines]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    assert {"kl", "temporal", "adversarial", "adaptive_weight", "critic", "psnr_db"} <= lines[-1].keys()
    assert "adversarial" not in lines[0]
    assert list((tmp_path / "runs" / "smoke" / "tensorboard").iterdir())
