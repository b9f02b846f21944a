import jax
import pytest

from looptool_jax.parallel.compilation import keep_compiled_programs

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def settings_as_before():
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    yield
    for option, value in before.items():
        jax.config.update(option, value)


def test_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "looptool-jax")


def test_a_folder_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/chosen")
    jax.config.update("jax_compilation_cache_dir", "/chosen")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "/chosen"
