"""What training shows of itself."""

from sact_tf.progress import Progress


def test_lines_of_a_log_tell_step_and_total(capsys):
    steps = iter(range(9, 1000))
    state = {"step": 8}

    def step():
        return state["step"]

    progress = Progress(step, 20)
    for state["step"] in steps:
        progress.on_train_batch_end(0, {"loss": 0.5})
        if state["step"] == 20:
            break
    progress.on_train_end()
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 9/20 (45%), loss 0.5"
    assert last.startswith("step 20/20 (100%), ") and last.endswith(", loss 0.5")
    assert "steps/s, 0:00:00 left" in last


def test_without_an_end_there_is_no_time_left(capsys):
    progress = Progress(lambda: 3, None)
    progress.on_train_batch_end(0, None)
    progress.on_train_end()
    assert capsys.readouterr().out.splitlines() == ["step 3", "step 3"]
