"""Settings as they are compared and hashed; the environment of a run."""

from ovss_refine.folders.manifest import digest, environment, plain

SETTINGS = {"mode": "kl", "rows": ("a", "b"), "limit": None, "tau": 0.3}


def test_digest_depends_on_settings_only():
    assert digest(SETTINGS) == digest(dict(reversed(SETTINGS.items())))
    assert digest(SETTINGS) != digest({**SETTINGS, "tau": 0.31})


def test_environment_has_versions_and_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ovss-refine", "evaluate"])
    found = environment()
    assert found["command"] == ["ovss-refine", "evaluate"]
    assert {"ovss-refine", "torch", "numpy"} <= set(found["versions"])
    assert found == plain(found)
