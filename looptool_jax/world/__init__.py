"""The procedural tool world: executable tools, requests in varied wording, exact labels, label noise with its truth."""

from looptool_jax.world.corrupt import corrupt
from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World, execute
from looptool_jax.world.generator import CATEGORIES, generate
from looptool_jax.world.noise import Truth, inject
from looptool_jax.world.tools import recognise
from looptool_jax.world.validate import validate
from looptool_jax.world.variation import variation

__all__ = [
    "CATEGORIES",
    "Truth",
    "World",
    "WorldError",
    "corrupt",
    "execute",
    "generate",
    "inject",
    "recognise",
    "validate",
    "variation",
]
