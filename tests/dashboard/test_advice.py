import re

from conftest import configure

from bpexp.dashboard import advice


def test_advice_is_an_override_that_changes_something():
    for activation in ("relu", "sigmoid", "tanh", "selu", "identity"):
        for init in ("he", "glorot", "lecun", "zeros"):
            for verdict in ("vanishing", "exploding", "healthy"):
                for steps in (0, 200):
                    config = configure({"model.activation": activation, "init.name": init, "train.steps": steps})
                    row = {"status": "ok", "verdict": verdict, "backward_gain": 0.5, "trained": False}
                    found = advice.advice(row, config)
                    assert found
                    for line in found:
                        assert re.match(r"`[a-z_.]+=", line), line
                        assert f"init={init}`" not in line
                        assert f"activation={activation}`" not in line
