"""The procedural tool world: executable tools, requests in varied wording, exact labels, and label noise with its truth."""

from looptool_jax.world.errors import WorldError
from looptool_jax.world.execute import World, execute
from looptool_jax.world.generator import CATEGORIES, generate
from looptool_jax.world.tools import recognise

__all__ = ["CATEGORIES", "World", "WorldError", "execute", "generate", "recognise"]
